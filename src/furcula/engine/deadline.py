"""How long a stop waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Deadline"]


class Deadline:
    """The moment at which a stop waits no longer. Without a limit it waits for as long as it takes.

    Attributes:
        forced: Was the end forced by a second signal? Then hooks are not waited for either.
    """

    def __init__(self) -> None:
        self.forced = False
        self._passed = asyncio.Event()
        self._forced = asyncio.Event()
        self._timers: list[asyncio.TimerHandle] = []

    @property
    def passed(self) -> bool:
        return self._passed.is_set()

    def limit(self, seconds: float) -> None:
        """Wait for so long from now on. A limit that was set before stays, so it can only become shorter."""
        if seconds <= 0:
            self._passed.set()
        else:
            self._timers.append(asyncio.get_running_loop().call_later(seconds, self._passed.set))

    def lift(self) -> None:
        """All is done in time: what is left to do is not cut short."""
        for timer in self._timers:
            timer.cancel()

    def force(self) -> None:
        """It is now, for hooks too."""
        self.forced = True
        self._passed.set()
        self._forced.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()` is true, looking after each turn of the loop, and less often when nothing moves."""
        pause = 0.0
        while not holds() and not self.passed:
            if pause < 0.001:
                await asyncio.sleep(0)
                pause += 0.0001
            else:
                await self.unless_passed(asyncio.sleep(pause))
                pause = min(pause * 1.5, 0.02)

    async def unless_passed(self, work: Awaitable[Any]) -> None:
        """Await `work`, but not beyond the deadline; then it is cancelled. What it raises stays in it."""
        await _unless(self._passed, work)

    async def unless_forced(self, work: Awaitable[Any]) -> None:
        """The same, but only a second signal cuts it short."""
        await _unless(self._forced, work)


async def _unless(limit: asyncio.Event, work: Awaitable[Any]) -> None:
    doing = asyncio.ensure_future(work)
    expiry = asyncio.ensure_future(limit.wait())
    try:
        await asyncio.wait([doing, expiry], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (doing, expiry):
            if not task.done():
                task.cancel()
        await asyncio.gather(doing, expiry, return_exceptions=True)
