"""What all connectors share: where a broker is, a connection that is kept, what is taken, where events go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from furcula.codecs import codec
from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.connecting import Line
from furcula.modules.endpoint import Endpoint
from furcula.modules.sending import ID, Destination, Refused, Unavailable, report
from furcula.modules.taking import LONGEST_WAIT, Message, Taken, Told, Tries
from furcula.options import Duration, Secret

from .conftest import FINAL, RETRYABLE, settle

PORTS = {"amqp": 5672, "amqps": 5671}

# ------------------------------------------------------------------ where


def test_an_endpoint_says_where_and_hides_who() -> None:
    endpoint = Endpoint.of("amqps://me:p%2Fw%40d@[::1]/my%2Fhost?x=1", PORTS, secure=frozenset(("amqps",)))
    assert (endpoint.host, endpoint.port, endpoint.path, endpoint.user) == ("::1", 5671, "/my%2Fhost", "me")
    assert endpoint.secure
    assert endpoint.password is not None
    assert endpoint.password.reveal() == "p/w@d"
    assert str(endpoint) == "amqps://[::1]:5671/my%2Fhost"
    assert endpoint.revealed() == "amqps://me:p%2Fw%40d@[::1]:5671/my%2Fhost?x=1"
    for said in ("login p/w@d failed", "amqps://me:p%2Fw%40d@host failed", repr(endpoint)):
        assert "p/w@d" not in endpoint.clean(said)
        assert "p%2Fw%40d" not in endpoint.clean(said)


@pytest.mark.parametrize(
    "url", ["", "host", "http://host", "amqp://", "amqp://host:port", "amqp://me:hidden@", "me:hidden@host", "amqp:/h"]
)
def test_what_is_no_endpoint_is_refused_without_showing_a_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"write amqp://host:5672 or amqps://host:5671") as caught:
        Endpoint.of(url, PORTS)
    assert "hidden" not in str(caught.value)


def test_a_password_needs_a_user_and_both_stand_in_one_place() -> None:
    with pytest.raises(ValueError, match="needs a user"):
        Endpoint.of("amqp://host", PORTS, password=Secret("x"))
    with pytest.raises(ValueError, match="write one of them"):
        Endpoint.of("amqp://a:b@host", PORTS, user="c")


# ------------------------------------------------------------------ a connection that is kept


class Wire:
    """Connections that are made and lost at will."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.lost: Callable[[Any], None] = print
        self.opened = 0
        self.closed: list[int] = []

    async def open(self, lost: Callable[[Any], None]) -> int:
        if self.trouble is not None:
            raise self.trouble
        self.lost = lost
        self.opened += 1
        return self.opened

    async def close(self, number: int) -> None:
        self.closed.append(number)

    @asynccontextmanager
    async def line(self) -> AsyncIterator[Line[int]]:
        line = Line(
            shown="wire://here",
            open=self.open,
            close=self.close,
            timeout=Duration(5),
            log=logging.LoggerAdapter(logging.getLogger("furcula.module.line"), {}),
            clean=lambda text: text.replace("hidden", "****"),
        )
        try:
            yield line
        finally:
            await line.close()


async def test_a_loss_is_logged_once_until_the_reason_changes_and_the_return_once(
    moved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "furcula.module")
    wire = Wire()
    wire.trouble = OSError(111, "whatever")
    async with wire.line() as line:
        with pytest.raises(Unavailable, match="not connected to wire://here for 60 s: connection refused"):
            await line.ready(60)
        assert line.errors > 20
        wire.trouble = PermissionError("the word hidden is wrong")
        with pytest.raises(Unavailable, match=r"for 120 s: the word \*\*\*\* is wrong"):
            await line.ready(60)
        wire.trouble = None
        assert await line.ready() == 1
        assert line.unready() is None
    levels = [(record.levelname, record.getMessage().partition(";")[0]) for record in caplog.records]
    assert levels[:2] == [
        ("WARNING", "no connection to wire://here: connection refused"),
        ("WARNING", "no connection to wire://here: the word **** is wrong"),
    ]
    assert levels[2][1].startswith("connected to wire://here again, after 12")
    assert len(levels) == 3


