"""A small engine's end for testing modules by themselves: it keeps what they admit, and settles when told to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from furcula.errors import Stopped
from furcula.event import Event
from furcula.receipt import Origin, Receipt, Slot

LIMIT_S = 20


class Bench:
    """Implements `furcula.module.Context`.

    Attributes:
        admitted: All events by outbox.
        slots: The open slots of those that were admitted with `settled`, in order.
        room: Cleared: `admit` answers with something to wait for.
    """

    def __init__(self, folder: Path, now: Callable[[], float] = time.time):
        self.name = "bench"
        self.folder = folder
        self.log = logging.LoggerAdapter(logging.getLogger("furcula.module.bench"), {})
        self.admitted: dict[str, list[Event[Any]]] = {}
        self.slots: list[Slot] = []
        self.ended = asyncio.Event()
        self.stopped = False
        self.room = asyncio.Event()
        self.room.set()
        self.origin = Origin("bench")
        self.now = now
        self._more = asyncio.Event()

    def admit(
        self,
        events: Iterable[Any],
        outbox: str = "outbox",
        *,
        settled: Callable[[Slot], None] | None = None,
    ) -> Awaitable[None] | None:
        if self.stopped:
            raise Stopped("the bench has stopped")
        for item in events:
            event = item if isinstance(item, Event) else Event(item)
            self.admitted.setdefault(outbox, []).append(event)
            if settled is not None:
                self.slots.append(Slot((Receipt(self.origin, 1),), settled=settled))
        self._more.set()
        return None if self.room.is_set() else self._wait()

    async def _wait(self) -> None:
        await self.room.wait()

    def emit(self, events: Iterable[Any], outbox: str = "outbox") -> Awaitable[None] | None:
        return self.admit(events, outbox)

    def finished(self) -> None:
        self.ended.set()

    def settle(self, count: int, fate: Any = "delivered", reason: str = "") -> None:
        """Settle the first `count` open slots."""
        now, self.slots = self.slots[:count], self.slots[count:]
        for slot in now:
            slot.settle(fate, 1, reason)

    def datas(self, outbox: str = "outbox") -> list[Any]:
        return [event.data for event in self.admitted.get(outbox, ())]

    async def until(self, count: int, outbox: str = "outbox") -> list[Any]:
        """Wait until so many events have been admitted; returns their data."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.admitted.get(outbox, ())) < count:
                self._more.clear()
                await self._more.wait()
        return self.datas(outbox)

    async def until_ended(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.ended.wait()


async def turns(count: int = 5) -> None:
    """Let the loop turn: what is ready is done."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what only can be looked at (a file, a counter)."""
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            await asyncio.sleep(0.002)


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
async def moved(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench in a loop in which nobody waits: when nothing is ready, the time is that of the next timer.

    The loop's clock begins at 0, the flow's at 1,000,000,000.
    """
    loop: Any = asyncio.get_running_loop()
    time_s = 0.0
    run_once = loop._run_once

    def run_once_without_waiting() -> None:
        nonlocal time_s
        timers = [timer.when() for timer in loop._scheduled if not timer.cancelled()]
        if not loop._ready and timers:
            time_s = max(time_s, min(timers))
        run_once()

    loop.time, loop._run_once = lambda: time_s, run_once_without_waiting
    yield Bench(tmp_path, lambda: 1_000_000_000 + time_s)
    del loop.time, loop._run_once
