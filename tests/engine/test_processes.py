"""Modules that run in processes of their own: what they give is what they would give in the loop."""

from __future__ import annotations

import asyncio
import functools
import importlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.engine import computing
from tests.engine.conftest import Sink, settled

from furcula import ConfigurationError, Director, Event, Flow, Options, Retry
from furcula.engine.plan import plan
from furcula.errors import StartFailed
from furcula.explain import explain
from furcula.options import Secret

pytestmark = pytest.mark.usefixtures("quiet")


class Ran:
    """What became of a flow of one module."""

    def __init__(self, place: Callable[[Flow], Any], items: Any) -> None:
        self.flow = Flow("computing")
        self.flow.source(list(items), "source")
        self.out, self.side, self.dead = Sink(), Sink(), Sink()
        self.place = place(self.flow)
        self.flow["source"] >> self.place >> self.flow.module(self.out, "out")
        if self.place.outboxes is None:
            self.place["side"] >> self.flow.module(self.side, "side")
        self.place.failed >> self.flow.module(self.dead, "dead")

    def go(self, **settings: Any) -> Ran:
        self.statistics = settled(asyncio.run(Director(self.flow, **settings).run()))
        self.module = self.statistics.modules["module"]
        return self

    @property
    def seen(self) -> Any:
        """All that can be told apart from outside."""
        what = ("received", "born", "sent", "delivered", "dropped", "failed", "joined", "retried")
        return {
            "out": [(e.data, e.headers, e.tags, e.key) for e in self.out.events],
            "side": [(e.data, e.headers, e.tags, e.key) for e in self.side.events],
            "dead": [
                (e.data, e.headers, [(f.type, f.message, f.attempts, f.retryable, f.status) for f in e.failures])
                for e in self.dead.events
            ],
            "counts": {name: getattr(self.module, name) for name in what},
            "reasons": self.module.reasons,
            "total": [getattr(self.statistics.total, name) for name in ("admitted", "delivered", "dropped", "failed")],
        }


def through(function: Any, items: Any, *, kind: str = "module", settings: Any = None, **options: Any) -> Ran:
    ran = Ran(lambda flow: getattr(flow, kind)(function, "module", **options), items)
    return ran.go(**(settings or {}))


# ------------------------------------------------------------------ the same as in the loop


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (computing.double, "map"),
        (computing.is_even, "filter"),
        (computing.up_to, "flat_map"),
        (computing.picky, "module"),
        (computing.noted, "module"),
        (computing.routed, "module"),
        (computing.renewed, "module"),
        (computing.children, "module"),
        (computing.changes_then_fails, "module"),
        (computing.nonsense, "module"),
        (computing.stops, "map"),
        (computing.leaves, "map"),
        (computing.sums, "module"),
        (abs, "map"),
    ],
)
def test_in_processes_everything_is_as_in_the_loop(function: Any, kind: str) -> None:
    # What a function has left of an event that it failed on stays in the child, so the comparison keeps originals.
    here = through(function, range(40), kind=kind, keep="original")
    there = through(function, range(40), kind=kind, keep="original", processes=2)
    assert there.seen == here.seen


def test_a_random_chain_gives_the_same_with_and_without_processes() -> None:
    steps = [
        ("map", computing.double),
        ("filter", computing.is_even),
        ("module", computing.picky),
        ("flat_map", computing.up_to),
        ("module", computing.children),
        ("module", computing.routed),
        ("module", computing.sums),
    ]
    for seed in range(6):
        drawn = random.Random(seed)
        chain = [drawn.choice(steps) for _ in range(3)]
        queues = [drawn.choice([None, 1, 5]) for _ in chain]
        retries = [drawn.choice([None, Retry(2, delay=0)]) for _ in chain]
        keys = [drawn.choice([None, None, "data"]) if function is not computing.sums else None for _, function in chain]
        count = drawn.choice([1, 7, 60])
        found = []
        for processes in (None, drawn.choice([1, 2])):
            flow, out, dead = Flow("chain"), Sink(), Sink()
            place = flow.source(list(range(count)), "source")
            for number, (kind, function) in enumerate(chain):
                following = getattr(flow, kind)(
                    function,
                    f"m{number}",
                    queue=queues[number],
                    retry=retries[number],
                    key=keys[number],
                    keep="original",
                    processes=processes,
                )
                place >> following
                following.failed >> (flow.module(dead, "dead") if number == 0 else flow["dead"])
                place = following
            place >> flow.module(out, "out")
            statistics = settled(asyncio.run(Director(flow).run()))
            counts = {
                name: (m.received, m.born, m.sent, m.dropped, m.failed, m.retried)
                for name, m in statistics.modules.items()
            }
            # Lanes overtake one another. Failures of three modules meet in no order.
            everything = sorted(map(repr, out)) if any(keys) else list(out)
            failures = sorted((repr(e.data), [(f.module, f.type, f.attempts) for f in e.failures]) for e in dead.events)
            found.append((everything, failures, counts))
        assert found[0] == found[1], seed


