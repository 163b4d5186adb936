"""Compysition's interface over our engine: modules, connections, errors, logs, and what becomes of every event."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from furcula.compat.compysition import Actor, Director, Event
from furcula.compat.compysition.module import STDOUT, EventGenerator, TestEvent
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, StartFailed, Stopped
from furcula.testing import assert_settled

LIMIT_S = 20


class Keep(Actor):
    """Keeps what comes, with where it came from."""

    def __init__(self, name: str):
        super().__init__(name)
        self.events: list[Event] = []
        self.origins_seen: list[str | None] = []

    def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        self.events.append(event)
        self.origins_seen.append(origin)

    @property
    def datas(self) -> list[Any]:
        return [event.data for event in self.events]


class PassOn(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        self.send_event(event)


class Refuse(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        raise ValueError(f"no {event.data}")


def few(director: Director, *, data: Any = "test", count: int = 3) -> TestEvent:
    return director.register_module(TestEvent, "few", interval=0.001, data=data, count=count)


def run(director: Director) -> Statistics:
    """Run until the generators have ended."""
    director.start()
    finished = threading.Thread(target=director.block)
    finished.start()
    finished.join(LIMIT_S)
    assert not finished.is_alive()
    statistics = director.statistics()
    assert statistics is not None
    assert_settled(statistics)
    return statistics


# ---------------------------------------------------------------------- connections


def test_an_event_goes_to_all_connected_outboxes_as_copies_of_one_event() -> None:
    director = Director()
    source = few(director, data={"seen": []}, count=2)
    one, two = director.register_module(Keep, "one"), director.register_actor(Keep, "two")
    director.connect(source, [one, two])
    statistics = run(director)
    assert (statistics.admitted, statistics.delivered) == (2, 2)
    assert [event.event_id for event in one.events] == [event.event_id for event in two.events]
    assert one.events[0].event_id != one.events[1].event_id
    assert one.events[0].data is not two.events[0].data


def test_every_module_is_a_funnel() -> None:
    director = Director()
    sources = [
        director.register_module(TestEvent, name, interval=0.001, data=name, count=2) for name in ("first", "second")
    ]
    keep = director.register_module(Keep, "keep")
    director.connect(sources, keep)
    run(director)
    assert sorted(keep.datas) == ["first", "first", "second", "second"]
    assert sorted(keep.origins_seen) == sorted(keep.datas)


class ByParity(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        for number in range(event.data):
            event.data = number
            self.send_event(event, queues=["odd" if number % 2 else "even"])


def test_a_queue_named_in_a_pair_gets_what_is_sent_to_it() -> None:
    director = Director()
    source = few(director, data=5, count=1)
    split = director.register_module(ByParity, "split")
    odd, even = director.register_module(Keep, "odd_ones"), director.register_module(Keep, "even")
    director.connect_queue(source, (split, "work"))
    director.connect((split, "odd"), (odd, "numbers"))
    director.connect(split, even)  # its outbox is called like the destination
    statistics = run(director)
    assert (odd.datas, even.datas) == ([1, 3], [0, 2, 4])
    assert odd.origins_seen == ["numbers", "numbers"]
    assert even.origins_seen == ["split"] * 3
    assert (statistics.admitted, statistics.delivered) == (1, 1)
    assert len({event.event_id for event in odd.events + even.events}) == 1


@pytest.mark.parametrize("end", ["split", 3, ("a", "b", "c"), None])
def test_what_is_no_end_is_refused(end: Any) -> None:
    director = Director()
    with pytest.raises(ConfigurationError, match="is not a registered module"):
        director.connect(few(director), end)


def test_what_is_not_derived_from_actor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"derive it from furcula\.compat\.compysition\.Actor"):
        Director().register_module(dict, "d")  # type: ignore[type-var]


def test_a_module_that_nobody_feeds_is_named_at_the_start() -> None:
    director = Director()
    director.connect(few(director), director.register_module(Keep, "keep"))
    director.register_module(Keep, "lonely")
    with pytest.raises(ConfigurationError, match="nobody feeds lonely"):
        director.start()


# ---------------------------------------------------------------------- what becomes of an event


class Chatty(Actor):
    """Sends its input so many times."""

    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        for number in range(event.data):
            self.send_event(Event({"number": number}, meta_id=event.meta_id))


@pytest.mark.parametrize(("count", "fate"), [(0, {"dropped": 2}), (1, {"delivered": 2}), (4, {"delivered": 2})])
def test_none_one_or_many_sent_are_a_drop_a_continuation_or_a_split(count: int, fate: dict[str, int]) -> None:
    director = Director()
    source, chatty = few(director, data=count, count=2), director.register_module(Chatty, "chatty")
    keep = director.register_module(Keep, "keep")
    director.connect(source, chatty)
    director.connect(chatty, keep)
    statistics = run(director)
    assert len(keep.events) == 2 * count
    assert statistics.admitted == 2
    for name, value in fate.items():
        assert getattr(statistics, name) == value


def test_an_event_that_is_sent_cannot_be_changed_any_more() -> None:
    class Counting(Actor):
        def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
            for number in range(3):
                event.data["number"] = number
                self.send_event(event)

    director = Director()
    source, counting = few(director, data={}, count=1), director.register_module(Counting, "counting")
    keep = director.register_module(Keep, "keep")
    director.connect(source, counting)
    director.connect(counting, keep)
    run(director)
    assert keep.datas == [{"number": 0}, {"number": 1}, {"number": 2}]


def test_a_coroutine_and_a_thread_consume_as_a_method_does() -> None:
    class Waits(Actor):
        async def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
            await asyncio.sleep(0)
            self.send_event(event)

    class Blocks(Actor):
        options = {"thread": True}

        def consume(self, event: Event) -> None:  # type: ignore[override]
            event.data = threading.current_thread() is threading.main_thread()
            self.send_event(event)

    director = Director()
    source, waits = few(director, count=3), director.register_module(Waits, "waits")
    blocks, keep = director.register_module(Blocks, "blocks"), director.register_module(Keep, "keep")
    director.connect(source, waits)
    director.connect(waits, blocks)
    director.connect(blocks, keep)
    assert run(director).delivered == 3
    assert keep.datas == [False] * 3


def test_what_is_sent_outside_of_handling_has_an_origin_of_its_own() -> None:
    class Late(Actor):
        def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
            thread = threading.Thread(target=lambda: self.send_event(Event("late")))
            thread.start()

    director = Director()
    source, late = director.register_module(TestEvent, "endless", interval=0.01), director.register_module(Late, "late")
    came = threading.Event()

    class Wake(Keep):
        def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
            super().consume(event, **kwargs)
            came.set()

    wake = director.register_module(Wake, "wake")
    director.connect(source, late)
    director.connect(late, wake)
    director.start()
    assert came.wait(LIMIT_S)
    statistics = director.stop()
    assert statistics is not None
    assert statistics.origins["late"].delivered == len(wake.events)
    assert statistics.origins["endless"].dropped == statistics.origins["endless"].admitted


def test_sending_when_nothing_runs_is_refused() -> None:
    with pytest.raises(Stopped):
        PassOn("p").send_event(Event(1))


# ---------------------------------------------------------------------- failures


def test_what_fails_goes_to_the_error_queue_with_its_failure() -> None:
    director = Director()
    source, refuse = few(director, count=2), director.register_module(Refuse, "refuse")
    good, bad = director.register_module(Keep, "good"), director.register_module(Keep, "bad")
    director.connect(source, refuse)
    director.connect(refuse, good)
    director.connect_error(refuse, bad)
    run(director)
    assert good.events == []
    assert [event.failures[-1].message for event in bad.events] == ["no test", "no test"]
    assert bad.origins_seen == ["refuse", "refuse"]


@pytest.mark.parametrize("with_outbox", [True, False])
def test_send_error_sends_the_event_as_it_is_now(with_outbox: bool) -> None:
    class Unauthorised(Actor):
        def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
            event.data = {"status": 401}
            self.send_error(event)

    director = Director()
    source, auth = few(director, count=1), director.register_module(Unauthorised, "auth")
    good, bad = director.register_module(Keep, "good"), director.register_module(Keep, "bad")
    director.connect(source, auth)
    director.connect_error_queue(auth, (bad, "errors"))
    if with_outbox:
        director.connect(auth, good)
    else:
        director.connect(source, good)
    statistics = run(director)
    assert bad.datas == [{"status": 401}]
    assert bad.origins_seen == ["errors"]
    assert statistics.modules["auth"].failed == 1


def test_the_error_actor_gets_what_nobody_else_catches() -> None:
    director = Director()
    source, refuse = few(director, count=2), director.register_module(Refuse, "refuse")
    errors = director.register_error_actor(Keep, "errors")
    director.connect(source, refuse)
    director.connect(refuse, director.register_module(Keep, "good"))
    run(director)
    assert errors.datas == ["test", "test"]


def test_a_module_that_cannot_start_is_named() -> None:
    class Unwilling(PassOn):
        def pre_hook(self) -> None:
            raise OSError("no such device")

    director = Director()
    director.connect(few(director), director.register_module(Unwilling, "unwilling"))
    with pytest.raises(StartFailed, match="unwilling"):
        director.start()


# ---------------------------------------------------------------------- logs


class Talks(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        self.logger.info("it is %s", event.data, event=event)
        self.send_event(event)


def test_a_log_actor_gets_what_the_others_log_and_not_what_it_logs_itself(caplog: pytest.LogCaptureFixture) -> None:
    class LogKeep(Keep):
        def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
            super().consume(event, **kwargs)
            self.logger.warning("a line about a line")

    director = Director()
    source, talks = few(director, count=2), director.register_module(Talks, "talks")
    logs, keep = director.register_log_actor(LogKeep, "logs"), director.register_module(Keep, "keep")
    director.connect(source, talks)
    director.connect(talks, keep)
    with caplog.at_level(logging.INFO, "furcula.module"):
        statistics = run(director)
    assert [(line["level"], line["name"], line["message"]) for line in logs.datas] == [
        ("INFO", "talks", "it is test")
    ] * 2
    assert [line["event_id"] for line in logs.datas] == [event.event_id for event in keep.events]
    assert statistics.origins["talks/log"].admitted == 2
    assert "it is test" in caplog.text


def test_a_log_queue_carries_the_log_of_one_module() -> None:
    director = Director()
    source, talks, other = few(director), director.register_module(Talks, "a"), director.register_module(Talks, "b")
    logs = director.register_module(Keep, "logs")
    director.connect(source, [talks, other])
    director.connect_log_queue(talks, logs)
    run(director)
    assert {line["name"] for line in logs.datas} == {"a"}


# ---------------------------------------------------------------------- events


def test_an_event_id_never_changes() -> None:
    event = Event({"a": 1})
    with pytest.raises(AttributeError):
        event.event_id = "other"  # type: ignore[misc]
    assert event.meta_id == event.event_id
    twin = event.clone()
    assert (twin.event_id, twin.meta_id) == (event.event_id, event.meta_id)
    twin.data["a"] = 2
    assert event.data == {"a": 1}


def test_a_meta_id_of_ones_own_stays() -> None:
    event = Event(1, meta_id="order-7")
    assert (event.meta_id, event.clone().meta_id) == ("order-7", "order-7")
    assert event.event_id != "order-7"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("data.user.name", "Ann"),
        ("user.name", "Ann"),
        ("user.names.0", "A"),
        ("headers.host", "h"),
        ("meta_id", "m"),
        ("user.age", None),
        ("no.such.thing", None),
    ],
)
def test_lookup_follows_a_dotted_path(path: str, found: Any) -> None:
    event = Event({"user": {"name": "Ann", "names": ["A"]}}, meta_id="m", headers={"host": "h"})
    assert event.lookup(path) == found


# ---------------------------------------------------------------------- modules and running


def test_a_generator_of_ones_own_says_what_stands_in_its_events() -> None:
    class Counter(EventGenerator):
        number = 0

        def generate(self) -> Event | None:
            self.number += 1
            return None if self.number == 2 else Event(self.number)

    director = Director()
    keep = director.register_module(Keep, "keep")
    director.connect(director.register_module(Counter, "counter", interval=0.001, count=4), keep)
    run(director)
    assert keep.datas == [1, 3, 4]


def test_stdout_prints_and_passes_on(capsys: pytest.CaptureFixture[str]) -> None:
    director = Director()
    out, keep = director.register_module(STDOUT, "out", prefix="> "), director.register_module(Keep, "keep")
    director.connect(few(director, count=1), out)
    director.connect(out, keep)
    run(director)
    assert capsys.readouterr().out == "> test\n"
    assert keep.datas == ["test"]


def test_stop_drains_and_may_be_repeated() -> None:
    class Slow(Keep):
        async def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
            began.set()
            await asyncio.sleep(0.001)
            self.events.append(event)

    began = threading.Event()
    director = Director()
    slow = director.register_module(Slow, "slow")
    director.connect(director.register_module(TestEvent, "endless", interval=0.0001), slow)
    director.start()
    assert began.wait(LIMIT_S)
    statistics = director.stop()
    assert statistics is not None
    assert_settled(statistics)
    assert statistics.delivered == statistics.admitted == len(slow.events)
    again = director.stop()
    assert again is not None
    assert again.admitted == statistics.admitted
