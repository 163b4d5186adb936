"""The library's sinks as providers of a Broker, at real servers: the routing key is where an event goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.services import Nats, Rabbit, Redis

from furcula import Director, Flow
from furcula.broker import Broker
from furcula.testing import assert_settled

from .conftest import PASSWORD


@asynccontextmanager
async def reading(kind: str, kept: list[Any], **arguments: Any) -> AsyncIterator[Director]:
    flow = Flow("read")
    flow.use(kind, "source", **arguments) >> flow.module(lambda event: kept.append(event.data), "keep")
    async with Director(flow) as director:
        async with asyncio.timeout(30):
            while director.unready():
                await asyncio.sleep(0)
        yield director


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


async def test_one_event_goes_to_three_servers(nats_server: Nats, redis_server: Redis, rabbit: Rabbit) -> None:
    who = {"user": "tester", "password": PASSWORD}
    nats: list[Any] = []
    redis: list[Any] = []
    amqp: list[Any] = []
    queue = {"queue": "through-a-broker", "declare": {}}
    async with (
        reading("nats.subscribe", nats, url=nats_server.url, subject="orders.>", **who),
        reading("redis.pop", redis, url=redis_server.url, list="orders.eu", consumer="c", password=PASSWORD),
        reading("amqp.consume", amqp, url=rabbit.url, **queue, **who),
    ):
        profiles = {
            "nats": {"default": {"url": nats_server.url, "user": "tester", "password": "pass/word"}},
            "redis_list": {"default": {"url": redis_server.url, "password": "pass/word"}},
            "rabbit": {
                "default": {
                    "url": rabbit.url, "user": "tester", "password": "pass/word", "routing_key": "through-a-broker"
                }
            },
        }  # fmt: skip
        broker = Broker(profiles, aliases={"rabbit": "amqp"})
        assert broker.disabled == {}
        async with broker:
            for number in range(100):
                await broker.put("orders.eu", {"number": number})
            await broker.join()
            statistics = await broker.stop()
        assert {sink.delivered for sink in statistics.sinks.values()} == {100}
        assert_settled(statistics.flow)
        await until(lambda: len(nats) == len(redis) == len(amqp) == 100)
    assert nats == redis == amqp == [{"number": number} for number in range(100)]