def test_a_function_that_names_an_outbox_does_so_from_its_process() -> None:
    def chosen(processes: int | None) -> Any:
        flow, out, side = Flow("choosing"), Sink(), Sink()
        place = flow.put(computing.port_of, "module", role="choose", changes={"processes": processes})
        flow.source(list(range(9)), "source") >> place >> flow.module(out, "out")
        place["side"] >> flow.module(side, "side")
        statistics = settled(asyncio.run(Director(flow).run()))
        return list(out), list(side), statistics.dropped

    assert chosen(1) == chosen(None) == ([1, 4, 7], [2, 5, 8], 3)


def test_a_class_is_made_and_started_in_each_process() -> None:
    ran = through(computing.Adder, range(5), processes=1, arguments={"by": 10})
    assert ran.out == [10, 11, 12, 13, 14]
    assert {event.headers["by"] for event in ran.out.events} == {"module True"}


def test_a_class_is_stopped_in_its_process(tmp_path: Path) -> None:
    note = tmp_path / "note"
    through(computing.Stopping, range(2), processes=1, arguments={"note": str(note)})
    assert note.read_text(encoding="utf-8") == "stopped"


def test_a_built_in_kind_runs_in_processes() -> None:
    flow, out = Flow("kinds"), Sink()
    place = flow.use("modify", "changed", options=Options(processes=1), set={"data.b": 2})
    flow.source([{"a": 1}], "source") >> place >> flow.module(out, "out")
    settled(asyncio.run(Director(flow).run()))
    assert out == [{"a": 1, "b": 2}]


def test_a_sink_in_processes_delivers_whatever_it_answers() -> None:
    flow = Flow("sink")
    flow.source([0, 1, 2, 3], "source") >> flow.map(computing.gives, "sink", processes=1)
    assert settled(asyncio.run(Director(flow).run())).delivered == 4


# ------------------------------------------------------------------ processes


def test_events_are_handled_in_as_many_processes_as_asked_for_and_not_here(tmp_path: Path) -> None:
    notes = [{"number": number, "note": str(tmp_path / "note")} for number in (0, 1)]
    ran = through(computing.meets, notes, kind="map", processes=2)
    assert ran.out == [0, 1]  # the first waited for the second, and left before it
    pids = {pid for _, pid in through(computing.who, range(200), kind="map", processes=1).out}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_without_order_events_leave_as_they_are_done(tmp_path: Path) -> None:
    note = tmp_path / "note"  # the first goes on when the second has left
    flow, out = Flow("unordered"), Sink()
    flow.source([{"number": number, "note": str(note), "silent": True} for number in (0, 1)], "source")

    def left(event: Event) -> None:
        out(event)
        note.touch()

    flow["source"] >> flow.map(computing.meets, "module", processes=2, order="none") >> flow.module(left, "out")
    settled(asyncio.run(Director(flow).run()))
    assert out == [1, 0]


def test_fast_events_cross_in_batches_and_each_slow_one_by_itself() -> None:
    ran = Ran(lambda flow: flow.map(computing.double, "module", processes=1), range(5000))
    director = Director(ran.flow)
    asyncio.run(director.run())
    (pool,) = director.modules["module"].steps
    assert pool._number < 500
    assert ran.out == [2 * number for number in range(5000)]


def test_events_of_one_key_are_in_order_and_never_in_two_processes_at_once() -> None:
    flow, out = Flow("keys"), Sink()
    items = [number * 10 + number % 3 for number in range(150)]
    place = flow.map(computing.who_slowly, "module", processes=2, key=lambda event: event.data % 10)
    flow.source(items, "source") >> place >> flow.module(out, "out")
    settled(asyncio.run(Director(flow).run()))
    assert sorted(number for number, *_ in out) == items
    for key in range(3):
        own = [entry for entry in out if entry[0] % 10 == key]
        assert [entry[0] for entry in own] == [item for item in items if item % 10 == key]
        for earlier, later in itertools.pairwise(own):
            assert earlier[3] <= later[2]


