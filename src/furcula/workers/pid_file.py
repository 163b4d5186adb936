"""A file with the number of the process that runs, so that others can find it and no second one begins."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from furcula.errors import FurculaError
from furcula.locks import is_held, lock_now

__all__ = ["PidFile", "is_alive", "read_pid", "running_pid"]

#: Who looks whether the file is locked has a lock for a moment, too: it is waited for.
LOOKED_AT_S = 0.1


class PidFile:
    """The file, for the time of the block.

    It is locked too: the lock goes with its process, so a file that was left behind by a crash is known for stale
    whichever process has its number by now.

    Args:
        path: Its path.

    Raises:
        FurculaError: A process has it, or it cannot be written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._fd = -1

    def __enter__(self) -> PidFile:
        try:
            self._fd = self._taken()
        except OSError as error:
            raise FurculaError(f"the pid file {self.path} cannot be written: {error.strerror or error}") from error
        return self

    def _taken(self) -> int:
        patience = time.monotonic() + LOOKED_AT_S
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                while not lock_now(fd):
                    if time.monotonic() > patience:
                        raise self._refused(fd)
                    time.sleep(LOOKED_AT_S / 20)
                if self._is_current(fd):
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # whoever had it has just removed it
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.stat(self.path).st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            return False

    def _refused(self, fd: int) -> FurculaError:
        pid = _number(os.pread(fd, 32, 0))
        who = f"process {pid}" if pid is not None else "another process"
        return FurculaError(
            f"{self.path} says that it runs already, as {who}; end that with `furcula stop {self.path}`, or choose "
            f"another --pid-file"
        )

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                if self._is_current(self._fd):
                    os.unlink(self.path)
            os.close(self._fd)
            self._fd = -1


def read_pid(path: str | Path) -> int:
    """The process that a pid file names.

    Raises:
        FurculaError: There is no such file, or no number in it.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise FurculaError(f"{path}: {error.strerror}: is there a run with this --pid-file?") from error
    pid = _number(text)
    if pid is None:
        raise FurculaError(f"{path} has no process number in it")
    return pid


def running_pid(path: str | Path) -> int:
    """The process that a pid file names, and that has it locked.

    Raises:
        FurculaError: There is no such file, no number in it, or the process that wrote it has ended.
    """
    pid = read_pid(path)
    if not _is_locked(path):
        raise FurculaError(
            f"{path} is stale: the run that wrote it has ended, and process {pid}, if there is one, is something else"
        )
    if not is_alive(pid):  # its workers have the lock until they end
        raise FurculaError(f"{path} names process {pid}, which is not there any more")
    return pid


def _is_locked(path: str | Path) -> bool:
    try:
        return is_held(path)
    except OSError as error:
        raise FurculaError(f"{path}: {error.strerror}: is there a run with this --pid-file?") from error


def _number(text: bytes) -> int | None:
    text = text.strip()
    return int(text) if text.isdigit() and 0 < int(text) < 1 << 31 else None


def is_alive(pid: int) -> bool:
    """Is there such a process? One that has ended and was not yet waited for is none."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")
