"""One process publishes, another subscribes: by furcula's Bus, by bare pyzmq, and by zmq.asyncio.

Each subscriber runs in a process of its own and says how long it took from its first message to its last.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import zmq
import zmq.asyncio

from furcula.bus import Bus

__all__ = ["bare", "bus", "idle_percent", "latencies_ms", "per_second", "zmq_asyncio"]

MESSAGE = "x" * 100
CHANNEL = "news"
LIMIT_S = 120

_spawn = multiprocessing.get_context("spawn")


def per_second(
    subscriber: Callable[..., None], publisher: Callable[[str, int, Any], None], url: str, count: int
) -> float:
    """Messages a second that `subscriber` got."""
    ready, done = _spawn.Event(), _spawn.Queue()
    process = _spawn.Process(target=subscriber, args=(url, count, ready, done))
    process.start()
    publisher(url, count, ready)
    seconds = done.get(timeout=LIMIT_S)
    process.join(LIMIT_S)
    return count / float(seconds)


# ------------------------------------------------------------------ the Bus


def _bus_subscriber(url: str, count: int, ready: Any, done: Any) -> None:
    async def main() -> None:
        async with Bus(url) as made:
            subscription = await made.subscribe(CHANNEL)
            ready.set()
            left, began = count, 0.0
            async for _ in subscription:
                if left == count:
                    began = time.perf_counter()
                left -= 1
                if not left:
                    break
            done.put(time.perf_counter() - began)
            assert subscription.lost == 0

    asyncio.run(main())


def _bus_publisher(url: str, count: int, ready: Any) -> None:
    async def main() -> None:
        async with Bus(url) as made:
            await asyncio.to_thread(ready.wait, LIMIT_S)
            for _ in range(count):
                await made.publish(CHANNEL, MESSAGE)

    asyncio.run(main())


def bus(url: str, count: int) -> float:
    return per_second(_bus_subscriber, _bus_publisher, url, count)


# ------------------------------------------------------------------ bare pyzmq


def _connected(context: Any, url: str, kind: int) -> Any:
    found = context.socket(kind)
    found.set_hwm(0)  # nothing shall be lost: what is measured is the way
    if kind == zmq.SUB:
        found.subscribe(b"")
        found.connect(url)
    else:
        found.bind(url)
    return found


def _bare_subscriber(url: str, count: int, ready: Any, done: Any) -> None:
    with zmq.Context() as context, _connected(context, url, zmq.SUB) as sub:
        while sub.recv() != b"begin":
            pass
        ready.set()
        while (message := sub.recv()) == b"begin":
            pass
        began = time.perf_counter()
        for _ in range(count - 1):
            message = sub.recv()
        assert len(message) == len(MESSAGE)
        done.put(time.perf_counter() - began)


def _bare_publisher(url: str, count: int, ready: Any) -> None:
    body = MESSAGE.encode()
    with zmq.Context() as context, _connected(context, url, zmq.PUB) as pub:
        while not ready.wait(0.01):
            pub.send(b"begin")
        for _ in range(count):
            pub.send(body)


def bare(url: str, count: int) -> float:
    return per_second(_bare_subscriber, _bare_publisher, url, count)


def _asyncio_subscriber(url: str, count: int, ready: Any, done: Any) -> None:
    async def main() -> None:
        with zmq.asyncio.Context() as context, _connected(context, url, zmq.SUB) as sub:
            while await sub.recv() != b"begin":
                pass
            ready.set()
            while await sub.recv() == b"begin":
                pass
            began = time.perf_counter()
            for _ in range(count - 1):
                await sub.recv()
            done.put(time.perf_counter() - began)

    asyncio.run(main())


def _asyncio_publisher(url: str, count: int, ready: Any) -> None:
    async def main() -> None:
        body = MESSAGE.encode()
        with zmq.asyncio.Context() as context, _connected(context, url, zmq.PUB) as pub:
            while not ready.is_set():
                await pub.send(b"begin")
                await asyncio.sleep(0.01)
            for _ in range(count):
                await pub.send(body)

    asyncio.run(main())


def zmq_asyncio(url: str, count: int) -> float:
    return per_second(_asyncio_subscriber, _asyncio_publisher, url, count)


# ------------------------------------------------------------------ waiting


def _latency_subscriber(url: str, count: int, ready: Any, done: Any) -> None:
    async def main() -> None:
        async with Bus(url) as made:
            subscription = await made.subscribe(CHANNEL)
            ready.set()
            found: list[float] = []
            async for sent in subscription:
                found.append((time.monotonic() - sent) * 1000)
                if len(found) == count:
                    break
            done.put(found)

    asyncio.run(main())


def latencies_ms(url: str, count: int) -> list[float]:
    """From `publish` in one process to the subscriber in another, one message at a time, sorted."""
    ready, done = _spawn.Event(), _spawn.Queue()
    process = _spawn.Process(target=_latency_subscriber, args=(url, count, ready, done))
    process.start()

    async def main() -> None:
        async with Bus(url) as made:
            await asyncio.to_thread(ready.wait, LIMIT_S)
            for _ in range(count):
                await asyncio.sleep(0.002)
                await made.publish(CHANNEL, time.monotonic())
            await made.flush()

    asyncio.run(main())
    found: list[float] = done.get(timeout=LIMIT_S)
    process.join(LIMIT_S)
    return sorted(found)


def _idle_subscriber(url: str, seconds: float, ready: Any, done: Any) -> None:
    async def main() -> None:
        async with Bus(url) as made:
            subscription = await made.subscribe(CHANNEL)
            ready.set()
            await subscription.get(0.5)
            used = time.process_time()
            await subscription.get(seconds)
            done.put((time.process_time() - used) / seconds * 100)

    asyncio.run(main())


def idle_percent(url: str, seconds: float) -> tuple[float, float]:
    """Of one processor, while nothing is published: the holder of the hub, and a subscriber that waits."""
    ready, done = _spawn.Event(), _spawn.Queue()

    async def main() -> float:
        async with Bus(url) as made:
            process = _spawn.Process(target=_idle_subscriber, args=(url, seconds, ready, done))
            process.start()
            subscription = await made.subscribe(CHANNEL)
            await asyncio.to_thread(ready.wait, LIMIT_S)
            await subscription.get(0.5)
            used = time.process_time()
            await subscription.get(seconds)
            found = (time.process_time() - used) / seconds * 100
            await asyncio.to_thread(process.join, LIMIT_S)
            return found

    holder = asyncio.run(main())
    return holder, float(done.get(timeout=LIMIT_S))
