"""What functions and classes receive, what may come back, and what happens to nonsense."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.engine.conftest import Sink, ran

from furcula import BatchFailed, ConfigurationError, Event, Flow, Module

pytestmark = pytest.mark.usefixtures("quiet")


def flow_of(*items: Any) -> Flow:
    flow = Flow("handling")
    flow.source(list(items), "source")
    return flow


def through(module: Any, *items: Any, **options: Any) -> tuple[Sink, Sink, Any]:
    flow, sink, dead = flow_of(*items), Sink(), Sink()
    place = flow.module(module, "module", **options)
    flow["source"] >> place >> flow.module(sink, "sink")
    place.failed >> flow.module(dead, "dead")
    return sink, dead, ran(flow)


@dataclasses.dataclass
class Order:
    sku: str
    count: int = 1


def test_an_annotated_function_receives_the_data_converted_and_its_answer_is_the_new_data() -> None:
    def priced(order: Order) -> dict[str, Any]:
        return {"sku": order.sku, "price": order.count * 2}

    sink, dead, _ = through(priced, {"sku": "a", "count": 3}, {"count": 3}, Order("b"))
    assert sink == [{"sku": "a", "price": 6}, {"sku": "b", "price": 2}]
    assert dead == [{"count": 3}]
    assert "missing required field `sku`" in dead.events[0].failures[0].message


def test_none_drops_but_is_data_in_a_map() -> None:
    sink, _, statistics = through(lambda event: None, 1)
    assert (sink, statistics.dropped) == ([], 1)
    flow, sink = flow_of(1), Sink()
    flow["source"] >> flow.map(lambda data: None, "map") >> flow.module(sink, "sink")
    assert ran(flow).delivered == 1
    assert sink == [None]


def test_a_function_that_promised_an_event_and_gave_none_failed() -> None:
    def forgets(event: Event) -> Event:
        event.data += 1

    sink, dead, _ = through(forgets, 1)
    assert (sink, dead) == ([], [2])
    assert "answered None" in dead.events[0].failures[0].message


def test_a_hundred_nones_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("furcula").setLevel(logging.WARNING)
    flow = flow_of(*range(150))
    flow["source"] >> flow.module(lambda event: None, "forgot") >> flow.module(Sink(), "sink")
    with caplog.at_level("WARNING"):
        ran(flow)
    assert "forgot has answered None 100 times" in caplog.text
    assert "did you forget `return event`?" in caplog.text


def test_nonsense_fails_with_what_was_expected() -> None:
    _, dead, _ = through(lambda event: {"a": 1}, 1)
    assert "answered dict where an Event, None or event.to(...) is expected" in dead.events[0].failures[0].message


def test_stop_iteration_inside_a_function_loses_nothing() -> None:
    def picky(event: Event) -> Event:
        if event.data % 3 == 0:
            raise StopIteration
        return event

    sink, dead, _ = through(picky, *range(10))
    assert (sink, dead) == ([1, 2, 4, 5, 7, 8], [0, 3, 6, 9])


def test_sys_exit_in_a_module_is_a_failure_like_any_other() -> None:
    def leaves(event: Event) -> Event:
        raise SystemExit(3)

    sink, dead, _ = through(leaves, 1, 2)
    assert (sink, dead) == ([], [1, 2])


def test_an_answer_that_cannot_be_compared_or_shown_harms_nobody() -> None:
    class Awkward:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no comparing")

        def __bool__(self) -> bool:
            raise RuntimeError("no truth")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            raise RuntimeError("no showing")

    sink, dead, _ = through(lambda event: Awkward(), 1)
    assert dead == [1]
    flow, sink = flow_of(1, 2), Sink()
    (
        flow["source"]
        >> flow.map(lambda data: Awkward(), "map")
        >> flow.filter(lambda data: data, "f")
        >> flow.module(sink, "sink")
    )
    assert ran(flow).failed == 2


def test_generators_give_many_and_a_yielded_input_is_copied() -> None:
    def counts(event: Event) -> Iterator[Event]:
        for number in range(3):
            event.data = {"n": number}
            yield event

    async def later(event: Event) -> AsyncIterator[Event]:
        for number in range(3):
            event.data = {"n": number}
            yield event
            await asyncio.sleep(0.01)

    for generator in (counts, later):
        sink, _, statistics = through(generator, {"n": -1}, {"n": -1})
        assert sink == [{"n": 0}, {"n": 1}, {"n": 2}] * 2
        assert statistics.delivered == 2
        assert len({event.id for event in sink.events}) == 6
        assert len({event.parent for event in sink.events}) == 2


def test_a_generator_that_raises_has_given_what_it_gave_and_its_input_fails() -> None:
    def breaks(event: Event) -> Iterator[Event]:
        yield Event("first")
        yield Event("second")
        raise ValueError("third")

    sink, dead, statistics = through(breaks, "input")
    assert (sink, dead) == (["first", "second"], ["input"])
    assert statistics.modules["module"].born == 2


def test_a_split_of_a_hundred_thousand_is_handed_on_piece_by_piece() -> None:
    flow, most, inside = flow_of(100_000, 5), 0, 0

    def many(event: Event) -> Iterator[Event]:
        nonlocal inside, most
        for number in range(event.data):
            inside += 1
            most = max(most, inside)
            yield Event(number)

    @flow.module(queue=100)
    async def slow(event: Event) -> Event:
        nonlocal inside
        inside -= 1
        if event.data % 1000 == 0:
            await asyncio.sleep(0.001)
        return event

    sink = Sink()
    flow["source"] >> flow.module(many) >> slow >> flow.module(sink, "sink")
    assert ran(flow).delivered == 2
    assert sink == [*range(100_000), *range(5)]
    assert most < 3000


def test_a_long_split_by_an_async_generator_is_handed_on_piece_by_piece_in_order() -> None:
    flow, most, inside = flow_of(20_000, 3, 2000), 0, 0

    @flow.module(concurrency=2)
    async def many(event: Event) -> AsyncIterator[Event]:
        nonlocal inside, most
        for number in range(event.data):
            inside += 1
            most = max(most, inside)
            yield Event(number)

    @flow.module(queue=100)
    async def slow(event: Event) -> Event:
        nonlocal inside
        inside -= 1
        if event.data % 1000 == 0:
            await asyncio.sleep(0.001)
        return event

    sink = Sink()
    flow["source"] >> many >> slow >> flow.module(sink, "sink")
    assert ran(flow).delivered == 3
    assert sink == [*range(20_000), *range(3), *range(2000)]
    assert most < 4000


def test_event_to_picks_an_outbox_and_an_unknown_one_fails_with_the_nearest() -> None:
    flow, north, south, dead = flow_of("n", "s", "x"), Sink(), Sink(), Sink()

    def compass(event: Event) -> Event:
        return event.to({"n": "north", "s": "south", "x": "nort"}[event.data])

    place = flow.module(compass, outboxes=("north", "south"))
    flow["source"] >> place
    place["north"] >> flow.module(north, "at_north")
    place["south"] >> flow.module(south, "at_south")
    place.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (north, south, dead) == (["n"], ["s"], ["x"])
    assert "has no outbox 'nort', did you mean 'north'" in dead.events[0].failures[0].message


def test_what_is_sent_to_an_unconnected_outbox_is_dropped_and_counted() -> None:
    flow, sink = flow_of(1, 2), Sink()
    place = flow.module(lambda event: event.to("side") if event.data == 1 else event, "routes")
    flow["source"] >> place >> flow.module(sink, "sink")
    statistics = ran(flow)
    assert sink == [2]
    assert statistics.modules["routes"].reasons == {"dropped unconnected": 1}


def test_batch_functions_go_on_one_to_one_filter_pack_and_fail_by_index() -> None:
    def filters(events: list[Event]) -> list[Event]:
        return [event for event in events if event.data % 2]

    sink, _, statistics = through(filters, *range(6))
    assert (sink, statistics.dropped) == ([1, 3, 5], 3)

    def packs(events: list[Event]) -> list[Event]:
        return [Event([event.data for event in events])]

    sink, _, statistics = through(packs, *range(6))
    assert sorted(number for pack in sink for number in pack) == list(range(6))
    assert statistics.delivered == 6

    def some_fail(events: list[Event]) -> list[Event]:
        raise BatchFailed({i: ValueError("odd") for i, event in enumerate(events) if event.data % 2})

    sink, dead, _ = through(some_fail, *range(6))
    assert (sink, dead) == ([0, 2, 4], [1, 3, 5])

    async def awaited(events: list[Event]) -> list[Event]:
        await asyncio.sleep(1)
        return events

    assert through(awaited, *range(6))[0] == list(range(6))

    _, dead, _ = through(lambda events: 1 / 0, *range(3))
    assert dead == [0, 1, 2]


def test_a_class_starts_processes_and_stops_with_its_arguments_converted() -> None:
    said = []

    class Adds(Module):
        def __init__(self, *, amount: int, every: float = 1.0):
            self.amount = amount

        async def start(self, context: Any) -> None:
            said.append(context.name)

        def process(self, event: Event) -> Event:
            event.data += self.amount
            return event

        def stop(self) -> None:
            said.append("stopped")

    flow, sink = flow_of(1), Sink()
    flow["source"] >> flow.use(Adds, "adds", amount=2) >> flow.module(sink, "sink")
    ran(flow)
    assert (sink, said) == ([3], ["adds", "stopped"])
    with pytest.raises(ConfigurationError, match="there is no argument 'amont', did you mean 'amount'") as caught:
        flow.use(Adds, amont=2)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigurationError, match=r"Expected `int`, got `str` \(given 'two'\)"):
        flow.use(Adds, amount="two")


def test_inboxes_with_handlers_of_their_own() -> None:
    class Two(Module):
        inboxes = ("inbox", "side")

        def process(self, event: Event) -> Event:
            event.data = f"main {event.data}"
            return event

        def process_side(self, event: Event) -> Event:
            event.data = f"side {event.data}"
            return event

    flow, sink = flow_of(1), Sink()
    two = flow.module(Two, "two")
    flow["source"] >> (two, two["side"])
    two >> flow.module(sink, "sink")
    ran(flow)
    assert sorted(sink) == ["main 1", "side 1"]


def test_consumers_of_one_outbox_never_share_a_mutable_object() -> None:
    flow, one, two, three = flow_of({"deep": [{"a": (1, [2])}]}), Sink(), Sink(), Sink()

    def spoil(event: Event) -> Event:
        event.data["deep"][0]["a"][1].append("spoiled")
        event.headers["spoiled"] = True
        return event

    flow["source"] >> (flow.module(spoil), flow.module(one, "one"), flow.module(two, "two"))
    flow["spoil"] >> flow.module(three, "three")
    ran(flow)
    assert one == two == [{"deep": [{"a": (1, [2])}]}]
    assert three == [{"deep": [{"a": (1, [2, "spoiled"])}]}]
    assert not one.events[0].headers
    assert one.events[0].id == two.events[0].id


def test_an_event_too_deep_to_copy_fails_at_the_fork_and_the_others_go_on() -> None:
    deep: Any = []
    for _ in range(10_000):
        deep = [deep]
    flow, one, two = flow_of(1, deep, 3), Sink(), Sink()
    flow["source"] >> (flow.module(one, "one"), flow.module(two, "two"))
    statistics = ran(flow)
    assert (one, two) == ([1, 3], [1, 3])
    assert statistics.failed == 1


def test_a_best_effort_branch_never_holds_up_or_fails_its_parent() -> None:
    flow, sink = flow_of(*range(5000)), Sink()

    def fails(event: Event) -> None:
        raise ValueError

    async def hangs(event: Event) -> None:
        await asyncio.sleep(0.01)

    flow["source"] >> flow.module(sink, "sink")
    flow.connect("source", flow.module(fails), branch="best-effort")
    flow.connect("source", flow.module(hangs, queue=10), branch="best-effort", queue=10)
    statistics = ran(flow)
    assert len(sink) == 5000
    assert statistics.origins["source"].delivered == 5000
    failing = statistics.origins["source -> fails"]
    assert failing.failed > 0
    assert failing.failed + failing.dropped == 5000
    hung = statistics.origins["source -> hangs"]
    assert hung.dropped > 0
    assert hung.dropped + hung.delivered == 5000


def test_failures_go_to_the_dead_letter_module_once_and_its_own_failure_ends_there() -> None:
    flow, seen = flow_of(1, 2), []
    flow.dead_letter = "dead"

    def fails(event: Event) -> Event:
        raise ValueError("first")

    def dead(event: Event) -> None:
        seen.append([failure.message for failure in event.failures])
        raise OSError("second")

    flow["source"] >> flow.module(fails) >> flow.module(Sink(), "sink")
    flow.module(dead)
    statistics = ran(flow)
    assert seen == [["first"], ["first"]]
    assert statistics.failed == 2


def test_a_join_gives_up_after_its_timeout_and_refuses_who_comes_late() -> None:
    flow, sink, dead = flow_of(1), Sink(), Sink()

    async def slow(event: Event) -> Event:
        await asyncio.sleep(10)
        return event

    both = flow.module(lambda event: event, "both", join=True, join_timeout="2s", inboxes=("a", "b"))
    flow["source"] >> (both["a"], flow.module(slow))
    flow["slow"] >> both["b"]
    both >> flow.module(sink, "sink")
    both.failed >> flow.module(dead, "dead")
    statistics = ran(flow)
    assert sink == []
    assert [event.failures[0].type for event in dead.events] == ["Incomplete", "Late"]
    assert "nothing came to b" in dead.events[0].failures[0].message
    assert statistics.delivered == 1


def test_a_cycle_with_a_split_cannot_deadlock_and_its_growth_ends_in_failures() -> None:
    flow, dead = flow_of(*range(300)), Sink()

    async def doubles(event: Event) -> AsyncIterator[Event]:
        yield Event(event.data)
        yield Event(event.data)

    place = flow.module(doubles, queue=8)
    back = flow.module(lambda event: event, "back", queue=8)
    flow["source"] >> place >> back
    flow.connect("back", "doubles", ttl=12)
    place.failed >> flow.module(dead, "dead")
    statistics = ran(flow)
    assert statistics.admitted == 300
    assert {event.failures[0].type for event in dead.events} <= {"QueueFull", "Expired"}


def test_ports_of_types_that_do_not_meet_are_found_when_the_flow_is_checked() -> None:
    flow = flow_of(1)

    def number(data: int) -> int:
        return data

    def words(data: list[str]) -> list[str]:
        return data

    flow["source"] >> flow.module(number) >> flow.module(words) >> flow.module(Sink(), "sink")
    with pytest.raises(ConfigurationError, match=r"number -> words: number gives int and words takes list\[str\]"):
        flow.check()


def test_a_class_is_a_function_of_bare_data_too() -> None:
    flow = Flow()
    got: list[object] = []
    source = flow.source([1, 2], "source")
    sink = flow.module(lambda event: got.append(event.data), "sink")
    source >> flow.map(str, "text") >> sink
    flow.run()
    assert got == ["1", "2"]
