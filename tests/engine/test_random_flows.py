"""Random flows do what the reference interpreter says, however they are run."""

from __future__ import annotations

import logging
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.engine.drawing import specs
from tests.engine.reference import UNORDERED, Expected, Spec, build, interpret

from furcula.engine.director import Director
from furcula.engine.moving import MovingLoop, run_moving
from furcula.engine.statistics import Statistics

RELAXED = settings(
    max_examples=int(os.environ.get("FURCULA_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logger = logging.getLogger("furcula.flow")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def run(spec: Spec, **settings: Any) -> tuple[dict[str, list[tuple[Any, ...]]], Statistics]:
    flow, collected = build(spec)

    async def go(loop: MovingLoop) -> Statistics:
        return await Director(flow, now=lambda: 1e9 + loop.time(), **settings).run()

    return collected, run_moving(go)


def compare(spec: Spec, collected: dict[str, list[tuple[Any, ...]]], got: Statistics) -> None:
    expected = interpret(spec)
    assert got.balanced, got
    assert got.open == 0
    assert got.total.late == 0
    assert got.total.lost == 0
    for sink, things in expected.sinks.items():
        assert Counter(collected[sink]) == Counter(things), sink
    in_order(spec, expected, collected)
    for origin, counts in expected.origins.items():
        found = got.origins.get(origin)
        for what in ("admitted", "delivered", "dropped", "failed"):
            assert (getattr(found, what) if found else 0) == counts[what], (origin, what)
    for name, counts in expected.modules.items():
        module = got.modules[name]
        for what in ("received", "born", "sent", "delivered", "dropped", "failed", "joined"):
            assert getattr(module, what) == counts[what], (name, what, module)


def in_order(spec: Spec, expected: Expected, collected: dict[str, list[tuple[Any, ...]]]) -> None:
    """Along every path whose modules keep the order, it was kept."""
    kinds = {node.name: node.kind for node in spec.nodes}
    for sink, things in expected.sinks.items():
        paths: dict[Any, list[int]] = {}
        for n, trail, failures in things:
            if not any(kinds[name.removesuffix(".side")] in UNORDERED for name in (*trail, *failures)):
                paths.setdefault((trail, failures), []).append(n)
        for path, numbers in paths.items():
            assert [n for n, trail, failures in collected[sink] if (trail, failures) == path] == numbers, (sink, path)


@RELAXED
@given(specs())
def test_fused_flows_do_what_the_reference_says(spec: Spec) -> None:
    compare(spec, *run(spec))


@RELAXED
@given(specs())
def test_with_a_queue_of_one_before_every_module_nothing_changes(spec: Spec) -> None:
    compare(spec, *run(spec, queue_everywhere=1))