def test_events_of_one_key_stay_in_order_though_some_are_tried_again_and_processes_die(tmp_path: Path) -> None:
    items = [[number % 4, number] for number in range(60)]
    for options in ({"retry": Retry(3, delay=0.001, jitter=0)},):
        ran = through(
            computing.refuses_in_lane, items, processes=2, key="data.0", arguments={"notes": str(tmp_path)}, **options
        )
        assert ran.module.retried == 20
        for key in range(4):
            own = [data for data in ran.out if data[0] == key]
            assert [data[1] for data in own] == list(range(key, 60, 4))
            assert [data[2] for data in own] == sorted(data[2] for data in own)
    ran = through(computing.killed, range(60), kind="map", processes=2, key=lambda event: event.data % 4)
    for key in range(4):
        expected = [number for number in range(key, 60, 4) if number % 20 != 7]
        assert [number for number in ran.out if number % 4 == key] == expected


def test_a_key_that_cannot_be_had_fails_its_event() -> None:
    ran = through(computing.double, [1, 2, 3], kind="map", processes=1, key=lambda event: {}[event.data])
    assert [event.failures[0].type for event in ran.dead.events] == ["KeyError"] * 3


# ------------------------------------------------------------------ failures


def test_a_failure_has_the_type_the_message_and_the_traceback_of_the_child() -> None:
    (event,) = through(computing.picky, [3], processes=1).dead.events
    (failure,) = event.failures
    assert (failure.type, failure.message, failure.module) == ("ValueError", "no 3", "module")
    assert 'raise ValueError(f"no {number}")' in failure.traceback
    assert "computing.py" in failure.traceback
    assert not failure.touched


def test_a_failed_event_is_as_it_was_handed_in() -> None:
    (event,) = through(computing.changes_then_fails, [1], processes=1).dead.events
    assert (event.data, event.headers) == (1, {})
    assert not event.failures[0].touched


def test_a_further_try_is_made_for_the_errors_named_by_class_and_sees_the_original(tmp_path: Path) -> None:
    items = [{"number": number} for number in range(6)]
    notes = {"notes": str(tmp_path), "times": 2}
    ran = through(
        computing.refuses, items, processes=2, arguments=notes, retry=Retry(3, delay=0.001, errors=(ConnectionError,))
    )
    assert ran.out == [{"number": number, "tries": 1} for number in range(6)]
    assert ran.module.retried == 12


def test_errors_that_are_not_named_fail_at_once_and_named_rightly_though_they_cannot_be_made_here(
    tmp_path: Path,
) -> None:
    ran = through(
        computing.refuses,
        [{"number": 1}],
        processes=1,
        arguments={"notes": str(tmp_path)},
        retry=Retry(3, errors=(TimeoutError,)),
    )
    (failure,) = ran.dead.events[0].failures
    assert (failure.type, failure.message, failure.attempts) == ("Refused", "refused: 1", 1)
    assert failure.retryable
    assert ran.dead == [{"number": 1}]


def test_a_circuit_opens_over_all_processes(tmp_path: Path) -> None:
    retry = {"attempts": 1, "breaker": {"failures": 2, "reset": "1h"}}
    items = [{"number": number} for number in range(10)]
    ran = through(computing.refuses, items, processes=1, arguments={"notes": str(tmp_path)}, retry=retry, queue=1)
    types = [event.failures[0].type for event in ran.dead.events]
    assert types[:2] == ["Refused", "Refused"]
    assert set(types[-5:]) == {"CircuitOpen"}


# ------------------------------------------------------------------ a process that dies


@pytest.mark.parametrize(
    ("function", "said"),
    [(computing.killed, "was ended by SIGKILL"), (computing.exits, "ended by itself, with status 3")],
)
def test_a_process_that_dies_takes_only_the_event_with_it_that_it_was_at(function: Any, said: str) -> None:
    ran = through(function, range(50), kind="map", processes=2)
    assert ran.out == [number for number in range(50) if number % 20 != 7]
    assert ran.dead == [7, 27, 47]
    for event in ran.dead.events:
        (failure,) = event.failures
        assert (failure.type, failure.retryable, failure.attempts) == ("WorkerDied", True, 1)
        assert said in failure.message


