"""Locks on files, which the system gives back when their process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["is_held", "lock_now"]


def lock_now(fd: int) -> bool:
    """Lock an open file for this process alone, unless another has it: then False, at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_held(path: str | Path) -> bool:
    """Has a process, this one among them, the file locked?

    Raises:
        OSError: It cannot be opened; FileNotFoundError where it is not there.
    """
    # Where others may put things, it could be a pipe, on which opening waits for whoever writes.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # Shared, so that two who look at the same time do not take each other for its owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
