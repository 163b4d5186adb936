"""Who holds a store open, told by the system: a file lock goes when its process does, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

__all__ = ["Ownership", "is_alive", "owners"]

_MARK = "-owner-"


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
        self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        while not self._path.exists():  # taken for a dead one's between the two calls above
            os.close(self._fd)
            self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        _held.add(self)

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
    """Does the owner of this name still have the store open? The file of one that has gone is removed."""
    path = store.with_name(name)
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return False
    finally:
        os.close(fd)


_held: weakref.WeakSet[Ownership] = weakref.WeakSet()


def _after_fork() -> None:
    # A child has the same open file, and would keep its parent's lock alive after the parent's death.
    for ownership in list(_held):
        ownership._let_go()


os.register_at_fork(after_in_child=_after_fork)
