"""amqp.consume and amqp.publish, against a real RabbitMQ."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import pytest
from tests.modules.conftest import turns
from tests.services import Rabbit, free_port, running

from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.amqp.client import Declare, DeclareExchange
from furcula.modules.amqp.consume import Consume
from furcula.modules.amqp.publish import Publish
from furcula.modules.sending import Refused, Unavailable
from furcula.options import Duration

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
SOON = Duration(0.05)


@asynccontextmanager
async def plain(server: Rabbit) -> AsyncIterator[Any]:
    connection = await aio_pika.connect(port=server.port, login="tester", password="pass/word")
    try:
        yield await connection.channel()
    finally:
        await connection.close()


class Names:
    """A queue of its own for a test, and the arguments that go with it."""

    def __init__(self, server: Rabbit):
        self.queue = f"queue{next(_number)}"
        self.where: dict[str, Any] = {"url": server.url, **WHO}
        self.source: dict[str, Any] = {"queue": self.queue, "declare": Declare(), **self.where}
        self.sink: dict[str, Any] = {
            "routing_key": self.queue, "queue": self.queue, "declare": Declare(), **self.where
        }  # fmt: skip


@pytest.fixture
def names(rabbit: Rabbit) -> Names:
    return Names(rabbit)


async def ready_in(channel: Any, queue: str) -> int:
    count: int = (await channel.declare_queue(queue, passive=True)).declaration_result.message_count
    return count


async def test_messages_carry_headers_id_and_place_and_are_acknowledged_once_settled(
    bench: Any, rabbit: Rabbit, names: Names
) -> None:
    source = Consume(**names.source)
    async with started(Publish(**names.sink), bench) as sink:
        async with started(source, bench):
            event = Event({"n": 1}, {"colour": "red", "tree": {}})
            await sink.process_batch([event, *numbers(3)])
            assert await bench.until(4) == [{"n": 1}, {"n": 0}, {"n": 1}, {"n": 2}]
            assert bench.admitted["outbox"][0].headers == {
                "colour": "red", "furcula-id": event.id, "message_id": event.id, "content_type": "application/json",
                "exchange": "", "routing_key": names.queue, "deliveries": 1,
            }  # fmt: skip
            settle(bench)
            settle(bench, "dropped", reason="filtered")
            await until(lambda: len(source._taken.open) == 2)
        bench.slots.clear()
        async with plain(rabbit) as channel:
            assert await ready_in(channel, names.queue) == 2
        async with started(Consume(**names.source), bench):
            assert [data["n"] for data in (await bench.until(6))[4:]] == [1, 2]
            settle(bench, count=2)


async def test_what_failed_for_now_comes_again_and_then_goes_to_the_dead_letter_exchange(
    bench: Any, rabbit: Rabbit, names: Names
) -> None:
    declare = Declare(arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{names.queue}/dead"})
    source = Consume(**{**names.source, "declare": declare}, max_deliveries=2, again_after=SOON)
    sink = Publish(routing_key=names.queue, **names.where)
    async with plain(rabbit) as channel, started(source, bench), started(sink, bench):
        dead = await channel.declare_queue(f"{names.queue}/dead", durable=True)
        await sink.process_batch(numbers(2))
        await bench.until(2)
        settle(bench, "failed", failure=FINAL)
        settle(bench, "failed", failure=RETRYABLE)
        await bench.until(3)
        assert bench.admitted["outbox"][2].headers["deliveries"] == 2
        settle(bench, "failed", failure=RETRYABLE)
        await until(lambda: not source._taken.open)
        assert [(await dead.get(timeout=10)).body for _ in range(2)] == [b'{"n":0}', b'{"n":1}']


async def test_what_was_unsettled_when_the_connection_was_lost_comes_again_and_its_late_fate_is_not_told(
    bench: Any, names: Names
) -> None:
    source = Consume(**names.source)
    async with started(source, bench), started(Publish(**names.sink), bench) as sink:
        await sink.process_batch(numbers(3))
        await bench.until(3)
        old, bench.slots = bench.slots, []
        source._line.lost(source._line.client, "cut by the test")
        assert [data["n"] for data in (await bench.until(6))[3:]] == [0, 1, 2]
        for slot in old:
            slot.settle("delivered")
        await turns()
        assert len(source._taken.open) == 3
        settle(bench, count=3)
        await until(lambda: not source._taken.open)


async def test_a_quorum_queue_counts_deliveries_itself(bench: Any, names: Names) -> None:
    declare = Declare(arguments={"x-queue-type": "quorum"})
    async with (
        started(Consume(**{**names.source, "declare": declare}, again_after=SOON), bench),
        started(Publish(routing_key=names.queue, **names.where), bench) as sink,
    ):
        await sink.process_batch(numbers(1))
        assert (await first_refusal(bench, failure=RETRYABLE)).headers["deliveries"] == 2
        settle(bench)


async def test_no_more_than_prefetch_are_unsettled(bench: Any, names: Names) -> None:
    async with started(Publish(**names.sink), bench) as sink, started(Consume(**names.source, prefetch=10), bench):
        await sink.process_batch(numbers(35))
        for taken in (10, 20, 30, 35):
            await bench.until(taken)
            assert len(bench.datas()) == taken
            settle(bench, count=10)


async def test_unreadable_messages_leave_by_invalid_and_do_not_come_again(
    bench: Any, rabbit: Rabbit, names: Names
) -> None:
    source = Consume(**names.source)
    async with started(source, bench), plain(rabbit) as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"{"), names.queue)
        await bench.until(1, "invalid")
        settle(bench, "failed", failure=FINAL)
        await until(lambda: not source._taken.open)
        assert await ready_in(channel, names.queue) == 0


async def test_a_topic_exchange_routes_by_the_event(bench: Any, names: Names) -> None:
    exchange = {"exchange": f"{names.queue}/topic", "declare_exchange": DeclareExchange("topic")}
    source = Consume(**names.source, **exchange, routing_keys=["order.*", "bill.#"])
    sink = Publish(
        **names.where, **exchange, routing_key="order.none", routing_key_from="headers.routing_key", mandatory=False
    )
    async with started(source, bench), started(sink, bench):
        await sink.process_batch(
            [Event(1, {"routing_key": "order.a"}), Event(2, {"routing_key": "letter.a"}), Event(3)]
        )
        assert await bench.until(2) == [1, 3]
        assert [event.headers["routing_key"] for event in bench.admitted["outbox"]] == ["order.a", "order.none"]
        settle(bench, count=2)


async def test_what_no_queue_gets_is_refused_and_the_others_are_delivered(bench: Any, names: Names) -> None:
    sink = Publish(**names.sink, routing_key_from="headers.to")
    async with started(Consume(**names.source), bench), started(sink, bench):
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch([Event(1), Event(2, {"to": "nobody"}), Event(3)])
        assert list(caught.value.errors) == [1]
        assert isinstance(caught.value.errors[1], Refused)
        assert "routing key 'nobody': no queue gets it" in str(caught.value.errors[1])
        assert await bench.until(2) == [1, 3]
        settle(bench, count=2)


async def test_an_exchange_or_a_queue_that_is_missing_is_named(bench: Any, names: Names, warnings: Any) -> None:
    async with started(Publish(**names.where, exchange="nowhere"), bench) as sink:
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch(numbers(1))
        assert "no exchange 'nowhere'" in str(caught.value.errors[0])
    async with started(Consume(**names.where, queue="nothing"), bench, ready=False) as source:
        await until(lambda: "no queue 'nothing'" in " ".join(warnings()))
        assert "no queue 'nothing'" in source.unready()


async def test_a_wrong_password_is_told_and_not_shown(bench: Any, names: Names, warnings: Any) -> None:
    url = names.where["url"].replace("//", "//tester:wr0ng@")
    async with started(Consume(url=url, queue="x"), bench, ready=False) as source:
        await until(warnings, 30)
        assert "ACCESS_REFUSED" in warnings()[0]
        assert "wr0ng" not in warnings()[0] + source.unready()


async def test_a_broker_that_is_away_fails_a_batch_so_that_it_may_be_tried_again(bench: Any) -> None:
    url = f"amqp://127.0.0.1:{free_port()}"
    async with started(Publish(url=url, routing_key="x", timeout=SOON), bench, ready=False) as sink:
        with fails(Unavailable, match=f"not connected to {url}"):
            await sink.process_batch(numbers(1))


async def test_a_queue_that_is_deleted_under_its_consumer_is_noticed(
    bench: Any, rabbit: Rabbit, names: Names, warnings: Any
) -> None:
    async with started(Consume(**names.source), bench) as source, plain(rabbit) as channel:
        await channel.queue_delete(names.queue)
        await until(lambda: source._line.connected == 2)
        await until_ready(source)
        assert await ready_in(channel, names.queue) == 0  # it is there again


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="say routing_key, or routing_key_from, or both"):
        Publish(url="amqp://host")
    with pytest.raises(ValueError, match="need an exchange"):
        Consume(url="amqp://host", queue="q", routing_keys=["a"])
    with pytest.raises(ValueError, match="65535"):
        Consume(url="amqp://host", queue="q", prefetch=70_000)


async def test_a_broker_that_comes_late_and_is_killed_in_the_middle_of_10_000_events_loses_none(bench: Any) -> None:
    with running(Rabbit, started=False) as server:
        names = Names(server)
        async with (
            started(Consume(**names.source), bench, ready=False) as source,
            started(Publish(**names.sink), bench, ready=False) as sink,
        ):
            await until(lambda: "connection refused" in (source.unready() or "").lower())
            assert "connection refused" in sink.unready().lower()
            await server.aside(server.start)
            await until_ready(source)
            await until_ready(sink)
        arrived = await survives(
            ("amqp.consume", {**names.source, "prefetch": 500}), ("amqp.publish", names.sink), server
        )
        assert len(arrived) == 10_000
