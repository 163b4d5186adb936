"""Fixtures for pytest. An installed furcula brings them along; each claims conservation at the end of the test.

They ask for no plug-in beside pytest itself: tests that are coroutines are run by whatever runs them anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from furcula.engine.director import Director
from furcula.engine.rehearsal import Rehearsal
from furcula.run import Flow
from furcula.testing.settled import assert_settled

__all__ = ["furcula_run", "rehearse"]


@pytest.fixture
def rehearse() -> Callable[..., Rehearsal]:
    """`rehearse(flow, inputs, …)` is `flow.test(inputs, …)`, and every event it admitted is accounted for. ::

    def test_orders_are_priced(rehearse):
        assert rehearse(flow, {"orders": [{"sku": "a"}]}).data("out") == [{"sku": "a", "price": 3}]
    """

    def run(flow: Flow, inputs: Any = None, **settings: Any) -> Rehearsal:
        result = flow.test(inputs, **settings)
        assert_settled(result.statistics)
        return result

    return run


@pytest.fixture
def furcula_run() -> Iterator[Callable[..., Director]]:
    """`furcula_run(flow, …)` makes a Director; when the test ends, it must have stopped, and all must be settled. ::

    async def test_an_order_is_answered(furcula_run):
        async with furcula_run(flow) as director:
            reply = await director.ask("http", {"sku": "a"})
    """
    made: list[Director] = []

    def make(flow: Flow, **settings: Any) -> Director:
        director = Director(flow, **settings)
        made.append(director)
        return director

    yield make
    for director in made:
        name = director.flow.name
        assert director.phase in ("assembled", "stopped"), f"the flow {name} still runs ({director.phase}): stop it"
        assert_settled(director.statistics())
