"""Receipts: the duty to acknowledge, settled exactly once for every event admitted.

Admission opens one *slot* for each event, with one *share*. Each share meets one fate. A slot settles once, when no
share of it is open: failed if any share failed, else delivered if any was, else dropped.

Two shapes keep that cheap. A `Receipt` serves a whole admitted batch: as long as an event stays one event its slot has
exactly one share, so a plain counter is enough, and settling 256 events is one subtraction. Once an event becomes
several (a split, a fan-out) or several become one (a pack, a join), the shares concerned move to a `Slot` of their own,
which remembers the worst fate and, when its last share is settled, passes that on to what it was made from. A `Fan` is
the short cut for the most common case of that: a whole batch that goes to several consumers.

Both are used from the event loop's thread only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec

__all__ = ["Carrier", "Fan", "FanPart", "Fate", "Origin", "Receipt", "Slot", "Tracked", "origin_of", "settle_all"]

Fate = Literal["delivered", "dropped", "failed"]

_log = logging.getLogger("furcula")


class Origin:
    """What begins lineages, and the counters of those it began.

    `admitted == delivered + dropped + failed + open` holds at every moment; each is counted by itself.
    """

    __slots__ = ("admitted", "delivered", "dropped", "failed", "late", "lost", "name", "open", "reasons")

    def __init__(self, name: str):
        self.name = name
        self.admitted = 0
        self.delivered = 0
        self.dropped = 0
        self.failed = 0
        self.open = 0
        #: Reports about slots that were settled already. Not part of the sum.
        self.late = 0
        #: Slots whose receipt was collected while open (also counted in `failed`).
        self.lost = 0
        #: `("dropped", "filtered") -> 12`
        self.reasons: Counter[tuple[str, str]] = Counter()

    def admit(self, count: int) -> None:
        self.admitted += count
        self.open += count

    def settle(self, fate: Fate, count: int, reason: str) -> None:
        self.open -= count
        if fate == "delivered":
            self.delivered += count
            return
        if fate == "dropped":
            self.dropped += count
        else:
            self.failed += count
            if reason == "lost":
                self.lost += count
        self.reasons[fate, reason] += count


class Receipt:
    """The receipt of an admitted batch: `open` slots, each with its one share.

    Args:
        origin: Under whose name the events are admitted.
        count: How many events are admitted now.
    """

    __slots__ = ("created", "open", "origin")

    def __init__(self, origin: Origin, count: int, created: float | None = None):
        self.origin = origin
        self.open = count
        #: Unix time of admission, in seconds.
        self.created = time.time() if created is None else created
        origin.admit(count)

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        """Settle `count` shares of this receipt."""
        self.open -= count
        if self.open < 0:
            late = -self.open
            self.open = 0
            self.origin.late += late
            count -= late
            _log.error("furcula: %d report(s) on events of %r that were settled already", late, self.origin.name)
        self.origin.settle(fate, count, reason)

    def share(self, count: int) -> Slot:
        """Take one share out; return the slot that stands for it, with `count` shares."""
        return Slot((self,), count, None, self.created)

    def answer(self, reply: object) -> bool | None:
        """Offer an answer to whoever asked. Nobody did: the events of a batch are not requests."""
        return None

    def __del__(self) -> None:
        if self.open:
            lost, self.open = self.open, 0
            self.origin.settle("failed", lost, "lost")
            _log.error("furcula: %d event(s) of %r were lost; this is a defect of furcula", lost, self.origin.name)


class Slot(msgspec.Struct, gc=False, eq=False):
    """One slot with any number of shares: of a split, a copy, or of several events joined in one.

    Args:
        parents: What one share each was taken from; they are told the fate when the last share is settled.
        shares: How many shares are open now.
        settled: Called once with this slot when it has settled, on the loop's thread.

    Attributes:
        fate: The worst fate reported so far; final once `shares` is 0. None: no report yet.
        reason: Why, for `dropped` and `failed`.
        failure: The failure behind `fate == "failed"`, where the reporter had one.
    """

    # A Struct because a fan-out makes one for each event: 90 ns, where a class with an __init__ takes 340.
    parents: tuple[Carrier, ...]
    shares: int = 1
    settled: Callable[[Slot], None] | None = None
    created: float = 0.0
    fate: Fate | None = None
    reason: str = ""
    failure: object = None
    #: Where late reports are counted once the parents have been told.
    origin: Origin | None = None

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        if count > self.shares:
            self.late(count - self.shares)
            count = self.shares
            if not count:
                return
        if self.fate != fate and (self.fate is None or _RANK[fate] > _RANK[self.fate]):
            self.fate = fate
            self.reason = reason
            self.failure = failure
        self.shares -= count
        if not self.shares:
            self.close()

    def late(self, count: int) -> None:
        """Note reports about what is settled already. They change nothing."""
        _log.error("furcula: %d report(s) on an event that was settled already", count)
        if self.origin is not None:
            self.origin.late += count

    def close(self) -> None:
        """The last share is settled: tell the parents, and whoever waits."""
        fate = self.fate or "dropped"
        parents, self.parents = self.parents, ()
        self.origin = next((parent.origin for parent in parents if type(parent) is Receipt), None)
        for parent in parents:
            parent.settle(fate, 1, self.reason, self.failure)
        settled, self.settled = self.settled, None
        if settled is not None:
            settled(self)

    def share(self, count: int) -> Slot:
        """One share of this slot becomes `count` shares. Returns the slot itself."""
        self.shares += count - 1
        return self

    def answer(self, reply: object) -> bool | None:
        """Offer an answer to whoever asked. True: it was taken. False: it comes too late. None: nobody asked."""
        answers = [parent.answer(reply) for parent in self.parents]
        return True if True in answers else (False if False in answers else None)


class Fan:
    """The receipt of a whole batch that went to `shares` consumers each: one object, where slots would be hundreds.

    Used where nobody waits for single events of the batch: its slots settle together, when the last share has. As long
    as everything is delivered only a number goes down; which event did not fare so is noted by the event's id.
    """

    __slots__ = ("_dropped", "_failed", "_size", "created", "open", "parent", "shares")

    def __init__(self, parent: Receipt, size: int, shares: int):
        self.parent = parent
        self._size = size
        self.shares = shares
        self.open = size * shares
        self.created = parent.created
        self._failed: dict[object, tuple[str, object]] = {}
        self._dropped: dict[object, list[str]] = {}

    def settle(self, fate: Fate, ids: Sequence[object], reason: str = "", failure: object = None) -> None:
        """Report the fate of one share of each of the events with these ids."""
        if fate == "failed":
            for number in ids:
                self._failed.setdefault(number, (reason, failure))
        elif fate == "dropped":
            for number in ids:
                self._dropped.setdefault(number, []).append(reason)
        self.open -= len(ids)
        if self.open <= 0:
            self._close()

    def delivered(self, count: int) -> None:
        """Report `count` shares as delivered."""
        self.open -= count
        if self.open <= 0:
            self._close()

    def _close(self) -> None:
        if self.open < 0:
            _log.error("furcula: %d report(s) on events that were settled already", -self.open)
            self.open = 0
            return
        for reason, failure in self._failed.values():
            self.parent.settle("failed", 1, reason, failure)
        dropped = 0
        for number, reasons in self._dropped.items():
            if len(reasons) == self.shares and number not in self._failed:
                dropped += 1
                self.parent.settle("dropped", 1, reasons[0])
        delivered = self._size - len(self._failed) - dropped
        if delivered:
            self.parent.settle("delivered", delivered)

    def part(self, number: object) -> FanPart:
        """One share of the event with this id, as a carrier of its own."""
        return FanPart(self, number, self.created)


class FanPart(msgspec.Struct, gc=False, eq=False, frozen=True):
    """One share of one event of a `Fan`: for an event that is split, joined or copied again after its fan-out."""

    fan: Fan
    number: object
    created: float

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        self.fan.settle(fate, (self.number,) * count, reason, failure)

    def share(self, count: int) -> Slot:
        return Slot((self,), count, None, self.created)

    def answer(self, reply: object) -> bool | None:
        return None


class Tracked(Slot, gc=False, eq=False):
    """A slot somebody waits for: `settled` is called also if the slot is lost, with fate `failed`, reason `lost`."""

    def __del__(self) -> None:
        if self.shares:
            self.settle("failed", self.shares, "lost")


def settle_all(carriers: Sequence[Carrier | None], fate: Fate, reason: str = "", failure: object = None) -> None:
    """Report one fate for one share of each of these. The same as one `settle` each, at a third of the price."""
    first = carriers[0]
    count = len(carriers)
    # Most batches share one receipt, and `count` compares by identity first: 2 % where grouping costs 16.
    if type(first) is Receipt and carriers.count(first) == count:
        first.settle(fate, count, reason, failure)
        return
    closed = 0
    together: tuple[Carrier, ...] = ()
    common: Receipt | None = None
    delivered = fate == "delivered"
    for carrier in carriers:
        if delivered and type(carrier) is Slot and carrier.shares:
            if carrier.fate != "failed":
                carrier.fate = fate
            left = carrier.shares = carrier.shares - 1
            if not left:
                # Slots of one fan-out have one parent; what it is told can be told at once.
                parents = carrier.parents
                if parents == together and carrier.fate == fate and carrier.settled is None:
                    closed += 1
                elif not closed and len(parents) == 1 and type(parents[0]) is Receipt and carrier.settled is None:
                    if carrier.fate == fate:
                        together, common, closed = parents, parents[0], 1
                    else:
                        carrier.close()
                else:
                    carrier.close()
        elif carrier is not None:
            carrier.settle(fate, 1, reason, failure)
    if common is not None:
        common.settle(fate, closed)


_RANK = {"dropped": 0, "delivered": 1, "failed": 2}

#: Anything an event's share can be reported to.
Carrier: TypeAlias = Receipt | Slot | FanPart


def origin_of(carrier: Carrier | None) -> Origin | None:
    """Under whose name the event was admitted that this stands for; of several events, the first one's."""
    while carrier is not None and type(carrier) is not Receipt:
        if isinstance(carrier, FanPart):
            carrier = carrier.fan.parent
        elif isinstance(carrier, Slot):
            if not carrier.parents:
                return carrier.origin
            carrier = carrier.parents[0]
    return None if carrier is None else carrier.origin
