"""The one thread that writes to a store. What waits when it is free goes into one commit: that is what makes it fast.

A commit costs a write to the disk, some 100 us to 10 ms, however much is in it. So nobody is kept waiting to fill one:
while one commit is on its way the next one fills by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from furcula.errors import FurculaError, Stopped, StoreError, StoreUnavailable
from furcula.store.file import StoreFile

__all__ = ["Writer", "shared"]

_log = logging.getLogger("furcula.store")

#: Pieces of work in one commit.
GROUP = 256
#: Seconds until what must not be lost is tried again, and how long closing tries.
AGAIN_S = 0.5
CLOSING_S = 2.0


class _Work:
    __slots__ = ("do", "future", "loop", "stubborn")

    def __init__(
        self,
        do: Callable[[StoreFile], Any],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        stubborn: bool,
    ):
        self.do = do
        self.loop = loop
        self.future = future
        self.stubborn = stubborn


class Writer:
    """Writes for everybody in this process who has the store open.

    Args:
        path: The store.
    """

    def __init__(self, path: Path):
        self.path = path
        self.users = 0
        self._changed = threading.Condition()
        self._work: deque[_Work] = deque()
        self._again: list[_Work] = []
        self._again_at = 0.0
        self._closing = False
        #: Once it is opened. Of it, `begun` alone is for other threads.
        self.file: StoreFile
        self._opened: threading.Event = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"furcula store {path.name}", daemon=True)
        self._thread.start()

    def opened(self) -> None:
        """Wait until the file is open. Blocks.

        Raises:
            StoreError: It cannot be opened.
        """
        self._opened.wait()
        if self._error is not None:
            raise self._error

    def submit(self, do: Callable[[StoreFile], Any], *, stubborn: bool = False) -> asyncio.Future[Any]:
        """Have this done within a commit. For any event loop's thread.

        Args:
            do: What is done with the file.
            stubborn: When the store cannot be written, try again until it can.

        Returns:
            A future with what `do` returned, once it is on the disk; or with the StoreError, and nothing was done.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._changed:
            if self._closing:
                raise Stopped(f"the store {self.path} is closed")
            self._work.append(_Work(do, loop, future, stubborn))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Do what waits, close the file, end the thread. Blocks; may be repeated."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            file = StoreFile(self.path)
        except BaseException as error:
            self._error = error
            self._opened.set()
            return
        self.file = file
        self._opened.set()
        try:
            while group := self._next():
                if self._closing:
                    file.hurry()
                self._commit(file, group)
            file.hurry()
            self._last(file)
        finally:
            file.close()

    def _next(self) -> list[_Work]:
        """What waits, as soon as something does; nothing when it is time to close."""
        with self._changed:
            while True:
                if self._again and monotonic() >= self._again_at:
                    group, self._again = self._again, []
                    return group
                if self._work:
                    return [self._work.popleft() for _ in range(min(len(self._work), GROUP))]
                if self._closing:
                    return []
                self._changed.wait(max(0.0, self._again_at - monotonic()) if self._again else None)

    def _last(self, file: StoreFile) -> None:
        until = monotonic() + CLOSING_S
        while self._again and monotonic() < until:
            group, self._again = self._again, []
            self._commit(file, group)
            if self._again:
                threading.Event().wait(0.1)
        if self._again:
            _log.error("%s: %d notes could not be written; some events will come again", self.path, len(self._again))

    def _commit(self, file: StoreFile, group: list[_Work]) -> None:
        try:
            file.begin()
        except StoreError as error:
            self._refuse(group, error)
            return
        try:
            results = [work.do(file) for work in group]
            file.commit()
        except Exception as error:
            file.roll_back()
            if len(group) > 1:  # one of them spoilt it for the others, or all together are too much
                for work in group:
                    self._commit(file, [work])
            else:
                self._refuse(group, file.explained(error) if isinstance(error, sqlite3.Error) else error)
            return
        self._tell([(work, result, None) for work, result in zip(group, results, strict=True)])

    def _refuse(self, group: list[_Work], error: Exception) -> None:
        again = [work for work in group if work.stubborn and isinstance(error, StoreUnavailable)]
        if again:
            _log.error("%s; it is tried again", error)
            self._again += again
            self._again_at = monotonic() + AGAIN_S
        self._tell([(work, None, error) for work in group if work not in again])

    @staticmethod
    def _tell(news: list[tuple[_Work, Any, Exception | None]]) -> None:
        """Resolve futures, all those of one loop in one call of it."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Work, Any, Exception | None]]] = {}
        for one in news:
            loops.setdefault(one[0].loop, []).append(one)
        for loop, told in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, told)
            except RuntimeError:  # the loop has gone, and nobody waits any more
                pass


def _resolve(news: list[tuple[_Work, Any, Exception | None]]) -> None:
    for work, result, error in news:
        if work.future.done():  # whoever waited was cancelled
            continue
        if error is None:
            work.future.set_result(result)
        else:
            # An exception is one object for a whole group; each waiter raises its own.
            work.future.set_exception(type(error)(str(error)) if isinstance(error, FurculaError) else error)


_writers: dict[Path, Writer] = {}
_lock = threading.Lock()


class shared:
    """One writer for each file in a process: who has the same store open shares its commits."""

    @staticmethod
    def open(path: Path) -> Writer:
        """The writer of this store, opened. Blocks while it is being opened."""
        with _lock:
            writer = _writers.get(path)
            if writer is None or writer._closing or writer._error is not None:
                writer = _writers[path] = Writer(path)
            writer.users += 1
        try:
            writer.opened()
        except BaseException:
            shared.close(writer)
            raise
        return writer

    @staticmethod
    def close(writer: Writer) -> None:
        """Say that one user has done with it; the last one closes it. Blocks."""
        with _lock:
            writer.users -= 1
            last = writer.users == 0
            if last and _writers.get(writer.path) is writer:
                del _writers[writer.path]
        if last:
            writer.close()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _writers.clear()  # their threads stayed with the parent


os.register_at_fork(after_in_child=_after_fork)
