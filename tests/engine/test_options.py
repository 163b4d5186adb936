"""What each option promises."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest
from tests.engine.conftest import Sink, directed, ran

from furcula import Breaker, ConfigurationError, Event, Flow, Options, Retry

pytestmark = pytest.mark.usefixtures("quiet")


def numbers(count: int) -> Flow:
    flow = Flow("options")
    flow.source(range(count), "numbers")
    return flow


def test_a_key_must_be_a_path() -> None:
    with pytest.raises(ConfigurationError, match=r"key must be a path: 'customer': a path begins with one of created"):
        numbers(1).module(lambda event: event, "keyed", key="customer")
    with pytest.raises(ValueError, match="key must be a path"):
        Options(key="dta.customer")
    for right in ("data.customer", "headers.tenant", "key", "data", None):
        assert Options(key=right).key == right


def test_events_without_the_key_stay_in_order_with_each_other_and_hold_up_nobody_else() -> None:
    flow, sink, inside, most = Flow("options"), Sink(), 0, 0
    given = [{"n": number} if number % 2 else {"n": number, "customer": number} for number in range(20)]
    flow.source(given, "given")

    @flow.module(concurrency=20, key="data.customer")
    async def slow(event: Event) -> Event:
        nonlocal inside, most
        if "customer" not in event.data:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep((20 - event.data["n"]) * 0.01)
            inside -= 1
        return event

    flow["given"] >> slow >> flow.module(sink, "sink")
    ran(flow)
    came = [data["n"] for data in sink]
    assert [n for n in came if n % 2] == list(range(1, 20, 2))
    assert most == 1
    assert came.index(18) < came.index(1), "those with a key of their own do not wait for them"


def test_concurrency_bounds_how_many_wait_at_once_and_order_is_kept() -> None:
    flow, sink, inside, most = numbers(50), Sink(), 0, 0

    @flow.module(concurrency=7)
    async def slow(event: Event) -> Event:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep((50 - event.data) * 0.01)
        inside -= 1
        return event

    flow["numbers"] >> slow >> flow.module(sink, "sink")
    ran(flow)
    assert most == 7
    assert sink == list(range(50))


def test_order_none_lets_the_quick_overtake() -> None:
    flow, sink = numbers(4), Sink()

    @flow.module(concurrency=4, order="none")
    async def slow(event: Event) -> Event:
        await asyncio.sleep(4 - event.data)
        return event

    flow["numbers"] >> slow >> flow.module(sink, "sink")
    ran(flow)
    assert sink == [3, 2, 1, 0]


def test_a_key_keeps_order_within_itself_while_others_overtake() -> None:
    flow, sink = numbers(60), Sink()

    @flow.module(concurrency=8, key=lambda event: event.data % 5)
    async def slow(event: Event) -> Event:
        await asyncio.sleep(1 if event.data % 5 == 0 else 0.01)
        return event

    flow["numbers"] >> slow >> flow.module(sink, "sink")
    ran(flow)
    by_key: dict[int, list[int]] = defaultdict(list)
    for number in sink:
        by_key[number % 5].append(number)
    assert all(found == sorted(found) for found in by_key.values())
    assert sorted(sink) == list(range(60))
    assert sink != list(range(60))


def test_a_key_that_retries_holds_only_its_own_lane_even_with_one_worker() -> None:
    flow, sink, tries = numbers(12), Sink(), 0

    @flow.module(key=lambda event: event.data % 3, retry=Retry(attempts=5, delay=10, jitter=0, factor=1))
    async def flaky(event: Event) -> Event:
        nonlocal tries
        if event.data == 0:
            tries += 1
            if tries < 3:
                raise OSError("not yet")
        return event

    flow["numbers"] >> flaky >> flow.module(sink, "sink")
    statistics = ran(flow)
    assert sink == [1, 2, 4, 5, 7, 8, 10, 11, 0, 3, 6, 9]
    assert statistics.modules["flaky"].retried == 2


@pytest.mark.parametrize("first_seed", [0, 50])
def test_the_order_of_each_key_is_kept_through_waits_retries_and_full_lanes(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 50):
        draw = random.Random(seed)
        flow, sink = numbers(150), Sink()
        keys, failing = draw.choice([1, 3, 20]), draw.choice([0.0, 0.3])

        async def work(event: Event, draw: random.Random = draw, failing: float = failing) -> Event:
            if draw.random() < 0.5:
                await asyncio.sleep(draw.random())
            if draw.random() < failing:
                raise OSError
            return event

        place = flow.module(
            work,
            concurrency=draw.choice([1, 2, 5]),
            queue=draw.choice([1, 4, None]),
            key=lambda event, keys=keys: event.data % keys,
            retry=Retry(attempts=1000, delay=0.5, factor=1) if failing else None,
        )
        flow["numbers"] >> place >> flow.module(sink, "sink")
        ran(flow, batch_limit=draw.choice([1, 3, 512]))
        assert sorted(sink) == list(range(150))
        for key in range(keys):
            found = [number for number in sink if number % keys == key]
            assert found == sorted(found), seed


def test_each_try_sees_the_original_payload_and_the_failed_event_carries_it() -> None:
    flow, dead, seen = Flow("retry"), Sink(), []
    flow.source([{"items": [1]}], "one")

    @flow.module(retry=Retry(attempts=3, delay=1))
    def spoils(event: Event) -> Event:
        seen.append([list(event.data["items"]), "extra" in event.headers])
        event.data["items"].append(2)
        event.headers["extra"] = 1
        raise ValueError("no")

    flow["one"] >> spoils >> flow.module(Sink(), "sink")
    spoils.failed >> flow.module(dead, "dead")
    ran(flow)
    assert seen == [[[1], False]] * 3
    assert dead == [{"items": [1]}]
    failure = dead.events[0].failures[0]
    assert (failure.attempts, failure.module, failure.type, failure.touched) == (3, "spoils", "ValueError", False)
    assert "raise ValueError" in failure.traceback


def test_errors_outside_the_list_are_not_tried_again() -> None:
    flow, tries = numbers(1), []

    @flow.module(retry=Retry(attempts=5, delay=1, errors=(TimeoutError,)))
    def strict(event: Event) -> Event:
        tries.append(event.data)
        raise KeyError("no")

    flow["numbers"] >> strict >> flow.module(Sink(), "sink")
    assert ran(flow).failed == 1
    assert tries == [0]


def test_waits_between_tries_grow_by_the_factor_and_jitter_only_shortens_them() -> None:
    retry = Retry(attempts=9, delay=1, factor=3, max_delay=20, jitter=0.5)
    assert [retry.delay_s(tried, lambda: 0.0) for tried in (1, 2, 3, 4, 5)] == [1, 3, 9, 20, 20]
    assert retry.delay_s(2, lambda: 1.0) == 1.5
    assert Retry(attempts=10_000).delay_s(9_999, lambda: 0.0) == 30


def test_the_breaker_opens_after_failures_in_a_row_and_one_event_tries_whether_it_may_close() -> None:
    flow, calls, broken = Flow("breaker"), [], True

    @flow.source
    async def slowly() -> Any:
        for number in range(10):
            yield number
            await asyncio.sleep(1)

    @flow.module(retry=Retry(attempts=1, breaker=Breaker(failures=3, reset=4)))
    async def calling(event: Event) -> Event:
        calls.append(event.data)
        if event.data < 5:
            raise OSError("down")
        return event

    sink, dead = Sink(), Sink()
    slowly >> calling >> flow.module(sink, "sink")
    calling.failed >> flow.module(dead, "dead")
    ran(flow)
    assert calls == [0, 1, 2, 6, 7, 8, 9]
    assert sink == [6, 7, 8, 9]
    assert [event.failures[0].type for event in dead.events] == ["OSError"] * 3 + ["CircuitOpen"] * 3
    assert broken


def test_a_coroutine_over_its_time_is_cancelled_and_fails_retryably() -> None:
    flow, dead, sink, cleaned = numbers(3), Sink(), Sink(), []

    @flow.module(timeout="2s")
    async def hangs(event: Event) -> Event:
        try:
            await asyncio.sleep(100 if event.data == 1 else 1)
        finally:
            cleaned.append(event.data)
        return event

    flow["numbers"] >> hangs >> flow.module(sink, "sink")
    hangs.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (sink, dead, cleaned) == ([0, 2], [1], [0, 1, 2])
    failure = dead.events[0].failures[0]
    assert (failure.type, failure.retryable) == ("ModuleTimeout", True)


def test_a_coroutine_that_will_not_be_cancelled_fails_after_the_grace_and_what_it_says_later_is_discarded() -> None:
    flow, dead, sink = numbers(2), Sink(), Sink()

    @flow.module(timeout=1)
    async def stubborn(event: Event) -> Event:
        try:
            await asyncio.sleep(50 if event.data == 0 else 0.1)
        except asyncio.CancelledError:
            await asyncio.sleep(60)
        return event

    flow["numbers"] >> stubborn >> flow.module(sink, "sink")
    stubborn.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (sink, dead) == ([1], [0])


def test_timeouts_of_the_users_own_work_inside_a_module() -> None:
    flow, sink = numbers(20), Sink()

    @flow.module(concurrency=4, timeout=50)
    async def own(event: Event) -> Event:
        try:
            async with asyncio.timeout(0.5):
                await asyncio.sleep(event.data % 2)
        except TimeoutError:
            event.data = -event.data
        return event

    flow["numbers"] >> own >> flow.module(sink, "sink")
    ran(flow)
    assert sink == [n if n % 2 == 0 else -n for n in range(20)]


def test_a_cancelled_error_of_the_users_own_is_a_failure_and_not_a_stop() -> None:
    flow, dead, sink = numbers(3), Sink(), Sink()

    @flow.module
    async def cancels(event: Event) -> Event:
        if event.data == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return event

    flow["numbers"] >> cancels >> flow.module(sink, "sink")
    cancels.failed >> flow.module(dead, "dead")
    ran(flow)
    assert (sink, dead) == ([0, 2], [1])


def test_thread_runs_functions_off_the_loop_in_order_and_with_the_context() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    flow, sink = numbers(20), Sink()
    main = threading.get_ident()

    @flow.module(thread=True, concurrency=4)
    def blocks(event: Event) -> Event:
        assert threading.get_ident() != main
        event.headers["who"] = who.get()
        return event

    flow["numbers"] >> blocks >> flow.module(sink, "sink")
    who.set("me")
    ran(flow)
    assert sink == list(range(20))
    assert {event.headers["who"] for event in sink.events} == {"me"}


def test_a_thread_over_its_time_fails_now_works_on_a_copy_and_keeps_its_place() -> None:
    let_go = threading.Event()
    flow, dead, sink = Flow("thread"), Sink(), Sink()
    flow.source([{"n": 0}, {"n": 1}], "two")

    @flow.module(thread=True, timeout="1s")
    def blocks(event: Event) -> Event:
        event.data["seen"] = True
        if event.data["n"] == 0:
            assert let_go.wait(10)
        return event

    def free(event: Event) -> None:
        dead(event)
        let_go.set()

    flow["two"] >> blocks >> flow.module(sink, "sink")
    blocks.failed >> flow.module(free, "dead")
    statistics = flow.run()
    assert statistics.balanced
    assert dead == [{"n": 0}]
    assert sink == [{"n": 1, "seen": True}]


def test_isolate_context_gives_each_event_a_context_of_its_own() -> None:
    seen: contextvars.ContextVar[int] = contextvars.ContextVar("seen", default=-1)
    for isolated, expected in ((False, [-1, 0, 1]), (True, [-1, -1, -1])):
        flow, sink = numbers(3), Sink()

        @flow.module(isolate_context=isolated)
        async def sets(event: Event) -> Event:
            before, number = seen.get(), event.data
            seen.set(number)
            event.data = before
            return event

        flow["numbers"] >> sets >> flow.module(sink, "sink")
        ran(flow)
        assert sink == expected


@pytest.mark.parametrize(
    ("overflow", "expected", "dropped", "failed"),
    [
        ("block", list(range(20)), 0, 0),
        ("drop-newest", [0, 1, 2, 3, 4], 15, 0),
        ("drop-oldest", [0, 16, 17, 18, 19], 15, 0),
        ("fail", [0, 1, 2, 3, 4], 0, 15),
    ],
)
def test_overflow(overflow: str, expected: list[int], dropped: int, failed: int) -> None:
    flow, sink = Flow("overflow"), Sink()

    @flow.source
    async def burst() -> Any:
        yield 0
        await asyncio.sleep(0.1)  # the first is inside, and the queue is empty
        for number in range(1, 20):
            yield number

    @flow.module(queue=4, overflow=overflow)
    async def slow(event: Event) -> Event:
        await asyncio.sleep(10)
        return event

    burst >> slow >> flow.module(sink, "sink")
    statistics = ran(flow)
    assert sink == expected
    assert (statistics.dropped, statistics.failed) == (dropped, failed)
    assert statistics.modules["slow"].reasons.get("dropped overflow", 0) == dropped
    assert statistics.modules["slow"].reasons.get("failed QueueFull", 0) == failed


def test_a_full_queue_makes_the_source_wait() -> None:
    flow, given, most = Flow("pressure"), 0, 0
    done = 0

    @flow.source
    async def fast() -> Any:
        nonlocal given, most
        for number in range(5000):
            given += 1
            most = max(most, given - done)
            yield number

    @flow.module(queue=10)
    async def slow(event: Event) -> Event:
        nonlocal done
        await asyncio.sleep(0.001)
        done += 1
        return event

    fast >> slow >> flow.module(Sink(), "sink")
    ran(flow, batch_limit=10)
    assert most <= 40


def test_keep_original_gives_a_failed_event_its_data_back() -> None:
    for keep, expected in ((None, [{"n": 1, "half": True}]), ("original", [{"n": 1}])):
        flow, dead = Flow("keep"), Sink()
        flow.source([{"n": 1}], "one")

        @flow.module(keep=keep)
        def halfway(event: Event) -> Event:
            event.data["half"] = True
            raise ValueError

        flow["one"] >> halfway >> flow.module(Sink(), "sink")
        halfway.failed >> flow.module(dead, "dead")
        ran(flow)
        assert dead == expected
        assert dead.events[0].failures[0].touched is (keep is None)


def test_options_are_checked_where_the_module_is_placed() -> None:
    with pytest.raises(ConfigurationError, match="there is no option 'concurency', did you mean 'concurrency'"):
        numbers(1).module(lambda event: event, "m", concurency=4)
    with pytest.raises(ConfigurationError, match="'2 parsecs' is not a duration"):
        numbers(1).module(lambda event: event, "m", timeout="2 parsecs")
    flow = numbers(1)
    flow["numbers"] >> flow.module(lambda event: event, "m", timeout=1)
    with pytest.raises(ConfigurationError, match="cannot be interrupted"):
        flow.check()
    with pytest.raises(ValueError, match="attempts must be 1 or more"):
        Retry(attempts=0)
    assert Options.of(None, key=lambda event: 1).key is not None


@pytest.mark.parametrize("changes", [{}, {"queue": 5}, {"thread": True}])
def test_pause_holds_what_comes_and_resume_lets_it_go_on(changes: dict[str, Any]) -> None:
    flow, sink = Flow("pause"), Sink()
    flow.use("inlet", "in") >> flow.module(lambda event: event, "mid", **changes) >> flow.module(sink, "sink")

    async def work(director: Any) -> None:
        director.pause("mid")
        first = asyncio.ensure_future(director.put("in", 1))
        await asyncio.sleep(5)
        assert director.statistics().modules["mid"].held == 1
        assert director.statistics().modules["mid"].paused
        assert sink == []
        director.resume("mid")
        await first
        await director.put("in", 2, settled=True)
        assert sink == [1, 2]

    directed(flow, work)


def test_a_module_that_holds_the_loop_is_named_and_told_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    flow = numbers(1)

    def heavy(event: Event) -> Event:
        time.sleep(0.12)
        return event

    flow["numbers"] >> flow.module(heavy) >> flow.module(Sink(), "sink")
    with caplog.at_level("WARNING", logger="furcula.flow"):
        flow.run()
    assert "heavy held the event loop for" in caplog.text
    assert "thread: true" in caplog.text
