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

__all__ = ["LOOK_S", "NotYet", "Writer", "shared"]

_log = logging.getLogger("furcula.store")

#: Pieces of work in one commit.
GROUP = 1024
#: Seconds until what must not be lost is tried again, and how long closing tries.
AGAIN_S = 0.5
CLOSING_S = 2.0
#: Seconds between two looks whether another process has committed something.
LOOK_S = 0.025


class NotYet:
    """What a patient piece of work returns when it found nothing to do.

    Args:
        within_s: Seconds after which it is done again, if no other commit comes before that.
    """

    __slots__ = ("within_s",)

    def __init__(self, within_s: float):
        self.within_s = within_s


class _Work:
    __slots__ = ("do", "future", "loop", "patient", "stubborn")

    def __init__(
        self,
        do: Callable[[StoreFile], Any],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        stubborn: bool,
        patient: bool,
    ):
        self.do = do
        self.loop = loop
        self.future = future
        self.stubborn = stubborn
        self.patient = patient


_News = tuple[_Work, Any, Exception | None]


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
        #: Patient work that found nothing to do, and when the first of it is to be done again.
        self._patient: list[_Work] = []
        self._patient_until = 0.0
        #: What is being done now.
        self._group: list[_Work] = []
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

    def submit(
        self, do: Callable[[StoreFile], Any], *, stubborn: bool = False, patient: bool = False
    ) -> asyncio.Future[Any]:
        """Have this done within a commit. For any event loop's thread.

        Args:
            do: What is done with the file.
            stubborn: When the store cannot be written, try again until it can.
            patient: It is done behind all others of its commit, and sees what they did. As long as it returns `NotYet`
                it is done again with every further commit, of this process or another, until it is withdrawn.

        Returns:
            A future with what `do` returned, once it is on the disk; or with the StoreError, and nothing was done.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._changed:
            if self._closing:
                raise Stopped(f"the store {self.path} is closed")
            self._work.append(_Work(do, loop, future, stubborn, patient))
            self._changed.notify()
        return future

    def withdraw(self, future: asyncio.Future[Any]) -> bool:
        """Have this patient work done no more.

        Returns:
            It had found nothing so far, and nobody but the caller will set the future. False: it is set, or will be; to
            `NotYet` if nothing is found again.
        """
        with self._changed:
            for work in [*self._work, *self._patient, *self._group]:
                if work.future is future:
                    work.patient = False
            for waiting in (self._work, self._patient):
                for work in waiting:
                    if work.future is future:
                        waiting.remove(work)
                        return True
        return False

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
            while self._wait(file):
                if self._closing:
                    file.hurry()
                self._commit(file)
                self._group = []
            file.hurry()
            self._last(file)
        finally:
            file.close()

    def _wait(self, file: StoreFile) -> bool:
        """Wait until there is something to do. False: it is time to close."""
        while True:
            with self._changed:
                if self._work or self._is_time():
                    return True
                if self._closing:
                    return False
                self._changed.wait(self._wait_s())
                if self._work or not self._patient:
                    continue
            if file.others_wrote():
                return True

    def _is_time(self) -> bool:
        now = monotonic()
        return bool((self._again and now >= self._again_at) or (self._patient and now >= self._patient_until))

    def _wait_s(self) -> float | None:
        now = monotonic()
        waits = [self._again_at - now] if self._again else []
        if self._patient:
            waits += [self._patient_until - now, LOOK_S]
        return max(0.0, min(waits)) if waits else None

    def _next(self) -> list[_Work]:
        """What waits: first what is to be tried again, last what is patient."""
        group: list[_Work] = []
        with self._changed:
            if monotonic() >= self._again_at:
                group, self._again = self._again, group
            group += [self._work.popleft() for _ in range(min(len(self._work), GROUP))]
            patient = [*self._patient, *(work for work in group if work.patient)]
            self._patient = []
            self._group = [*(work for work in group if not work.patient), *patient]
            return self._group

    def _last(self, file: StoreFile) -> None:
        until = monotonic() + CLOSING_S
        while self._again and monotonic() < until:
            group, self._again = self._again, []
            self._commit(file, group)
            if self._again:
                threading.Event().wait(0.1)
        if self._again:
            _log.error("%s: %d notes could not be written; some events will come again", self.path, len(self._again))

    def _commit(self, file: StoreFile, group: list[_Work] | None = None) -> None:
        """Do this work, or what waits, within one commit."""
        try:
            file.begin()
        except StoreError as error:
            self._refuse(group or self._next(), error)
            return
        # Only now: to begin takes a while on a busy machine, and what came meanwhile goes along.
        group = group or self._next()
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
        self._tell(self._without_patient(group, results))

    def _without_patient(self, group: list[_Work], results: list[Any]) -> list[_News]:
        """What there is to tell. Who is patient and found nothing is told nothing, and goes on waiting."""
        news: list[_News] = []
        with self._changed:
            for work, result in zip(group, results, strict=True):
                if work.patient and type(result) is NotYet:
                    until = monotonic() + result.within_s
                    self._patient_until = min(self._patient_until, until) if self._patient else until
                    self._patient.append(work)
                else:
                    news.append((work, result, None))
        return news

    def _refuse(self, group: list[_Work], error: Exception) -> None:
        again = [work for work in group if work.stubborn and isinstance(error, StoreUnavailable)]
        if again:
            _log.error("%s; it is tried again", error)
            self._again += again
            self._again_at = monotonic() + AGAIN_S
        self._tell([(work, None, error) for work in group if work not in again])

    @staticmethod
    def _tell(news: list[_News]) -> None:
        """Resolve futures, all those of one loop in one call of it."""
        loops: dict[asyncio.AbstractEventLoop, list[_News]] = {}
        for one in news:
            loops.setdefault(one[0].loop, []).append(one)
        for loop, told in loops.items():
            try:
                loop.call_soon_threadsafe(_resolve, told)
            except RuntimeError:  # the loop has gone, and nobody waits any more
                pass


def _resolve(news: list[_News]) -> None:
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
