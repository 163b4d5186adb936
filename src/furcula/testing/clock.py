"""A clock that moves by itself, for tests that are coroutines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from furcula.engine.moving import run_moving

__all__ = ["moving_clock"]

P = ParamSpec("P")
T = TypeVar("T")


def moving_clock(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Run a coroutine function in a loop of its own in which nobody waits: `asyncio.sleep(3600)` returns at once.

    When nothing is ready, it is the next timer's time; `loop.time()` begins at 0. For what really waits for the outside
    (a socket, a child process) this is the wrong clock: its time limits would pass at once. ::

        @moving_clock
        async def test_it_gives_up_after_an_hour(): ...
    """

    @functools.wraps(test)
    def moved(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_moving(lambda _: test(*args, **kwargs))

    return moved
