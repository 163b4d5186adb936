"""Stages in processes of their own do what one process does. Here the processes are Directors in one loop."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.engine.drawing import specs
from tests.engine.reference import Spec, build, interpret
from tests.engine.test_random_flows import in_order
from tests.workers.staged import module_counts, put_into_stages, run_over_lines

from furcula import Event, Flow
from furcula.engine.director import Director
from furcula.engine.parts import share_of
from furcula.engine.statistics import summed
from furcula.errors import InputError
from furcula.workers.lines import Lines

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
    total = summed(statistics, once=True)
    for what in ("admitted", "delivered", "dropped", "failed"):
        assert getattr(total, what) == sum(counts[what] for counts in expected.origins.values()), what
    for name, counts in expected.modules.items():
        for what in ("received", "born", "sent", "delivered", "dropped", "failed", "joined"):
            assert module_counts(statistics, name, what) == counts[what], (name, what)


async def test_what_bytes_cannot_say_fails_where_it_would_leave() -> None:
    flow, got, refused = Flow("bytes"), [], []  # type: ignore[var-annotated]

    def made(event: Event) -> Event:
        if event.data == 3:
            event.data = object()
        return event

    made_ = flow.module(made)
    flow.source(range(6), "source") >> made_ >> flow.module(lambda event: got.append(event.data), "sink", stage="b")
    made_.failed >> flow.module(lambda event: refused.append(event.failures[-1].message), "refused")
    statistics = await run_over_lines(flow)
    assert got == [0, 1, 2, 4, 5]
    assert "cannot leave the process" in refused[0]
    assert "object" in refused[0]
    assert (statistics["main"][0].modules["made"].failed, statistics["main"][0].total.open) == (1, 0)


async def test_what_another_stage_still_has_at_the_deadline_is_named() -> None:
    flow = Flow("late")

    async def slow(event: Event) -> Event:
        await asyncio.sleep(1000)
        return event

    flow.source(range(100), "source") >> flow.module(slow, queue=1, stage="b") >> flow.module(print, "sink")
    with tempfile.TemporaryDirectory() as folder:
        counts = {"main": 1, "b": 1}
        main, other = (Director(flow, stage=stage, joints=Lines(Path(folder), stage, 0, counts)) for stage in counts)
        async with main, other:
            while other.statistics().modules["slow"].received == 0:
                await asyncio.sleep(0.01)
            statistics = await main.stop(0.05)
            assert statistics.origins["source"].reasons == {"failed abandoned": 100}
            assert statistics.abandoned == {"slow": 100}
            await other.stop(0)


async def test_a_full_stage_makes_the_source_of_another_wait() -> None:
    flow, given = Flow("full"), []  # type: ignore[var-annotated]
    go = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        for number in range(50_000):
            given.append(number)
            yield number
            await asyncio.sleep(0)

    async def gated(event: Event) -> None:
        await go.wait()

    flow.source(source) >> flow.module(gated, queue=10, stage="b")

    async def look(directors: dict[str, list[Director]]) -> None:
        before = -1
        while len(given) != before:
            before = len(given)
            await asyncio.sleep(0.3)
        assert len(given) < 20_000
        go.set()

    statistics = await run_over_lines(flow, meanwhile=look)
    assert statistics["b"][0].modules["gated"].delivered == 50_000


async def test_large_events_cross_in_parcels_that_are_not_too_large() -> None:
    flow, got = Flow("large"), []  # type: ignore[var-annotated]

    def source() -> Iterator[str]:
        for number in range(60):
            yield f"{number} " + "x" * 3_000_000

    def note(event: Event) -> None:
        got.append(int(event.data.split()[0]))

    flow.source(source) >> flow.module(note, stage="b")
    await run_over_lines(flow)
    assert got == list(range(60))


async def test_an_event_that_cannot_be_read_again_fails_alone() -> None:
    flow, got = Flow("unreadable"), []  # type: ignore[var-annotated]

    @dataclasses.dataclass(frozen=True)
    class Key:
        name: str

    def source() -> Iterator[Any]:
        for number in range(50):
            yield {Key("a"): number} if number == 7 else {"n": number}

    flow.source(source) >> flow.module(lambda event: got.append(event.data["n"]), "sink", stage="b")
    statistics = await run_over_lines(flow)
    assert got == [number for number in range(50) if number != 7]
    assert statistics["main"][0].origins["source"].reasons == {"failed InputError": 1}


def test_equal_keys_belong_together_and_what_has_no_bytes_of_its_own_is_no_key() -> None:
    assert len({share_of(key, 1000) for key in (1, 1.0, True)}) == 1
    assert share_of((1, "a"), 1000) == share_of((1.0, "a"), 1000)
    assert share_of(frozenset("abcdef"), 1000) == share_of(frozenset("fedcba"), 1000)
    with pytest.raises(InputError, match=r"an? object cannot be a key between stages"):
        share_of(object(), 1000)
