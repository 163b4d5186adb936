"""Requests in the engine: the slot of an event that somebody waits for, and how its events are handled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from furcula.asking import Asker
from furcula.correlation import CURRENT
from furcula.engine.outcome import Dropped
from furcula.engine.outlets import Batch, all_of
from furcula.errors import Unanswered
from furcula.event import Event
from furcula.receipt import Origin, Slot, Tracked

__all__ = ["FutureAsker", "Request", "attended", "one_by_one"]

GONE = Dropped("cancelled")


class Request(Tracked, gc=False, eq=False):
    """The slot of an event that somebody waits for.

    Splits and copies of the event keep this very slot, so an event shows by its receipt whose it is.

    Attributes:
        asker: Who waits; None once all is settled. Events are not seen by the garbage collector, so whoever asked
            must not be kept by one.
        answered: An answer was taken.
    """

    asker: Any = None
    answered: bool = False

    @classmethod
    def of(cls, origin: Origin, asker: Asker, created: float) -> Request:
        """Admit one request."""
        # Under its origin itself: a receipt in between would have this one slot only.
        origin.admitted += 1
        origin.open += 1
        return cls((), 1, asker.settled, created, None, "", None, origin, asker)

    def close(self) -> None:
        assert self.origin is not None
        self.origin.settle(self.fate or "dropped", 1, self.reason)
        settled, self.settled, self.asker = self.settled, None, None
        if settled is not None:
            settled(self)

    def answer(self, reply: object) -> bool | None:
        asker: Asker | None = self.asker
        if asker is None or asker.over or asker.gone or (self.answered and not asker.many):
            return False
        if asker.take(reply):  # type: ignore[arg-type]
            self.answered = True
        return True


class FutureAsker(Asker):
    """Waits by a future: `Director.ask`.

    Args:
        future: Gets the answer, a list of all of them (`many`), or Unanswered.
    """

    __slots__ = ("_future", "_replies", "many")

    def __init__(self, future: asyncio.Future[Any], many: bool):
        super().__init__()
        self.many = many
        self._future = future
        self._replies: list[Event[Any]] = []

    def take(self, reply: Event[Any]) -> bool:
        if self.many:
            self._replies.append(reply)
        elif not self._future.done():
            self._future.set_result(reply)
        return True

    def settled(self, slot: Slot) -> None:
        if self._future.done():
            return
        if self.many and (self._replies or slot.fate != "failed"):
            self._future.set_result(self._replies)
        else:
            self._future.set_exception(Unanswered(slot.fate or "dropped", slot.reason, slot.failure))


def attended(handle: Callable[[Event[Any]], Awaitable[Any]]) -> Callable[[Event[Any]], Awaitable[Any]]:
    """`handle` for a module that may wait: logs know the request, and it ends when whoever asked has left."""

    async def attend(event: Event[Any]) -> Any:
        request = event._receipt
        asker: Asker | None = request.asker if type(request) is Request else None
        if asker is None:
            return await handle(event)
        if asker.gone:
            return GONE
        task = asyncio.current_task()
        assert task is not None
        token = CURRENT.set(asker)
        asker.enter(task)
        cancelling = task.cancelling()
        try:
            answer = await handle(event)
        except asyncio.CancelledError:
            if asker.gone and task.cancelling() > cancelling:
                task.uncancel()
                return GONE
            raise
        finally:
            asker.exit(task)
            CURRENT.reset(token)
        if asker.gone and task.cancelling() > cancelling:  # it would not be cancelled, and has come to its end
            task.uncancel()
        return answer

    return attend


def one_by_one(
    target: Callable[[Batch], Awaitable[None] | None], drop: Callable[[Batch, str], object]
) -> Callable[[Batch], Awaitable[None] | None]:
    """`target` behind a queue: an event of a request is handled by itself, so that logs know the request.

    Args:
        drop: Takes events of requests whose asker has left.
    """

    def take(batch: Batch) -> Awaitable[None] | None:
        if not any(type(event._receipt) is Request for event in batch):
            return target(batch)
        waits: list[Awaitable[None]] = []
        for event in batch:
            request = event._receipt
            asker: Asker | None = request.asker if type(request) is Request else None
            if asker is None:
                wait = target([event])
            elif asker.gone:
                drop([event], "cancelled")
                continue
            else:
                token = CURRENT.set(asker)
                try:
                    wait = target([event])
                finally:
                    CURRENT.reset(token)
            if wait is not None:
                waits.append(wait)
        return all_of(waits)

    return take
