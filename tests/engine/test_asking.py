"""Those who ask: what is told to them, what becomes of their events when they leave, and what the logs know."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.engine.conftest import directed

from furcula import Breaker, Director, Event, Flow, Retry, Source
from furcula.asking import Asker
from furcula.correlation import CURRENT, Correlation
from furcula.receipt import Slot
from furcula.statuses import NotFound, UnprocessableContent

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


def test_what_was_tried_for_one_who_left_is_not_taken_over_by_another() -> None:
    async def fails(event: Event) -> Event:
        raise TimeoutError

    async def work(director: Director) -> list[Event]:
        gone = [Someone() for _ in range(20)]
        for number, asker in enumerate(gone):
            ask(director, asker, {"secret": number})
        while director.statistics().modules["work"].retried < 20:
            await asyncio.sleep(0)
        for asker in gone:
            asker.leave()
        for asker in gone:
            await asker.over_event.wait()
        assert not director.modules["work"].workers[0]._tries
        others = [Someone() for _ in range(20)]
        for asker in others:
            ask(director, asker, {"own": True})
            await asker.over_event.wait()
        return [reply for asker in others for reply in asker.replies]

    retry = Retry(attempts=2, delay="1s")
    flow = desk(fails, retry=retry, key=lambda event: id(event), concurrency=4)
    flow["work"].failed >> flow["desk"]
    replies, _ = directed(flow, work)
    assert replies == [{"own": True}] * 20


class Unfinished(NotFound):
    def __init__(self, what: str):
        self.what = what


class Unreadable(UnprocessableContent):
    @property
    def retryable(self) -> bool:
        raise OSError

    @retryable.setter
    def retryable(self, value: bool) -> None: ...

    def __str__(self) -> str:
        raise RuntimeError

    def problem(self) -> Any:
        return "no dict"


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Unfinished("order 7"), 404, "order 7"),
        (Unreadable(headers={"x": 1}), 422, "(its message could not be made)"),  # type: ignore[dict-item]
    ],
    ids=["unfinished", "unreadable"],
)
def test_an_exception_that_cannot_be_read_fails_its_event_and_nothing_else(
    error: Exception, status: int, message: str, waits: bool
) -> None:
    async def later(event: Event) -> Event:
        raise error

    def now(event: Event) -> Event:
        raise error

    async def work(director: Director) -> list[Someone]:
        askers = [Someone(), Someone()]
        for asker in askers:
            ask(director, asker)
            await asker.over_event.wait()
        return askers

    askers, statistics = directed(desk(later if waits else now), work)
    for asker in askers:
        failure = asker.slot.failure
        assert (failure.status, failure.message, failure.headers, failure.problem) == (status, message, {}, {})
    assert statistics.failed == 2


def test_an_asker_that_raises_when_it_is_told_of_the_end_harms_no_other() -> None:
    class Angry(Someone):
        def settled(self, slot: Slot) -> None:
            super().settled(slot)
            raise IsADirectoryError

    async def echo(event: Event) -> Event:
        await asyncio.sleep(0)
        return event

    async def work(director: Director) -> None:
        for asker in (Angry(), Someone()):
            ask(director, asker)
            await asker.over_event.wait()

    _, statistics = directed(desk(echo), work)
    assert statistics.delivered == 2


@pytest.mark.parametrize("name", [*OPTIONS, "retry at once"])
def test_a_module_that_turns_its_cancellation_into_an_error_is_cancelled_once_and_works_on(name: str) -> None:
    options = OPTIONS.get(name, {"retry": Retry(attempts=3, delay=0, jitter=0)})
    tries: list[str] = []

    async def driver(event: Event) -> Event:
        tries.append(event.data)
        if event.data == "interrupted":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("query interrupted") from None
        if event.data == "own":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return event

    async def work(director: Director) -> list[Someone]:
        askers = [Someone(data) for data in ("interrupted", "own", "good")]
        for asker in askers:
            ask(director, asker, asker.name)
            while asker.name not in tries:
                await asyncio.sleep(0)
            if asker.name == "interrupted":
                asker.leave()
                asker.leave()
            await asker.over_event.wait()
        tasks = [worker.task for worker in director.modules["work"].workers[0]._workers]
        assert not any(task.done() or task.cancelling() for task in tasks)
        return askers

    askers, _ = directed(desk(driver, **options), work)
    assert [asker.slot.fate for asker in askers] == ["dropped", "failed", "delivered"]
    assert tries.count("interrupted") == 1


@pytest.mark.parametrize("converts", [True, False])
def test_leaving_in_the_moment_of_the_time_limit_takes_both_cancellations_back(converts: bool) -> None:
    began = asyncio.Event()

    async def stuck(event: Event) -> Event:
        if event.data == "good":
            return event
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if converts:
                raise RuntimeError from None
            raise
        return event

    async def work(director: Director) -> list[Someone]:
        asker, good = Someone(), Someone()
        ask(director, asker, "stuck")
        await began.wait()
        pool = director.modules["work"].workers[0]
        (worker,) = pool._workers
        token = worker.limit
        _, worker = pool._limits[token]
        pool._limits[token] = (0.0, worker)
        pool._expire()
        asker.leave()
        await asker.over_event.wait()
        assert worker.task.cancelling() == 0
        ask(director, good, "good")
        await good.over_event.wait()
        return [asker, good]

    askers, _ = directed(desk(stuck, timeout="1h"), work)
    assert [asker.slot.fate for asker in askers] == ["dropped", "delivered"]


def test_a_stop_is_not_mistaken_for_an_asker_that_leaves() -> None:
    async def stuck(event: Event) -> Event:
        await asyncio.Event().wait()
        return event

    async def work(director: Director) -> Someone:
        asker = Someone()
        ask(director, asker)
        for _ in range(5):
            await asyncio.sleep(0)
        (worker,) = director.modules["work"].workers[0]._workers
        stopping = director.request_stop(0)
        while worker.task.cancelling() == 0:
            await asyncio.sleep(0)
        asker.leave()
        await stopping
        assert worker.task.cancelled()
        return asker

    asker, _ = directed(desk(stuck), work)
    assert asker.slot.reason == "abandoned"


def test_a_worker_that_is_cancelled_while_the_flow_runs_stops_it_and_says_so() -> None:
    async def suicidal(event: Event) -> Event:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return event

    async def work(director: Director) -> BaseException | None:
        ask(director, Someone())
        await director.wait()
        return director._failure

    failure, _ = directed(desk(suicidal), work, deadline="1s")
    assert "was cancelled while the flow was running" in str(failure)


@pytest.mark.parametrize("converts", [True, False])
def test_who_leaves_during_the_trial_of_a_breaker_leaves_the_trial_to_the_next(converts: bool) -> None:
    calls: list[str] = []

    async def module(event: Event) -> Event:
        calls.append(event.data)
        if event.data == "bad":
            raise TimeoutError
        if event.data == "slow":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if converts:
                    raise TimeoutError from None
                raise
        return event

    async def work(director: Director) -> list[Someone]:
        askers = []
        for data in ("bad", "slow", "good"):
            askers.append(asker := Someone(data))
            ask(director, asker, data)
            while data not in calls:
                await asyncio.sleep(0)
            if data == "slow":
                asker.leave()
            await asker.over_event.wait()
            await asyncio.sleep(2 if data == "bad" else 0)
        return askers

    retry = Retry(attempts=1, breaker=Breaker(failures=1, reset=1))
    askers, _ = directed(desk(module, retry=retry), work)
    assert [asker.slot.fate for asker in askers] == ["failed", "dropped", "delivered"]


@pytest.fixture
def lines() -> Iterator[list[tuple[str, str]]]:
    """What is logged: the message's first words, and the id of the request."""
    found: list[tuple[str, str]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append((record.getMessage().split(":")[0].split(", ")[0], record.request_id))  # type: ignore[attr-defined]

    handler = Handler()
    handler.addFilter(Correlation())
    root, furcula = logging.getLogger("test"), logging.getLogger("furcula")
    before = root.level, furcula.level
    root.setLevel(logging.INFO)
    furcula.setLevel(logging.ERROR)
    for logger in (root, furcula):
        logger.addHandler(handler)
    yield found
    for logger, level in zip((root, furcula), before, strict=True):
        logger.setLevel(level)
        logger.removeHandler(handler)


def test_a_function_behind_a_coroutine_logs_in_the_name_of_its_own_request(
    quiet: None, lines: list[tuple[str, str]]
) -> None:
    slow = asyncio.Event()

    async def waits(event: Event) -> Event:
        if event.data == "A":
            await slow.wait()
        await asyncio.sleep(0)
        if event.data == "C":
            slow.set()
        return event

    def notes(event: Event) -> Event:
        logging.getLogger("test").info(event.data)
        return event

    flow = Flow("desk")
    place, inlet = flow.use(Desk, "desk"), flow.use("inlet", "inlet")
    work_ = flow.module(waits, "work", concurrency=3)
    place >> work_ >> flow.module(notes, "notes") >> place
    inlet >> work_

    async def work(director: Director) -> None:
        askers = [Someone(name) for name in "ABC"]
        for asker in askers:
            ask(director, asker, asker.name)
            await director.put("inlet", "")
        for asker in askers:
            await asker.over_event.wait()

    directed(flow, work)
    assert lines == [("A", "A"), ("", ""), ("B", "B"), ("", ""), ("C", "C"), ("", "")]


def test_a_failure_is_logged_in_the_name_of_its_request(quiet: None, lines: list[tuple[str, str]]) -> None:
    async def fails(event: Event) -> Event:
        await asyncio.sleep(0)
        raise ValueError

    async def work(director: Director) -> None:
        askers = [Someone(name) for name in "AB"]
        for asker in askers:
            ask(director, asker)
            await asker.over_event.wait()

    directed(desk(fails), work)
    assert [who for _, who in lines] == ["A", "B"]


def test_what_a_time_limit_gives_up_is_logged_in_the_name_of_its_request(
    quiet: None, lines: list[tuple[str, str]]
) -> None:
    release, began = threading.Event(), threading.Semaphore(0)

    def blocks(event: Event) -> None:
        began.release()
        release.wait(10)

    async def work(director: Director) -> None:
        askers = [Someone(name) for name in "AB"]
        for asker in askers:
            ask(director, asker)
        for _ in askers:
            await asyncio.to_thread(began.acquire)
        asyncio.get_running_loop().advance(1)  # type: ignore[attr-defined]
        for asker in askers:
            await asker.over_event.wait()
        release.set()

    directed(desk(blocks, thread=True, timeout=1, concurrency=2), work)
    assert [who for text, who in lines if "failed" in text] == ["A", "B"]


@pytest.mark.parametrize("waits", [True, False])
def test_requests_that_wait_for_a_function_of_batches_come_together_without_those_who_left(
    waits: bool, quiet: None, lines: list[tuple[str, str]]
) -> None:
    batches: list[list[Any]] = []

    def batch(events: list[Event]) -> list[Event]:
        batches.append([event.data for event in events])
        return events

    async def later(events: list[Event]) -> list[Event]:
        return batch(events)

    def notes(event: Event) -> Event:
        logging.getLogger("test").info(event.data)
        return event

    flow = Flow("desk")
    place = flow.use(Desk, "desk")
    place >> flow.module(later if waits else batch, "work", queue=100) >> flow.module(notes, "notes") >> place

    async def work(director: Director) -> list[Someone]:
        director.pause("work")
        askers = [Someone(str(number)) for number in range(6)]
        for asker in askers:
            ask(director, asker, asker.name)
        askers[2].leave()
        director.resume("work")
        for asker in askers:
            await asker.over_event.wait()
        return askers

    askers, statistics = directed(flow, work)
    assert batches == [["0", "1", "3", "4", "5"]]
    assert [asker.replies for asker in askers] == [["0"], ["1"], [], ["3"], ["4"], ["5"]]
    assert lines == [(number, number) for number in "01345"]
    assert statistics.dropped == 1
