"""redis.consume, redis.append, redis.pop, redis.push, redis.subscribe, redis.publish, against a real server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis as Plain
from tests.services import Redis, running

from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.redis.channels import Publish, Subscribe
from furcula.modules.redis.lists import Pop, Push
from furcula.modules.redis.streams import Append, Consume
from furcula.modules.sending import Refused, Unavailable
from furcula.options import Duration

from .conftest import (
    FINAL,
    PASSWORD,
    RETRYABLE,
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
async def plain(server: Redis) -> AsyncIterator[Any]:
    client = Plain(port=server.port, password="pass/word")
    try:
        yield client
    finally:
        await client.aclose()


class Names:
    """Keys of its own for a test, and the arguments that go with them."""

    def __init__(self, server: Redis):
        self.key = f"key{next(_number)}"
        where = {"url": server.url, "password": PASSWORD}
        self.where = where
        self.consume = {"stream": self.key, "group": "g", **where}
        self.append = {"stream": self.key, **where}
        self.list = {"list": self.key, **where}
        self.channel = {"channel": self.key, **where}


@pytest.fixture
def names(redis_server: Redis) -> Names:
    return Names(redis_server)


async def pending(client: Any, names: Names) -> int:
    found: int = (await client.xpending(names.key, "g"))["pending"]
    return found


# ------------------------------------------------------------------ streams


async def test_entries_carry_data_headers_and_id_and_are_acknowledged_once_settled(
    bench: Any, redis_server: Redis, names: Names
) -> None:
    async with (
        started(Consume(**names.consume), bench) as source,
        started(Append(stream_from="headers.to", **names.append), bench) as sink,
        plain(redis_server) as client,
    ):
        event = Event({"n": 1}, {"colour": "red", "tree": {}})
        await sink.process_batch([event, *numbers(2), Event(0, {"to": f"{names.key}/other"})])
        assert await bench.until(3) == [{"n": 1}, {"n": 0}, {"n": 1}]
        headers = bench.admitted["outbox"][0].headers
        assert headers == {
            "colour": "red", "furcula-id": event.id, "stream": names.key, "entry": headers["entry"], "deliveries": 1
        }  # fmt: skip
        assert await client.xlen(f"{names.key}/other") == 1
        assert await pending(client, names) == 3
        settle(bench, count=2)
        settle(bench, "dropped", reason="filtered")
        await until(lambda: not source._taken.open)
        assert await pending(client, names) == 0


async def test_what_failed_for_now_comes_again_and_ends_in_the_dead_letters(
    bench: Any, redis_server: Redis, names: Names
) -> None:
    source = Consume(max_deliveries=2, again_after=SOON, dead_letter=f"{names.key}/dead", **names.consume)
    async with started(source, bench), started(Append(**names.append), bench) as sink, plain(redis_server) as client:
        await sink.process_batch(numbers(1))
        again = await first_refusal(bench, failure=RETRYABLE)
        assert again.headers["deliveries"] == 2
        settle(bench, "failed", failure=RETRYABLE)
        await until(lambda: not source._taken.open)
        assert await pending(client, names) == 0
        ((_, fields),) = await client.xrange(f"{names.key}/dead")
        assert fields[b"data"] == b'{"n":0}'
        assert fields[b"reason"] == b"TimeoutError: not now"


async def test_what_is_unsettled_when_the_flow_stops_goes_to_another_at_once_and_is_not_charged(
    bench: Any, names: Names
) -> None:
    async with started(Append(**names.append), bench) as sink:
        async with started(Consume(consumer="one", **names.consume), bench):
            await sink.process_batch(numbers(5))
            await bench.until(5)
            settle(bench, count=2)
        bench.slots.clear()
        async with started(Consume(consumer="two", **names.consume), bench):
            await bench.until(8)
            assert [event.data["n"] for event in bench.admitted["outbox"][5:]] == [2, 3, 4]
            assert {event.headers["deliveries"] for event in bench.admitted["outbox"][5:]} == {1}
            settle(bench, count=3)


async def test_what_a_dead_consumer_left_is_claimed_and_what_a_live_one_has_is_not(
    bench: Any, redis_server: Redis, names: Names
) -> None:
    async with plain(redis_server) as client, started(Append(**names.append), bench) as sink:
        await client.xgroup_create(names.key, "g", id="0", mkstream=True)
        await sink.process_batch(numbers(2))
        await client.xreadgroup("g", "dead", {names.key: ">"}, count=1)
        async with (
            started(Consume(consumer="one", claim_after=Duration(0.4), **names.consume), bench),
            started(Consume(consumer="two", claim_after=Duration(0.4), **names.consume), bench),
        ):
            await bench.until(2)
            left = next(event for event in bench.admitted["outbox"] if event.data == {"n": 0})
            assert left.headers["deliveries"] == 2
            await client.xadd(names.key, {"data": "3"})
            await bench.until(3)
            await asyncio.sleep(1.2)  # that something does not happen can only be watched for
            assert len(bench.datas()) == 3
            settle(bench, count=3)


async def test_no_more_than_prefetch_are_unsettled(bench: Any, names: Names) -> None:
    async with (
        started(Consume(prefetch=10, **names.consume), bench) as source,
        started(Append(**names.append), bench) as sink,
    ):
        await sink.process_batch(numbers(35))
        for taken in (10, 20, 30, 35):
            await bench.until(taken)
            assert len(bench.datas()) == taken
            assert len(source._taken.open) <= 10
            settle(bench, count=10)


async def test_entries_of_others_are_dicts_and_unreadable_ones_leave_by_invalid(
    bench: Any, redis_server: Redis, names: Names
) -> None:
    async with started(Consume(**names.consume), bench) as source, plain(redis_server) as client:
        await client.xadd(names.key, {"a": "1", "b": "x"})
        await client.xadd(names.key, {"data": "{"})
        assert await bench.until(1) == [{"a": "1", "b": "x"}]
        await bench.until(1, "invalid")
        assert bench.admitted["invalid"][0].headers["reason"].startswith("not JSON")
        settle(bench, "failed", count=2, failure=FINAL)
        await until(lambda: not source._taken.open)
        assert await pending(client, names) == 0


async def test_a_key_of_another_kind_refuses_the_event(bench: Any, redis_server: Redis, names: Names) -> None:
    async with plain(redis_server) as client, started(Append(**names.append), bench) as sink:
        await client.set(names.key, "text")
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch(numbers(1))
        assert isinstance(caught.value.errors[0], Refused)
        assert "wrong kind" in str(caught.value.errors[0])


# ------------------------------------------------------------------ lists


async def test_an_item_is_kept_apart_until_its_event_is_settled(bench: Any, redis_server: Redis, names: Names) -> None:
    aside = f"{names.key}:processing:me"
    async with (
        started(Pop(consumer="me", **names.list), bench) as source,
        started(Push(**names.list), bench) as sink,
        plain(redis_server) as client,
    ):
        await sink.process_batch(numbers(300))
        assert [data["n"] for data in await bench.until(300)] == list(range(300))
        assert (await client.llen(names.key), await client.llen(aside)) == (0, 300)
        settle(bench, count=300)
        await until(lambda: not source._taken.open)
        assert await client.llen(aside) == 0
        assert bench.admitted["outbox"][0].headers == {"list": names.key, "deliveries": 1}


async def test_items_that_failed_come_again_or_go_to_the_dead_letters(
    bench: Any, redis_server: Redis, names: Names
) -> None:
    source = Pop(max_deliveries=2, again_after=SOON, dead_letter=f"{names.key}/dead", **names.list)
    async with started(source, bench), started(Push(**names.list), bench) as sink, plain(redis_server) as client:
        await sink.process_batch(numbers(1))
        again = await first_refusal(bench, failure=RETRYABLE)
        assert again.headers["deliveries"] == 2
        settle(bench, "failed", failure=RETRYABLE)
        await until(lambda: not source._taken.open)
        assert await client.lrange(f"{names.key}/dead", 0, -1) == [b'{"n":0}']


async def test_what_a_crash_or_a_stop_left_is_put_back_in_its_order(
    bench: Any, redis_server: Redis, names: Names
) -> None:
    async with plain(redis_server) as client, started(Push(**names.list), bench) as sink:
        await sink.process_batch(numbers(4))
        for _ in range(2):  # as one did that has crashed
            await client.lmove(names.key, f"{names.key}:processing:me", "LEFT", "RIGHT")
        async with started(Pop(consumer="me", **names.list), bench):
            assert [data["n"] for data in await bench.until(4)] == [0, 1, 2, 3]
            settle(bench)
        bench.slots.clear()
        assert await client.lrange(names.key, 0, -1) == [b'{"n":1}', b'{"n":2}', b'{"n":3}']
        assert await client.exists(f"{names.key}:processing:me") == 0


# ------------------------------------------------------------------ channels


async def test_messages_of_a_channel_and_of_a_pattern_arrive(bench: Any, names: Names) -> None:
    pattern = Subscribe(**{**names.channel, "channel": f"{names.key}*"}, pattern=True)
    async with (
        started(pattern, bench),
        started(Publish(channel_from="headers.to", **names.channel), bench) as sink,
    ):
        await sink.process_batch([Event(1), Event(2, {"to": f"{names.key}.b"})])
        assert await bench.until(2) == [1, 2]
        assert [event.headers["channel"] for event in bench.admitted["outbox"]] == [names.key, f"{names.key}.b"]
        settle(bench, count=2)


# ------------------------------------------------------------------ connections


@pytest.mark.parametrize(
    ("source", "sink"),
    [
        (lambda names: Consume(**names.consume), lambda names: Append(**names.append)),
        (lambda names: Pop(**names.list), lambda names: Push(**names.list)),
        (lambda names: Subscribe(**names.channel), lambda names: Publish(**names.channel)),
    ],
)
async def test_a_server_that_comes_later_is_found(bench: Any, warnings: Any, source: Any, sink: Any) -> None:
    with running(Redis, started=False) as server:
        names = Names(server)
        async with (
            started(source(names), bench, ready=False) as taking,
            started(sink(names), bench, ready=False) as sending,
        ):
            await until(lambda: len(warnings()) == 2)
            assert taking.unready().startswith(f"not connected to redis://127.0.0.1:{server.port}/0 for ")
            assert "refused" in sending.unready().lower() or "connect call failed" in sending.unready().lower()
            await server.aside(server.start)
            await until_ready(taking)
            await sending.process_batch(numbers(3))
            await bench.until(3)
            settle(bench, count=3)


async def test_a_server_that_says_nothing_fails_the_batch_in_time(bench: Any) -> None:
    with running(Redis) as server:
        names = Names(server)
        async with started(Append(timeout=Duration(0.3), **names.append), bench) as sink:
            server.freeze()
            with fails(Unavailable):
                await sink.process_batch(numbers(2))
            server.thaw()


@pytest.mark.parametrize("kind", [Push, Pop])
async def test_a_wrong_password_is_told_and_not_shown(bench: Any, names: Names, warnings: Any, kind: Any) -> None:
    url = names.where["url"].replace("//", "//default:wr0ng@")
    async with started(kind(url=url, list="x"), bench, ready=False) as module:
        await until(warnings)
        assert "username-password" in warnings()[0]
        assert "wr0ng" not in warnings()[0] + module.unready()


def test_a_database_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not the number of a database"):
        Push(url="redis://host/orders", list="x")


# ------------------------------------------------------------------ killed and restarted


async def test_streams_of_a_server_killed_in_the_middle_of_10_000_events_lose_none() -> None:
    with running(Redis) as server:
        names = Names(server)
        source = ("redis.consume", {**names.consume, "claim_after": "2s"})
        assert len(await survives(source, ("redis.append", names.append), server)) == 10_000


async def test_lists_of_a_server_killed_in_the_middle_of_10_000_events_lose_none() -> None:
    with running(Redis) as server:
        names = Names(server)
        assert len(await survives(("redis.pop", names.list), ("redis.push", names.list), server)) == 10_000


async def test_channels_of_a_server_killed_in_the_middle_of_10_000_events_resume() -> None:
    """What is published while the subscriber is not back yet is lost, as Redis says; both ends go on."""
    with running(Redis) as server:
        names = Names(server)
        arrived = await survives(
            ("redis.subscribe", names.channel), ("redis.publish", names.channel), server, all_arrive=False
        )
        assert len(arrived) > 2_000
