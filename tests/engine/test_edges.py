"""Awkward modules, awkward moments: what a review found, and stays mended."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import pytest
from tests.engine.conftest import Sink, directed, ran, settled

from furcula import BatchFailed, Director, Event, Flow, Module, Retry, Source
from furcula.engine.moving import MovingLoop, run_moving
from furcula.errors import ConfigurationError, StartFailed
from furcula.options import Breaker
from furcula.receipt import Origin, Receipt, Tracked

pytestmark = pytest.mark.usefixtures("quiet")


class Hung(BaseException):
    pass


@pytest.fixture(autouse=True)
def not_for_ever():
    def ring(*_):
        raise Hung("hangs")

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(12)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


def flow_of(*items: Any) -> Flow:
    flow = Flow("edges")
    flow.source(list(items), "source")
    return flow


def through(module: Any, *items: Any, **options: Any):
    flow, sink, dead = flow_of(*items), Sink(), Sink()
    place = flow.module(module, "module", **options)
    flow["source"] >> place >> flow.module(sink, "sink")
    place.failed >> flow.module(dead, "dead")
    return sink, dead, ran(flow)


def bounded(flow: Flow, seconds: float, work=None, **settings: Any):
    """Run (work or to the end) and fail if the moved clock passes `seconds`."""

    async def go(loop: MovingLoop):
        director = Director(flow, now=lambda: 1e9 + loop.time(), **settings)
        task = asyncio.ensure_future(director.run() if work is None else work(director))
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            return director, "hung"
        return director, task.result() if task.exception() is None else task.exception()

    async def outer(loop):
        director, answer = await go(loop)
        return director, answer

    return run_moving(outer)


# ------------------------------------------------------------------ pool


def test_after_a_coroutine_that_would_not_let_go_the_next_event_does_not_time_out():
    flow, sink, dead = Flow("edges"), Sink(), Sink()

    @flow.source
    async def source():
        for number in range(3):
            yield number
        await asyncio.sleep(100)

    async def stubborn(event: Event) -> Event:
        if event.data == 0:
            inner = asyncio.ensure_future(asyncio.sleep(20))
            while not inner.done():
                try:
                    await asyncio.shield(inner)
                except asyncio.CancelledError:
                    pass
        return event

    place = flow.module(stubborn, "module", timeout=1)
    flow["source"] >> place >> flow.module(sink, "sink")
    place.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (dead, sink) == ([0], [1, 2])


def test_events_behind_a_time_out_in_a_thread_are_not_abandoned_at_the_natural_end():
    flow, dead = Flow("edges"), Sink()
    flow.source(list(range(4)), "source")

    def blocks(event: Event) -> Event:
        time.sleep(0.15)
        return event

    place = flow.module(blocks, "module", thread=True, timeout=0.05)
    flow["source"] >> place >> flow.module(Sink(), "sink")
    place.failed >> flow.module(dead, "dead")
    statistics = asyncio.run(Director(flow).run())
    assert (dead, statistics.abandoned) == ([0, 1, 2, 3], {})


def test_a_timeout_counts_also_with_a_context_for_each_event():
    async def slow(event: Event) -> Event:
        await asyncio.sleep(100)
        return event

    sink, dead, _ = through(slow, 0, timeout=1, isolate_context=True)
    assert (dead, sink) == ([0], [])


def test_timeouts_do_not_pile_up_timers():
    async def slow(event: Event) -> Event:
        await asyncio.sleep(100)
        return event

    flow, _dead = flow_of(*range(100)), Sink()
    place = flow.module(slow, "module", timeout=1)
    flow["source"] >> place >> flow.module(Sink(), "sink")
    place.failed >> flow.module(lambda event: None, "dead")

    async def go(loop):
        director = Director(flow)
        await director.run()
        return len(getattr(director.modules["module"].steps[0], "_graces", ()))

    assert run_moving(go) < 20


def test_events_in_back_off_are_bounded_with_keys():
    flow = Flow("edges")

    @flow.source
    async def source():
        for number in range(20_000):
            yield number

    async def fails(event: Event) -> Event:
        raise OSError

    place = flow.module(fails, "module", key="data", queue=10, retry=Retry(attempts=2, delay=30, jitter=0))
    flow["source"] >> place >> flow.module(Sink(), "sink")

    async def work(director):
        await asyncio.sleep(20)
        return director.statistics().modules["module"].held

    held, _ = directed(flow, work, deadline=0)
    assert held < 2000


def test_order_in_a_lane_whose_next_event_waits_for_room():
    async def first_waits(event: Event) -> Event:
        if event.data == 0:
            await asyncio.sleep(1)
        return event

    sink, _, _ = through(first_waits, *range(30), key=lambda event: 1, queue=2, concurrency=2)
    assert sink == list(range(30))


def test_order_in_a_full_lane_behind_a_retry():
    tried: list[int] = []

    async def flaky(event: Event) -> Event:
        tried.append(event.data)
        if tried.count(event.data) == 1 and event.data % 5 == 0:
            raise OSError
        await asyncio.sleep(0.01)
        return event

    sink, _, _ = through(flaky, *range(30), key=lambda event: 1, queue=2, concurrency=2, retry=Retry(delay=1, jitter=0))
    assert sink == list(range(30))


def test_order_when_a_back_off_ends_while_downstream_is_full():
    flow, sink, tried = Flow("edges"), Sink(), []
    flow.source(["x0", "y0", "k0", "k1", "x1", "x2", "x3", "k2"], "source")

    async def flaky(event: Event) -> Event:
        tried.append(event.data)
        if event.data == "y0":
            await asyncio.sleep(0.3)
        if event.data == "k0":
            await asyncio.sleep(0.5)
            if tried.count("k0") == 1:
                raise OSError
            await asyncio.sleep(5)
        return event

    async def slow(event: Event) -> Event:
        await asyncio.sleep(3)
        return event

    (
        flow["source"]
        >> flow.module(flaky, "flaky", key=lambda event: event.data[0], concurrency=3, retry=Retry(delay=1, jitter=0))
        >> flow.module(slow, "slow", queue=1)
        >> flow.module(sink, "sink")
    )
    ran(flow)
    assert [data for data in sink if data[0] == "k"] == ["k0", "k1", "k2"]


def test_a_paused_keyed_module_does_not_go_on_with_its_lanes():
    flow, handled = Flow("edges"), []

    @flow.source
    async def source():
        for number in range(5):
            yield number
        await asyncio.sleep(100)

    async def slow(event: Event) -> Event:
        await asyncio.sleep(1)
        handled.append(event.data)
        return event

    flow["source"] >> flow.module(slow, "slow", key=lambda event: 1, concurrency=2) >> flow.module(Sink(), "sink")

    async def work(director):
        await asyncio.sleep(0.5)
        director.pause("slow")
        await asyncio.sleep(10)
        return list(handled)

    answer, _ = directed(flow, work)
    assert answer == [0]  # the one in hand; the rest waits


def test_keep_original_holds_for_an_async_generator():
    async def spoils(event: Event):
        event.data["spoilt"] = True
        yield Event(1)
        raise OSError

    _, dead, _ = through(spoils, {}, keep="original")
    assert dead == [{}]


def test_thread_timeouts_open_the_breaker():
    flow, calls = Flow("edges"), []

    @flow.source
    async def source():
        for number in range(5):
            yield number
        await asyncio.sleep(1.2)

    def blocks(event: Event) -> Event:
        calls.append(event.data)
        time.sleep(0.15)
        return event

    place = flow.module(
        blocks, "module", thread=True, timeout=0.05, retry=Retry(attempts=1, breaker=Breaker(failures=2, reset=100))
    )
    flow["source"] >> place >> flow.module(Sink(), "sink")
    place.failed >> flow.module(Sink(), "dead")
    asyncio.run(Director(flow).run())
    assert calls == [0, 1]


def test_a_thread_time_out_leaves_the_data_untouched_and_says_so():
    def fails(event: Event) -> Event:
        event.data["x"] = 1
        raise OSError

    _, dead, _ = through(fails, {}, thread=True, timeout=5)
    assert dead == [{}]
    assert dead.events[0].failures[0].touched is False


def test_an_open_circuit_fails_events_at_once():
    flow, _dead, at = Flow("edges"), Sink(), []
    flow.source([0, 1], "source")

    async def fails(event: Event) -> Event:
        raise OSError

    place = flow.module(
        fails, "module", retry=Retry(attempts=3, delay=1, factor=1, jitter=0, breaker=Breaker(failures=1, reset=100))
    )
    flow["source"] >> place >> flow.module(Sink(), "sink")

    def dead_at(event: Event) -> None:
        at.append(asyncio.get_running_loop().time())

    place.failed >> flow.module(dead_at, "dead")
    ran(flow)
    assert at[1] - at[0] < 0.5


def test_a_generator_behind_lanes_stays_bounded():
    flow, made, at_first = Flow("edges"), [0], []
    flow.source([0], "source")

    def many(event: Event):
        for number in range(50_000):
            made[0] += 1
            yield Event(number)

    def sink(event: Event) -> None:
        at_first.append(made[0])

    flow["source"] >> flow.module(many, "many", key=lambda event: 1) >> flow.module(sink, "sink")
    ran(flow)
    assert at_first[0] < 5000


# ------------------------------------------------------------------ splits


def test_a_long_split_that_yields_its_input_copies_each():
    def counts(event: Event):
        for number in range(1500):
            event.data["n"] = number
            yield event

    sink, _, _ = through(counts, {})
    assert [data["n"] for data in sink] == list(range(1500))


def test_a_new_event_yielded_twice_is_two_events():
    def twice(event: Event):
        child = Event({})
        for number in range(3):
            child.data["n"] = number
            yield child

    sink, _, _ = through(twice, 0)
    assert len({event.id for event in sink.events}) == 3


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_the_rest_of_a_long_split_survives_a_stop(kind):
    flow, sink = Flow("edges"), Sink()

    async def waiting():
        yield 1
        yield 2
        await asyncio.sleep(1000)

    def plain():
        yield from [1] * 20

    flow.source(waiting if kind == "async" else plain, "source")

    def many(data: int):
        return range(5000)

    async def slow(event: Event) -> Event:
        await asyncio.sleep(0.001)
        return event

    flow["source"] >> flow.flat_map(many, "many") >> flow.module(slow, "slow", queue=10) >> flow.module(sink, "sink")

    async def go(loop):
        director = Director(flow, deadline=1000)
        async with director:
            await asyncio.sleep(0.5)
        return director.statistics()

    statistics = run_moving(go)
    settled(statistics)
    assert len(sink) == 5000 * statistics.admitted > 0, (len(sink), statistics.admitted)


def test_the_rest_of_a_long_split_survives_a_put_that_is_cancelled():
    flow, sink = Flow("edges"), Sink()

    def many(data: int):
        return range(5000)

    async def slow(event: Event) -> Event:
        await asyncio.sleep(0.001)
        return event

    flow.flat_map(many, "many") >> flow.module(slow, "slow", queue=10) >> flow.module(sink, "sink")

    async def work(director):
        try:
            await asyncio.wait_for(director.put("many", 1), 0.5)
        except TimeoutError:
            pass
        await asyncio.sleep(100)

    directed(flow, work)
    assert len(sink) == 5000


def test_keep_original_holds_beside_a_long_split():
    def splits(event: Event):
        event.data["spoilt"] = True
        if event.data["bad"]:
            raise OSError
        for number in range(1000):
            yield Event(number)

    _, dead, _ = through(splits, {"bad": True}, {"bad": False}, keep="original")
    assert dead == [{"bad": True}]


# ------------------------------------------------------------------ batches and answers


def test_batch_failed_for_all_with_a_result_fails_them():
    def batch(events: list[Event]) -> list[Event]:
        raise BatchFailed({index: OSError() for index in range(len(events))}, result=[Event("extra")])

    sink, dead, _ = through(batch, 1)
    assert dead == [1]
    assert [data for data in sink if data != "extra"] == []


def test_batch_failed_with_an_odd_index_loses_nothing():
    def batch(events: list[Event]) -> list[Event]:
        raise BatchFailed({"first": OSError()})

    sink, dead, _ = through(batch, 1)
    assert len(sink) + len(dead) == 1


def test_a_batch_that_packs_some_keeps_the_order_of_its_answer():
    def batch(events: list[Event]) -> list[Event]:
        a, b, *rest = events
        return [Event(a.data + b.data), *rest]

    sink, _, _ = through(batch, 1, 2, 3, 4)
    assert sink == [3, 3, 4]


def test_a_batch_that_splits_one_keeps_the_order_of_its_answer():
    def batch(events: list[Event]) -> list[Event]:
        _first, *rest = events
        return [Event("a"), Event("b"), *rest]

    sink, _, _ = through(batch, 1, 2, 3)
    assert sink == ["a", "b", 2, 3]


def test_a_batch_answer_that_cannot_be_copied_fails_its_event():
    def batch(events: list[Event]) -> list[Event]:
        return [events[0], events[0]]

    lock = threading.Lock()
    sink, dead, _ = through(batch, lock)
    assert len(dead) + len(sink) > 0


def test_keep_original_of_what_cannot_be_copied_fails_only_that_event():
    sink, dead, _ = through(lambda event: event, 1, threading.Lock(), 3, keep="original")
    assert (sink, len(dead)) == ([1, 3], 1)


def test_a_retried_batch_that_cannot_be_copied_fails():
    def batch(events: list[Event]) -> list[Event]:
        return events

    sink, dead, _ = through(batch, threading.Lock(), retry=Retry(attempts=2))
    assert len(sink) + len(dead) == 1


def test_keep_original_holds_when_the_answer_is_wrong():
    def forgets(event: Event) -> Event:
        event.data["spoilt"] = True

    _, dead, _ = through(forgets, {}, keep="original")
    assert dead == [{}]


def test_one_verdict_that_cannot_be_told_fails_one_event():
    class Odd:
        def __bool__(self):
            raise ValueError("ambiguous")

    flow, sink, dead = flow_of(1, 2, 3), Sink(), Sink()
    place = flow.filter(lambda data: Odd() if data == 20 else True, "filter")
    flow["source"] >> flow.map(lambda data: data * 10, "tens") >> place >> flow.module(sink, "sink")
    place.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (sink, dead) == ([10, 30], [20])


def test_a_verdict_that_cannot_be_told_beside_a_failure_loses_nothing():
    class Odd:
        def __bool__(self):
            raise ValueError("ambiguous")

    def verdict(data):
        if data == 1:
            raise OSError
        return Odd() if data == 2 else True

    flow, sink, dead = flow_of(1, 2, 3), Sink(), Sink()
    place = flow.filter(verdict, "filter")
    flow["source"] >> place >> flow.module(sink, "sink")
    place.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (sink, dead) == ([3], [1, 2])


def test_headers_that_cannot_be_copied_fail_only_their_event():
    flow, one, two, dead = Flow("edges"), Sink(), Sink(), Sink()
    flow.source([Event(1), Event(2, {"lock": threading.Lock()}), Event(3)], "source")
    through_ = flow.module(lambda event: event, "through")
    flow["source"] >> through_ >> (flow.module(one, "one"), flow.module(two, "two"))
    through_.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (one, two, dead) == ([1, 3], [1, 3], [2])


def test_a_source_that_yields_one_event_again_admits_separate_events():
    flow, sink = Flow("edges"), Sink()

    @flow.source
    def source():
        event = Event({"n": 0})
        for _ in range(3):
            yield event

    def count(event: Event) -> Event:
        event.data["n"] += 1
        return event

    flow["source"] >> flow.module(count, "count") >> flow.module(sink, "sink")
    ran(flow)
    assert sink == [{"n": 1}] * 3


# ------------------------------------------------------------------ admission, receipts, requests


class Admits(Source):
    """Admits ten and calls back."""

    def __init__(self, how: Any):
        self.how = how

    async def start(self, context):
        self.how(context)


def admitting(how):
    class Own(Source):
        def start(self, context):
            how(context)

    return Own


def test_a_settled_callback_that_raises_harms_nothing():
    flow, sink = Flow("edges"), Sink()

    def boom(slot):
        raise RuntimeError("mine")

    def how(context):
        context.admit([1, 2, 3], settled=boom)
        context.finished()

    flow.module(admitting(how), "own") >> flow.module(sink, "sink")
    statistics = ran(flow)
    assert (sink, statistics.delivered) == ([1, 2, 3], 3)


def test_a_settled_callback_may_admit_the_next():
    flow, sink, left = Flow("edges"), Sink(), [1000]

    def how(context):
        def next_one(slot=None):
            left[0] -= 1
            if left[0] < 0:
                context.finished()
            else:
                context.admit([left[0]], settled=next_one)

        next_one()

    flow.module(admitting(how), "own") >> flow.module(sink, "sink")
    statistics = ran(flow)
    assert statistics.delivered == 1000


def test_a_settled_callback_that_admits_while_the_flow_drains_breaks_nothing():
    flow, sink = Flow("edges"), Sink()

    def how(context):
        def next_one(slot=None):
            context.admit(["more"], settled=next_one)

        next_one()

    async def slow(event: Event) -> Event:
        await asyncio.sleep(1)
        return event

    flow.module(admitting(how), "own") >> flow.module(slow, "slow") >> flow.module(sink, "sink")

    async def go(loop):
        director = Director(flow)
        async with director:
            await asyncio.sleep(3.5)
        return director

    director = run_moving(go)
    settled(director.statistics())
    assert director._failure is None


def test_a_lost_tracked_event_counts_as_lost():
    origin = Origin("x")
    slot = Tracked((Receipt(origin, 1),), 1)
    del slot
    assert origin.lost == 1


def test_answered_requests_are_not_kept_in_memory():
    class Payload:
        pass

    flow = Flow("edges")

    class Inlet(Source):
        inboxes = ("inbox",)

        def start(self, context):
            pass

    inlet = flow.module(Inlet, "inlet")
    inlet >> flow.module(lambda event: event, "same") >> inlet

    async def work(director):
        payload = Payload()
        seen = weakref.ref(payload)
        reply = await director.ask("inlet", payload)
        del reply, payload
        await asyncio.sleep(1)
        gc.collect()
        return seen() is None

    freed, _ = directed(flow, work)
    assert freed


def test_a_reply_may_be_put_again():
    flow, sink = Flow("edges"), Sink()

    class Inlet(Source):
        inboxes = ("inbox",)

        def start(self, context):
            pass

    inlet = flow.module(Inlet, "inlet")
    inlet >> flow.module(lambda event: event, "same") >> inlet
    flow.source([], "other") >> flow.module(sink, "sink")

    async def work(director):
        reply = await director.ask("inlet", 1)
        await director.put("other", reply)

    directed(flow, work)
    assert sink == [1]


def test_a_put_into_an_unknown_inbox_admits_nothing():
    flow, sink = Flow("edges"), Sink()
    flow.source([], "source") >> flow.module(sink, "sink")

    async def work(director):
        with pytest.raises(ConfigurationError):
            await director.put("sink", 1, inbox="nonsense")

    _, statistics = directed(flow, work)
    assert statistics.admitted == 0


# ------------------------------------------------------------------ pause


def test_a_paused_module_with_a_queue_on_one_route_is_paused_on_all():
    flow, sink = Flow("edges"), Sink()
    flow.source([], "a")
    flow.source([], "b")
    flow.module(sink, "sink")
    flow.connect("a", "sink")
    flow.connect("b", "sink", queue=10)

    async def work(director):
        director.pause("sink")
        task = asyncio.ensure_future(director.put("a", 1))
        await asyncio.sleep(1)
        got = list(sink)
        director.resume("sink")
        await task
        return got

    got, _ = directed(flow, work)
    assert got == []


def test_a_paused_join_is_paused():
    flow, sink = Flow("edges"), Sink()
    flow.source([], "a")
    flow.module(lambda event: event, "left")
    flow.module(lambda event: event, "right")

    class Together(Module):
        inboxes = ("left", "right")

        def process(self, event):
            sink.append(event.data)

    together = flow.module(Together, "together", join=True)
    flow["a"] >> flow["left"] >> together["left"]
    flow["a"] >> flow["right"] >> together["right"]

    async def work(director):
        director.pause("together")
        task = asyncio.ensure_future(director.put("a", 1))
        await asyncio.sleep(1)
        got = list(sink)
        director.resume("together")
        await task
        return got

    got, _ = directed(flow, work)
    assert got == []


# ------------------------------------------------------------------ stopping


def test_a_stop_hook_that_awaits_its_cancelled_task_does_not_break_the_stop():
    class Own(Module):
        def start(self, context):
            self.task = asyncio.get_running_loop().create_task(asyncio.sleep(1000))

        def process(self, event):
            return event

        async def stop(self):
            self.task.cancel()
            await self.task

    flow = flow_of(1)
    flow["source"] >> flow.module(Own, "own") >> flow.module(Sink(), "sink")
    director, answer = bounded(flow, 100)
    assert director.phase == "stopped", answer


def test_a_flush_that_hangs_ends_with_the_deadline():
    class Own(Module):
        def process(self, event):
            return event

        async def flush(self):
            await asyncio.sleep(1000)

    flow = flow_of(1)
    flow["source"] >> flow.module(Own, "own") >> flow.module(Sink(), "sink")

    async def work(director):
        await director.start()
        await director.stop(1)

    director, _ = bounded(flow, 100, work)
    assert director.phase == "stopped"


def test_a_second_signal_ends_a_stop_hook_that_hangs():
    class Own(Module):
        def process(self, event):
            return event

        async def stop(self):
            await asyncio.sleep(1000)

    flow = flow_of(1)
    flow["source"] >> flow.module(Own, "own") >> flow.module(Sink(), "sink")

    async def work(director):
        await director.start()
        director.request_stop(1)
        await asyncio.sleep(5)
        director.force()
        await director.stop()

    director, _ = bounded(flow, 100, work)
    assert director.phase == "stopped"


def test_a_flush_that_gives_no_list_does_not_break_the_stop():
    class Own(Module):
        def process(self, event):
            return event

        def flush(self):
            return Event(1)

    flow = flow_of(1)
    flow["source"] >> flow.module(Own, "own") >> flow.module(Sink(), "sink")
    director, answer = bounded(flow, 100)
    assert director.phase == "stopped", answer


def test_what_flush_gives_is_counted():
    class Keeps(Module):
        def __init__(self):
            self.kept = []

        def process(self, event):
            self.kept.append(event.data)

        def flush(self):
            kept, self.kept = self.kept, []
            return [Event(sum(kept))] if kept else []

    flow, sink = flow_of(1, 2), Sink()
    flow["source"] >> flow.module(Keeps, "keeps") >> flow.module(sink, "sink")
    ran(flow)
    assert sink == [3]


def test_cease_is_not_called_on_a_source_that_never_started():
    called = []

    class Own(Source):
        def start(self, context):
            called.append("start")

        def cease(self):
            called.append("cease")

    class Bad(Module):
        def start(self, context):
            raise OSError

        def process(self, event):
            return event

    flow = Flow("edges")
    flow.module(Own, "own") >> flow.module(Bad, "bad")
    _director, answer = bounded(flow, 100)
    assert isinstance(answer, StartFailed)
    assert called == []


def test_an_async_source_whose_own_future_is_cancelled_has_failed():
    flow = Flow("edges")

    @flow.source
    async def source():
        yield 1
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    flow["source"] >> flow.module(Sink(), "sink")
    _director, answer = bounded(flow, 100)
    assert answer != "hung"


def test_a_batch_function_that_catches_its_cancellation_settles_once():
    async def batch(events: list[Event]) -> list[Event]:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass
        return events

    flow = flow_of(1, 2)
    flow["source"] >> flow.module(batch, "batch") >> flow.module(Sink(), "sink")

    async def work(director):
        await asyncio.sleep(1)

    directed(flow, work, deadline=0)


def test_what_a_threaded_source_has_given_is_admitted_at_a_stop():
    flow, sink, given = Flow("edges"), Sink(), [0]

    @flow.source(thread=True)
    def source():
        for number in range(100_000):
            given[0] += 1
            yield number

    async def slow(event: Event) -> Event:
        await asyncio.sleep(0.0001)
        return event

    flow["source"] >> flow.module(slow, "slow", queue=10) >> flow.module(sink, "sink")

    async def go():
        director = Director(flow, deadline=60)
        async with director:
            await asyncio.sleep(0.3)
            director.request_stop()
        return director.statistics()

    statistics = asyncio.run(go())
    assert given[0] - statistics.admitted <= 1


def test_cancelling_a_run_that_drains_ends_it():
    async def slow(event: Event) -> Event:
        await asyncio.sleep(1000)
        return event

    flow = flow_of(1)
    flow["source"] >> flow.module(slow, "slow") >> flow.module(Sink(), "sink")

    async def go(loop):
        try:
            async with asyncio.timeout(5):
                await Director(flow).run()
        except TimeoutError:
            pass
        return loop.time()

    assert run_moving(go) < 100


def test_a_blocked_thread_does_not_keep_the_process(tmp_path):
    path = tmp_path / "blocks.py"
    path.write_text(
        "import time\n"
        "from furcula import Flow\n"
        "flow = Flow('x')\n"
        "flow.source([1], 'source') >> flow.module(lambda event: time.sleep(8), 'block', thread=True)\n"
        "import asyncio\n"
        "from furcula import Director\n"
        "async def main():\n"
        "    async with Director(flow, deadline=0.2) as d:\n"
        "        await asyncio.sleep(0.2)\n"
        "asyncio.run(main())\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, str(path)], timeout=11, capture_output=True)
    assert time.monotonic() - began < 5


def test_a_source_that_calls_exit_ends_as_failed():
    flow, sink = Flow("edges"), Sink()

    @flow.source
    async def source():
        yield 1
        raise SystemExit(3)

    async def slow(event: Event) -> Event:
        await asyncio.sleep(1)
        return event

    flow["source"] >> flow.module(slow, "slow") >> flow.module(sink, "sink")
    try:
        ran(flow)
    except BaseException:
        pass
    assert sink == [1]


# ------------------------------------------------------------------ bounds


def test_a_best_effort_branch_stays_bounded_whatever_its_overflow():
    flow = Flow("edges")

    @flow.source
    async def source():
        for number in range(20_000):
            yield number
        await asyncio.sleep(1000)

    async def slow(event: Event) -> None:
        await asyncio.sleep(1000)

    flow.module(Sink(), "sink")
    flow.module(slow, "slow", queue=10)
    flow.connect("source", "sink")
    try:
        flow.connect("source", "slow", branch="best-effort", queue=10, overflow="block")
        Director(flow)
    except ConfigurationError:
        return

    async def work(director):
        await asyncio.sleep(10)
        return director.statistics().modules["slow"].held

    held, _ = directed(flow, work, deadline=0)
    assert held < 2000


def test_a_start_hook_whose_own_future_was_cancelled_is_a_failed_start():
    class Own(Module):
        async def start(self):
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        def process(self, event):
            return event

    flow = flow_of(1)
    flow["source"] >> flow.module(Own, "own") >> flow.module(Sink(), "sink")
    _, answer = bounded(flow, 100)
    assert isinstance(answer, StartFailed), answer


def test_every_kind_of_fan_out_settles():
    flow, sink = Flow("edges"), Sink()
    flow.source(list(range(50)), "source")
    a = flow.module(lambda event: event, "a")
    b = flow.module(lambda event: event, "b")

    def packs(events: list[Event]) -> list[Event]:
        return [Event([event.data for event in events])]

    class Together(Module):
        inboxes = ("left", "right")

        def process(self, event):
            return event

    together = flow.module(Together, "together", join=True)
    c = flow.module(lambda event: event, "c")
    flow["source"] >> (a, b)
    a >> (c, flow.module(packs, "packs"))
    flow["packs"] >> flow.module(sink, "packed")
    c >> together["left"]
    b >> together["right"]
    flow.connect("b", flow.module(lambda event: None, "best"), branch="best-effort")
    (
        together
        >> flow.flat_map(lambda data: [1, 2], "two")
        >> (flow.module(lambda e: None, "x"), flow.module(lambda e: None, "y"))
    )
    ran(flow)


def test_an_exception_with_a_broken_status_is_an_ordinary_failure():
    class Bad(Exception):
        @property
        def status(self):
            raise ValueError("no status yet")

    def fails(event: Event) -> Event:
        raise Bad

    _sink, dead, _ = through(fails, 1)
    assert dead == [1]


def test_a_kept_event_that_cannot_be_copied_fails_when_it_is_answered_again():
    kept: list[Event] = []

    def again(event: Event) -> Event:
        kept.append(event)
        return kept[0]

    sink, dead, _ = through(again, threading.Lock(), 2, 3)
    assert len(sink) + len(dead) == 3


def test_a_drain_without_a_limit_is_limited_by_a_later_stop():
    async def slow(event: Event) -> Event:
        await asyncio.sleep(1000)
        return event

    flow = flow_of(1)
    flow["source"] >> flow.module(slow, "slow") >> flow.module(Sink(), "sink")

    async def go(loop):
        director = Director(flow)
        running = asyncio.ensure_future(director.run())
        await asyncio.sleep(1)
        await director.stop(2)
        await running
        return loop.time()

    assert run_moving(go) < 100


def test_a_second_gate_opens_when_a_long_split_in_the_cycle_is_through():
    flow, sink = Flow("edges"), Sink()

    @flow.source
    async def first():
        for number in range(255):
            yield 0 if number else 2000

    @flow.source
    async def second():
        await asyncio.sleep(0.05)
        for _number in range(10):
            yield 1

    def split(event: Event):
        for _number in range(event.data):
            yield Event(0).to("out")

    async def slow(event: Event) -> Event:
        await asyncio.sleep(0.001)
        return event

    place = flow.module(split, "split")
    (flow["first"], flow["second"]) >> place
    place["again"] >> place
    flow.connect("split.out", flow.module(slow, "slow", queue=1))
    flow["slow"] >> flow.module(sink, "sink")
    flow.ttl = 3

    async def work(director):
        for step in director.modules["split"].workers:
            step._pace.limit = 512
        await director.run()

    director, answer = bounded(flow, 1000, work)
    assert answer != "hung", director.statistics()
    assert len(sink) == 2010


def test_packed_requests_get_an_answer_each_of_their_own():
    flow = Flow("edges")

    class Inlet(Source):
        inboxes = ("inbox",)

        def start(self, context):
            pass

    async def pack(events: list[Event]) -> list[Event]:
        return [Event([event.data for event in events])]

    inlet = flow.module(Inlet, "inlet")
    inlet >> flow.module(pack, "pack") >> inlet

    async def work(director):
        return await asyncio.gather(*(director.ask("inlet", number) for number in range(2)))

    (one, two), _ = directed(flow, work)
    assert one.data is not two.data


def test_a_lane_is_not_entered_twice_after_back_off():
    flow, inside, worst, tried = Flow("edges"), {}, [0], []
    flow.source([(key, n) for n in range(60) for key in "abcd"], "source")

    async def flaky(event: Event) -> Event:
        key, n = event.data
        inside[key] = inside.get(key, 0) + 1
        worst[0] = max(worst[0], inside[key])
        try:
            await asyncio.sleep(0.01 * (hash((n, key == "a")) % 5))
            tried.append(event.data)
            if tried.count(event.data) == 1 and n % 3 == 0:
                raise OSError
        finally:
            inside[key] -= 1
        return event

    sink = Sink()

    async def slow(event: Event) -> Event:
        await asyncio.sleep(0.05)
        return event

    (
        flow["source"]
        >> flow.module(
            flaky, "flaky", key=lambda event: event.data[0], concurrency=4, retry=Retry(delay=0.02, jitter=0.9), queue=8
        )
        >> flow.module(slow, "slow", queue=1)
        >> flow.module(sink, "sink")
    )
    ran(flow)
    assert worst[0] == 1
    for key in "abcd":
        assert [n for k, n in sink if k == key] == list(range(60))


def test_what_a_stop_abandons_is_handed_over_with_its_failures_before_the_modules_are_stopped() -> None:
    told: list[Any] = []

    class Hanging(Module):
        async def process(self, event: Event) -> Event:
            await asyncio.Event().wait()
            return event

        def stop(self) -> None:
            told.append("stopped")

    async def abandoned(left: list[Any]) -> None:
        await asyncio.sleep(1)
        told.extend((event.data, failure.module, failure.type) for event, failure in left)

    flow = Flow("left")
    flow.use("inlet", "inlet") >> flow.module(Hanging, "hanging", queue=10) >> flow.use("null", "out")

    async def go(loop: MovingLoop) -> None:
        director = Director(flow, abandoned=abandoned)
        async with director:
            for number in range(3):
                await director.put("inlet", number)
            await asyncio.sleep(1)
            statistics = settled(await director.stop(1))
        assert (statistics.failed, statistics.abandoned) == (3, {"hanging": 3})

    run_moving(go)
    *left, last = told
    assert (sorted(left), last) == ([(number, "hanging", "Abandoned") for number in range(3)], "stopped")