def test_a_crash_in_foreign_code_harms_one_event() -> None:
    ran = through(computing.crashes, range(10), kind="map", processes=1)
    assert ran.out == [0, 1, 2, 3, 4, 5, 6, 8, 9]
    assert "was ended by SIGSEGV" in ran.dead.events[0].failures[0].message


def test_an_event_whose_process_died_is_tried_again(tmp_path: Path) -> None:
    notes = {"notes": str(tmp_path)}
    ran = through(computing.ends_once, range(30), kind="map", processes=2, arguments=notes, retry=Retry(2, delay=0))
    assert ran.out == list(range(30))
    assert ran.module.retried == 3


def test_though_every_event_kills_its_process_the_flow_comes_to_its_end() -> None:
    ran = through(computing.always_ends, range(6), kind="map", processes=2)
    assert sorted(ran.dead) == list(range(6))


async def test_a_process_that_dies_while_it_is_at_nothing_is_replaced_and_nobody_is_charged() -> None:
    flow, out = Flow("replaced"), Sink()
    flow.module(computing.who, "module", processes=1) >> flow.module(out, "out")
    async with Director(flow) as director:
        for expected in range(1, 4):
            await director.put("module", expected, settled=True)
            os.kill(out[-1][1], signal.SIGKILL)
        await director.put("module", 4, settled=True)
    settled(director.statistics())
    assert [number for number, _ in out] == [1, 2, 3, 4]
    assert len({pid for _, pid in out}) == 4


def test_a_process_that_dies_between_two_batches_harms_nobody() -> None:
    assert through(computing.ends_later, range(100), kind="map", processes=1).out == list(range(100))


def test_the_death_of_a_process_is_noticed_though_one_that_it_started_lives_on() -> None:
    ran = through(computing.leaves_a_child, range(6), kind="map", processes=1)
    assert (ran.out, ran.dead) == ([0, 1, 2, 4, 5], [3])


async def _unlucky(seed: int) -> None:
    drawn = random.Random(seed)
    count = drawn.choice([50, 200])
    key = drawn.choice([None, None, _last_digit])
    order = drawn.choice(["kept", "kept", "none"])
    flow, out, dead = Flow("unlucky"), Sink(), Sink()
    place = flow.module(
        computing.unlucky,
        "module",
        processes=drawn.choice([1, 2, 3]),
        order=order,
        key=key,
        retry=drawn.choice([None, Retry(3, delay=0.001), Retry(20, delay=0)]),
        queue=drawn.choice([None, 1, 10]),
        timeout=drawn.choice([None, "20s"]),
    )
    flow.source(range(count), "source") >> place >> flow.module(out, "out")
    place.failed >> flow.module(dead, "dead")
    async with Director(flow) as director:
        kills = 3  # from outside too, whatever they are at
        while director._sources.unfinished or director.statistics().open:
            await asyncio.sleep(0.01 * drawn.random())
            children = director.modules["module"].steps[0]._children
            if children and kills and drawn.random() < 0.1:
                kills -= 1
                drawn.choice(children).kill()
            if drawn.random() < 0.1:
                director.pause("module")
                await asyncio.sleep(0)
                director.resume("module")
    settled(director.statistics())
    numbers = [number for number, _ in out]
    assert sorted([*numbers, *dead]) == list(range(count))
    if key is not None:
        for digit in range(5):
            own = [number for number in numbers if number % 5 == digit]
            assert own == sorted(own)
    elif order == "kept":
        assert numbers == sorted(numbers)


def _last_digit(event: Event) -> int:
    number: int = event.data
    return number % 5


def test_though_processes_die_at_any_time_each_event_is_settled_once_and_order_is_kept() -> None:
    for seed in range(int(os.environ.get("FURCULA_UNLUCKY", "5"))):
        asyncio.run(asyncio.wait_for(_unlucky(seed), 60))


def test_flow_test_runs_processes_and_its_clock_waits_for_them() -> None:
    flow = Flow("tested")
    doubled = flow.map(computing.double, processes=1)
    flow.source([], "source") >> doubled >> flow.use("null", "sink")
    rehearsal = flow.test({"source": [1, 2, 3]})
    assert rehearsal.data("sink") == [2, 4, 6]
    assert rehearsal.seconds < 1


# ------------------------------------------------------------------ time limits


