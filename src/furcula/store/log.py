"""Reads SQLite's write-ahead log as bytes, to tell a commit that a crash has cut off from one that was damaged later.

SQLite itself takes a log up to the first page that is not whole and forgets the rest without a word. That is right for
the one commit during which the machine stopped: nobody was told that it had succeeded. It would be a silent loss for
commits behind that one, each of which was on the disk before the next began.

The format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

__all__ = ["LogState", "read_log"]

_HEADER = struct.Struct(">IIIIIIII")
_FRAME = struct.Struct(">IIIIII")
_MAGIC = (0x377F0682, 0x377F0683)
_MASK = 0xFFFFFFFF


class LogState(msgspec.Struct, frozen=True):
    """What stands in a log.

    Attributes:
        pages: Pages up to and including the last whole commit.
        torn: Pages of the same log behind them.
        torn_commits: Commits that end among the torn pages. A crash cuts off one at most; more are damage.
        header_torn: The log has pages and no readable header.
    """

    pages: int = 0
    torn: int = 0
    torn_commits: int = 0
    header_torn: bool = False


def read_log(path: Path) -> LogState:
    """Look at the write-ahead log at `path`; one that is missing or empty has no pages."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return LogState()
    return log_state(raw)


def log_state(raw: bytes) -> LogState:
    """What stands in the bytes of a log."""
    if len(raw) <= _HEADER.size:
        return LogState()
    magic, _, page_size, _, salt_1, salt_2, sum_1, sum_2 = _HEADER.unpack_from(raw)
    order = ">" if magic & 1 else "<"
    sums = _checksum(raw[:24], order, (0, 0))
    if magic not in _MAGIC or sums != (sum_1, sum_2) or not 512 <= page_size <= 65536:
        return LogState(header_torn=any(raw[_HEADER.size :]))
    whole = committed = torn = torn_commits = 0
    valid = True
    for at in range(_HEADER.size, len(raw) - _FRAME.size + 1, _FRAME.size + page_size):
        _, size_after_commit, one, two, sum_1, sum_2 = _FRAME.unpack_from(raw, at)
        if (one, two) != (salt_1, salt_2):
            if valid or not torn:  # pages of an older log, which this one has not yet written over
                break
            continue
        if valid:
            page = raw[at + _FRAME.size : at + _FRAME.size + page_size]
            if len(page) == page_size:
                sums = _checksum(page, order, _checksum(raw[at : at + 8], order, sums))
            if len(page) == page_size and sums == (sum_1, sum_2):
                whole += 1
                if size_after_commit:
                    committed = whole
                continue
            valid = False
        torn += 1
        torn_commits += size_after_commit != 0
    return LogState(committed, torn + whole - committed, torn_commits)


def _checksum(raw: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(raw) // 4}I", raw)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & _MASK
        two = (two + odd + one) & _MASK
    return one, two
