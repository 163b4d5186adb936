"""The stages of a flow in processes of one machine, joined by 0mq over ipc.

Each worker binds one socket; every other connects to it, and sends its events there directly. The near end keeps what
it has sent until the far end has reported what became of it, so the events' shares stay open, and what a dead worker
had is sent again to the one that takes its place.

Each cut to each worker is a *lane*: parcels with running numbers, accepted in that order, a few at a time before the
next has to wait. Lanes do not wait for each other, or two branches that meet again behind a cut could block each other.
A worker that starts draws a *session*; a lane that hears of a new one sends again, in order, what is not reported.

Where a worker is replaced, the old one and the new one run side by side for a while, and only one of them has the
place. So each also binds a socket of its very own, its *home*: what is an answer goes there, to the process that has
who asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import zlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from furcula.codecs import MAX_BATCH
from furcula.engine.crossed import Arrival, Homes, Parcel, Reported, reports, say_reports, sendable, settle_reported
from furcula.engine.outlets import Batch, Consumer, all_of, settle
from furcula.engine.parts import Arrivals, Cut, Refuse, Spawn, key_of, share_of
from furcula.errors import FurculaError, InputError, MissingExtra, QueueFull
from furcula.event import Event
from furcula.locks import is_held, lock_now
from furcula.receipt import Carrier, Fate, Receipt

try:
    import zmq
except ImportError:
    raise MissingExtra("stages in processes of their own", "zmq") from None

__all__ = ["Lines"]

log = logging.getLogger("furcula.workers")

#: Parcels of one lane that may be under way before its sender waits.
WINDOW = 16
#: Events in a parcel, and bytes, unless one event has more.
MOST, MOST_BYTES = 512, 4_000_000
#: A cut that closes a cycle never waits; it fails events beyond so many that are not reported.
TURNING = 2560
#: After so long without a parcel or a report, what is missing may be held back by ourselves.
QUIET_S = 1.0
#: A lane that has heard nothing for so long asks.
ASK_S = 0.25
#: Between two looks whether the worker that had our place has gone.
LOOK_S = 0.01
#: So long parcels are read before others on the loop have their turn.
AT_ONCE_S = 0.001
#: Reports that are kept in case they have to be said again.
REMEMBERED = 256

_encode = msgspec.msgpack.Encoder().encode


class _Sent(msgspec.Struct, array_like=True):
    """Near to far. `body` is a Parcel; without one it asks for the state of what is not reported, from `number` on.

    A lane has a name of its own: a connection that breaks and is made again is another one to the far end's socket.
    """

    lane: bytes
    cut: str
    session: bytes
    number: int
    body: Parcel | None = None


class _Told(msgspec.Struct, array_like=True):
    """Far to near.

    * `begin`: this is my session, and I have nothing of yours.
    * `accepted`: all up to this number has been handed on.
    * `have`: all up to this number has come, and what is beyond has to be sent again.
    * `report`: what became of this number.
    * `cease`: send me nothing more.
    """

    what: Literal["begin", "accepted", "have", "report", "cease"]
    cut: str
    session: bytes
    number: int = 0
    report: bytes = b""


_sent = msgspec.msgpack.Decoder(_Sent)
_told = msgspec.msgpack.Decoder(_Told)


class Lines:
    """The joints of one worker.

    Args:
        folder: Where the workers' sockets are; one folder for each run.
        stage: Of this worker.
        index: Which of the stage's workers it is.
        counts: How many workers each stage has.
    """

    keeps = False

    def __init__(self, folder: Path, stage: str, index: int, counts: Mapping[str, int]):
        self._folder = folder
        self._stage = stage
        self._index = index
        self._counts = counts
        self._homes = Homes(f"{stage}/{index}")
        self._home_path = folder / self._homes.name.partition("#")[2]
        self._peers: dict[tuple[str, int], _Peer] = {}
        self._leaving: list[_Leaving] = []
        self._arrivals: dict[str, Arrivals] = {}
        #: The place among the stage's workers, and our home.
        self._fars: list[_Far] = []
        self._spawn: Spawn | None = None

    def leaving(self, cut: Cut, refuse: Refuse) -> Consumer:
        peers = [self._peer(cut.to_stage, number) for number in range(self._count(cut))]
        leaving = _Leaving(cut, refuse, peers, self._homes, self._home)
        self._leaving.append(leaving)
        return leaving

    def _count(self, cut: Cut) -> int:
        return self._counts.get(cut.to_stage, 1)

    def _peer(self, stage: str, index: int) -> _Peer:
        peer = self._peers.get((stage, index))
        if peer is None:
            peer = self._peers[stage, index] = _Peer(self._path(stage, index), f"{stage}/{index}")
        return peer

    def _home(self, home: str) -> _Peer:
        """The very process that has who asked."""
        peer = self._peers.get((home, -1))
        if peer is None:
            peer = self._peers[home, -1] = _Peer(self._folder / home.partition("#")[2], home, gone=self._gone)
            assert self._spawn is not None
            peer.open(self._spawn)
        return peer

    def _gone(self, peer: _Peer) -> None:
        self._peers.pop((peer.name, -1), None)
        for leaving in self._leaving:
            leaving.forget(peer)

    def _path(self, stage: str, index: int) -> Path:
        # The name of a socket has 107 bytes at most, and a stage's may have 64 of them.
        return self._folder / f"{zlib.crc32(stage.encode()):08x}.{index}"

    def arriving(self, arrivals: Arrivals) -> None:
        self._arrivals[arrivals.cut.name] = arrivals

    async def open(self, spawn: Spawn) -> None:
        self._spawn = spawn
        for peer in self._peers.values():
            peer.open(spawn)
        if self._arrivals:
            for path in (self._home_path, self._path(self._stage, self._index)):
                self._fars.append(_Far(path, self._arrivals, self._homes, spawn))
            for far in self._fars:
                await far.open()

    def begin(self) -> None:
        for far in self._fars:
            far.begin()

    async def cease(self) -> None:
        for far in self._fars[1:]:  # what comes home is awaited by somebody
            far.cease()

    def idle(self) -> bool:
        return all(far.idle() for far in self._fars)

    def quiet(self) -> bool:
        moved = [*(peer.moved_at for peer in self._peers.values()), *(far.moved_at for far in self._fars)]
        latest = max(moved, default=0.0)
        return asyncio.get_running_loop().time() - latest > QUIET_S

    def settled(self) -> bool:
        return all(leaving.settled() for leaving in self._leaving)

    def dry(self) -> bool:
        return all(far.dry() for far in self._fars)

    def abandon(self) -> dict[str, int]:
        left: dict[str, int] = {}
        for leaving in self._leaving:
            left[leaving.cut.target] = left.get(leaving.cut.target, 0) + leaving.abandon()
        return left

    async def close(self) -> None:
        await asyncio.sleep(0)  # the last reports are told from the loop
        for peer in self._peers.values():
            peer.close()
        for far in self._fars:
            far.close()

    def unready(self) -> str | None:
        missing = [peer.name for (_, index), peer in self._peers.items() if index >= 0 and not peer.present]
        return f"no word from {', '.join(missing)}" if missing else None


# ------------------------------------------------------------------ the near end


class _Leaving:
    """The near end of one cut: a lane to each worker of the other stage."""

    def __init__(self, cut: Cut, refuse: Refuse, peers: list[_Peer], homes: Homes, home: Callable[[str], _Peer]):
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

    def forget(self, peer: _Peer) -> None:
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

    def __init__(self, peer: _Peer, cut: str, homes: Homes):
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
        self._peer.send(_Sent(self._name, self._cut, self._session, number, parcel))

    # ------------------------------------------------------------------ what the far end says

    def heard(self, told: _Told) -> None:
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
                self._peer.send(_Sent(self._name, self._cut, self._session, number, self._under[number].parcel))
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
            self._peer.send(_Sent(self._name, self._cut, session, self._next, under.parcel))
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
            self._peer.send(_Sent(self._name, self._cut, self._session, next(iter(self._under), self._next)))

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


class _Peer:
    """A connection to one worker of another stage."""

    def __init__(self, path: Path, name: str, gone: Callable[[_Peer], None] | None = None):
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
        self._socket = socket = _context().socket(zmq.DEALER)
        _configure(socket)
        socket.connect(f"ipc://{self._path}")
        self._loop.add_reader(socket.fileno(), self._read)
        spawn(self._ask(), f"line to {self.name}")

    def moved(self) -> None:
        self.moved_at = self._loop.time()

    def send(self, sent: _Sent) -> None:
        if self._socket is None:
            return
        if sent.body is not None:
            self.moved_at = self._loop.time()
        self._socket.send(_encode(sent), zmq.NOBLOCK)
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
                told = _told.decode(self._socket.recv(zmq.NOBLOCK))
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
                if self._gone is not None and _is_free(self._path):
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


# ------------------------------------------------------------------ the far end


class _Far:
    """What comes to this worker."""

    def __init__(self, path: Path, arrivals: Mapping[str, Arrivals], homes: Homes, spawn: Spawn):
        self._path = path
        self._arrivals = arrivals
        self._homes = homes
        self._spawn = spawn
        self._session = os.urandom(8)
        self._socket: zmq.Socket[bytes] | None = None
        self._lock: int | None = None
        self._sources: dict[tuple[bytes, str], _Source] = {}  # by lane and cut
        #: When a parcel came.
        self.moved_at = 0.0
        self._began = asyncio.Event()
        self._ceased = False
        self._looking = False
        self._loop = asyncio.get_running_loop()

    async def open(self) -> None:
        # The worker that had this place may still be at its last events. What comes with a key must not be handled
        # here before that is done there, so we wait for it to be gone; its lock goes with it however it dies.
        self._lock = os.open(f"{self._path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._spawn(self._take_place(), "place among the workers")

    async def _take_place(self) -> None:
        assert self._lock is not None
        while not lock_now(self._lock):  # noqa: ASYNC110 -- the system has no word for when it is free
            await asyncio.sleep(LOOK_S)
        await self._began.wait()
        if self._ceased:
            return
        socket = _context().socket(zmq.ROUTER)
        _configure(socket)
        try:
            socket.bind(f"ipc://{self._path}")
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise FurculaError(f"cannot bind ipc://{self._path}: {error}") from error
        self._socket = socket
        self._loop.add_reader(socket.fileno(), self._read)
        self._loop.call_soon(self._read)

    def begin(self) -> None:
        self._began.set()

    def _read(self) -> None:
        self._looking = False
        until = self._loop.time() + AT_ONCE_S
        while self._loop.time() < until:
            if self._socket is None:
                return
            try:
                identity, raw = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            except ValueError:
                continue  # not two frames: not one of ours
            try:
                self._arrived(identity, _sent.decode(raw))
            except (ValueError, TypeError, RecursionError) as error:
                log.error("a malformed parcel came over %s: %s", self._path, error)
        self._looking = True
        self._loop.call_soon(self._read)

    def _arrived(self, identity: bytes, sent: _Sent) -> None:
        arrivals = self._arrivals.get(sent.cut)
        if arrivals is None:
            log.error("a parcel for %r came, which this flow does not have here; is another version running?", sent.cut)
            return
        if sent.session != self._session:
            if not self._ceased:
                self.tell(identity, _Told("begin", sent.cut, self._session))
            return
        source = self._sources.get((sent.lane, sent.cut))
        if source is None:
            source = self._sources[sent.lane, sent.cut] = _Source(self, identity, arrivals, self._homes)
            self._spawn(source.hand_on(), f"arrivals at {arrivals.cut.target}")
        source.identity = identity
        if sent.body is None:
            source.say_again(sent.number)
        else:
            self.moved_at = self._loop.time()
            source.arrived(sent.number, sent.body)

    def tell(self, identity: bytes, told: _Told) -> None:
        if self._socket is None:
            return
        if told.session == b"":
            told.session = self._session
        with contextlib.suppress(zmq.ZMQError):  # it is gone: whoever sent it to that process sends it again
            self._socket.send_multipart([identity, _encode(told)], zmq.NOBLOCK)
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._read)

    def cease(self) -> None:
        if self._ceased:
            return
        self._ceased = True
        self._began.set()
        for (_, cut), source in self._sources.items():
            source.cease()
            self.tell(source.identity, _Told("cease", cut, b""))

    def idle(self) -> bool:
        return all(source.idle() for source in self._sources.values())

    def dry(self) -> bool:
        return all(source.dry() for source in self._sources.values())

    def close(self) -> None:
        self._ceased = True
        socket, self._socket = self._socket, None
        if socket is not None:
            self._loop.remove_reader(socket.fileno())
            # The last reports are written before the place is given up; else they would be done twice.
            socket.close(linger=1000)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class _Source:
    """One lane as its far end sees it."""

    def __init__(self, far: _Far, identity: bytes, arrivals: Arrivals, homes: Homes):
        self._far = far
        self.identity = identity
        self._cut = arrivals.cut.name
        self._arrivals = arrivals
        self._homes = homes
        self._last = 0
        self._accepted = 0
        self._waiting: deque[tuple[int, Parcel]] = deque()
        self._open = 0
        #: The last reports, should the near end not have heard them.
        self._reports: OrderedDict[int, bytes] = OrderedDict()
        self._news = asyncio.Event()
        self._handing = False
        self._ceased = False

    def arrived(self, number: int, parcel: Parcel) -> None:
        if number != self._last + 1 or self._ceased:
            return  # it is sent again when the near end asks
        self._last = number
        if not self._waiting and not self._handing:
            self._hand(number, parcel)
            return
        self._waiting.append((number, parcel))
        self._news.set()

    def _hand(self, number: int, parcel: Parcel) -> None:
        """Hand it on now; whatever comes until there is room for more waits."""
        wait = self._handed(number, parcel)
        if wait is None:
            self._accept(number)
            return
        self._handing = True
        self._pending = (number, wait)
        self._news.set()

    _pending: tuple[int, Awaitable[None]] | None = None

    async def hand_on(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._pending is not None:
                (number, wait), self._pending = self._pending, None
                await wait
                self._accept(number)
            while self._waiting and not self._ceased:
                number, parcel = self._waiting.popleft()
                again = self._handed(number, parcel)
                if again is not None:
                    await again
                self._accept(number)
            self._handing = False

    def _accept(self, number: int) -> None:
        self._accepted = number
        self._far.tell(self.identity, _Told("accepted", self._cut, b"", number))

    def _handed(self, number: int, parcel: Parcel) -> Awaitable[None] | None:
        self._open += 1
        try:
            arrival = Arrival(parcel, self._arrivals.origin, self._homes, lambda arrival: self._done(number, arrival))
        except InputError as error:
            log.error("%s: what came is no batch of events: %s", self._cut, error)
            self._report(number, b"\xc1")  # no report: the near end fails them all
            return None
        return self._arrivals.entry.push(arrival.events)

    def _done(self, number: int, arrival: Arrival) -> None:
        self._report(number, say_reports(arrival.fates))

    def _report(self, number: int, report: bytes) -> None:
        self._open -= 1
        self._reports[number] = report
        if len(self._reports) > REMEMBERED:
            self._reports.popitem(last=False)
        self._far.tell(self.identity, _Told("report", self._cut, b"", number, report))

    def say_again(self, number: int) -> None:
        """The near end waits for word of this number."""
        if number in self._reports:
            self._far.tell(self.identity, _Told("report", self._cut, b"", number, self._reports[number]))
        self._far.tell(self.identity, _Told("accepted", self._cut, b"", self._accepted))
        if not self._ceased:
            self._far.tell(self.identity, _Told("have", self._cut, b"", self._last))

    def cease(self) -> None:
        self._ceased = True
        self._waiting.clear()  # they are not accepted, so whoever takes our place is sent them

    def idle(self) -> bool:
        return not self._waiting and not self._handing

    def dry(self) -> bool:
        return self.idle() and not self._open


def _is_free(path: Path) -> bool:
    """Has the process gone that had this place? Its lock went with it."""
    try:
        return not is_held(f"{path}.lock")
    except FileNotFoundError:
        return True


def _configure(socket: zmq.Socket[bytes]) -> None:
    for option, value in (
        (zmq.SNDHWM, 0),  # what is under way is limited by windows, so a send never has to wait
        (zmq.RCVHWM, 0),
        (zmq.LINGER, 0),
        (zmq.RECONNECT_IVL, 10),
        (zmq.RECONNECT_IVL_MAX, 100),
        (zmq.MAXMSGSIZE, 128 * 1024 * 1024),
    ):
        socket.setsockopt(option, value)


_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """The context of this process: one that was forked must not use its parent's."""
    found = _contexts.get(os.getpid())
    if found is None:
        found = _contexts[os.getpid()] = zmq.Context()
    return found
