"""From an outbox to its consumers: one link, several with copies, or nobody."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from itertools import chain
from typing import Any, Protocol

from furcula.event import ATOMS, Event, copy_data, shallow
from furcula.receipt import Fan, Fate, Origin, Receipt, settle_all

__all__ = ["BestEffort", "Consumer", "Fanout", "Link", "Outlet", "Waits", "all_of", "settle"]

Batch = list[Event[Any]]


class Consumer(Protocol):
    """What takes batches.

    `push` takes the whole batch in every case; it raises nothing. None: give me more when you like. An awaitable:
    wait for it before you do; it may be awaited once, later, or (if the waiter is cancelled) not at all.
    """

    def push(self, batch: Batch) -> Awaitable[None] | None: ...


class Waits:
    """Several awaitables as one, awaited in turn."""

    __slots__ = ("_waits",)

    def __init__(self, waits: Sequence[Awaitable[None]]):
        self._waits = waits

    def __await__(self) -> Generator[Any, None, None]:
        for wait in self._waits:
            yield from wait.__await__()


def all_of(waits: Sequence[Awaitable[None]]) -> Awaitable[None] | None:
    if not waits:
        return None
    return waits[0] if len(waits) == 1 else Waits(waits)


def settle(events: Batch, fate: Fate, reason: str = "", failure: object = None) -> None:
    """Report one fate for the shares of all these events."""
    receipts = [event._receipt for event in events]
    first = receipts[0]
    if type(first) is Fan and receipts.count(first) == len(receipts):
        if fate == "delivered":
            first.delivered(len(receipts))
        else:
            first.settle(fate, [event._id for event in events], reason, failure)
        return
    if Fan in {*map(type, receipts)}:
        receipts = [event.carrier() for event in events]
    settle_all(receipts, fate, reason, failure)  # type: ignore[arg-type]


class Link:
    """One route to one consumer. Counts what it sends."""

    __slots__ = ("consumer", "name", "sent")

    def __init__(self, name: str, consumer: Consumer):
        self.name = name
        self.consumer = consumer
        self.sent = 0

    def push(self, batch: Batch) -> Awaitable[None] | None:
        self.sent += len(batch)
        return self.consumer.push(batch)


class BestEffort:
    """A branch that never holds up its parent: copies under an origin of its own, into a queue that drops."""

    __slots__ = ("link", "origin")

    def __init__(self, link: Link, origin: Origin):
        self.link = link
        self.origin = origin

    def push(self, batch: Batch) -> None:
        """Push copies of `batch`."""
        copies: Batch = []
        for event in batch:
            try:
                copies.append(event.duplicate(None))
            except Exception:  # what cannot be copied is not sent along: an event of this branch that failed
                Receipt(self.origin, 1).settle("failed", 1, "cannot be copied")
        if copies:
            receipt = Receipt(self.origin, len(copies))
            for copy in copies:
                copy._receipt = receipt
            self.link.push(copies)


class Fanout:
    """Several consumers: each required one has a share of the event's slot, and all but the last get a copy.

    All copies are made before the first push, so that what one consumer does to its event no other can see; all
    branches are pushed before any is waited for, so that two branches which meet again cannot block each other.
    """

    __slots__ = ("_best_effort", "_cannot_copy", "_required")

    def __init__(
        self,
        required: Sequence[Link],
        best_effort: Sequence[BestEffort],
        cannot_copy: Callable[[Event[Any], BaseException], None],
    ):
        self._required = tuple(required)
        self._best_effort = tuple(best_effort)
        self._cannot_copy = cannot_copy

    def push(self, batch: Batch) -> Awaitable[None] | None:
        required = self._required
        for branch in self._best_effort:
            branch.push(batch)
        if not required:
            settle(batch, "delivered")
            return None
        if len(required) == 1:
            return required[0].push(batch)
        branches = self._copies(batch, len(required) - 1)
        waits: list[Awaitable[None]] = []
        for link, events in zip(required, branches, strict=True):
            if events:
                wait = link.push(events)
                if wait is not None:
                    waits.append(wait)
        return all_of(waits)

    def _copies(self, batch: Batch, extra: int) -> list[Batch]:
        """The batch, and `extra` times a copy of it; the batch itself stands last."""
        for event in batch:
            if event._id is None:
                event.numbered()
        sources = [self._copied_data(batch) for _ in range(extra)]
        if any(source is None for source in sources):
            return self._one_by_one(batch, extra)
        self._shared_receipts(batch, extra + 1)
        return [*(self._twins(batch, source) for source in sources if source is not None), batch]

    @staticmethod
    def _twins(batch: Batch, datas: list[Any]) -> Batch:
        twins = list(map(shallow, batch))
        for twin, data in zip(twins, datas, strict=True):
            twin.data = data
            headers = twin.headers
            twin.headers = copy_data(headers) if headers else {}
            if twin._scratch is not None:
                twin._scratch = dict(twin._scratch)
        return twins

    @staticmethod
    def _shared_receipts(batch: Batch, shares: int) -> None:
        """Give each event a receipt with so many shares, for itself and its copies."""
        receipts = [event._receipt for event in batch]
        first = receipts[0]
        alone = type(first) is Receipt and receipts.count(first) == len(batch)
        if alone and len({event._id for event in batch}) == len(batch):
            fan = Fan(first, len(batch), shares)  # type: ignore[arg-type]
            for event in batch:
                event._receipt = fan
            return
        for event in batch:
            carrier = event.carrier()
            if carrier is not None:
                event._receipt = carrier.share(shares)

    def _one_by_one(self, batch: Batch, extra: int) -> list[Batch]:
        """The same where some event cannot be copied, or not so simply."""
        branches: list[Batch] = [[] for _ in range(extra + 1)]
        originals, others = branches[-1], branches[:-1]
        for event in batch:
            try:
                copies = [event.duplicate(None) for _ in others]
            except Exception as error:
                self._cannot_copy(event, error)
                continue
            carrier = event.carrier()
            if carrier is not None:
                event._receipt = carrier.share(extra + 1)
            for branch, copy in zip(others, copies, strict=True):
                copy._receipt = event._receipt
                branch.append(copy)
            originals.append(event)
        return branches

    @staticmethod
    def _copied_data(batch: Batch) -> list[Any] | None:
        """Copies of the data of a whole batch, or None where that needs a look at each.

        Most batches are dicts of plain values, all alike; that is asked of the batch at once, for a third of the time.
        """
        if any(event.headers for event in batch) and not ATOMS.issuperset(
            {*map(type, chain.from_iterable([event.headers.values() for event in batch]))}
        ):
            return None
        datas = [event.data for event in batch]
        kinds = {*map(type, datas)}
        if kinds <= ATOMS:
            return datas
        if kinds != _ONLY_DICTS or not ATOMS.issuperset({*map(type, chain.from_iterable(map(dict.values, datas)))}):
            return None
        return list(map(dict.copy, datas))


_ONLY_DICTS = frozenset((dict,))

#: Where an outbox leads.
Outlet = Link | Fanout
