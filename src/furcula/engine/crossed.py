"""What both ends of a cut have in common: events as a parcel of bytes, what became of them, and who waits for them.

An event that somebody waits for (a request of `http.listen`, say) says in its parcel who that is: the part of the flow
that has the asker, its *home*, and a number. It keeps that through every further cut; when it comes home, what it
becomes there is an answer for that asker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from furcula.asking import Asker
from furcula.codecs import decode_events, encode_events, split_events
from furcula.engine.outlets import Batch
from furcula.engine.requests import Request
from furcula.errors import InputError
from furcula.event import Event, Failure
from furcula.receipt import Carrier, Fan, Fate, Origin, Receipt, Slot, Tracked, settle_all

__all__ = ["Arrival", "Homes", "Parcel", "Reported", "reports", "say_reports", "sendable", "settle_reported"]


class Parcel(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Events of one cut as they travel.

    Attributes:
        cut: Its name.
        events: What `codecs.encode_events` makes of them.
        asked: By index, the home of the request that an event belongs to, and its number there.
    """

    cut: str
    events: bytes
    asked: dict[int, tuple[str, int]] = {}


class Reported(msgspec.Struct, array_like=True):
    """What became of one event."""

    fate: Fate
    reason: str = ""
    failure: Failure | None = None


_decode_reports = msgspec.msgpack.Decoder(dict[int, Reported]).decode


def say_reports(fates: Mapping[int, Reported]) -> bytes:
    """What became of a parcel: by index, what was not delivered."""
    return msgspec.msgpack.encode(fates) if fates else b""


def reports(raw: bytes) -> dict[int, Reported]:
    """What `say_reports` made of it.

    Raises:
        InputError: It is none.
    """
    if not raw:
        return {}
    try:
        return _decode_reports(raw)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"a malformed report: {error}") from None


# ------------------------------------------------------------------ the near end


def sendable(batch: Sequence[Event[Any]]) -> tuple[Batch, bytes, list[tuple[Event[Any], Exception]]]:
    """Those that can be said in bytes, their bytes, and the others with the reason."""
    try:
        return list(batch), encode_events(batch), []
    except (ValueError, TypeError, RecursionError):
        pass
    good: Batch = []
    refused: list[tuple[Event[Any], Exception]] = []
    for event in batch:
        try:
            encode_events([event])
        except (ValueError, TypeError, RecursionError) as error:
            refused.append((event, InputError(f"the event cannot leave the process: {error}")))
        else:
            good.append(event)
    return good, encode_events(good) if good else b"", refused


def request_of(carrier: Any) -> Request | None:
    """The request that this stands for; None: nobody's, or several."""
    if type(carrier) is Receipt:
        return None
    if isinstance(carrier, Request):
        return carrier if carrier.asker is not None else None
    found = {id(one): one for one in map(request_of, getattr(carrier, "parents", ())) if one is not None}
    return next(iter(found.values())) if len(found) == 1 else None


