"""Work queues, in batches of events: over 0mq against `multiprocessing.Queue`, over JetStream against nats-py."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from typing import Any

import msgspec
import nats

from furcula import Event
from furcula.codecs import encode_events
from furcula.transports import transport_for

__all__ = ["jetstream", "multiprocessing_queue", "nats_py", "work_queue"]

BATCH = 256
#: Batches that are on their way to a queue at a time, and takes that wait for one.
UNDER_WAY = 8
LIMIT_S = 120
DATA = {"sku": "x" * 60, "count": 3}

_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode
_spawn = multiprocessing.get_context("spawn")


def _taker(url: str, count: int, ready: Any, done: Any) -> None:
    async def main() -> None:
        transport = transport_for(url)
        await transport.open()
        ready.set()
        left, began = count, 0.0

        async def take() -> None:
            nonlocal left, began
            while left > 0:
                message = await transport.take("work")
                began = began or time.perf_counter()
                left -= len(_decode(message.body))
                await message.ack()

        takers = [asyncio.ensure_future(take()) for _ in range(UNDER_WAY)]
        await asyncio.wait(takers, return_when=asyncio.FIRST_COMPLETED)
        done.put(time.perf_counter() - began)
        for taker in takers:
            taker.cancel()
        await asyncio.wait(takers)
        await transport.close()

    asyncio.run(main())


def work_queue(url: str, count: int) -> float:
    """Dicts a second through a work queue of a transport, by batches of 256, encoded and decoded as MessagePack."""
    ready, done = _spawn.Event(), _spawn.Queue()

    async def main() -> float:
        transport = transport_for(url)
        await transport.open()
        process = _spawn.Process(target=_taker, args=(url, count, ready, done))
        process.start()
        await asyncio.to_thread(ready.wait, LIMIT_S)
        batches = iter(range(0, count, BATCH))

        async def put() -> None:
            for begin in batches:
                batch = [DATA] * min(BATCH, count - begin)
                await transport.put("work", _encode(batch))

        await asyncio.gather(*(put() for _ in range(UNDER_WAY)))
        seconds = await asyncio.to_thread(done.get, True, LIMIT_S)
        await asyncio.to_thread(process.join, LIMIT_S)
        await transport.close()
        return float(seconds)

    return count / asyncio.run(main())


def _getter(queue: Any, count: int, done: Any) -> None:
    queue.get()
    began = time.perf_counter()
    for _ in range(count - 1):
        queue.get()
    done.put(time.perf_counter() - began)


def multiprocessing_queue(count: int) -> float:
    """Dicts a second through a `multiprocessing.Queue`, one by one."""
    queue, done = _spawn.Queue(), _spawn.Queue()
    process = _spawn.Process(target=_getter, args=(queue, count, done))
    process.start()
    for _ in range(count):
        queue.put(DATA)
    seconds = done.get(timeout=LIMIT_S)
    process.join(LIMIT_S)
    return count / float(seconds)


def jetstream(url: str, count: int) -> float:
    """Events a second stored by JetStream through the transport, by batches of 256."""

    async def main() -> float:
        transport = transport_for(f"{url}?prefix=batches&size=1000000")
        await transport.open()
        await transport.put("work", b"")
        began = time.perf_counter()
        batches = iter(range(0, count, BATCH))

        async def put() -> None:
            for begin in batches:
                events = [Event(DATA) for _ in range(min(BATCH, count - begin))]
                await transport.put("work", encode_events(events))

        await asyncio.gather(*(put() for _ in range(UNDER_WAY)))
        seconds = time.perf_counter() - began
        await transport.close()
        return seconds

    return count / asyncio.run(main())


def nats_py(url: str, count: int) -> float:
    """Events a second stored by nats-py, one message each, as many under way as it allows."""

    async def main() -> float:
        client = await nats.connect(url)
        js = client.jetstream(publish_async_max_pending=4000)
        await js.add_stream(name="single", subjects=["single"])
        began = time.perf_counter()
        for _ in range(count):
            body = encode_events([Event(DATA)])
            await js.publish_async("single", body, wait_stall=LIMIT_S)
        await js.publish_async_completed()
        seconds = time.perf_counter() - began
        await client.close()
        return seconds

    return count / asyncio.run(main())
