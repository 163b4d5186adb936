"""A Broker with ten sinks against one with one, by deliveries; and how soon a put from a thread is delivered."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from furcula.broker import Broker, IngressContext

__all__ = ["latencies_ms", "one_sink", "ten_sinks"]


class _Counting:
    def __init__(self) -> None:
        self.count = 0

    async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
        self.count += 1


async def _deliver(deliveries: int, sinks: int) -> None:
    plugin = _Counting()
    names = [f"sink{number}" for number in range(sinks)]
    async with Broker({name: {"default": {}} for name in names}, ingress=dict.fromkeys(names, plugin)) as broker:
        for number in range(deliveries // sinks):
            await broker.put("orders", {"number": number})
        await broker.join()
    assert plugin.count == deliveries // sinks * sinks


def one_sink(deliveries: int) -> None:
    asyncio.run(_deliver(deliveries, 1))


def ten_sinks(deliveries: int) -> None:
    asyncio.run(_deliver(deliveries, 10))


def latencies_ms(samples: int) -> list[float]:
    """From `put_nowait` in a thread to the plugin, the loop idle before each, sorted."""
    found: list[float] = []

    class Timing:
        async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            found.append((time.perf_counter() - float(body)) * 1000)
            arrived.set()

    arrived = threading.Event()

    def put(broker: Broker) -> None:
        for _ in range(samples):
            arrived.clear()
            broker.put_nowait("k", time.perf_counter())
            arrived.wait(10)

    async def run() -> None:
        async with Broker({"timing": {"default": {}}}, ingress={"timing": Timing()}) as broker:
            await asyncio.to_thread(put, broker)

    asyncio.run(run())
    return sorted(found)
