"""nats.subscribe, nats.publish, jetstream.consume, jetstream.publish, against a real server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats as library
import pytest
from tests.certificates import Authority
from tests.services import Nats, running

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.endpoint import Tls
from furcula.modules.nats.core import Publish, Subscribe
from furcula.modules.nats.jetstream import Consume
from furcula.modules.nats.jetstream import Publish as Append
from furcula.modules.sending import Refused, Unavailable
from furcula.options import Duration, Secret

from .conftest import (
    FINAL,
    RETRYABLE,
    WHO,
    fails,
    first_refusal,
    numbers,
    settle,
    started,
    survives,
    until,
    until_ready,
)

_number = itertools.count()


@asynccontextmanager
async def plain(server: Nats) -> AsyncIterator[Any]:
    client = await library.connect(server.url, user="tester", password="pass/word")
    try:
        yield client
    finally:
        await client.close()


class Stream:
    """A stream of its own for a test, and how it is consumed and published to."""

    def __init__(self, server: Nats):
        self.name = f"S{next(_number)}"
        self.subject = f"{self.name}.orders"
        self.source: dict[str, Any] = {
            "url": server.url, "stream": self.name, "durable": "d", "subjects": [f"{self.name}.>"], **WHO
        }  # fmt: skip
        self.sink: dict[str, Any] = {"url": server.url, "subject": self.subject, **WHO}


@pytest.fixture
def stream(nats_server: Nats) -> Stream:
    return Stream(nats_server)


# ------------------------------------------------------------------ core


async def test_what_is_published_arrives_with_its_headers_id_and_subject(bench: Any, nats_server: Nats) -> None:
    where = {"url": nats_server.url, **WHO}
    async with (
        started(Subscribe(subject="core.>", **where), bench),
        started(Publish(subject="core.a", subject_from="headers.routing_key", **where), bench) as sink,
    ):
        event = Event({"n": 1}, {"colour": "red", "urgent": True, "tree": {"not": "sent"}})
        other = Event([2], {"routing_key": "core.b"})
        assert await sink.process_batch([event, other]) == [event, other]
        assert await bench.until(2) == [{"n": 1}, [2]]
        first, second = bench.admitted["outbox"]
        assert first.headers == {"colour": "red", "urgent": "true", "furcula-id": event.id, "subject": "core.a"}
        assert second.headers["subject"] == "core.b"
        settle(bench, count=2)


async def test_members_of_a_queue_group_share_the_messages(bench: Any, nats_server: Nats) -> None:
    where = {"url": nats_server.url, "subject": "shared", **WHO}
    async with (
        started(Subscribe(queue="q", **where), bench),
        started(Subscribe(queue="q", **where), bench),
        started(Publish(**where), bench) as sink,
    ):
        await sink.process_batch(numbers(50))
        assert sorted(data["n"] for data in await bench.until(50)) == list(range(50))
        settle(bench, count=50)


async def test_an_event_without_a_subject_and_one_too_large_fail_alone(bench: Any, nats_server: Nats) -> None:
    sink = Publish(url=nats_server.url, subject_from="headers.to", codec="text", **WHO)
    async with started(sink, bench):
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch(
                [Event("a", {"to": "x"}), Event("b"), Event("c" * 2_000_000, {"to": "x"}), Event(5, {"to": "x"})]
            )
        errors = caught.value.errors
        assert "the event has nothing at 'headers.to', and subject gives no place" in str(errors[1])
        assert "takes 1000000 bytes at most" in str(errors[2]) or "bytes at most" in str(errors[2])
        assert "the codec 'text' takes a str" in str(errors[3])
        assert sorted(errors) == [1, 2, 3]
        assert isinstance(errors[1], Refused)
        assert not errors[1].retryable


async def test_a_subject_that_may_not_be_published_on_is_refused(bench: Any, nats_server: Nats) -> None:
    async with started(Publish(url=nats_server.url, subject="forbidden.x", **WHO), bench) as sink:
        with pytest.raises(BatchFailed, match="1 of the batch") as caught:
            await sink.process_batch(numbers(1))
        assert "permissions violation" in str(caught.value.errors[0])


async def test_bytes_that_are_no_data_leave_by_invalid(bench: Any, nats_server: Nats) -> None:
    async with started(Subscribe(url=nats_server.url, subject="bad", **WHO), bench), plain(nats_server) as client:
        await client.publish("bad", b"{nonsense")
        await bench.until(1, "invalid")
        (bad,) = bench.admitted["invalid"]
        assert (bad.data, bad.headers["subject"]) == ("{nonsense", "bad")
        assert bad.headers["reason"].startswith("not JSON")
        settle(bench)


async def test_what_comes_while_there_is_no_room_is_dropped_and_counted(
    bench: Any, nats_server: Nats, warnings: Any
) -> None:
    where = {"url": nats_server.url, "subject": "full", **WHO}
    source = Subscribe(prefetch=10, **where)
    async with started(source, bench), started(Publish(**where), bench) as sink:
        await sink.process_batch(numbers(10))
        await bench.until(10)
        await sink.process_batch(numbers(100))
        await until(lambda: source.dropped == 90)
        assert warnings() == ["there is no room for what comes on full: it is dropped"]
        settle(bench, count=10)
        await bench.until(20)
        settle(bench, count=10)


# ------------------------------------------------------------------ connections


async def test_a_server_that_comes_later_is_found_and_both_ends_say_why_they_are_not_ready(
    bench: Any, warnings: Any
) -> None:
    with running(Nats, started=False) as server:
        where = {"url": server.url, "subject": "late", **WHO}
        source, sink = Subscribe(**where), Publish(**where)
        async with started(source, bench, ready=False), started(sink, bench, ready=False):
            await until(lambda: len(warnings()) == 2)
            for module in (source, sink):
                assert module.unready().startswith(f"not connected to {server.url} for 0 s: ")
                assert "refused" in module.unready().lower()
            sending = asyncio.ensure_future(sink.process_batch(numbers(3)))
            await server.aside(server.start)
            await until_ready(source)
            await sending
            await sink.process_batch(numbers(3))
            await bench.until(3)
            settle(bench, count=len(bench.slots))
        assert len(warnings()) == 2


async def test_a_server_that_stays_away_fails_a_batch_so_that_it_may_be_tried_again(bench: Any) -> None:
    with running(Nats, started=False) as server:
        sink = Publish(url=server.url, subject="x", timeout=Duration(0.3), **WHO)
        async with started(sink, bench, ready=False):
            with fails(Unavailable, match=r"not connected to nats://127\.0\.0\.1:\d+ for 0 s"):
                await sink.process_batch(numbers(2))
            assert Unavailable.retryable


async def test_a_batch_that_was_given_up_does_not_make_the_next_ones_pass_for_delivered(bench: Any) -> None:
    with running(Nats) as server:
        sink = Publish(url=server.url, subject="x", timeout=Duration(1), **WHO)
        async with started(sink, bench):
            await sink.process_batch(numbers(1))
            for turns in range(8):  # wherever it is just then
                given_up = asyncio.ensure_future(sink.process_batch(numbers(1)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                given_up.cancel()
                await asyncio.wait([given_up])
            await sink.process_batch(numbers(1))
            server.freeze()
            with fails(Unavailable, "no answer within 1 s"):
                await sink.process_batch(numbers(2))
            server.thaw()


@pytest.mark.parametrize("ended", ["_reading_task", "_flusher_task"])
async def test_a_connection_whose_library_reads_or_writes_no_more_is_a_lost_one(
    bench: Any, nats_server: Nats, ended: str
) -> None:
    sink = Publish(url=nats_server.url, subject="x", **WHO)
    async with started(sink, bench):
        line: Any = sink._line
        first = line.client
        getattr(first.client, ended).cancel()
        await until(lambda: line.connected == 2 and line.client is not None)
        assert line.client is not first
        await sink.process_batch(numbers(1))


async def test_an_event_is_too_large_with_its_headers_too_and_costs_no_connection(
    bench: Any, nats_server: Nats, stream: Stream
) -> None:
    async with plain(nats_server) as client:
        await client.jetstream().add_stream(name=stream.name, subjects=[f"{stream.name}.>"])
    for kind in (Publish, Append):
        sink: Any = kind(codec="text", **stream.sink)
        async with started(sink, bench):
            line: Any = sink._line
            most = (line.client.client if kind is Publish else line.client.wire.client).max_payload
            with fails(Refused, f"takes {most} bytes at most"):
                await sink.process_batch([Event("a" * (most - 10)), Event("a", {"long": "ä" * (most // 2)})])
            await sink.process_batch([Event("b")])
            assert line.connected == 1
            if kind is Append:
                assert line.client.js.publish_async_pending() == 0


@pytest.mark.parametrize("kind", [Subscribe, Publish])
async def test_a_wrong_password_is_told_and_not_shown(bench: Any, nats_server: Nats, kind: Any, warnings: Any) -> None:
    url = nats_server.url.replace("//", "//tester:wr0ng@")
    async with started(kind(url=url, subject="x"), bench, ready=False) as module:
        await until(warnings)
        assert "authorization violation" in warnings()[0].lower()
        assert "wr0ng" not in warnings()[0] + module.unready()


async def test_a_connection_may_be_private_and_a_certificate_that_nobody_vouches_for_is_told(
    bench: Any, authority: Authority, warnings: Any
) -> None:
    with running(Nats, started=False, authority=authority) as server:
        await server.aside(server.start)
        where = {"url": server.url, "subject": "private", **WHO}
        async with (
            started(Subscribe(**where, tls=Tls(ca_file=str(authority.ca))), bench),
            started(Publish(**where, tls=Tls(ca_file=str(authority.ca))), bench) as sink,
        ):
            await sink.process_batch(numbers(1))
            await bench.until(1)
            settle(bench)
        async with started(Publish(**{**where, "url": server.url.replace("nats", "tls")}), bench, ready=False):
            await until(lambda: "certificate verify failed" in " ".join(warnings()))
    with pytest.raises(FurculaError, match=r"tls: .*nothing\.pem cannot be used"):
        await Publish(**where, tls=Tls(ca_file="nothing.pem")).start(bench)


def test_wrong_arguments_are_refused_and_a_password_in_them_is_not_shown() -> None:
    with pytest.raises(ValueError, match=r"write nats://host:4222 or tls://host:4222") as caught:
        Publish(url="http://me:hidden@host", subject="x")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="say subject, or subject_from, or both"):
        Publish(url="nats://host")
    with pytest.raises(ValueError, match="write one of them"):
        Publish(url="nats://a:b@host", subject="x", user="c", password=Secret("d"))
    with pytest.raises(ValueError, match="1 or more"):
        Subscribe(url="nats://host", subject="x", prefetch=0)


# ------------------------------------------------------------------ JetStream


async def test_a_message_is_acknowledged_when_its_event_is_settled_and_not_before(
    bench: Any, nats_server: Nats, stream: Stream
) -> None:
    source, sink = Consume(**stream.source), Append(**stream.sink)
    async with started(source, bench), started(sink, bench), plain(nats_server) as client:
        await sink.process_batch(numbers(3))
        await bench.until(3)
        info = await client.jetstream().consumer_info(stream.name, "d")
        assert (info.num_ack_pending, info.ack_floor.stream_seq) == (3, 0)
        settle(bench, count=2)
        settle(bench, "dropped", reason="filtered")
        await until(lambda: not source._taken.open)
        info = await client.jetstream().consumer_info(stream.name, "d")
        assert (info.num_ack_pending, info.ack_floor.stream_seq) == (0, 3)
        first = bench.admitted["outbox"][0]
        assert first.headers["subject"] == stream.subject
        assert (first.headers["stream"], first.headers["sequence"], first.headers["deliveries"]) == (stream.name, 1, 1)


async def test_what_failed_for_now_comes_again_and_ends_in_the_dead_letters(
    bench: Any, nats_server: Nats, stream: Stream
) -> None:
    source = Consume(
        **stream.source, subject=stream.subject, max_deliveries=2, again_after=Duration(0.05),
        dead_letter=f"{stream.name}.dead",
    )  # fmt: skip
    async with started(source, bench), started(Append(**stream.sink), bench) as sink, plain(nats_server) as client:
        await sink.process_batch(numbers(1))
        again = await first_refusal(bench, failure=RETRYABLE)
        assert again.headers["deliveries"] == 2
        settle(bench, "failed", failure=RETRYABLE)
        await until(lambda: source._taken.refused == 1 and not source._taken.open)
        dead = await client.jetstream().get_last_msg(stream.name, f"{stream.name}.dead")
        assert dead.data == b'{"n":0}'
        assert dead.headers["furcula-reason"] == "TimeoutError: not now"
        info = await client.jetstream().consumer_info(stream.name, "d")
        assert (info.num_ack_pending, info.num_pending) == (0, 0)


async def test_what_the_dead_letters_do_not_take_stays_in_the_stream_and_is_named(
    bench: Any, nats_server: Nats, stream: Stream, warnings: Any
) -> None:
    source = Consume(**stream.source, subject=stream.subject, dead_letter="nowhere")
    async with started(source, bench), started(Append(**stream.sink), bench) as sink, plain(nats_server) as client:
        await sink.process_batch(numbers(2))
        await bench.until(2)
        settle(bench, "failed", failure=FINAL)
        settle(bench)
        await until(lambda: not source._taken.open)
        info = await client.jetstream().consumer_info(stream.name, "d")
        assert info.num_ack_pending == 1
        assert "the dead-letter subject nowhere takes nothing" in warnings()[-1]


async def test_what_failed_for_good_is_never_delivered_again(bench: Any, nats_server: Nats, stream: Stream) -> None:
    async with started(Consume(**stream.source), bench) as source, started(Append(**stream.sink), bench) as sink:
        await sink.process_batch(numbers(1))
        await bench.until(1)
        settle(bench, "failed", failure=FINAL)
        await until(lambda: not source._taken.open)
    async with plain(nats_server) as client:
        info = await client.jetstream().consumer_info(stream.name, "d")
        assert (info.num_ack_pending, info.num_pending) == (0, 0)


async def test_what_is_unsettled_when_the_flow_stops_comes_again_at_once_and_is_not_charged(
    bench: Any, stream: Stream
) -> None:
    async with started(Append(**stream.sink), bench, ready=True) as sink:
        source = Consume(**stream.source)
        async with started(source, bench):
            await sink.process_batch(numbers(5))
            await bench.until(5)
            settle(bench, count=2)
            settle(bench, "failed", reason="abandoned")
        async with started(Consume(**stream.source), bench):
            assert [data["n"] for data in (await bench.until(8))[5:]] == [2, 3, 4]
            bench.slots = bench.slots[-3:]
            settle(bench, count=3)


async def test_what_a_consumer_took_that_died_comes_to_another_and_is_charged(
    bench: Any, nats_server: Nats, stream: Stream
) -> None:
    async with started(Consume(**stream.source, ack_wait=Duration(0.5)), bench):
        pass  # it has made the stream and the consumer
    async with started(Append(**stream.sink), bench) as sink, plain(nats_server) as client:
        await sink.process_batch(numbers(2))
        dead = await client.jetstream().pull_subscribe_bind("d", stream.name)
        await dead.fetch(1)
    async with started(Consume(**stream.source), bench):
        await bench.until(2)
        deliveries = {event.data["n"]: event.headers["deliveries"] for event in bench.admitted["outbox"]}
        assert deliveries == {0: 2, 1: 1}
        settle(bench, count=2)


async def test_events_that_wait_longer_than_ack_wait_are_not_given_to_another(bench: Any, stream: Stream) -> None:
    source = Consume(**stream.source, ack_wait=Duration(0.6))
    async with started(source, bench), started(Append(**stream.sink), bench) as sink:
        await sink.process_batch(numbers(1))
        await bench.until(1)
        await asyncio.sleep(1.5)  # that something does not happen can only be watched for
        assert len(bench.datas()) == 1
        settle(bench)


@pytest.mark.parametrize("fate", ["delivered", "failed", "abandoned"])
async def test_a_message_that_is_sent_again_because_the_loop_was_held_is_handled_once(
    bench: Any, stream: Stream, fate: str
) -> None:
    source = Consume(ack_wait=Duration(0.2), again_after=Duration(0.1), **stream.source)
    async with started(source, bench), started(Append(**stream.sink), bench) as sink:
        await sink.process_batch(numbers(1))
        await bench.until(1)
        time.sleep(1)  # noqa: ASYNC251 -- a module that blocks
        if fate == "delivered":
            settle(bench)
            await sink.process_batch(numbers(1, begin=1))
            assert await bench.until(2) == [{"n": 0}, {"n": 1}]
        else:
            settle(bench, "failed", failure=RETRYABLE, reason="" if fate == "failed" else fate)
            await bench.until(2)
            settle(bench)
            await sink.process_batch(numbers(1, begin=1))
            assert await bench.until(3) == [{"n": 0}, {"n": 0}, {"n": 1}]
            assert bench.admitted["outbox"][1].headers["deliveries"] == (2 if fate == "failed" else 1)
        settle(bench)


async def test_no_more_than_prefetch_are_unsettled(bench: Any, stream: Stream) -> None:
    source = Consume(**stream.source, prefetch=10)
    async with started(source, bench), started(Append(**stream.sink), bench) as sink:
        await sink.process_batch(numbers(35))
        for taken in (10, 20, 30, 35):
            await bench.until(taken)
            assert len(bench.datas()) == taken
            assert len(source._taken.open) <= 10
            settle(bench, count=10)


async def test_unreadable_messages_leave_by_invalid_and_do_not_come_again(
    bench: Any, nats_server: Nats, stream: Stream
) -> None:
    source = Consume(**stream.source)
    async with started(source, bench), plain(nats_server) as client:
        await client.jetstream().publish(stream.subject, b"\xff")
        await bench.until(1, "invalid")
        settle(bench, "failed", failure=FINAL)
        await until(lambda: not source._taken.open)
        info = await client.jetstream().consumer_info(stream.name, "d")
        assert (info.num_ack_pending, info.num_pending) == (0, 0)


async def test_what_is_sent_twice_is_stored_once(bench: Any, nats_server: Nats, stream: Stream) -> None:
    async with started(Consume(**stream.source), bench), started(Append(**stream.sink), bench) as sink:
        events = numbers(10)
        await sink.process_batch(events)
        await sink.process_batch(events)
        await sink.process_batch(numbers(1, 10))
        assert [data["n"] for data in await bench.until(11)] == list(range(11))
        settle(bench, count=11)


async def test_a_subject_without_a_stream_is_refused(bench: Any, stream: Stream) -> None:
    async with started(Append(**{**stream.sink, "subject": "nowhere"}), bench) as sink:
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch(numbers(1))
        assert "no stream has the subject 'nowhere'" in str(caught.value.errors[0])


async def test_a_stream_that_is_missing_is_named(bench: Any, stream: Stream, warnings: Any) -> None:
    async with started(Consume(**{**stream.source, "subjects": None}), bench, ready=False) as source:
        await until(warnings)
        assert f"there is no stream '{stream.name}'; make it, or say `subjects`" in warnings()[0]
        assert stream.name in source.unready()


# ------------------------------------------------------------------ killed and restarted


async def test_jetstream_killed_in_the_middle_of_10_000_events_loses_none() -> None:
    with running(Nats) as server:
        stream = Stream(server)
        arrived = await survives(
            ("jetstream.consume", {**stream.source, "ack_wait": "2s"}), ("jetstream.publish", stream.sink), server
        )
        assert len(arrived) == 10_000


async def test_core_killed_in_the_middle_of_10_000_events_resumes() -> None:
    """What is published while the subscriber is not back yet is lost, as core NATS says; both ends go on."""
    with running(Nats) as server:
        where = {"url": server.url, "subject": "core", **WHO}
        arrived = await survives(
            ("nats.subscribe", {**where, "prefetch": 20_000}), ("nats.publish", where), server, all_arrive=False
        )
        assert len(arrived) > 2_000