def test_a_process_that_takes_too_long_is_ended_and_only_the_event_that_it_was_at_is_charged() -> None:
    ran = through(computing.hangs, range(30), kind="map", processes=2, timeout="300ms")
    assert ran.out == [number for number in range(30) if number % 20 != 7]
    assert ran.dead == [7, 27]
    failure = ran.dead.events[0].failures[0]
    assert (failure.type, failure.retryable, failure.status) == ("ModuleTimeout", True, 504)
    assert "took longer than 0.3 s" in failure.message


def test_an_event_that_took_too_long_is_tried_again(tmp_path: Path) -> None:
    retry = Retry(2, delay=0, errors=(TimeoutError,))
    notes = {"notes": str(tmp_path)}
    ran = through(
        computing.hangs_once, range(20), kind="map", processes=2, timeout="300ms", retry=retry, arguments=notes
    )
    assert ran.out == list(range(20))
    assert ran.module.retried == 2


# ------------------------------------------------------------------ whole batches


def test_a_function_of_batches_fails_some_members_and_these_are_tried_again() -> None:
    def counted(processes: int | None) -> Any:
        ran = through(computing.some_fail, range(30), processes=processes, retry=Retry(2, delay=0))
        return sorted(ran.out), sorted(ran.dead), {e.failures[0].attempts for e in ran.dead.events}, ran.module.retried

    assert counted(2) == counted(None) == ([n for n in range(30) if n % 3], list(range(0, 30, 3)), {2}, 10)


def test_what_a_batch_function_tries_again_leaves_in_its_turn(tmp_path: Path) -> None:
    retry, notes = Retry(2, delay=0), {"notes": str(tmp_path)}
    ran = through(computing.thirds_fail_once, range(30), processes=2, retry=retry, arguments=notes)
    assert ran.out == list(range(30))
    assert ran.module.retried == 10


@pytest.mark.parametrize("order", ["kept", "none"])
def test_members_of_a_batch_that_cannot_be_told_fail_and_no_others(order: str) -> None:
    ran = through(computing.as_it_is, [1, object(), 3, object()], processes=1, order=order, queue=4)
    assert ran.out == [1, 3]
    assert [event.failures[0].type for event in ran.dead.events] == ["InputError"] * 2


def test_a_process_that_dies_in_a_batch_function_takes_that_batch_with_it() -> None:
    ran = through(computing.batch_that_ends_with_seven, range(20), processes=2, queue=4)
    assert 7 in ran.dead
    assert sorted([*ran.out, *ran.dead]) == list(range(20))
    assert {event.failures[0].type for event in ran.dead.events} == {"WorkerDied"}


# ------------------------------------------------------------------ what crosses


def test_what_cannot_be_told_fails_its_event_and_no_other() -> None:
    ran = through(computing.kind_of, [1, object(), 3, {"a": [1, object()]}, 5], kind="map", processes=1)
    assert ran.out == ["int", "int", "int"]
    messages = [event.failures[0].message for event in ran.dead.events]
    assert all("cannot be told to another process" in message for message in messages), messages


def test_an_answer_that_cannot_be_told_fails_its_event_and_no_other() -> None:
    ran = through(computing.gives, range(5), kind="map", processes=1)
    assert ran.out == [{"deep": [1, 2]}, [1, 2], b"raw"]  # sets and tuples come home as lists
    assert ran.dead == [0, 4]
    messages = [event.failures[0].message for event in ran.dead.events]
    assert all("answered what cannot leave its process" in message for message in messages), messages


def test_an_answer_that_is_too_large_to_cross_fails_its_event_and_no_other() -> None:
    ran = through(computing.large, [1, 64_000_001, 2], kind="map", processes=1)
    assert ran.out == [b"\0", b"\0\0"]
    assert "the limit is 64,000,000" in ran.dead.events[0].failures[0].message
    assert ran.dead == [64_000_001]


def test_a_split_without_end_fails_its_event() -> None:
    ran = through(computing.endless, [0, 1, 0], kind="flat_map", processes=1)
    assert "one event became more than 1,000,000" in ran.dead.events[0].failures[0].message
    assert (ran.out, ran.dead, ran.module.dropped) == ([], [1], 2)


@pytest.mark.parametrize(("isolate", "expected"), [(True, [1, 1, 1]), (False, [1, 2, 3])])
def test_context_variables_are_kept_apart_where_that_is_asked_for(isolate: bool, expected: list[int]) -> None:
    ran = through(computing.counts_in_context, [1, 2, 3], kind="map", processes=1, isolate_context=isolate)
    assert ran.out == expected


