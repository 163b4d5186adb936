"""Requests in the engine: the slot of an event that somebody waits for, and how its events are handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from furcula.asking import Asker
from furcula.correlation import CURRENT
from furcula.engine.caught import CAUGHT
from furcula.engine.outcome import Dropped, Failed, Many, Outcomes, who_asked
from furcula.engine.outlets import Batch, Consumer, Link, Outlet, all_of
from furcula.engine.steps import BatchStep
from furcula.errors import Unanswered
from furcula.event import Event
from furcula.receipt import Origin, Slot, Tracked

__all__ = ["FutureAsker", "Request", "RequestOutcomes", "attended", "one_by_one", "still_waited_for"]

_log = logging.getLogger("furcula.flow")

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
            try:
                settled(self)
            except Exception:  # the slot is settled all the same, and so are the others of its batch
                _log.exception("whoever asked raised when told that the request is settled")

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
        left = False
        try:
            try:
                answer = await handle(event)
            finally:
                CURRENT.reset(token)
                # Whatever the module made of it, the cancellation is spent; one of the flow's own is not.
                left = asker.exit(task)
                if left:
                    task.uncancel()
        except CAUGHT:
            if not left or task.cancelling() > cancelling:
                raise
            return GONE
        if left and (type(answer) is Failed or (type(answer) is Many and answer.failed is not None)):
            return GONE
        return answer  # it may be one that would not be cancelled, and has come to its end

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
                wait = _under(asker, target, [event])
            if wait is not None:
                waits.append(wait)
        return all_of(waits)

    return take


def still_waited_for(batch: Batch, drop: Callable[[Batch, str], object]) -> Batch:
    """The batch without the events of requests whose asker has left; `drop` takes those."""
    gone: Batch = []
    stay: Batch = []
    for event in batch:
        request = event._receipt
        left = type(request) is Request and request.asker is not None and request.asker.gone
        (gone if left else stay).append(event)
    if gone:
        drop(gone, "cancelled")
    return stay


class RequestOutcomes(Outcomes):
    """The way out of a module that answers several requests at once, or long after their events came.

    What follows, and each line logged by it, is done under the name of the request whose event it is.
    """

    #: The next module takes whole batches: those are left together, and are under nobody's name.
    _together = False

    def connect(
        self, outlets: Mapping[str, Outlet], exceptions: Mapping[str, Outlet], dead_letter: Consumer | None
    ) -> None:
        super().connect(outlets, exceptions, dead_letter)
        self._together = type(self.main) is Link and type(self.main.consumer) is BatchStep

    def sort_out(self, events: Batch, results: Sequence[Any], originals: Any = None) -> Awaitable[None] | None:
        askers = [who_asked(event._receipt) for event in events]
        if len(askers) == 1 or all(asker is askers[0] for asker in askers):
            return _under(askers[0], super().sort_out, events, results, originals)
        if self._together:
            return _under(None, super().sort_out, events, results, originals)
        waits: list[Awaitable[None]] = []
        first = 0
        for _, same in groupby(askers, id):
            last = first + len(list(same))
            kept = None if originals is None else originals[first:last]
            wait = _under(askers[first], super().sort_out, events[first:last], results[first:last], kept)
            if wait is not None:
                waits.append(wait)
            first = last
        return all_of(waits)

    def fail(self, failed: Sequence[tuple[Event[Any], Failed]]) -> Awaitable[None] | None:
        waits: list[Awaitable[None]] = []
        for one in failed:
            wait = _under(who_asked(one[0]._receipt), super().fail, [one])
            if wait is not None:
                waits.append(wait)
        return all_of(waits)


def _under(asker: Any, call: Callable[..., Awaitable[None] | None], *arguments: Any) -> Awaitable[None] | None:
    """Call it in the name of `asker`, or of nobody."""
    if CURRENT.get() is asker:
        return call(*arguments)
    token = CURRENT.set(asker)
    try:
        return call(*arguments)
    finally:
        CURRENT.reset(token)
