"""Running in the background: the process that was started returns when the one that stays has told how it began."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from furcula.errors import FurculaError

__all__ = ["Began", "Telling", "detached", "log_into"]

_READ: Final = 1 << 16


class Began(msgspec.Struct, frozen=True):
    """How it began.

    Attributes:
        code: The exit code for the process that was started.
        text: What to print.
    """

    code: int
    text: str = ""


class Telling:
    """In the process that stays: tells once how it began. After that the one that was started is gone."""

    def __init__(self, fd: int):
        self._fd = fd

    def tell(self, code: int, text: str = "") -> None:
        """May be repeated; only the first one is told."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, msgspec.msgpack.encode(Began(code, text)))
            os.close(fd)


def detached(log_file: str | Path) -> Telling | Began:
    """Go on in the background, with what is printed in a file. Call it before there are threads or loops.

    The process is in a session of its own and leads none, so no terminal can become its own; its working directory
    stays, because a flow's paths are relative to it.

    Returns:
        In the process that stays: how to tell that it has begun. In the one that was started, once that is told: how.

    Raises:
        FurculaError: The log file cannot be opened.
    """
    log = _opened(log_file)
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    first = os.fork()
    if first:
        os.close(writing)
        os.close(log)
        began = _heard(reading)
        os.waitpid(first, 0)
        return began or Began(1, f"it ended before it had begun; {log_file} may say why")
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(reading)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _into(log, 1, 2)
    return Telling(writing)


def _heard(fd: int) -> Began | None:
    text = b""
    try:
        while part := os.read(fd, _READ):
            text += part
            with contextlib.suppress(msgspec.MsgspecError):  # there is more to come
                return msgspec.msgpack.decode(text, type=Began)
        return None
    finally:
        os.close(fd)


def log_into(log_file: str | Path, *, stdout: bool = False) -> None:
    """Print to this file from now on, what goes to stderr, and to stdout too if that is said.

    Called again after the file was moved away, it opens a new one: that is how logs are rotated.
    """
    _into(_opened(log_file), *((1, 2) if stdout else (2,)))


def _opened(log_file: str | Path) -> int:
    try:
        return os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise FurculaError(f"the log file {log_file} cannot be opened: {error.strerror}") from error


def _into(log: int, *fds: int) -> None:
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    for fd in fds:
        os.dup2(log, fd)
    os.close(log)
