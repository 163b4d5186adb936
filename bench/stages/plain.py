"""What one writes with nats-py alone: a message for each event, published pipelined, pulled by 500, each acked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext

from bench.stages.flow import DATA

__all__ = ["STREAM", "connected", "publish", "set_up", "take"]

STREAM = "plain"
#: Messages in one pull.
PULL = 500
_LIMIT_S = 120


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[JetStreamContext]:
    client = await nats.connect(url)
    try:
        yield client.jetstream(publish_async_max_pending=4000)
    finally:
        await client.close()


async def set_up(js: JetStreamContext) -> None:
    """A stream that holds each message until it is acknowledged, as furcula's do."""
    await js.add_stream(name=STREAM, subjects=[STREAM], retention="workqueue")


async def publish(js: JetStreamContext, count: int) -> None:
    """Returns when all are stored."""
    for _ in range(count):
        await js.publish_async(STREAM, DATA, wait_stall=_LIMIT_S)
    await js.publish_async_completed()


async def take(js: JetStreamContext) -> None:
    subscription = await js.pull_subscribe(STREAM, durable="worker")
    while True:
        try:
            messages = await subscription.fetch(PULL, timeout=1)
        except NatsTimeoutError:
            continue
        for message in messages:
            await message.ack()