class Homes:
    """The requests of this part whose events are elsewhere.

    Args:
        name: This part, as others reach it.
    """

    def __init__(self, name: str):
        #: A part that is started again is another home: it knows nothing of the requests that died with the last one.
        self.name = f"{name}#{os.urandom(6).hex()}"
        self._numbers = itertools.count(1)
        self._away: dict[int, tuple[Request, int]] = {}
        self._known: dict[int, int] = {}

    def sent(self, carrier: Carrier | None) -> tuple[str, int] | None:
        """An event leaves. Returns what its parcel says of its asker; None: nobody waits for it."""
        request = request_of(carrier)
        if request is None:
            return None
        if type(request.asker) is Elsewhere:
            return request.asker.home, request.asker.number
        if type(request.asker) is AtHome:
            request = request.asker.request
        number = self._known.get(id(request)) or next(self._numbers)
        self._known[id(request)] = number
        self._away[number] = (request, self._away.get(number, (request, 0))[1] + 1)
        return self.name, number

    def all_sent(self, carriers: Sequence[Carrier | None]) -> dict[int, tuple[str, int]]:
        """Events leave together. Returns, by index, what their parcel says of those that somebody waits for."""
        found = {}
        for index, carrier in enumerate(carriers):
            if type(carrier) is not Receipt:  # the receipt of a whole batch: nobody's
                asked = self.sent(carrier)
                if asked is not None:
                    found[index] = asked
        return found

    def home_of(self, carrier: Carrier | Fan | None) -> str:
        """The home of whoever waits for the event that carries this; empty: nobody does."""
        request = request_of(carrier)
        if request is None:
            return ""
        return request.asker.home if type(request.asker) is Elsewhere else self.name

    def reported(self, asked: tuple[str, int] | None) -> None:
        """What became of an event that had left is known."""
        if asked is None or asked[0] != self.name or asked[1] not in self._away:
            return
        request, count = self._away[asked[1]]
        if count > 1:
            self._away[asked[1]] = (request, count - 1)
        else:
            del self._away[asked[1]]
            self._known.pop(id(request), None)

    def asker(self, asked: tuple[str, int], settled: Callable[[Slot], None]) -> Asker | None:
        """Who waits for an event that has come; None: nobody, any more."""
        home, number = asked
        if home != self.name:
            # Of one that had our place before us, and has gone with all who asked there, nothing is left to answer.
            of_old = home.partition("#")[0] == self.name.partition("#")[0]
            return None if of_old else Elsewhere(home, number, settled)
        request, _ = self._away.get(number, (None, 0))
        return AtHome(request, settled) if request is not None else None

    def __len__(self) -> int:
        return len(self._away)


class Elsewhere(Asker):
    """Stands for one who asks in another part."""

    __slots__ = ("_settled", "home", "number")

    def __init__(self, home: str, number: int, settled: Callable[[Slot], None]):
        super().__init__()
        self.home = home
        self.number = number
        self._settled = settled

    def take(self, reply: Event[Any]) -> bool:
        raise InputError(f"whoever asked is at {self.home.partition('#')[0]}, and an answer must go back there")

    def settled(self, slot: Slot) -> None:
        self._settled(slot)


class AtHome(Asker):
    """One who asks, for an event that was elsewhere and has come back."""

    __slots__ = ("_settled", "request")

    many = True  # whether another answer is wanted is for the request to say

    def __init__(self, request: Request, settled: Callable[[Slot], None]):
        super().__init__()
        self.request = request
        self._settled = settled

    @property
    def _asker(self) -> Asker | None:
        asker: Asker | None = self.request.asker
        return asker

    @property
    def gone(self) -> bool:
        return self._asker is None or self._asker.gone

    @gone.setter
    def gone(self, gone: bool) -> None:
        """It is as the asker itself says."""

    @property
    def over(self) -> bool:
        asker = self._asker
        return asker is None or asker.over or (self.request.answered and not asker.many)

    @over.setter
    def over(self, over: bool) -> None:
        """It is as the asker itself says."""

    @property
    def notes(self) -> Mapping[str, str]:
        return self._asker.notes if self._asker is not None else {}

    def enter(self, task: asyncio.Task[Any]) -> None:
        if self._asker is not None:
            self._asker.enter(task)

    def exit(self, task: asyncio.Task[Any]) -> bool:
        return self._asker is not None and self._asker.exit(task)

    def take(self, reply: Event[Any]) -> bool:
        return bool(self.request.answer(reply))

    def settled(self, slot: Slot) -> None:
        self._settled(slot)


# ------------------------------------------------------------------ the far end


class _Arrived(Tracked, gc=False, eq=False):
    """The slot of an event that came in a parcel: which one of them it is."""

    arrival: Any = None
    index: int = 0

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        if fate == "delivered" and count == self.shares == 1 and self.fate != "failed":
            self.shares = 0
            self.fate = fate
            # What `Origin.settle` does, without the calls: this is done for nearly every event that comes.
            origin, arrival = self.origin, self.arrival
            self.arrival = None
            origin.open -= 1  # type: ignore[union-attr]
            origin.delivered += 1  # type: ignore[union-attr]
            arrival.less()
        else:
            Slot.settle(self, fate, count, reason, failure)

    def close(self) -> None:
        self.fate = self.fate or "dropped"
        arrival, self.arrival = self.arrival, None
        arrival.settled(self.index, self)


