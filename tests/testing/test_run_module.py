"""One module alone: every kind of module, every port, and no event unaccounted for."""

from __future__ import annotations

import asyncio
import gc
import re
import textwrap
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest

from furcula import ConfigurationError, Context, Event, Flow, Module, Options, Retry, Source
from furcula.errors import SourceFailed
from furcula.testing import EPOCH, run_module


def double(n: int) -> int:
    return 2 * n


def refuse_three(event: Event) -> Event:
    if event.data == 3:
        raise ValueError("three")
    return event


def by_parity(event: Event) -> Event:
    return event.to("odd") if event.data % 2 else event


class Sums(Module):
    """Keeps a sum; gives it when it is flushed."""

    def __init__(self, *, begin: int = 0):
        self.sum = begin
        self.life: list[str] = []

    def start(self, context: Context) -> None:
        self.life.append("started")

    def process(self, event: Event) -> None:
        self.sum += event.data

    def stop(self) -> None:
        self.life.append("stopped")


class Ticks(Source):
    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")

    def __init__(self, *, every: float = 60):
        self._every = every

    def start(self, context: Context) -> None:
        self._context = context

    async def events(self) -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(self._every)
            yield self._context.now() - EPOCH


def test_a_function_over_data_gives_its_answers_in_order() -> None:
    result = run_module(double, [1, 2, 3])
    assert result.data() == [2, 4, 6]
    assert (result.dropped, result.failed) == (0, [])
    assert result.statistics.modules["module"].received == 3


def test_failures_are_kept_apart_with_their_events() -> None:
    result = run_module(refuse_three, range(5))
    assert result.data() == [0, 1, 2, 4]
    assert [event.data for event in result.failed] == [3]
    assert [(failure.type, failure.message) for failure in result.failures] == [("ValueError", "three")]


def test_what_goes_to_an_outbox_that_nobody_looks_at_is_dropped_and_asked_for() -> None:
    assert run_module(by_parity, range(4)).dropped == 2
    result = run_module(by_parity, range(4), outboxes=["outbox", "odd"])
    assert (result.data(), result.data("odd")) == ([0, 2], [1, 3])
    with pytest.raises(KeyError, match="say outboxes="):
        result.data("even")


def test_a_class_is_made_with_its_arguments_started_and_stopped() -> None:
    result = run_module(Sums, [1, 2, 3], begin=10)
    assert result.instance.sum == 16
    assert result.instance.life == ["started", "stopped"]
    assert result.dropped == 3


def test_without_any_outbox_a_module_is_a_sink() -> None:
    assert run_module(Sums, [1, 2], outboxes=()).delivered == 2
    assert run_module("null", [1, 2]).delivered == 2


def test_a_kind_of_the_library_is_found_by_name() -> None:
    assert run_module("count", ["a", "b"]).instance.total == 2
    with pytest.raises(ConfigurationError, match=r"did you mean 'count'\?"):
        run_module("cuont", [])
    with pytest.raises(ConfigurationError, match=r"no argument 'bye', did you mean 'by'\?"):
        run_module("count", [], bye="data")


def test_a_place_of_a_flow_is_run_as_it_stands_there() -> None:
    flow = Flow()
    tried: list[int] = []

    @flow.module(retry=Retry(attempts=3, delay=0, errors=(OSError,)), arguments={"limit": 2})
    async def flaky(event: Event, limit: int) -> Event:
        tried.append(event.data)
        if len(tried) <= limit:
            raise OSError("not yet")
        return event

    assert run_module(flaky, [7]).data() == [7]
    assert tried == [7, 7, 7]
    assert run_module(flow.filter(lambda n: n > 1), [1, 2]).data() == [2]


def test_options_may_be_given() -> None:
    async def slow(event: Event) -> Event:
        await asyncio.sleep(10)
        return event

    result = run_module(slow, range(20), options={"concurrency": 10, "timeout": "1m"})
    assert result.data() == list(range(20))
    assert result.seconds == pytest.approx(20, abs=0.1)
    result = run_module(slow, [1], options=Options(timeout="5s"))
    assert result.failures[0].type == "ModuleTimeout"


def test_events_keep_what_they_have_and_what_was_given_is_not_changed() -> None:
    def mark(event: Event) -> Event:
        event.data["seen"] = True
        return event

    data = {"a": 1}
    event = Event({"b": 2}, headers={"h": 1})
    result = run_module(mark, [data, event])
    assert (data, event.data) == ({"a": 1}, {"b": 2})
    assert (result["outbox"][1].id, result["outbox"][1].headers) == (event.id, {"h": 1})


def test_several_inboxes_are_given_theirs() -> None:
    class Pairs(Module):
        inboxes = ("left", "right")

        def process(self, event: Event) -> Event:
            return event

    def part(number: int, data: Any) -> Event:
        return Event.from_wire({"data": data, "id": f"item-{number}"})

    left, right = [part(1, "a"), part(2, "b")], [part(2, "B"), part(1, "A"), part(3, "C")]
    result = run_module(Pairs, {"left": left, "right": right}, options={"join": True})
    assert sorted(result.data(), key=str) == [{"left": "a", "right": "A"}, {"left": "b", "right": "B"}]
    assert [failure.type for failure in result.failures] == ["Incomplete"]


def test_a_source_that_never_ends_is_stopped_by_the_moving_clock() -> None:
    result = run_module(Ticks, stop_after=330, every=60)
    assert result.data() == pytest.approx([60, 120, 180, 240, 300])
    assert result["invalid"] == []
    assert run_module("cron", stop_after="3h", time_limit="4h", schedule="0 * * * *", timezone="UTC").data()


def test_the_example_of_its_docstring_is_true() -> None:
    (example,) = re.findall(r"::\n\n((?: +\S.*\n)+)", run_module.__doc__ or "")
    assert "run_module(" in example
    exec(textwrap.dedent(example), {"run_module": run_module})


def test_a_source_that_raises_says_so() -> None:
    class Broken(Source):
        def events(self) -> Iterator[int]:
            yield 1
            raise OSError("the line went dead")

    with pytest.raises(SourceFailed, match="the line went dead"):
        run_module(Broken)


def test_a_module_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        run_module(Ticks, time_limit="10m")
    gc.collect()
