"""What waiting events cost, and whether memory grows with what has passed. Each in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

from bench import work
from furcula import Director, Event, Flow

__all__ = ["bytes_per_waiting_event", "growth_of_memory"]


def bytes_per_waiting_event(events: int) -> float:
    """Bytes of resident memory that each of `events` small events takes while it waits in a queue."""
    return _in_own_process("waiting", events)


def growth_of_memory(events: int) -> float:
    """By what part of itself resident memory has grown when `events` have passed, since a twentieth of them had."""
    return _in_own_process("growth", events)


def _in_own_process(question: str, events: int) -> float:
    command = [sys.executable, "-m", "bench.memory", question, str(events)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _resident_bytes() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


async def _waiting(events: int) -> float:
    """Let a paused module's queue fill up, and see what that took."""
    flow = Flow("waiting")

    def small() -> Iterator[dict[str, int]]:
        for number in range(events):
            yield {"n": number}

    def take(event: Event[dict[str, int]]) -> None:
        pass

    flow.source(small) >> flow.module(take, queue=events)
    async with Director(flow) as director:
        director.pause("take")
        before = _resident_bytes()
        while director.statistics().modules["take"].held < events:  # noqa: ASYNC110 -- nothing tells when
            await asyncio.sleep(0.01)
        return (_resident_bytes() - before) / events


def _growth(events: int) -> float:
    early = 0
    flow = Flow("growth")

    def numbers() -> Iterator[int]:
        nonlocal early
        for number in range(events):
            if number == events // 20:
                early = _resident_bytes()
            yield number

    flow.source(numbers) >> flow.module(work.add) >> flow.module(work.double) >> flow.module(work.subtract)
    flow.run()
    return _resident_bytes() / early - 1


if __name__ == "__main__":
    asked, count = sys.argv[1], int(sys.argv[2])
    print(asyncio.run(_waiting(count)) if asked == "waiting" else _growth(count))
