"""A store as a flow uses it: from an event loop, without ever blocking it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from furcula.errors import Stopped
from furcula.store.file import Letter, StoreFile, Taken, note_closed, note_open
from furcula.store.writer import LOOK_S, NotYet, Writer, shared

__all__ = ["Store"]

T = TypeVar("T")

#: Seconds between two looks whether another process has died with something in hand.
TAKE_OVER_S = 1.0


class Store:
    """One user's hold on a store. All methods belong to the event loop in which it was opened.

    Any number of users in any number of processes of one machine may have the same file open (not over a network file
    system: SQLite needs its locks).

    Args:
        path: The file; made when it is opened.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        self._writer: Writer | None = None
        self._looker: sqlite3.Connection | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = (0, 0)
        #: Takes that the writer has not answered.
        self._taking: set[asyncio.Future[list[Taken] | NotYet]] = set()
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    async def open(self) -> None:
        """Open the file, check it, and take over what dead processes had in hand.

        Raises:
            StoreError: It cannot be used; the message says why, and what to do.
        """
        if self._writer is None:
            opening = asyncio.ensure_future(asyncio.to_thread(shared.open, self.path))
            try:
                self._writer = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_again)
                raise
            self._looker = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
            self._looked_at = note_open(self.path)

    async def close(self) -> None:
        """Write what waits to be written, and let go. What was taken and not spoken of is released. May be repeated."""
        if self._writer is not None:
            for taking in list(self._taking):
                if self._writer.withdraw(taking):
                    taking.set_exception(self._closed())
        if self._taking:  # what comes of it is given back, below
            await asyncio.wait(self._taking)
        writer, self._writer = self._writer, None
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(self._closed())
        self._waiting.clear()
        looker, self._looker = self._looker, None
        if looker is not None:
            looker.close()
            note_closed(self._looked_at)
        if writer is not None:
            await asyncio.to_thread(shared.close, writer)

    def do(self, work: Callable[[StoreFile], T], *, stubborn: bool = False) -> asyncio.Future[T]:
        """Have `work` done within a commit. See `Writer.submit`."""
        if self._writer is None:
            raise self._closed()
        return self._writer.submit(work, stubborn=stubborn)

    def _closed(self) -> Stopped:
        return Stopped(f"the store {self.path} is closed")

    # ------------------------------------------------------------------ queues

    async def put(self, channel: str, bodies: Sequence[bytes]) -> None:
        """Add bodies to a queue. On return they are on the disk."""
        await self.do(lambda file: file.put(channel, bodies))
        self.arrived(channel)

    async def take(self, channel: str, most: int, told: Callable[[int], None] | None = None) -> list[Taken]:
        """The next bodies of a queue, at least one and at most `most`. Waits for them. Cancelling loses none.

        Args:
            told: Called with how many were taken, before anything else hears of what was done in the store after that;
                and with as many less, where whoever waited was cancelled meanwhile and they are given back.
        """
        writer = self._writer
        if writer is None:
            raise self._closed()

        def take(file: StoreFile) -> list[Taken] | NotYet:
            wait_s = file.take_over_soon(TAKE_OVER_S)
            taken = file.take(channel, most)
            if taken:
                return taken
            next_at = file.visible_at(channel)
            return NotYet(max(0.001, wait_s if next_at is None else min(wait_s, next_at - time.time())))

        taking = writer.submit(take, patient=True)
        self._taking.add(taking)
        taking.add_done_callback(self._taking.discard)
        if told is not None:
            taking.add_done_callback(lambda done: told(len(_taken(done))))
        try:
            taken: list[Taken] | NotYet = await asyncio.shield(taking)
        except asyncio.CancelledError:
            if taking.done():
                self._give_back(channel, taking, told)
            elif writer.withdraw(taking):
                taking.cancel()
            else:
                taking.add_done_callback(lambda done: self._give_back(channel, done, told))
            raise
        if isinstance(taken, NotYet):
            raise self._closed()
        return taken

    def _give_back(
        self, channel: str, taking: asyncio.Future[list[Taken] | NotYet], told: Callable[[int], None] | None
    ) -> None:
        taken = _taken(taking)
        if told is not None:
            told(-len(taken))
        if taken and self._writer is not None:
            self.back(channel, [one.id for one in taken], charged=False)

    def begun(self, channel: str, last: int) -> None:
        """Note, before they are handled, that the bodies up to this one are being handled. See `StoreFile.begun`."""
        if self._writer is not None:
            self._writer.file.begun(channel, last)

    def done(self, channel: str, ids: Sequence[int]) -> asyncio.Future[None]:
        """Remove what was taken. It is written in time, also when the disk is full now; nobody needs to wait for it."""
        return self.do(lambda file: file.done(channel, ids), stubborn=True)

    def back(
        self, channel: str, ids: Sequence[int], *, delay_s: float = 0.0, charged: bool = True
    ) -> asyncio.Future[None]:
        """Give back what was taken. As `done`, nobody needs to wait for it."""
        giving = self.do(lambda file: file.back(channel, ids, delay_s=delay_s, charged=charged), stubborn=True)
        giving.add_done_callback(lambda _: self.arrived(channel))
        return giving

    async def count(self, channel: str) -> int:
        """How many bodies are in a queue, those in hand included."""
        return await self.do(lambda file: file.count(channel))

    def arrived(self, channel: str) -> None:
        """Wake those who wait for something in this queue."""
        for waiter in self._waiting.get(channel, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self, channel: str) -> None:
        """Wait until something may have changed in a queue, a second at most."""
        woken = self._wait(channel)
        try:
            self._look()
            await asyncio.wait([woken], timeout=TAKE_OVER_S)
            if woken.done():
                woken.result()
        finally:
            self._wait_no_more(channel, woken)

    def _wait(self, channel: str) -> asyncio.Future[None]:
        if self._writer is None:
            raise self._closed()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(channel, []).append(waiter)
        return waiter

    def _wait_no_more(self, channel: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiting.get(channel, [])
        if waiter in waiters:
            waiters.remove(waiter)
        waiter.cancel()
        if waiter.done() and not waiter.cancelled():
            waiter.exception()

    # ------------------------------------------------------------------ what others bring

    def _look(self) -> None:
        """See to it that somebody looks for what other processes commit, as long as anybody waits."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._keep_looking(), name="furcula store looks")

    async def _keep_looking(self) -> None:
        seen = self._version()
        while any(self._waiting.values()):
            await asyncio.sleep(LOOK_S)
            version = self._version()
            if version != seen:
                seen = version
                for channel in list(self._waiting):
                    self.arrived(channel)

    def _version(self) -> int:
        if self._looker is not None:
            with suppress(sqlite3.Error):
                (version,) = self._looker.execute("PRAGMA data_version").fetchone()
                return int(version)
        return 0

    # ------------------------------------------------------------------ dead letters

    async def bury(self, letters: Iterable[Letter]) -> None:
        """Keep letters. On return they are on the disk."""
        kept = list(letters)
        await self.do(lambda file: file.bury(kept))


def _taken(taking: asyncio.Future[list[Taken] | NotYet]) -> list[Taken]:
    if taking.cancelled() or taking.exception() is not None:
        return []
    taken = taking.result()
    return [] if isinstance(taken, NotYet) else taken


def _close_again(opening: asyncio.Future[Writer]) -> None:
    """Whoever opened it was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        writer = opening.result()
        asyncio.get_running_loop().run_in_executor(None, shared.close, writer)