def test_a_function_sees_identity_key_tags_and_failures_of_its_event() -> None:
    flow, out = Flow("seen"), Sink()
    first = flow.module(_always_fails, "first")
    flow.source([Event(1, headers={"a": 1}, key=("k", 2)).tag("t")], "source") >> first
    first.failed >> flow.module(computing.sees, "module", processes=1) >> flow.module(out, "out")
    first >> flow.module(Sink(), "rest")
    settled(asyncio.run(Director(flow).run()))
    seen = out[0]
    assert seen.pop("id") == out.events[0].id
    assert seen == {"key": "('k', 2)", "tags": ["t"], "headers": {"a": 1}, "failures": ["first"], "created": True}
    assert out.events[0].key == ("k", 2)


def _always_fails(event: Event) -> Event:
    raise ValueError


def test_arguments_reach_the_process_converted_and_secrets_stay_hidden() -> None:
    given = {"wait": "2s", "secret": Secret("hush"), "plain": [1, {"a": "b"}]}
    ran = through(computing.arguments, [1], kind="map", processes=1, arguments=given)
    assert ran.out == [[True, "Secret('********')", "hush", "[1, {'a': 'b'}]"]]


# ------------------------------------------------------------------ queues, requests, pause, stop


def test_a_full_queue_drops_by_its_rule_and_counts_it() -> None:
    ran = through(computing.double, range(300), kind="map", processes=1, queue=1, overflow="drop-newest")
    assert ran.module.dropped + len(ran.out) == 300
    assert ran.module.reasons.get("dropped overflow", 0) == ran.module.dropped


def test_a_durable_queue_stands_in_front_of_processes(tmp_path: Path) -> None:
    ran = Ran(
        lambda flow: flow.map(computing.exits, "module", processes=2, queue={"durable": str(tmp_path / "q.db")}),
        range(30),
    )
    ran.flow.folder = tmp_path
    statistics = asyncio.run(Director(ran.flow).run())
    assert statistics.balanced
    assert ran.out == [number for number in range(30) if number % 20 != 7]
    assert sorted(ran.dead) == [7, 27]


async def test_a_request_passes_through_a_process_and_comes_back() -> None:
    flow = Flow("asked")
    inlet = flow.use("inlet", "inlet")
    inlet >> flow.map(computing.double, "module", processes=1) >> inlet
    async with Director(flow) as director:
        answers = await asyncio.gather(*[director.ask("inlet", number) for number in range(20)])
        assert [answer.data for answer in answers] == [2 * number for number in range(20)]
    settled(director.statistics())


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.001)


async def test_what_nobody_waits_for_any_more_is_not_handled(tmp_path: Path) -> None:
    flow = Flow("left")
    inlet = flow.use("inlet", "inlet")
    inlet >> flow.map(computing.waits_for, "module", processes=1) >> inlet
    order = {"began": str(tmp_path / "began"), "go": str(tmp_path / "go")}
    async with Director(flow) as director:
        first = asyncio.ensure_future(director.ask("inlet", order))
        await _until((tmp_path / "began").exists)
        second = asyncio.ensure_future(director.ask("inlet", {"began": str(tmp_path / "again"), "go": order["go"]}))
        await _until(lambda: director.statistics().modules["module"].held == 2)
        second.cancel()
        await asyncio.wait([second])
        (tmp_path / "go").touch()
        await first
    statistics = settled(director.statistics())
    assert not (tmp_path / "again").exists()
    assert statistics.modules["module"].reasons == {"dropped cancelled": 1}


async def test_a_paused_module_handles_nothing_before_it_is_resumed() -> None:
    flow, out = Flow("paused"), Sink()
    flow.map(computing.double, "module", processes=1) >> flow.module(out, "out")
    async with Director(flow) as director:
        director.pause("module")
        slots = [await director.put("module", number) for number in range(5)]
        statistics = director.statistics().modules["module"]
        assert (statistics.held, statistics.depth, statistics.paused) == (5, 5, True)
        director.resume("module")
        await _until(lambda: all(slot.fate == "delivered" for slot in slots))
    assert out == [0, 2, 4, 6, 8]


