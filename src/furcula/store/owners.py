"""Who holds a store open, told by the system: a file lock goes when its process does, however it ends.

The locked file also says how far its owner had come with what it took. It is written without a commit: what a process
has written is there after its death, if not after the machine's, and then it was not an event that killed it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import weakref
from hashlib import blake2b
from pathlib import Path

from furcula.locks import is_held, lock_now

__all__ = ["Ownership", "begun_by", "channel_mark", "is_alive", "owners", "remove"]

_MARK = "-owner-"
_RECORD = struct.Struct("<QQ")


def channel_mark(channel: str) -> int:
    """What stands for a channel in an owner's file."""
    return int.from_bytes(blake2b(channel.encode(), digest_size=8).digest(), "little") or 1


class Ownership:
    """A lock on a small file beside the store, for as long as this process has the store open.

    Attributes:
        number: What stands in the store at what this owner has in hand.
        name: The file's name, by which others ask whether this owner is still there.
    """

    def __init__(self, store: Path):
        self.number = int.from_bytes(os.urandom(7), "big") + 1
        self.name = f"{store.name}{_MARK}{self.number:x}"
        self._path = store.with_name(self.name)
        self._slots: dict[str, tuple[int, int]] = {}
        self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        while not self._path.exists():  # taken for a dead one's between the two calls above
            os.close(self._fd)
            self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        _held.add(self)

    def begun(self, channel: str, last: int) -> None:
        """Note that everything up to this row of a queue, as far as it is in hand, is being handled from now on."""
        slot, so_far = self._slots.setdefault(channel, (len(self._slots), 0))
        if last > so_far and self._fd >= 0:
            self._slots[channel] = (slot, last)
            os.pwrite(self._fd, _RECORD.pack(channel_mark(channel), last), slot * _RECORD.size)

    def release(self) -> None:
        """Give the lock up. May be repeated."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._let_go()

    def _let_go(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def owners(store: Path) -> list[str]:
    """The names of those who have, or had, the store open."""
    return [entry.name for entry in os.scandir(store.parent) if entry.name.startswith(f"{store.name}{_MARK}")]


def is_alive(store: Path, name: str) -> bool:
    """Does the owner of this name still have the store open?"""
    try:
        return is_held(store.with_name(name))
    except FileNotFoundError:
        return False


def begun_by(store: Path, name: str) -> dict[int, int]:
    """How far an owner had come: by the mark of a channel, the last row that was being handled."""
    try:
        raw = store.with_name(name).read_bytes()
    except FileNotFoundError:
        return {}
    whole = len(raw) - len(raw) % _RECORD.size
    return dict(_RECORD.iter_unpack(raw[:whole]))


def remove(store: Path, name: str) -> None:
    """Remove the file of an owner that has gone; it stays if somebody has it after all."""
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(store.with_name(name), os.O_RDWR | os.O_CLOEXEC)
        try:
            # Only with the lock: one that has just been made is locked, or about to be, and looked at after that.
            if lock_now(fd):
                os.unlink(store.with_name(name))
        finally:
            os.close(fd)


_held: weakref.WeakSet[Ownership] = weakref.WeakSet()


def _after_fork() -> None:
    # A child has the same open file, and would keep its parent's lock alive after the parent's death.
    for ownership in list(_held):
        ownership._let_go()


os.register_at_fork(after_in_child=_after_fork)
