"""Receipts: the duty to acknowledge, settled exactly once for every event admitted.

Admission opens one *slot* for each event, with one *share*. Each share meets one fate. A slot settles once, when no
share of it is open: failed if any share failed, else delivered if any was, else dropped.

Two shapes keep that cheap. A `Receipt` serves a whole admitted batch: as long as an event stays one event its slot has
exactly one share, so a plain counter is enough, and settling 256 events is one subtraction. Once an event becomes
several (a split, a fan-out) or several become one (a pack, a join), the shares concerned move to a `Slot` of their own,
which remembers the worst fate and, when its last share is settled, passes that on to what it was made from.

Both are used from the event loop's thread only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias

__all__ = ["Carrier", "Fate", "Origin", "Receipt", "Slot", "Tracked"]

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
        return Slot(self, shares=count)

    def answer(self, reply: object) -> bool:
        """Offer an answer to whoever asked. Nobody did: the events of a batch are not requests."""
        return False

    def __del__(self) -> None:
        if self.open:
            lost, self.open = self.open, 0
            self.origin.lost += lost
            self.origin.settle("failed", lost, "lost")
            _log.error("furcula: %d event(s) of %r were lost; this is a defect of furcula", lost, self.origin.name)


class Slot:
    """One slot with any number of shares: of a split, a copy, or of several events joined in one.

    Args:
        parents: What one share each was taken from; they are told the fate when the last share is settled.
        shares: How many shares are open now.
        settled: Called once with this slot when it has settled, on the loop's thread.
    """

    __slots__ = ("_parents", "_settled", "created", "failure", "fate", "reason", "shares")

    def __init__(
        self,
        *parents: Carrier,
        shares: int = 1,
        settled: Callable[[Slot], None] | None = None,
        created: float = 0.0,
    ):
        self._parents = parents
        self._settled = settled
        self.shares = shares
        #: The worst fate reported so far; final once `shares` is 0. None: no report yet.
        self.fate: Fate | None = None
        self.reason = ""
        #: The failure behind `fate == "failed"`, where the reporter had one.
        self.failure: object = None
        self.created: float = parents[0].created if parents else created

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        if count > self.shares:
            _log.error("furcula: %d report(s) on an event that was settled already", count - self.shares)
            count = self.shares
            if not count:
                return
        if self.fate != fate and (self.fate is None or _RANK[fate] > _RANK[self.fate]):
            self.fate = fate
            self.reason = reason
            self.failure = failure
        self.shares -= count
        if not self.shares:
            self._close()

    def _close(self) -> None:
        fate = self.fate or "dropped"
        parents, self._parents = self._parents, ()
        for parent in parents:
            parent.settle(fate, 1, self.reason, self.failure)
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(self)

    def share(self, count: int) -> Slot:
        """One share of this slot becomes `count` shares. Returns the slot itself."""
        self.shares += count - 1
        return self

    def join(self, count: int) -> None:
        """`count` shares of this slot become one: the fates of the others are the fate of that one."""
        self.shares -= count - 1

    def answer(self, reply: object) -> bool:
        """Offer an answer to whoever asked. True: it was taken, and is the first."""
        taken = [parent.answer(reply) for parent in self._parents]
        return any(taken)


class Tracked(Slot):
    """A slot somebody waits for: `settled` is called also if the slot is lost, with fate `failed`, reason `lost`."""

    __slots__ = ()

    def __del__(self) -> None:
        if self.shares:
            self.settle("failed", self.shares, "lost")


_RANK = {"dropped": 0, "delivered": 1, "failed": 2}

#: Anything an event's share can be reported to.
Carrier: TypeAlias = Receipt | Slot
