"""The near end of a line: keeps what it has sent until the far end has said what became of it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from furcula.codecs import MAX_BATCH
from furcula.engine.crossed import Homes, Parcel, Reported, reports, sendable, settle_reported
from furcula.engine.outlets import Batch, all_of, settle
from furcula.engine.parts import Cut, Refuse, Spawn, key_of, share_of
from furcula.errors import InputError, QueueFull
from furcula.event import Event
from furcula.receipt import Carrier, Fate, Receipt
from furcula.workers.lines.wire import AT_ONCE_S, Sent, Told, decode_told, encode, is_free, new_socket

__all__ = ["Leaving", "Peer"]

log = logging.getLogger("furcula.workers")

#: Parcels of one lane that may be under way before its sender waits.
WINDOW = 16
#: Events in a parcel, and bytes, unless one event has more.
MOST, MOST_BYTES = 512, 4_000_000
#: A cut that closes a cycle never waits; it fails events beyond so many that are not reported.
TURNING = 2560
#: A lane that has heard nothing for so long asks.
ASK_S = 0.25


class Leaving:
    """The near end of one cut: a lane to each worker of the other stage."""

    def __init__(self, cut: Cut, refuse: Refuse, peers: list[Peer], homes: Homes, home: Callable[[str], Peer]):
        self.cut = cut
        self._refuse = refuse
        self._homes = homes
        self._key = key_of(cut)
        self._lanes = [peer.lane(cut.name, homes) for peer in peers]
        self._home = home
        #: To the processes that have who asked.
        self._homeward: dict[str, _Lane] = {}
        self._turn = 0

    def push(self, batch: Batch) -> Awaitable[None] | None:
        waits: list[Awaitable[None]] = []
        for lane, events in self._divided(batch).items():
            wait = self._to(lane, events)
            if wait is not None:
                waits.append(wait)
        return all_of(waits)

    @staticmethod
    def _asked(batch: Batch) -> bool:
        """May somebody wait for one of these? Most batches have one receipt, or slots that nobody asked for."""
        return any(type(event._receipt) is not Receipt for event in batch)

    def _lane_home(self, home: str) -> _Lane:
        lane = self._homeward.get(home)
        if lane is None:
            lane = self._homeward[home] = self._home(home).lane(self.cut.name, self._homes)
        return lane

    def forget(self, peer: Peer) -> None:
        """The process has gone, and with it everybody who asked there."""
        lane = self._homeward.pop(peer.name, None)
        if lane is not None:
            lane.abandon("dropped", "cancelled")

    def _divided(self, batch: Batch) -> dict[_Lane, Batch]:
        asked = self._asked(batch)
        key = self._key if len(self._lanes) > 1 else None
        # Without a key, all of a batch goes together. Where its order is to be kept, one worker has everything.
        together = self._least() if self.cut.place.options.order == "none" else self._lanes[0]
        if key is None and not asked:
            return {together: batch}
        found: dict[_Lane, Batch] = {}
        for event in batch:
            lane = self._homeward_lane(event) if asked else None
            if lane is None:
                try:
                    lane = together if key is None else self._lanes[share_of(key(event), len(self._lanes))]
                except Exception as error:  # its key cannot be said
                    self._refuse([(event, error)])
                    continue
            found.setdefault(lane, []).append(event)
        return found

    def _homeward_lane(self, event: Event[Any]) -> _Lane | None:
        """To the very process that has who asked; None: nobody did, or not in the stage that this leads to."""
        home = self._homes.home_of(event._receipt)
        return self._lane_home(home) if home and home.partition("/")[0] == self.cut.to_stage else None

    def _least(self) -> _Lane:
        """The lane with the least under way, of those whose worker takes more."""
        self._turn += 1
        first = self._turn % len(self._lanes)
        return min(self._lanes[first:] + self._lanes[:first], key=lambda lane: (not lane.open, lane.events))

    def _to(self, lane: _Lane, batch: Batch) -> Awaitable[None] | None:
        if self.cut.back:
            room = max(0, TURNING - lane.events)
            batch, beyond = batch[:room], batch[room:]
            if beyond:
                error = QueueFull(f"the cycle through {self.cut.target} has {TURNING} events under way")
                self._refuse([(event, error) for event in beyond])
        elif self.cut.overflow != "block" and lane.crowded:
            if self.cut.overflow == "fail":
                full = QueueFull(f"{self.cut.target} is behind, and {self.cut.name} says overflow: fail")
                self._refuse([(event, full) for event in batch])
            else:
                settle(batch, "dropped", "overflow")
            return None
        wait = lane.push(batch, self._refuse) if batch else None
        return None if self.cut.back or self.cut.overflow != "block" else wait

    def settled(self) -> bool:
        return all(lane.settled() for lane in (*self._lanes, *self._homeward.values()))

    def abandon(self) -> int:
        return sum(lane.abandon("failed", "abandoned") for lane in (*self._lanes, *self._homeward.values()))


class _Under(msgspec.Struct, gc=False):
    """A parcel that is not reported."""

    parcel: Parcel
    carriers: list[Carrier | None]


class _Lane:
    """Parcels of one cut to one worker."""

    def __init__(self, peer: Peer, cut: str, homes: Homes):
        self._peer = peer
        self._cut = cut
        self._homes = homes
        self._name = os.urandom(8)
        self._session = b""
        self._next = 1
        self._accepted = 0
        self._under: OrderedDict[int, _Under] = OrderedDict()
        self._waiting: deque[tuple[Batch, Refuse]] = deque()
        self._count = 0
        self._flushing = False
        self._room: asyncio.Future[None] | None = None
        #: Events that are not reported.
        self.events = 0
        #: The worker takes more.
        self.open = False

    @property
    def full(self) -> bool:
        return self._next - 1 - self._accepted >= WINDOW

    @property
    def crowded(self) -> bool:
        """Would whoever sends more have to wait?"""
        return self.full or self._count >= MOST

    def push(self, batch: Batch, refuse: Refuse) -> Awaitable[None] | None:
        self._waiting.append((batch, refuse))
        self._count += len(batch)
        self.events += len(batch)
        self._peer.moved()
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        if not self.crowded:
            return None
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._room)

    def _flush(self) -> None:
        """Send what waits, as far as the far end has room: what has come meanwhile goes together."""
        self._flushing = False
        while self._waiting and self.open and not self.full:
            batch: Batch = []
            refuse = self._waiting[0][1]
            while self._waiting and (not batch or len(batch) + len(self._waiting[0][0]) <= MOST):
                batch += self._waiting.popleft()[0]
            self._count -= len(batch)
            self._send(batch, refuse)
        if not self.crowded and self._room is not None:
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)

    def _send(self, batch: Batch, refuse: Refuse) -> None:
        good, body, refused = sendable(batch)
        if refused:
            self.events -= len(refused)
            refuse(refused)
        if not good:
            return
        if len(body) > MOST_BYTES and len(good) > 1:
            half = len(good) // 2
            self._send(good[:half], refuse)
            self._send(good[half:], refuse)
            return
        if len(body) > MAX_BATCH:
            self.events -= 1
            error = InputError(f"the event has {len(body)} bytes; between stages it may have {MAX_BATCH}")
            refuse([(good[0], error)])
            return
        carriers = [event.carrier() for event in good]
        parcel = Parcel(self._cut, body, self._homes.all_sent(carriers))
        number = self._next
        self._next += 1
        self._under[number] = _Under(parcel, carriers)
        self._peer.send(Sent(self._name, self._cut, self._session, number, parcel))

    # ------------------------------------------------------------------ what the far end says

    def heard(self, told: Told) -> None:
        if told.what == "begin":
            self._begin(told.session)
        elif told.session != self._session:
            return
        elif told.what == "cease":
            self.open = False
        elif told.what == "accepted":
            self._accepted = max(self._accepted, told.number)
            self._flush()
        elif told.what == "have":  # the connection was lost with what was under way on it
            for number in [number for number in self._under if number > told.number]:
                self._peer.send(Sent(self._name, self._cut, self._session, number, self._under[number].parcel))
        else:
            self._reported(told.number, told.report)

    def _begin(self, session: bytes) -> None:
        if session == self._session and self.open:
            return
        # A worker that has just started has nothing: all that is not reported goes to it, in order.
        self._session = session
        self.open = True
        again = list(self._under.values())
        self._under.clear()
        self._next, self._accepted = 1, 0
        for under in again:
            self._under[self._next] = under
            self._peer.send(Sent(self._name, self._cut, session, self._next, under.parcel))
            self._next += 1
        self._flush()

    def _reported(self, number: int, raw: bytes) -> None:
        under = self._under.pop(number, None)
        if under is None:
            return
        self.events -= len(under.carriers)
        self._accepted = max(self._accepted, number)
        try:
            fates = reports(raw)
        except InputError as error:
            fates = dict.fromkeys(range(len(under.carriers)), Reported("failed", str(error)))
        for one in under.parcel.asked.values():
            self._homes.reported(one)
        settle_reported(under.carriers, fates)
        self._flush()

    def ask(self) -> None:
        """Nothing has been heard for a while."""
        if self._under or self._waiting or not self._session:
            self._peer.send(Sent(self._name, self._cut, self._session, next(iter(self._under), self._next)))

    # ------------------------------------------------------------------ its end

    def settled(self) -> bool:
        return not self._under and not self._waiting

    def abandon(self, fate: Fate, reason: str) -> int:
        left = self._count
        for batch, _ in self._waiting:
            settle(batch, fate, reason)
        self._waiting.clear()
        self._count = self.events = 0
        for under in self._under.values():
            left += len(under.carriers)
            for one in under.parcel.asked.values():
                self._homes.reported(one)
            settle_reported(under.carriers, {}, fate, reason)
        self._under.clear()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return left


class Peer:
    """A connection to one worker of another stage."""

    def __init__(self, path: Path, name: str, gone: Callable[[Peer], None] | None = None):
        self.name = name
        self._gone = gone
        self._path = path
        self._lanes: dict[str, _Lane] = {}
        self._socket: zmq.Socket[bytes] | None = None
        self._heard_at = 0.0
        #: When a parcel left, or word of one came.
        self.moved_at = 0.0
        self._looking = False
        self._loop: asyncio.AbstractEventLoop

    @property
    def present(self) -> bool:
        return all(lane.open for lane in self._lanes.values())

    def lane(self, cut: str, homes: Homes) -> _Lane:
        return self._lanes.setdefault(cut, _Lane(self, cut, homes))

    def open(self, spawn: Spawn) -> None:
        self._loop = asyncio.get_running_loop()
        self.moved_at = self._loop.time()
        self._socket = socket = new_socket(zmq.DEALER)
        socket.connect(f"ipc://{self._path}")
        self._loop.add_reader(socket.fileno(), self._read)
        spawn(self._ask(), f"line to {self.name}")

    def moved(self) -> None:
        self.moved_at = self._loop.time()

    def send(self, sent: Sent) -> None:
        if self._socket is None:
            return
        if sent.body is not None:
            self.moved_at = self._loop.time()
        self._socket.send(encode(sent), zmq.NOBLOCK)
        if not self._looking:  # sending may consume the edge that would have told us to read
            self._looking = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._looking = False
        until = self._loop.time() + AT_ONCE_S
        while self._loop.time() < until:
            if self._socket is None:
                return
            try:
                told = decode_told(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except (ValueError, TypeError) as error:
                log.error("%s said something malformed: %s", self.name, error)
                continue
            self._heard_at = self._loop.time()
            if told.what == "report":
                self.moved_at = self._heard_at
            lane = self._lanes.get(told.cut)
            if lane is not None:
                lane.heard(told)
        self._looking = True
        self._loop.call_soon(self._read)

    async def _ask(self) -> None:
        for lane in self._lanes.values():
            lane.ask()
        while True:
            await asyncio.sleep(ASK_S)
            if self._loop.time() - self._heard_at >= ASK_S:
                if self._gone is not None and is_free(self._path):
                    self.close()
                    self._gone(self)
                    return
                for lane in self._lanes.values():
                    lane.ask()

    def close(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self._loop.remove_reader(socket.fileno())
            socket.close(linger=0)
