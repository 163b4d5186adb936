"""Sixteen at once, in order, where one coroutine in a hundred waits a millisecond.

By hand that is `asyncio.gather` over chunks of sixteen, and each chunk waits for its slowest.
"""

from __future__ import annotations

import asyncio

from furcula import Event, Flow

__all__ = ["gather_in_chunks", "ordered_concurrency"]

AT_ONCE = 16


async def look_up(event: Event[int]) -> Event[int]:
    if event.data % 100 == 0:
        await asyncio.sleep(0.001)
    event.data += 1
    return event


def ordered_concurrency(events: int) -> None:
    flow, seen = Flow("ordered"), []

    def collect(event: Event[int]) -> None:
        seen.append(event.data)

    flow.source(range(events), "source") >> flow.module(look_up, concurrency=AT_ONCE) >> flow.module(collect)
    flow.run()
    assert seen == list(range(1, events + 1)), "the order was not kept"


def gather_in_chunks(events: int) -> None:
    asyncio.run(_gather(events))


async def _gather(events: int) -> None:
    seen = []
    for begin in range(0, events, AT_ONCE):
        chunk = [Event(number) for number in range(begin, min(begin + AT_ONCE, events))]
        for event in await asyncio.gather(*map(look_up, chunk)):
            seen.append(event.data)
