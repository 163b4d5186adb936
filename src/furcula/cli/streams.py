"""The standard streams of a command, which may be closed or broken from the start: under a daemon, on a full disk."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys

__all__ = ["secure_streams"]


def secure_streams() -> None:
    """Keep what becomes of standard error, or of a stream that is closed, from changing what the command does.

    A number from 0 to 2 that is not open would be given to the next socket, and what is printed would go there.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
            os.set_inheritable(fd, True)
    if sys.stderr is None:  # whoever logs may print there; a closed standard output stays an error of who writes to it
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115 -- for as long as we run
    atexit.register(_forget_unwritten)


def _forget_unwritten() -> None:
    """Python would write what is left at exit, and make 120 of the exit status where it cannot."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stderr.fileno())
            os.close(nowhere)