async def test_that_nobody_answers_is_told_once_in_whatever_words_a_library_says_it(
    moved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "furcula.module")
    wire = Wire()
    async with wire.line() as line:
        await line.ready()
        try:
            try:
                raise ConnectionRefusedError(111, "refused")
            except OSError as error:
                raise RuntimeError("Error 111 connecting to here") from error
        except RuntimeError as error:
            wire.trouble = error
        wire.lost("Connection closed by server")
        while line.client is not None:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="Error 111"):
            await line.ready(60)
        assert line.errors > 2
        wire.trouble = RuntimeError("no such user")
        with pytest.raises(Unavailable, match="no such user"):
            await line.ready(60)
    assert [(record.levelname, record.getMessage().partition(";")[0]) for record in caplog.records] == [
        ("WARNING", "no connection to wire://here: Connection closed by server"),
        ("ERROR", "no connection to wire://here: no such user"),
    ]


async def test_a_connection_that_is_lost_is_closed_and_made_again_and_an_old_ones_loss_is_no_news(moved: Any) -> None:
    wire = Wire()
    async with wire.line() as line:
        first = await line.ready()
        line.lost(first, "it broke")
        line.lost(first, "it broke once more")
        while line.client == first:
            await asyncio.sleep(0)
        second = await line.ready()
        assert (first, second, wire.closed) == (1, 2, [1])
        line.lost(first, "late")
        await asyncio.sleep(60)
        assert line.client == second
        wire.lost(None)
        await asyncio.sleep(60)
        assert line.client == 3
    assert wire.closed == [1, 2, 3]


# ------------------------------------------------------------------ what is taken


class Broker:
    """Keeps what it is told."""

    def __init__(self, bench: Any, **arguments: Any):
        self.told: list[tuple[Any, str]] = []
        self.taken = Taken(
            bench,
            **{
                "decode": codec("json").decode, "prefetch": 10, "max_deliveries": 3, "again_after": Duration(1),
                "tell": self.tell, **arguments,
            },
        )  # fmt: skip

    async def tell(self, batch: list[Told]) -> None:
        self.told += [(told.message.token, told.verdict) for told in batch]


def messages(*bodies: bytes) -> list[Message]:
    return [Message(body, {}, token) for token, body in enumerate(bodies)]


async def test_each_message_is_told_by_its_own_fate_and_in_the_order_of_settling(moved: Any) -> None:
    broker = Broker(moved)
    await broker.taken.take(messages(b"0", b"1", b"2", b"3"))
    slots, moved.slots = moved.slots, []
    slots[2].settle("delivered")
    slots[0].settle("dropped", 1, "filtered")
    slots[1].settle("failed", 1, "", FINAL)
    slots[3].settle("failed", 1, "abandoned")
    await broker.taken.end(5)
    assert broker.told == [(2, "ack"), (0, "ack"), (1, "reject"), (3, "release")]
    assert broker.taken.refused == 1


async def test_another_delivery_waits_twice_as_long_each_time_up_to_a_limit(moved: Any) -> None:
    broker = Broker(moved, max_deliveries=100, again="tell", tell=None)
    delays: list[float] = []

    async def tell(batch: list[Told]) -> None:
        delays.extend(told.delay_s for told in batch)

    broker.taken._tell = tell
    for deliveries in (1, 2, 3, 50):
        await broker.taken.take([Message(b"0", {}, None, deliveries)])
        settle(moved, "failed", failure=RETRYABLE)
    await broker.taken.end(5)
    assert delays == [1, 2, 4, LONGEST_WAIT]