async def test_what_is_still_in_a_process_when_the_deadline_passes_is_named_and_the_process_is_ended(
    tmp_path: Path,
) -> None:
    flow, out = Flow("stopped"), Sink()
    flow.map(computing.waits_for, "module", processes=1) >> flow.module(out, "out")
    director = Director(flow)
    await director.start()
    for name in ("one", "two", "three"):
        await director.put("module", {"began": str(tmp_path / name), "go": str(tmp_path / "never")})
    await _until(lambda: (tmp_path / "one").exists() and bool((tmp_path / "one").read_text(encoding="utf-8")))
    pid = int((tmp_path / "one").read_text(encoding="utf-8"))
    statistics = await director.stop("50ms")
    assert statistics.abandoned == {"module": 3}
    assert settled(statistics).failed == 3
    assert out == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_second_signal_leaves_no_process_behind(tmp_path: Path) -> None:
    flow = Flow("forced")
    flow.map(computing.waits_for, "module", processes=1) >> flow.module(Sink(), "out")
    director = Director(flow)
    await director.start()
    await director.put("module", {"began": str(tmp_path / "one"), "go": str(tmp_path / "never")})
    await _until(lambda: (tmp_path / "one").exists() and bool((tmp_path / "one").read_text(encoding="utf-8")))
    stopping = director.request_stop()
    director.force()
    await stopping
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "one").read_text(encoding="utf-8")), 0)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc tells what is open; there is none here")
def test_neither_processes_nor_descriptors_are_left() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    through(computing.killed, range(30), kind="map", processes=2)
    before = opened()
    for _ in range(2):
        ran = through(computing.who, range(50), kind="map", processes=2)
        through(computing.killed, range(30), kind="map", processes=2)
        for pid in {pid for _, pid in ran.out}:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    assert opened() <= before


# ------------------------------------------------------------------ what is refused


def _refusal(function: Any, **options: Any) -> str:
    flow = Flow("refused")
    flow.source([1], "source")

    def place_and_check() -> None:
        flow["source"] >> flow.module(function, "module", **{"processes": 2, **options})
        flow.check()

    with pytest.raises(ConfigurationError) as caught:
        place_and_check()
    return str(caught.value)


async def _soon(event: Event) -> Event:
    return event


def test_what_another_process_cannot_find_is_refused_before_anything_runs() -> None:
    def inside(event: Event) -> Event:
        return event

    assert "module is a lambda, which has no name: write it as a function with `def`" in _refusal(lambda event: event)
    assert "is defined inside a function: move it to the top of its module" in _refusal(inside)
    assert "is a functools.partial" in _refusal(functools.partial(computing.double))
    assert "which has no name" in _refusal(Sink())
    assert "has no name: give a function or a class" in _refusal(Sink().append)
    assert "is not what tests.engine.computing:Adder.process stands for" in _refusal(computing.Adder().process)
    assert "is a coroutine; processes is for plain functions that compute" in _refusal(_soon)
    assert "has thread: true and processes; choose one of them" in _refusal(computing.double, thread=True)
    assert "has concurrency and processes" in _refusal(computing.double, concurrency=2)
    assert "awaits in start()" in _refusal(computing.Waiting)
    assert "modules.module.processes" in _refusal(_soon)
    assert "processes must be 1 or more" in _refusal(computing.double, processes=0)


def test_an_argument_that_cannot_be_told_is_refused() -> None:
    said = _refusal(computing.arguments, arguments={"wait": "1s", "secret": "x", "plain": object()})
    assert "has the argument 'plain', whose value of type object cannot be told to another process" in said
    assert "'secret'" not in said


def test_a_source_takes_no_processes() -> None:
    flow = Flow("refused")
    flow.source([1], "source", processes=2) >> flow.module(Sink(), "out")
    with pytest.raises(ConfigurationError, match="source is a source; processes is for modules with an inbox only"):
        flow.check()


