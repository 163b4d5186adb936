"""Stages in processes of their own do what one process does. Here the processes are Directors in one loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.engine.drawing import specs
from tests.engine.reference import Spec, build, interpret
from tests.engine.test_random_flows import in_order
from tests.workers.staged import module_counts, put_into_stages, run_over_lines

SOME = settings(
    max_examples=int(os.environ.get("FURCULA_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logger = logging.getLogger("furcula.flow")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@SOME
@given(specs(), st.data())
def test_random_flows_in_random_stages_do_what_the_reference_says(spec: Spec, data: st.DataObject) -> None:
    assume(all(node.kind != "timeout" for node in spec.nodes))  # the clock here is the machine's, which may be busy
    flow, collected = build(spec)
    names = st.sampled_from(["main", "b", "c"])
    put_into_stages(flow, {name: data.draw(names) for name in flow.places})

    async def go() -> Any:
        async with asyncio.timeout(60):
            return await run_over_lines(flow)

    by_stage = asyncio.run(go())
    statistics = [one for found in by_stage.values() for one in found]
    expected = interpret(spec)
    for one in statistics:
        assert one.balanced, one
        assert (one.open, one.total.late, one.total.lost, one.abandoned) == (0, 0, 0, {})
    for sink, things in expected.sinks.items():
        assert Counter(collected[sink]) == Counter(things), sink
    in_order(spec, expected, collected)
    for origin, counts in expected.origins.items():
        for what in ("admitted", "delivered", "dropped", "failed"):
            found = sum(getattr(one.origins[origin], what) for one in statistics if origin in one.origins)
            assert found == counts[what], (origin, what)
    for name, counts in expected.modules.items():
        for what in ("received", "born", "sent", "delivered", "dropped", "failed", "joined"):
            assert module_counts(statistics, name, what) == counts[what], (name, what)
