"""The event loop for a process that furcula starts: uvloop's where it is installed, else asyncio's own."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["run_in_new_loop"]

T = TypeVar("T")


def run_in_new_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end in a loop made for it.

    The extra `uvloop` makes sockets and threads' results faster; `FURCULA_LOOP=asyncio` keeps to asyncio's loop where
    both are there.
    """
    # What is loaded by now stays loaded. To look through it with every full collection would hold up all events for
    # 6 ms each time.
    gc.freeze()
    # Events are not collected but counted down; the default would look through requests and tasks under way 14 times as
    # often, and find nothing.
    usual = gc.get_threshold()
    gc.set_threshold(10_000, usual[1], usual[2])
    try:
        with asyncio.Runner(loop_factory=_factory()) as runner:
            return runner.run(work)
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if os.environ.get("FURCULA_LOOP") == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