def test_a_module_that_cannot_be_imported_in_its_process_is_named_when_the_flow_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "once_only.py"
    file.write_text("def same(number: int) -> int:\n    return number\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("once_only")
    file.write_text("raise ImportError('the licence is missing')\n", encoding="utf-8")
    # A cached copy has the time and size of the file in it; take no chance with a clock of coarse steps.
    for cached in (tmp_path / "__pycache__").glob("*"):
        cached.unlink()
    ran = Ran(lambda flow: flow.map(module.same, "module", processes=2), [1])
    with pytest.raises(StartFailed, match=r"module .*could not start: .*ImportError: the licence is missing"):
        ran.go()


# ------------------------------------------------------------------ told by plan and explain


def test_plan_and_explain_say_that_there_are_processes() -> None:
    ran = Ran(lambda flow: flow.map(computing.double, "module", processes=4), [])
    assert "module: pool, queue of 1024 (4 processes)" in str(plan(ran.flow))
    assert "module handles again what one of its processes had in hand when it died" in str(explain(ran.flow))


# ------------------------------------------------------------------ programs

_SCRIPT = """
import os, sys, time
from furcula import Flow

def say(*words):  # a line in one piece: several processes write here
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

say("begun", __name__)
flow = Flow("script")

@flow.source
def numbers():
    for number in range(int(sys.argv[1])):
        time.sleep(float(sys.argv[2]))
        yield number

@flow.map(processes=2)
def squared(number: int) -> int:
    if number == 1:
        print("squaring", os.getpid())  # what a function prints is seen line by line
        while "hang" in sys.argv:
            time.sleep(1)
    return number * number

@flow.module
def shown(event):
    say("=", event.data)

numbers >> squared >> shown

if __name__ == "__main__":
    say("settled", flow.run().delivered)
"""


def _program(tmp_path: Path, *arguments: str, **rest: Any) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(_SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **rest,
    )


@pytest.mark.parametrize("how", [("script.py",), ("-m", "script")])
def test_functions_of_the_program_itself_run_in_processes_and_what_they_print_is_seen(
    how: tuple[str, ...], tmp_path: Path
) -> None:
    program = _program(tmp_path, *how, "5", "0")
    out, _ = program.communicate(timeout=60)
    assert program.returncode == 0, out
    lines = out.splitlines()
    assert sorted(line for line in lines if line.startswith("begun")) == [
        "begun __furcula_main__",
        "begun __furcula_main__",
        "begun __main__",
    ]
    assert [line for line in lines if line.startswith("=")] == ["= 0", "= 1", "= 4", "= 9", "= 16"]
    assert "settled 5" in lines
    (printed,) = [line for line in lines if line.startswith("squaring")]
    assert printed != f"squaring {program.pid}"


def _pid_said(program: subprocess.Popen[str]) -> int:
    assert program.stdout is not None
    for line in program.stdout:
        if line.startswith("squaring"):
            return int(line.split()[1])
    raise AssertionError("it ended before")


def test_ctrl_c_drains_what_was_admitted_before_the_processes_end(tmp_path: Path) -> None:
    program = _program(tmp_path, "script.py", "100000", "0.001", start_new_session=True)
    try:
        _pid_said(program)
        os.killpg(program.pid, signal.SIGINT)
        out, _ = program.communicate(timeout=60)
    finally:
        program.kill()
        program.wait()
    (said,) = [line for line in out.splitlines() if line.startswith("settled")]
    assert int(said.split()[1]) >= 2
    assert "abandoned" not in out
    assert "Traceback" not in out


@pytest.mark.parametrize("more", [(), ("hang",)])
def test_when_the_home_is_killed_its_processes_end_too_whatever_they_are_at(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    program = _program(tmp_path, "script.py", "100000", "0.001", *more)
    child = _pid_said(program)
    program.kill()
    program.wait()
    assert program.stdout is not None
    program.stdout.close()
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and " Z " in Path(f"/proc/{child}/stat").read_text(encoding="utf-8"):
            return  # nobody has asked after it; it is over all the same
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the process outlived its home")


def test_a_flow_file_says_processes_and_its_functions_come_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def tripled(number: int, *, by: int = 3) -> int:\n    return number * by\n", encoding="utf-8"
    )
    (tmp_path / "numbers.txt").write_text("1\n2\n3\n", encoding="utf-8")
    (tmp_path / "flow.yaml").write_text(
        "flow: own\n"
        "modules:\n"
        "  read: {use: file.read, with: {path: numbers.txt, codec: json}}\n"
        "  tripled: {map: 'own:tripled', with: {by: 5}, processes: 2}\n"
        "  out: {use: file.write, with: {path: out.txt, codec: json}}\n",
        encoding="utf-8",
    )
    found = subprocess.run(
        [sys.executable, "-m", "furcula", "run", str(tmp_path / "flow.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "out.txt").read_text(encoding="utf-8").split() == ["5", "10", "15"]


def test_an_answer_that_cannot_be_read_again_fails_its_event_with_the_reason() -> None:
    flow, got = Flow("odd"), []  # type: ignore[var-annotated]
    (
        flow.source([1, 2, 3], "source")
        >> flow.map(computing.keyed_oddly, "odd", processes=1)
        >> flow.module(lambda event: got.append(event.data), "sink")
    )
    statistics = flow.run()
    assert got == [1, 3]
    assert statistics.modules["odd"].reasons == {"failed InputError": 1}
