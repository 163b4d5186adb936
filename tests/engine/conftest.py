from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from furcula import Director, Event, Flow, Statistics
from furcula.engine.moving import MovingLoop, run_moving


@pytest.fixture
def quiet() -> Iterator[None]:
    """For tests in which modules fail by the hundred."""
    logger = logging.getLogger("furcula")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(level)


class Sink(list[Any]):
    """Collects the data of what comes, and the events themselves."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.append(event.data)
        self.events.append(event)


def settled(statistics: Statistics) -> Statistics:
    """Every promise about numbers holds."""
    assert statistics.balanced, statistics
    assert statistics.open == 0
    assert statistics.total.lost == 0
    assert statistics.total.late == 0
    assert not any(module.held for module in statistics.modules.values())
    return statistics


def directed(
    flow: Flow, work: Callable[[Director], Coroutine[Any, Any, Any]], **settings: Any
) -> tuple[Any, Statistics]:
    """Run `work(director)` beside a running flow, on a clock that moves; then stop. Gives answer and figures."""

    async def go(loop: MovingLoop) -> tuple[Any, Statistics]:
        async with Director(flow, now=lambda: 1e9 + loop.time(), **settings) as director:
            answer = await work(director)
        return answer, settled(director.statistics())

    return run_moving(go)


def ran(flow: Flow, **settings: Any) -> Statistics:
    """Run a flow to its end on a clock that moves."""

    async def go(loop: MovingLoop) -> Statistics:
        return settled(await Director(flow, now=lambda: 1e9 + loop.time(), **settings).run())

    return run_moving(go)