async def test_what_is_admitted_again_here_is_counted_and_given_up_at_last(moved: Any) -> None:
    broker = Broker(moved, again="admit")
    await broker.taken.take(messages(b"7"))
    for coming in (1, 2, 3):
        assert await moved.until(coming) == [7] * coming
        settle(moved, "failed", failure=RETRYABLE)
    await broker.taken.end(5)
    assert broker.told == [(0, "reject")]


async def test_what_waits_for_another_try_when_the_flow_stops_is_told_at_once(moved: Any) -> None:
    broker = Broker(moved)
    await broker.taken.take(messages(b"0", b"1"))
    settle(moved, "failed", failure=RETRYABLE)
    began = asyncio.get_running_loop().time()
    await broker.taken.end(5)
    assert sorted(broker.told) == [(0, "again"), (1, "release")]
    assert asyncio.get_running_loop().time() == began


async def test_what_a_stopping_flow_does_not_admit_is_released(moved: Any) -> None:
    broker = Broker(moved)
    moved.stopped = True
    await broker.taken.take(messages(b"0", b"{"))
    await broker.taken.end(5)
    assert broker.told == [(0, "release"), (1, "release")]


async def test_nothing_is_told_of_what_was_forgotten(moved: Any) -> None:
    broker = Broker(moved, prefetch=2)
    await broker.taken.take(messages(b"0", b"1"))
    waiting = asyncio.ensure_future(broker.taken.room())
    await asyncio.sleep(1)
    assert not waiting.done()
    broker.taken.forget(lambda message: message.token == 0)
    assert await waiting == 1
    settle(moved, count=2)
    await broker.taken.end(5)
    assert broker.told == [(1, "ack")]


def test_tries_are_counted_until_a_message_is_done_and_the_oldest_are_forgotten() -> None:
    tries = Tries(most=2)
    for name in ("a", "b", "c"):
        assert tries.deliveries(name) == 1
        tries.note(name, Told(Message(b"", {}, None, 1), "again"))
    assert [tries.deliveries(name) for name in ("a", "b", "c")] == [1, 2, 2]
    tries.note("b", Told(Message(b"", {}, None, 2), "ack"))
    tries.note("c", Told(Message(b"", {}, None, 2), "release"))
    assert [tries.deliveries(name) for name in ("b", "c")] == [1, 2]


# ------------------------------------------------------------------ where events go


def test_a_destination_is_the_events_own_else_the_fixed_one() -> None:
    destination = Destination("subject", "fixed", "headers.to", "json")
    event = Event({"n": 1}, {"to": "own", "a": 1, "b": True, "c": None, "topic": "from elsewhere"})
    (sent, other, none), errors = destination.prepared([event, Event(2), Event(3, {"to": ""})])
    assert (sent.to, other.to, none.to, errors) == ("own", "fixed", "fixed", {})
    assert sent.body == b'{"n":1}'
    assert sent.headers == {"to": "own", "a": "1", "b": "true", ID: event.id}


def test_an_event_that_names_no_place_or_cannot_be_written_fails_alone() -> None:
    ready, errors = Destination("subject", None, "headers.to", "json").prepared(
        [Event(1), Event(2, {"to": 7}), Event(object(), {"to": "x"}), Event(3, {"to": "x"})]
    )
    assert [sent.index for sent in ready] == [3]
    assert "nothing at 'headers.to', and subject gives no place" in str(errors[0])
    assert "'headers.to' is int; the subject must be text" in str(errors[1])
    assert "cannot hold a value of type object" in str(errors[2])


def test_each_event_fails_with_its_own_error_whether_or_not_it_is_worth_another_try() -> None:
    events = [Event(1), Event(2), Event(3)]
    assert report(events, {}) is events
    errors: dict[int, BaseException] = {0: Refused("no"), 2: Unavailable("later")}
    with pytest.raises(BatchFailed) as caught:
        report(events, errors)
    assert caught.value.errors == errors
