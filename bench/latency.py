"""How long one event takes through five modules that have nothing else to do."""

from __future__ import annotations

import asyncio
import time

from furcula import Director, Event, Flow

__all__ = ["latencies_us"]


def step(event: Event[float]) -> Event[float]:
    return event


def latencies_us(samples: int) -> list[float]:
    """Microseconds from `Director.put` to the last module's function, sorted."""
    return asyncio.run(_measure(samples))


async def _measure(samples: int) -> list[float]:
    flow, found = Flow("latency"), []

    def arrive(event: Event[float]) -> None:
        found.append((time.perf_counter() - event.data) * 1e6)

    way = flow.use("inlet")
    for number in range(4):
        way = way >> flow.module(step, f"step{number}")
    way >> flow.module(arrive)
    async with Director(flow) as director:
        for _ in range(samples):
            await asyncio.sleep(0.001)
            await director.put("inlet", time.perf_counter(), settled=True)
    return sorted(found)
