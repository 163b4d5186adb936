"""Ports on loopback for servers of tests.

To bind port 0, close, and use the number later is a race: until then the kernel may give it to somebody else, as a
server's port or as that of an outgoing connection. So what is handed out here lies outside the range that the kernel
gives from, and each process hands out of a block that is its own: it holds the block's first port, bound, for as long
as it lives. That also keeps apart the workers of one run of tests, two runs at once, and processes that are forked. A
process that ends gives its block back, whichever way it ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port", "outside"]

BLOCK = 128
#: Below are many ports that somebody has known for long; the tests that want one of those say so themselves.
LOWEST = 10_000
#: What the kernel gives from where it does not say: Linux begins at 32768, macOS and Windows at 49152.
ELSEWHERE = (32_768, 65_535)

#: The process that the rest is about: what a fork has copied is not its own.
_owner = 0
_claims: list[socket.socket] = []
_left: list[int] = []


def ephemeral(said: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> tuple[int, int]:
    """The first and the last port that the kernel gives who asks for any."""
    try:
        first, last = said.read_text().split()
        return int(first), int(last)
    except (OSError, ValueError):
        return ELSEWHERE


def outside(first: int, last: int) -> list[range]:
    """The blocks that have no port of that range. All, where it leaves none: looking before giving must do then."""
    blocks = [range(begin, begin + BLOCK) for begin in range(LOWEST, 65_536 - BLOCK, BLOCK)]
    return [block for block in blocks if block[-1] < first or block[0] > last] or blocks


def _claimed() -> list[int]:
    """A block for this process: all its ports but the first, which is held."""
    blocks = outside(*ephemeral())
    begin = os.getpid() % len(blocks)  # not the one that who came before us had: it may still be closing
    for block in (*blocks[begin:], *blocks[:begin]):
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", block[0]))
        except OSError:
            held.close()
            continue
        _claims.append(held)
        return list(block[1:])
    raise AssertionError("every block of ports is taken; what holds them?")


def _unused(port: int) -> bool:
    """Nobody has it, on any interface and with either protocol."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


def _numbers() -> Iterator[int]:
    global _owner
    if _owner != os.getpid():
        _owner = os.getpid()
        _claims.clear()
        _left.clear()
    while True:
        if not _left:
            _left.extend(_claimed())
        yield _left.pop(0)


def free_port() -> int:
    """A port on loopback that nobody uses now, and that nobody is given by chance; each only once in a process."""
    return next(port for port in _numbers() if _unused(port))
