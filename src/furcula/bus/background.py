"""One event loop in a thread of its own, on which the blocking forms of a process run.

Made on first use. A forked child has no threads but the one that forked, so it makes its own. At the end of the
process, also of one that `multiprocessing` made, what is still open is closed, and with that flushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from multiprocessing.util import Finalize
from typing import Any, Protocol, TypeVar

__all__ = ["Background", "background"]

T = TypeVar("T")

#: At the end of the process, all that is open has together so many seconds to flush.
END_S = 10.0


class Closable(Protocol):
    def close(self, *, timeout: float | None) -> None: ...


class Background:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        #: What has to be closed before the process ends.
        self.open: weakref.WeakSet[Closable] = weakref.WeakSet()
        self._thread = threading.Thread(target=self._run, name="furcula-bus", daemon=True)
        self._thread.start()
        # Not atexit: that is not called in the children of multiprocessing, this is in both.
        Finalize(None, self.end, exitpriority=100)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run it on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def result(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run it on the loop and wait for what it gives. Ctrl-C ends the waiting, and cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking form was called on the loop that serves it")
        future = self.submit(work)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def end(self) -> None:
        """Close all that is open, within `END_S` seconds together, and end the loop. Called as the process ends."""
        if self.pid != os.getpid() or not self._thread.is_alive():
            return
        deadline = time.monotonic() + END_S
        for one in list(self.open):
            with contextlib.suppress(Exception):
                one.close(timeout=max(0.0, deadline - time.monotonic()))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(max(1.0, deadline - time.monotonic()))


_present: Background | None = None
_guard = threading.Lock()


def background() -> Background:
    """The one of this process."""
    global _present
    with _guard:
        if _present is None or _present.pid != os.getpid():
            if _present is not None:
                _inherited.append(_present)
            _present = Background()
        return _present


#: Of the parent of a fork: never touched, and kept, so that its loop is not closed by being collected.
_inherited: list[Background] = []


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
