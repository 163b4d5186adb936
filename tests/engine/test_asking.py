"""Those who ask: what is told to them, what becomes of their events when they leave, and what the logs know."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from tests.engine.conftest import directed

from furcula import Director, Event, Flow, Retry, Source
from furcula.asking import Asker
from furcula.correlation import CURRENT
from furcula.receipt import Slot

pytestmark = pytest.mark.usefixtures("quiet")


class Someone(Asker):
    """Keeps what it is told."""

    def __init__(self, name: str = "someone", many: bool = False):
        super().__init__()
        self.name = name
        self.many = many
        self.replies: list[Any] = []
        self.slot: Slot | None = None
        self.over_event = asyncio.Event()

    @property
    def notes(self) -> Mapping[str, str]:
        return {"request_id": self.name}

    def take(self, reply: Event[Any]) -> bool:
        if reply.data == "unspeakable":
            raise ValueError("it cannot be said")
        self.replies.append(reply.data)
        return True

    def settled(self, slot: Slot) -> None:
        self.slot = slot
        self.over_event.set()


class Desk(Source):
    """A source that asks."""

    inboxes = ("inbox",)

    def start(self, context: Any) -> None:
        self.context = context


def desk(function: Any, **options: Any) -> Flow:
    flow = Flow("desk")
    place = flow.use(Desk, "desk")
    place >> flow.module(function, "work", **options) >> place
    return flow


def ask(director: Director, asker: Someone, data: Any = 1) -> Any:
    return director.modules["desk"].instance.context.ask(Event(data), asker)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "concurrent": {"concurrency": 4},
    "unordered": {"concurrency": 4, "order": "none"},
    "keyed": {"concurrency": 4, "key": "data"},
    "timeout": {"timeout": "1h"},
    "retry": {"retry": Retry(attempts=3, delay="1h")},
    "keyed retry": {"retry": Retry(attempts=3, delay="1h"), "key": "data", "concurrency": 4},
    "own context": {"isolate_context": True},
}


@pytest.mark.parametrize("name", [name for name in OPTIONS if "retry" not in name])
def test_who_leaves_cancels_the_coroutine_that_is_at_its_event_and_drops_those_that_wait(name: str) -> None:
    began: list[str] = []
    cancelled: list[str] = []

    async def stuck(event: Event) -> Event:
        began.append(event.data)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(event.data)
            raise
        return event

    async def work(director: Director) -> list[Someone]:
        askers = [Someone() for _ in range(3)]
        for asker in askers:
            ask(director, asker, "same")
        while not began:
            await asyncio.sleep(0)
        for asker in reversed(askers):
            asker.leave()
        for asker in askers:
            await asker.over_event.wait()
        other = Someone("other")
        ask(director, other, "quick")  # the workers are as good as before
        while "quick" not in began:
            await asyncio.sleep(0)
        other.leave()
        await other.over_event.wait()
        return askers

    askers, statistics = directed(desk(stuck, **OPTIONS[name]), work)
    assert {(asker.slot.fate, asker.slot.reason) for asker in askers} == {("dropped", "cancelled")}
    assert cancelled == began
    assert statistics.dropped == 4


@pytest.mark.parametrize("name", ["retry", "keyed retry"])
def test_who_leaves_ends_the_back_off_of_its_event(name: str) -> None:
    tries = 0

    async def fails(event: Event) -> Event:
        nonlocal tries
        tries += 1
        raise TimeoutError

    async def work(director: Director) -> Someone:
        asker = Someone()
        ask(director, asker, "a")
        while not tries:
            await asyncio.sleep(0)
        asker.leave()
        await asker.over_event.wait()
        return asker

    asker, statistics = directed(desk(fails, **OPTIONS[name]), work)
    assert asker.slot.fate == "dropped"
    assert tries == 1
    assert statistics.dropped == 1


def test_code_that_will_not_be_cancelled_comes_to_its_end_and_its_worker_goes_on() -> None:
    go_on = asyncio.Event()

    async def stubborn(event: Event) -> Event:
        while event.data == "stubborn" and not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                go_on.set()
        return event

    async def work(director: Director) -> tuple[Someone, Someone]:
        asker, next_ = Someone(), Someone()
        ask(director, asker, "stubborn")
        for _ in range(5):
            await asyncio.sleep(0)
        asker.leave()
        await asker.over_event.wait()
        ask(director, next_, "next")
        await next_.over_event.wait()
        return asker, next_

    (asker, next_), statistics = directed(desk(stubborn), work)
    assert (asker.slot.fate, asker.slot.reason, asker.replies) == ("dropped", "answered", [])
    assert next_.replies == ["next"]
    assert (statistics.delivered, statistics.dropped) == (1, 1)


def test_what_runs_in_a_thread_comes_to_its_end_and_what_waits_behind_it_is_dropped() -> None:
    release, began = threading.Event(), threading.Event()

    def blocks(event: Event) -> Event:
        began.set()
        release.wait(10)
        return event

    async def work(director: Director) -> list[Someone]:
        askers = [Someone(), Someone()]
        for asker in askers:
            ask(director, asker)
        await asyncio.to_thread(began.wait)
        for asker in askers:
            asker.leave()
        release.set()
        for asker in askers:
            await asker.over_event.wait()
        return askers

    askers, _ = directed(desk(blocks, thread=True), work)
    assert [asker.slot.fate for asker in askers] == ["dropped", "dropped"]


def test_a_queue_before_a_function_drops_the_events_of_those_who_left() -> None:
    handled: list[Any] = []

    def note(event: Event) -> Event:
        handled.append(event.data)
        return event

    async def work(director: Director) -> None:
        director.pause("work")
        gone, stays = Someone(), Someone()
        ask(director, gone, "gone")
        ask(director, stays, "stays")
        gone.leave()
        director.resume("work")
        await gone.over_event.wait()
        await stays.over_event.wait()

    _, statistics = directed(desk(note, queue=10), work)
    assert handled == ["stays"]
    assert statistics.origins["desk"].reasons == {"dropped cancelled": 1}


def test_an_answer_that_the_asker_cannot_take_has_failed() -> None:
    async def work(director: Director) -> Someone:
        asker = Someone()
        ask(director, asker, "unspeakable")
        await asker.over_event.wait()
        return asker

    asker, statistics = directed(desk(lambda event: event), work)
    assert (asker.slot.fate, asker.slot.failure.message) == ("failed", "it cannot be said")
    assert statistics.failed == statistics.modules["desk"].failed == 1


def test_one_who_takes_many_gets_all_and_one_who_does_not_the_first() -> None:
    def split(event: Event) -> Any:
        for n in range(3):
            yield Event(n)

    async def work(director: Director) -> tuple[Someone, Someone]:
        one, many = Someone(), Someone(many=True)
        ask(director, one)
        ask(director, many)
        return one, many

    (one, many), statistics = directed(desk(split), work)
    assert (one.replies, many.replies) == ([0], [0, 1, 2])
    assert statistics.delivered == 2
    assert statistics.modules["desk"].dropped == 2


def test_no_worker_and_no_request_takes_another_requests_context_for_its_own() -> None:
    """Workers are made when a request needs them, and live on: what they log later is not that request's."""
    seen: list[tuple[Any, str | None]] = []
    log = logging.getLogger("test")

    async def note(event: Event) -> Event:
        await asyncio.sleep(0)
        current = CURRENT.get()
        seen.append((event.data, current.notes["request_id"] if current is not None else None))
        log.debug("seen")
        return event

    flow = desk(note, concurrency=3)
    inlet = flow.use("inlet", "inlet")
    inlet >> flow["work"]

    async def work(director: Director) -> None:
        for n in range(5):
            ask(director, Someone(f"r{n}"), f"r{n}")
            await director.put("inlet", "nobody")
        for _ in range(50):
            await asyncio.sleep(0)
        for _ in range(10):
            await director.put("inlet", "nobody", settled=True)

    directed(flow, work)
    assert len(seen) == 20
    assert all(who == (None if what == "nobody" else what) for what, who in seen)
    assert CURRENT.get() is None


def test_nothing_is_asked_of_a_flow_that_has_stopped() -> None:
    from furcula.errors import Stopped

    async def work(director: Director) -> None:
        context = director.modules["desk"].instance.context
        await director.stop()
        with pytest.raises(Stopped):
            context.ask(Event(1), Someone())

    _, statistics = directed(desk(lambda event: event), work)
    assert statistics.admitted == 0
