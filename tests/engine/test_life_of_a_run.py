"""The phases of a run, asked for at awkward moments."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.engine.conftest import Sink, ran, settled

from furcula import Director, Event, Flow, Module, Source
from furcula.errors import Stopped

pytestmark = pytest.mark.usefixtures("quiet")


def ticking(flow: Flow) -> Any:
    @flow.source
    async def ticks() -> Any:
        number = 0
        while True:
            yield number
            number += 1
            await asyncio.sleep(0.001)

    return ticks


async def turns(count: int = 200) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_emitting_after_the_end_is_refused() -> None:
    kept: list[Any] = []

    class Emits(Module):
        def start(self, context: Any) -> None:
            kept.append(context)

        def process(self, event: Event) -> Event:
            return event

    flow = Flow("emits")
    flow.source([1], "one") >> flow.use(Emits, "emits") >> flow.use("null")
    settled(await Director(flow).run())
    with pytest.raises(Stopped):
        kept[0].emit([2])


def test_what_a_module_emits_by_itself_has_an_origin_of_its_own() -> None:
    class Announces(Module):
        def start(self, context: Any) -> None:
            self.context = context

        def process(self, event: Event) -> Event:
            self.context.emit([f"saw {event.data}"])
            return event

    flow, sink = Flow("emits"), Sink()
    flow.source([1, 2], "two") >> flow.use(Announces, "announces") >> flow.module(sink, "sink")
    statistics = ran(flow)
    assert sorted(map(str, sink)) == ["1", "2", "saw 1", "saw 2"]
    assert statistics.origins["announces"].delivered == 2
    assert statistics.admitted == 4


def test_a_sink_that_sends_to_failed_has_failed() -> None:
    flow, dead = Flow("sink"), Sink()
    sink = flow.module(lambda event: event.to("failed"), "sink")
    flow.source([1], "one") >> sink
    sink.failed >> flow.module(dead, "dead")
    assert ran(flow).modules["sink"].failed == 1
    assert dead == [1]


async def test_a_paused_module_stays_paused_when_the_sources_end() -> None:
    flow, sink = Flow("paused"), Sink()

    async def passes(event: Event) -> Event:
        return event

    flow.source([1], "one") >> flow.module(passes) >> flow.module(sink, "sink")
    director = Director(flow)
    await director.start()
    director.pause("passes")
    await director.wait()
    draining = asyncio.ensure_future(director.drain())
    await turns()
    assert sink == []
    director.resume("passes")
    assert settled(await draining).delivered == 1


async def test_a_paused_source_gives_one_more_batch_at_most() -> None:
    flow, sink = Flow("paused"), Sink()
    ticking(flow) >> flow.module(sink, "sink")
    async with Director(flow) as director:
        director.pause("ticks")
        await turns(2000)
        before = len(sink)
        await turns(2000)
        assert len(sink) == before <= 1
        director.resume("ticks")
        while len(sink) < before + 3:
            await asyncio.sleep(0)


async def test_a_stop_asked_for_while_starting_stops_before_the_sources_begin() -> None:
    go_on, sink = asyncio.Event(), Sink()

    class Slow(Module):
        async def start(self) -> None:
            await go_on.wait()

        def process(self, event: Event) -> Event:
            return event

    flow = Flow("slow")
    ticking(flow) >> flow.use(Slow, "slow") >> flow.module(sink, "sink")
    director = Director(flow)
    running = asyncio.ensure_future(director.run())
    await turns()
    assert director.phase == "starting"
    director.request_stop()
    await turns()
    go_on.set()
    async with asyncio.timeout(5):
        settled(await running)
    assert (director.phase, sink) == ("stopped", [])


async def test_a_start_that_hangs_is_given_up_when_the_stop_has_reached_its_deadline() -> None:
    class Hangs(Module):
        async def start(self) -> None:
            await asyncio.sleep(3600)

        def process(self, event: Event) -> Event:
            return event

    flow = Flow("hangs")
    ticking(flow) >> flow.use(Hangs, "hangs") >> flow.use("null")
    director = Director(flow)
    running = asyncio.ensure_future(director.run())
    await turns()
    director.request_stop("10ms")
    async with asyncio.timeout(5):
        settled(await running)


async def test_inboxes_with_handlers_of_their_own_leave_no_thread_behind() -> None:
    class Two(Module):
        inboxes = ("inbox", "side")

        def process(self, event: Event) -> Event:
            return event

        def process_side(self, event: Event) -> Event:
            return event

    flow = Flow("two")
    two = flow.use(Two, "two_inboxes", options={"thread": True})
    flow.source([1], "a") >> two
    flow.source([2], "b") >> two["side"]
    two >> flow.use("null", "out")
    assert settled(await Director(flow).run()).delivered == 2
    async with asyncio.timeout(5):
        while any("furcula two_inboxes" in thread.name for thread in threading.enumerate()):
            await asyncio.sleep(0.001)


def test_a_class_may_leave_its_outboxes_open() -> None:
    class Anywhere(Module):
        outboxes = None

        def process(self, event: Event) -> Event:
            return event.to("anywhere")

    flow, sink = Flow("open"), Sink()
    place = flow.module(Anywhere, "anywhere")
    flow.source([1], "one") >> place
    place["anywhere"] >> flow.module(sink, "sink")
    ran(flow)
    assert sink == [1]


async def test_a_flow_is_ready_when_all_that_keep_connections_are() -> None:
    class Connected:
        reason: str | None = "not connected to x for 3 s"

        def start(self) -> None:
            started.append(self)

        def process(self, event: Event[int]) -> Event[int]:
            return event

        def unready(self) -> str | None:
            return self.reason

    started: list[Connected] = []
    flow = Flow("ready")
    flow.use("inlet", "inlet") >> flow.module(Connected, "connected") >> flow.use("null", "out")
    director = Director(flow)
    assert director.unready() == {}
    async with director:
        assert director.unready() == {"connected": "not connected to x for 3 s"}
        started[0].reason = None
        assert director.unready() == {}


async def test_a_source_that_is_held_and_begins_again_is_as_new_and_what_it_is_handed_comes_to_it() -> None:
    class Desk(Source):
        inboxes = ("inbox",)

        def __init__(self, name: str = "desk"):
            self.said = name
            self.unasked_for: list[Any] = []
            self.open = self.stopped = False

        def start(self, context: Any) -> None:
            assert not self.open, "it was opened, and is not as new"
            self.open = True

        def stop(self) -> None:
            self.stopped = True

        def unasked(self, event: Event) -> None:
            self.unasked_for.append((self.said, event.data))

    flow = Flow("desk")
    flow.use("inlet", "in") >> flow.use(Desk, "desk", name="front")
    async with Director(flow) as director:
        instance = director.modules["desk"].instance
        await director.put("in", "first", settled=True)
        assert instance.unasked_for == [("front", "first")]
        await director.hold("desk")
        await director.begin("desk")
        await director.put("in", "second", settled=True)
        instance = director.modules["desk"].instance
        assert (instance.open, instance.stopped) == (True, False)
        assert instance.unasked_for == [("front", "second")]
