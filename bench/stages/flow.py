"""The flow of the bench: a source in the stage `near`, and a module in the stage `far` that takes what it gives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import msgspec

from furcula import Event, Flow, Options
from furcula.options import Cluster

__all__ = ["DATA", "Far", "Work", "flow_of"]

#: What an event carries where only its size matters.
DATA = b"x" * 100


class Work(msgspec.Struct, frozen=True):
    """What is to be done.

    Attributes:
        events: How many the source gives.
        rate: Events a second, evenly spaced, each with the time at which it was given; 0: as fast as they are taken.
        wait_s: So long the far module waits over each event.
        concurrency: How many events the far module has in hand at once.
        order: `none`, `kept` or `key`: by one of `keys` keys.
        partitions: Of the far module, over JetStream.
    """

    events: int
    rate: float = 0.0
    wait_s: float = 0.0
    concurrency: int = 1
    order: Literal["none", "kept", "key"] = "none"
    keys: int = 10_000
    partitions: int = 16


class Far:
    """What the far module has seen.

    Attributes:
        handled: Events.
        latencies_s: From the source to the end of the handling, of the events that carry a time; the latest of them.
    """

    def __init__(self) -> None:
        self.handled = 0
        self.latencies_s: deque[float] = deque(maxlen=50_000)

    def note(self, event: Event[Any]) -> None:
        self.handled += 1
        if type(event.data) is float:
            self.latencies_s.append(time.monotonic() - event.data)


def flow_of(work: Work, far: Far, **options: Any) -> Flow:
    """The flow; what its far module sees goes to `far`.

    Args:
        options: More of the far module.
    """
    flow = Flow("bench", cluster=Cluster(partitions=work.partitions))
    give = _paced if work.rate else _at_once
    source = flow.source(lambda: give(work), "source", stage="near")

    if work.wait_s:

        async def wait(event: Event[Any]) -> None:
            await asyncio.sleep(work.wait_s)
            far.note(event)

        handle: Any = wait
    else:
        handle = far.note
    if work.order == "key":
        options["key"] = "key"
    elif work.order == "none":
        options["order"] = "none"
    if work.concurrency > 1:
        options["concurrency"] = work.concurrency
    source >> flow.module(handle, "sink", options=Options.of(stage="far", **options))
    return flow


def _event(work: Work, number: int, data: Any) -> Any:
    return data if work.order != "key" else Event(data, key=number % work.keys)


def _at_once(work: Work) -> Iterator[Any]:
    for number in range(work.events):
        yield _event(work, number, DATA)


async def _paced(work: Work) -> AsyncIterator[Any]:
    """Evenly spaced, as far as the loop's timers go."""
    began = time.monotonic()
    for number in range(work.events):
        left = began + number / work.rate - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)
        yield _event(work, number, time.monotonic())
