"""An event loop whose clock jumps: when nothing is ready and nothing outside is awaited, it is at once the next timer's
time. So a flow that waits for hours is tested in milliseconds, and every test sees the same times."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["MovingLoop", "run_moving"]

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Never sleeps for a timer's sake: it looks what is ready, and lets the loop's clock jump instead."""

    loop: MovingLoop

    def select(self, timeout: float | None = None) -> Any:
        loop = self.loop
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if loop.threads or timeout is None:
            # A thread is at work, or there is no timer at all: wait for the outside, for real, but not for ever.
            ready = super().select(0.05 if timeout is None else min(0.005, timeout))
            if ready or timeout is None or loop.threads:
                return ready
        loop.advance(timeout)
        return ready


class MovingLoop(asyncio.SelectorEventLoop):
    """See the module's first sentence. `loop.time()` starts at 0.

    While a function runs in an executor the clock stands still, as long as its future is known to the loop.
    """

    def __init__(self) -> None:
        selector = _JumpingSelector()
        selector.loop = self
        self._moved = 0.0
        #: Threads at work whose results are awaited.
        self.threads = 0
        super().__init__(selector)

    def time(self) -> float:
        return self._moved

    def advance(self, seconds: float) -> None:
        """Move the clock on. Timers that are due then run in the next turn."""
        # The least step that the loop's own resolution sees.
        self._moved += max(seconds, 1e-9)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1

        def done(_: Any) -> None:
            self.threads -= 1

        future.add_done_callback(done)
        return future

    async def shutdown_default_executor(self, *limit: Any) -> None:
        """As the loop's own, which from Python 3.12 on would wait by a clock that jumps."""
        self.threads += 1
        try:
            await super().shutdown_default_executor(*limit)
        finally:
            self.threads -= 1


def run_moving(make: Callable[[MovingLoop], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a loop of its own whose clock moves by itself."""

    loop = MovingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(make(loop))