class Arrival:
    """The events of one parcel, until all of them are settled.

    Args:
        parcel: What came.
        origin: Under whose name they are admitted.
        homes: Of this part.
        done: Told once, when all of them are settled.

    Attributes:
        fates: By index, what was not delivered, so far.

    Raises:
        InputError: What the parcel holds is no batch of events.
    """

    __slots__ = ("_done", "_events", "_origin", "fates", "left")

    def __init__(self, parcel: Parcel, origin: Origin, homes: Homes, done: Callable[[Arrival], None]):
        self.fates: dict[int, Reported] = {}
        try:
            self._events: Batch = decode_events(parcel.events)
            places: Iterable[int] = range(len(self._events))
        except InputError:
            places, self._events = self._readable(parcel)
        self.left = len(self._events)
        self._origin = origin
        self._done = done
        asked = parcel.asked
        plain = 0
        for index, event in zip(places, self._events, strict=True):
            if asked and index in asked:
                asker = homes.asker(asked[index], lambda slot, index=index: self._request_settled(index, slot))  # type: ignore[misc]
                if asker is not None:
                    event._receipt = Request.of(origin, asker, event.created)
                    continue
            # By position, which takes half the time of names.
            event._receipt = _Arrived((), 1, None, event.created, None, "", None, origin, self, index)
            plain += 1
        origin.admit(plain)
        if not self.left:
            done(self)

    def _readable(self, parcel: Parcel) -> tuple[list[int], Batch]:
        """One event that bytes could say, but cannot be read again (a dict with a dict as a key), fails alone."""
        places: list[int] = []
        events: Batch = []
        for index, raw in enumerate(split_events(parcel.events)):
            try:
                events += decode_events(raw)
                places.append(index)
            except InputError as error:
                self.fates[index] = Reported("failed", "InputError", Failure(parcel.cut, "InputError", str(error)))
        return places, events

    @property
    def events(self) -> Batch:
        """To be handed on: they carry their receipts. Given once, and not kept here.

        An event holds its receipt, and that this; events are not collected as garbage, so they would stay for ever.
        """
        events, self._events = self._events, []
        return events

    def less(self) -> None:
        """One event of it is settled, and counted."""
        self.left -= 1
        if not self.left:
            self._done(self)

    def settled(self, index: int, slot: Slot) -> None:
        self._origin.settle(slot.fate or "dropped", 1, slot.reason)
        self._note(index, slot)
        self.less()

    def _request_settled(self, index: int, slot: Slot) -> None:
        self._note(index, slot)
        self.less()

    def _note(self, index: int, slot: Slot) -> None:
        if slot.fate != "delivered":
            failure = slot.failure if isinstance(slot.failure, Failure) else None
            self.fates[index] = Reported(slot.fate or "dropped", slot.reason, failure)


def settle_reported(
    carriers: Sequence[Carrier | None], fates: Mapping[int, Reported], rest: Fate = "delivered", reason: str = ""
) -> None:
    """Tell the near end's events what became of them."""
    if not fates and carriers:
        # A parcel has what several batches left, and each of those has one receipt.
        receipts = dict.fromkeys(carriers)
        if len(receipts) * 8 <= len(carriers) and all(type(one) is Receipt for one in receipts):
            for receipt in receipts:
                receipt.settle(rest, carriers.count(receipt), reason)  # type: ignore[union-attr]
        else:
            settle_all(carriers, rest, reason)
        return
    for index, carrier in enumerate(carriers):
        if carrier is None:
            continue
        one = fates.get(index)
        if one is None:
            carrier.settle(rest, 1, reason)
        else:
            carrier.settle(one.fate, 1, one.reason, one.failure)
