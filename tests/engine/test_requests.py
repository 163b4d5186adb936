"""Request and reply in memory: through forks, drops, failures, deadlines and drain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.engine.conftest import Sink, directed

from furcula import ConfigurationError, Director, Event, Flow
from furcula.errors import DeadlinePassed, Stopped, Unanswered
from furcula.statuses import HttpError

pytestmark = pytest.mark.usefixtures("quiet")


def circle(*functions: Any, **options: Any) -> Flow:
    flow = Flow("circle")
    end: Any = flow.use("inlet", "api")
    for number, function in enumerate(functions):
        end = end >> flow.module(function, f"m{number}", **options)
    end >> flow["api"]
    return flow


def test_what_comes_back_to_the_module_is_the_answer() -> None:
    def double(event: Event) -> Event:
        event.data *= 2
        return event

    reply, statistics = directed(circle(double, double), lambda d: d.ask("api", 5))
    assert reply.data == 20
    assert statistics.delivered == 1


def test_a_request_that_is_dropped_is_answered_at_once_with_its_fate() -> None:
    async def work(director: Director) -> Unanswered:
        with pytest.raises(Unanswered) as caught:
            await director.ask("api", 1, timeout="1h")
        assert asyncio.get_running_loop().time() < 1
        return caught.value

    error, statistics = directed(circle(lambda event: None), work)
    assert (error.fate, error.reason) == ("dropped", "filtered")
    assert statistics.dropped == 1


def test_a_request_that_fails_is_answered_with_the_failure() -> None:
    def fails(event: Event) -> Event:
        raise HttpError("short and stout", status=418)

    async def work(director: Director) -> Unanswered:
        with pytest.raises(Unanswered, match="HttpError: short and stout") as caught:
            await director.ask("api", 1)
        return caught.value

    error, _ = directed(circle(fails), work)
    assert (error.failure.status, error.failure.module) == (418, "m0")


def test_a_late_answer_meets_the_deadline_and_the_event_goes_on_until_it_is_settled() -> None:
    async def slow(event: Event) -> Event:
        await asyncio.sleep(10)
        return event

    async def work(director: Director) -> None:
        with pytest.raises(DeadlinePassed, match=r"no answer came back to api within 1 s"):
            await director.ask("api", 1, timeout="1s")
        assert director.statistics().open == 1

    _, statistics = directed(circle(slow), work, deadline="1m")
    assert statistics.dropped == 1
    assert statistics.origins["api"].reasons == {"dropped answered": 1}


def test_of_several_branches_the_first_answers_and_gather_waits_for_all() -> None:
    def forked() -> Flow:
        flow = Flow("forked")
        api = flow.use("inlet", "api")

        async def slow(event: Event) -> Event:
            await asyncio.sleep(1)
            event.data = "slow"
            return event

        def fast(event: Event) -> Event:
            event.data = "fast"
            return event

        api >> (flow.module(slow), flow.module(fast)) >> api
        return flow

    reply, statistics = directed(forked(), lambda d: d.ask("api", 0))
    assert reply.data == "fast"
    assert statistics.delivered == 1
    replies, _ = directed(forked(), lambda d: d.ask("api", 0, gather=True))
    assert [reply.data for reply in replies] == ["fast", "slow"]


def test_answers_find_their_requests_through_splits_retries_threads_and_queues() -> None:
    def split(event: Event) -> Any:
        yield event
        if event.data % 2:
            yield Event("noise")

    def quiet(event: Event) -> Event | None:
        return None if event.data == "noise" else event

    flow = Flow("long way")
    api = flow.use("inlet", "api")
    steps = [
        flow.module(split),
        flow.module(quiet, queue=2),
        flow.module(lambda event: event, "thread", thread=True, concurrency=3),
    ]
    end: Any = api
    for step in steps:
        end = end >> step
    end >> api

    async def work(director: Director) -> list[Any]:
        return await asyncio.gather(*(director.ask("api", n) for n in range(200)))

    replies, statistics = directed(flow, work)
    assert [reply.data for reply in replies] == list(range(200))
    assert statistics.delivered == 200


def test_a_flow_that_stops_answers_or_refuses_every_request() -> None:
    async def slow(event: Event) -> Event:
        await asyncio.sleep(event.data)
        return event

    async def work(director: Director) -> list[Any]:
        asked = [asyncio.ensure_future(director.ask("api", n, timeout="1h")) for n in (1, 2, 900)]
        await asyncio.sleep(0.5)
        await director.stop("5s")
        with pytest.raises(Stopped):
            await director.ask("api", 1)
        return await asyncio.gather(*asked, return_exceptions=True)

    (first, second, third), statistics = directed(circle(slow, concurrency=3), work)
    assert (first.data, second.data) == (1, 2)
    assert isinstance(third, Unanswered)
    assert third.reason == "abandoned"
    assert statistics.abandoned == {"m0": 1}


def test_thirty_thousand_requests_leave_nothing_behind() -> None:
    def thirds(event: Event) -> Event | None:
        if event.data % 3 == 1:
            raise ValueError
        return event if event.data % 3 == 0 else None

    async def work(director: Director) -> int:
        answered = 0
        for start in range(0, 30_000, 1000):
            replies = await asyncio.gather(
                *(director.ask("api", n) for n in range(start, start + 1000)), return_exceptions=True
            )
            answered += sum(isinstance(reply, Event) for reply in replies)
        assert len(asyncio.all_tasks()) < 10
        return answered

    answered, statistics = directed(circle(thirds), work)
    assert answered == 10_000
    assert (statistics.dropped, statistics.failed) == (10_000, 10_000)


def test_only_a_module_that_events_can_return_to_can_be_asked() -> None:
    flow = Flow("one way")
    flow.use("inlet", "api") >> flow.module(lambda event: event, "m") >> flow.module(Sink(), "sink")

    async def work(director: Director) -> None:
        with pytest.raises(ConfigurationError, match="nothing can come back to m"):
            await director.ask("m", 1)
        with pytest.raises(ConfigurationError, match="there is no module 'apy', did you mean 'api'"):
            await director.ask("apy", 1)

    directed(flow, work)


def test_put_admits_into_any_module_and_tells_the_fate() -> None:
    flow, sink = Flow("put"), Sink()
    flow.module(lambda event: event, "first") >> flow.module(sink, "sink")

    async def work(director: Director) -> Any:
        return await director.put("first", {"a": 1}, settled=True)

    slot, statistics = directed(flow, work)
    assert slot.fate == "delivered"
    assert sink == [{"a": 1}]
    assert statistics.origins["put(first)"].admitted == 1
