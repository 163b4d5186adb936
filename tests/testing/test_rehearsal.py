"""`flow.test`: sources are given, sinks collect, the clock moves, and every event is accounted for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from furcula import ConfigurationError, Context, Event, Flow, Module, Retry
from furcula.errors import SourceFailed
from furcula.testing import EPOCH, Rehearsal, assert_settled, moving_clock, run_moving


class Untouchable(Module):
    """A sink that must not be opened in a test."""

    def start(self, context: Context) -> None:
        raise OSError("this is the real one")

    def process(self, event: Event) -> Event:
        return event


def shop() -> Flow:
    flow = Flow("shop")

    @flow.source
    def orders() -> Iterator[Any]:
        raise AssertionError("the real source must not run")
        yield

    @flow.module
    def price(event: Event) -> Event:
        if "sku" not in event.data:
            raise ValueError("no sku")
        event.data["price"] = 3
        return event

    orders >> price >> flow.use(Untouchable, "out")
    price.failed >> flow.use(Untouchable, "dead")
    return flow


def test_sources_are_given_and_sinks_collect() -> None:
    result = shop().test({"orders": [{"sku": "a"}, {}, {"sku": "b"}]})
    assert isinstance(result, Rehearsal)
    assert result.data("out") == [{"sku": "a", "price": 3}, {"sku": "b", "price": 3}]
    assert [event.failures[-1].message for event in result["dead"]] == ["no sku"]
    assert (result.statistics.admitted, result.statistics.delivered) == (3, 3)
    assert_settled(result.statistics)


def test_a_source_that_is_not_named_gives_nothing() -> None:
    result = shop().test()
    assert (result["out"], result["dead"], result.statistics.admitted) == ([], [], 0)


def test_the_flow_itself_is_not_changed_and_can_be_rehearsed_again() -> None:
    flow = shop()
    for _ in range(2):
        assert len(flow.test({"orders": [{"sku": "a"}]})["out"]) == 1
    assert flow["out"].subject is Untouchable


def test_a_module_is_replaced_by_a_function() -> None:
    result = shop().test({"orders": [{}]}, replace={"price": lambda event: event})
    assert result.data("out") == [{}]


def test_a_replaced_sink_is_called_and_collects_nothing() -> None:
    seen: list[Any] = []
    result = shop().test({"orders": [{"sku": "a"}]}, replace={"out": lambda event: seen.append(event.data)})
    assert len(seen) == 1
    with pytest.raises(KeyError, match="'out' is no sink that was replaced; those are dead"):
        result["out"]


def test_sources_and_sinks_may_be_kept_as_they_are() -> None:
    flow = Flow()
    seen: list[int] = []
    flow.source([1, 2], "numbers") >> flow.module(lambda event: seen.append(event.data), "keeper")
    flow.test(keep=("numbers", "keeper"))
    assert seen == [1, 2]


def test_inputs_may_be_generators_that_use_the_moving_clock() -> None:
    flow = Flow()
    flow.source([], "slow") >> flow.map(lambda data: data, "out")

    async def hourly() -> AsyncIterator[int]:
        for number in range(24):
            await asyncio.sleep(3600)
            yield number

    began = time.monotonic()
    result = flow.test({"slow": hourly}, time_limit=25 * 3600)
    assert len(result["out"]) == 24
    assert result.seconds == pytest.approx(24 * 3600)
    assert time.monotonic() - began < 10


def test_events_are_created_by_the_moving_clock() -> None:
    result = shop().test({"orders": [{"sku": "a"}]})
    assert result["out"][0].created == pytest.approx(EPOCH)


def test_back_off_takes_no_time() -> None:
    flow = Flow()
    tried: list[float] = []

    @flow.module(retry=Retry(attempts=5, delay=60, jitter=0, factor=1, max_delay=60))
    async def flaky(event: Event) -> Event:
        tried.append(asyncio.get_running_loop().time())
        if len(tried) < 5:
            raise OSError
        return event

    flow.source([], "in") >> flaky >> flow.use("null", "out")
    assert flow.test({"in": [1]}).data("out") == [1]
    assert tried == pytest.approx([0, 60, 120, 180, 240])


def test_events_given_keep_their_headers_and_are_not_changed() -> None:
    event = Event({"sku": "a"}, headers={"from": "x"})
    (out,) = shop().test({"orders": [event]})["out"]
    assert out.headers == {"from": "x"}
    assert event.data == {"sku": "a"}


def test_what_comes_back_to_a_source_that_answers_is_collected() -> None:
    flow = Flow()
    http = flow.use("inlet", "http")
    http >> flow.map(lambda n: n + 1, "work") >> http
    result = flow.test({"http": [1, 2]})
    assert result.data("http") == [2, 3]


def test_a_dead_letter_module_collects() -> None:
    flow = Flow(dead_letter="graveyard")

    @flow.module
    def refuse(event: Event) -> Event:
        raise ValueError("no")

    flow.source([], "in") >> refuse >> flow.use("null", "out")
    flow.use(Untouchable, "graveyard")
    assert flow.test({"in": [1]}).data("graveyard") == [1]


@pytest.mark.parametrize("wrong", [{"inputs": {"ordrs": []}}, {"replace": {"prize": len}}])
def test_an_unknown_name_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="there is no module"):
        shop().test(**wrong)


def test_only_sources_are_given_inputs() -> None:
    with pytest.raises(KeyError, match="'price' is not a source"):
        shop().test({"price": [1]})


def test_a_flow_that_does_not_end_is_given_up() -> None:
    flow = Flow()

    async def endless() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(1)
            yield 1

    flow.source(endless) >> flow.use("null", "out")
    with pytest.raises(TimeoutError):
        flow.test(keep=("endless",), time_limit=100)


def test_an_input_that_raises_is_reported() -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"sku": "a"}
        raise OSError("the line went dead")

    with pytest.raises(SourceFailed, match="the line went dead"):
        shop().test({"orders": broken})


def test_random_waits_are_the_same_each_time() -> None:
    def once() -> list[int]:
        flow = Flow()

        @flow.module(concurrency=8, order="none")
        async def wait(event: Event) -> Event:
            await asyncio.sleep((event.data * 7919) % 13)
            return event

        flow.source([], "in") >> wait >> flow.use("null", "out")
        return flow.test({"in": range(100)}).data("out")

    first = once()
    assert sorted(first) == list(range(100))
    assert first != list(range(100))
    assert once() == first


@moving_clock
async def test_a_coroutine_test_may_move_the_clock() -> None:
    loop = asyncio.get_running_loop()
    assert loop.time() < 1
    await asyncio.sleep(86400)
    assert loop.time() == pytest.approx(86400, abs=1)


@moving_clock
async def test_fixtures_reach_a_test_with_a_moving_clock(tmp_path: Any) -> None:
    assert tmp_path.exists()


def test_the_clock_stands_still_while_a_thread_works() -> None:
    async def run(loop: Any) -> float:
        async with asyncio.timeout(5):
            await loop.run_in_executor(None, time.sleep, 0.05)
        return float(loop.time())

    assert run_moving(run) < 5
