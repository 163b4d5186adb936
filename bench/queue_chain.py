"""The work in a chain of `asyncio.Queue`s: a task for each function, as the usual advice goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bench import work
from furcula import Event

Inbox = asyncio.Queue[Event[int] | None]


def queue_chain(events: int) -> None:
    asyncio.run(_chain(events))


async def _chain(events: int) -> None:
    inboxes: list[Inbox] = [asyncio.Queue(1000) for _ in range(3)]
    functions = (work.add, work.double, work.subtract)
    async with asyncio.TaskGroup() as tasks:
        for function, inbox, outbox in zip(functions, inboxes, [*inboxes[1:], None], strict=True):
            tasks.create_task(_handle(function, inbox, outbox))
        for number in range(events):
            await inboxes[0].put(Event(number))
        await inboxes[0].put(None)


async def _handle(function: Callable[[Event[int]], Event[int]], inbox: Inbox, outbox: Inbox | None) -> None:
    while (event := await inbox.get()) is not None:
        event = function(event)
        if outbox is not None:
            await outbox.put(event)
    if outbox is not None:
        await outbox.put(None)
