"""A message that was taken and is not acknowledged, and the slots of its events."""

from __future__ import annotations

from typing import Any, Final, Protocol

from nats.aio.msg import Msg

from furcula.cluster.sending import Leaving
from furcula.engine.crossed import Parcel
from furcula.engine.outlets import Batch
from furcula.engine.parts import Arrivals
from furcula.event import Event
from furcula.receipt import Carrier, Fate, Slot, Tracked
from furcula.verdict import verdict

__all__ = ["NO_KEY", "Holder", "InHand", "Taken"]

#: The place of a key where no event of it is under way.
NO_KEY: Final = object()


class Holder(Protocol):
    """Who has taken a message, as the message sees it: a partition."""

    #: Events that were handed on and are not settled.
    open: int
    max_deliveries: int

    @property
    def epoch(self) -> Any:
        """In whose name what its events become is stored."""

    def has_kept(self, held: InHand) -> None:
        """An output of one of its events waits to be sent on."""

    def is_ready(self, held: InHand, index: int) -> None:
        """The event cannot fail any more."""

    def again(self, held: InHand, index: int) -> None:
        """The event failed, and is worth another try."""

    def bury(self, held: InHand, index: int, slot: Slot) -> None:
        """The event is refused for good. Says `done` once its dead letter is stored."""

    def released(self, held: InHand) -> None:
        """The flow ends before it was handled."""

    def finished(self, held: InHand) -> None:
        """All its events are settled, and what they became is stored."""


class Taken(Tracked, gc=False, eq=False):
    """The slot of an event that came in a message.

    Attributes:
        kept: How many of its shares wait to be stored elsewhere.
        ready: It can no longer fail here.
        copies: By cut, how many outputs it has had.
        shared: It has become several events, whose order may be another the next time.
        stored: The cuts over which an output has been stored.
    """

    held: Any = None
    index: int = 0
    event_id: str = ""
    kept: int = 0
    ready: bool = False
    copies: dict[str, int] | None = None
    shared: bool = False
    stored: tuple[str, ...] = ()

    def share(self, count: int) -> Slot:
        if count > 1:
            self.shared = True
        return Slot.share(self, count)

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        if fate == "delivered" and count == self.shares == 1 and self.fate != "failed":
            self.shares = 0
            self.fate = fate
            self.held.settled(self)
            return
        Slot.settle(self, fate, count, reason, failure)
        self.look()

    def look(self) -> None:
        """Is all that is left of it on its way? Then it can fail no more, unless it has failed already."""
        if self.shares and self.shares == self.kept and not self.ready and self.fate != "failed":
            self.held.is_ready(self)

    def close(self) -> None:
        self.fate = self.fate or "dropped"
        self.held.settled(self)

    def back(self, stored: str = "") -> None:
        """One of its shares is about to be settled elsewhere; `stored`: it was stored, over this cut."""
        self.kept -= 1
        if stored:
            self.stored += (stored,)


class InHand:
    """A message, until it is acknowledged."""

    __slots__ = (
        "arrivals", "begun", "came", "epoch", "events", "ids", "kept", "keys", "left", "lost", "over", "parcel",
        "partition", "sequence", "stored", "tries", "unready",
    )  # fmt: skip

    def __init__(self, partition: Holder, msg: Msg, parcel: Parcel, events: Batch, arrivals: Arrivals):
        self.partition = partition
        self.epoch = partition.epoch
        self.sequence: int = msg.metadata.sequence.stream
        #: The id under which it was stored: the same for the same events that came the same way.
        self.came = (msg.headers or {}).get("Nats-Msg-Id") or f"{msg.subject} {self.sequence}"
        self.parcel = parcel
        self.arrivals = arrivals
        self.events = events
        self.ids = [event.id for event in events]
        #: The key of each event that is under way.
        self.keys: list[Any] = [NO_KEY] * len(events)
        #: Events that are not settled.
        self.left = len(events)
        #: Events that can still fail.
        self.unready = len(events)
        #: One of its events was handed on.
        self.begun = False
        self.tries: dict[int, int] = {}
        #: Of events that are tried again: the cuts over which they have sent what they send.
        self.stored: dict[int, set[str]] = {}
        #: Outputs, in the order of coming, by where they go.
        self.kept: dict[tuple[Leaving, int], list[tuple[Event[Any], str, Carrier]]] = {}
        #: It is not ours to settle any more.
        self.lost = False
        #: Where its events go one by one: those that cannot fail any more.
        self.over: set[int] | None = None

    # ------------------------------------------------------------------ for the near ends of cuts

    def keep(self, leaving: Leaving, partition: int, event: Event[Any], carrier: Carrier) -> None:
        if self.lost:
            leaving.left(1)
            carrier.settle("failed", 1, "taken over")
            return
        assert isinstance(carrier, Taken)
        cut = leaving.cut.name
        number = (carrier.copies or {}).get(cut, 0)
        if not number and cut in self.stored.get(carrier.index, ()):  # that much of the last try was done
            carrier.copies = {**(carrier.copies or {}), cut: 1}
            leaving.left(1)
            carrier.settle("delivered", 1, "stored")
            return
        carrier.copies = {**(carrier.copies or {}), cut: number + 1}
        # The same each time this event is handled, which what is split off here is not by itself.
        id = carrier.event_id
        if number or event._id != id:
            id = f"{id}.{number}" if event._id == id else f"{id}/{number}"
        self.kept.setdefault((leaving, partition), []).append((event, id, carrier))
        carrier.kept += 1
        carrier.look()
        self.partition.has_kept(self)

    def send(self) -> None:
        """Outputs go on."""
        kept, self.kept = self.kept, {}
        for (leaving, partition), events in kept.items():
            leaving.send(partition, events, self.epoch, self.came)

    # ------------------------------------------------------------------ what becomes of its events

    def is_ready(self, slot: Taken) -> None:
        slot.ready = True
        self.unready -= 1
        self.partition.is_ready(self, slot.index)

    def settled(self, slot: Taken) -> None:
        origin = self.arrivals.origin
        origin.settle(slot.fate or "dropped", 1, slot.reason)
        self.partition.open -= 1
        if self.lost:
            return
        if slot.fate == "failed":
            word = verdict(slot, self.tries.get(slot.index, 0) + 1, self.partition.max_deliveries)
            if word == "release":
                self.lost = True  # it is not acknowledged, so it is handed out again
                self.partition.released(self)
                return
            if word == "again":
                once = {cut for cut in slot.stored if (slot.copies or {}).get(cut) == 1}
                self.stored.setdefault(slot.index, set()).update(once)
                self.partition.again(self, slot.index)
                return
            self.partition.bury(self, slot.index, slot)
            return
        self.done(slot.index, slot.ready)

    def done(self, index: int, was_ready: bool) -> None:
        """An event needs nothing more."""
        self.left -= 1
        if not was_ready:
            self.unready -= 1
            self.partition.is_ready(self, index)
        if not self.left:
            self.partition.finished(self)
