"""Measures the inputs of the model on this machine, in runs that are none of those it is checked against."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time

from bench.model.bounds import Costs
from bench.stages.flow import Work
from bench.stages.running import Outcome, run
from furcula.engine.loop import run_in_new_loop

__all__ = ["measured", "processors", "timer_s"]

#: Events a second at which each goes in a message of its own.
SLOW = 300.0
#: So many partitions make small messages of what is under way.
DIVIDED = 128


def measured(wait_s: float, concurrency: int, events: int = 200_000, seconds: float = 3.0) -> Costs:
    """Three runs through a cut, with full messages, small ones, and at rest; two without one, for the handling."""
    full = run("jetstream", Work(events))
    small = run("jetstream", Work(events // 4, order="key", partitions=DIVIDED))
    slow = run("jetstream", Work(max(50, int(seconds * SLOW)), rate=SLOW))
    plain = run("queue", Work(events))
    waiting = run("queue", Work(int(seconds * concurrency / max(wait_s, 1e-4)), wait_s=wait_s, concurrency=concurrency))
    near, server, far = (
        _divided(getattr(full, name), full, getattr(small, name), small)
        for name in ("near_cpu_s", "server_cpu_s", "far_cpu_s")
    )
    handling = max(0.0, waiting.near_cpu_s / waiting.events - plain.near_cpu_s / events)
    way_s = slow.quantile_s(0.5) - sum(near) - sum(server) - sum(far)
    return Costs(
        near_event=near[0],
        near_message=near[1],
        server_event=server[0],
        server_message=server[1],
        far_event=far[0] + handling,
        far_message=far[1],
        hop_s=max(0.0, way_s / 2),
        timer_s=timer_s(wait_s, concurrency, min(1.0, seconds)),
    )


def _divided(full_s: float, full: Outcome, small_s: float, small: Outcome) -> tuple[float, float]:
    """What an event and a message cost: two runs with messages of different sizes are two equations."""
    of_full, of_small = full.messages / full.events, small.messages / small.events
    assert of_small > of_full, "messages were no smaller where there were more partitions"
    message = max(0.0, (small_s / small.events - full_s / full.events) / (of_small - of_full))
    return max(0.0, full_s / full.events - message * of_full), message


_SPIN = """
import sys, time
until = time.monotonic() + float(sys.argv[1])
began = time.monotonic()
while time.monotonic() < until:
    pass
print(time.process_time() / (time.monotonic() - began))
"""


def processors(seconds: float = 0.5) -> float:
    """How many processors are there for us now, beside all that others do: what as many busy programs get of them."""
    count = os.cpu_count() or 1
    busy = [
        subprocess.Popen([sys.executable, "-c", _SPIN, str(seconds)], stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    return min(float(count), sum(float(one.communicate(timeout=60)[0]) for one in busy))


def timer_s(wait_s: float, concurrency: int, seconds: float = 1.0) -> float:
    """How much longer a wait takes than it should, where so many wait at once."""

    async def waits() -> list[float]:
        late = []
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            await asyncio.sleep(wait_s)
            late.append(time.monotonic() - began - wait_s)
        return late

    async def together() -> list[float]:
        return [one for found in await asyncio.gather(*(waits() for _ in range(concurrency))) for one in found]

    return max(0.0, statistics.fmean(run_in_new_loop(together()))) if wait_s else 0.0
