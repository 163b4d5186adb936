"""The folder of a run, with the sockets of its workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from furcula.locks import is_held, lock_now

__all__ = ["run_folder"]

_PREFIX = "furcula-"
#: Locked by the supervisor as long as it lives. Workers have locks of their own, beside their sockets.
_LOCK = "run.lock"


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A new folder, removed at the end. Those of runs that were killed are removed now, if no worker is left there."""
    # The system's limit for the names of sockets is 107 bytes.
    place = Path("/tmp" if len(tempfile.gettempdir()) > 70 else tempfile.gettempdir())
    for other in place.glob(f"{_PREFIX}*/{_LOCK}"):
        _remove_if_dead(other.parent)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as name:
        folder = Path(name)
        # It has its name only once it is locked, so nobody takes it for a dead one's.
        lock = os.open(folder / "new", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            lock_now(lock)
            os.rename(folder / "new", folder / _LOCK)
            yield folder
        finally:
            os.close(lock)


def _remove_if_dead(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another run removes it at the same time
        if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
            return
        if not any(is_held(lock) for lock in folder.glob("*.lock")):
            shutil.rmtree(folder)
