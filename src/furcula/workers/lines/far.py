"""The far end of a line: hands on what comes, each parcel once, and reports what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Mapping
from pathlib import Path

import zmq

from furcula.engine.crossed import Arrival, Homes, Parcel, say_reports
from furcula.engine.parts import Arrivals, Spawn
from furcula.errors import FurculaError, InputError
from furcula.locks import lock_now
from furcula.workers.lines.wire import AT_ONCE_S, Sent, Told, decode_sent, encode, new_socket

__all__ = ["Far"]

log = logging.getLogger("furcula.workers")

#: Between two looks whether the worker that had our place has gone.
LOOK_S = 0.01
#: Reports that are kept in case they have to be said again.
REMEMBERED = 256


class Far:
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
        socket = new_socket(zmq.ROUTER)
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
                self._arrived(identity, decode_sent(raw))
            except (ValueError, TypeError, RecursionError) as error:
                log.error("a malformed parcel came over %s: %s", self._path, error)
        self._looking = True
        self._loop.call_soon(self._read)

    def _arrived(self, identity: bytes, sent: Sent) -> None:
        arrivals = self._arrivals.get(sent.cut)
        if arrivals is None:
            log.error("a parcel for %r came, which this flow does not have here; is another version running?", sent.cut)
            return
        if sent.session != self._session:
            if not self._ceased:
                self.tell(identity, Told("begin", sent.cut, self._session))
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

    def tell(self, identity: bytes, told: Told) -> None:
        if self._socket is None:
            return
        if told.session == b"":
            told.session = self._session
        with contextlib.suppress(zmq.ZMQError):  # it is gone: whoever sent it to that process sends it again
            self._socket.send_multipart([identity, encode(told)], zmq.NOBLOCK)
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
            self.tell(source.identity, Told("cease", cut, b""))

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

    def __init__(self, far: Far, identity: bytes, arrivals: Arrivals, homes: Homes):
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
        self._far.tell(self.identity, Told("accepted", self._cut, b"", number))

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
        self._far.tell(self.identity, Told("report", self._cut, b"", number, report))

    def say_again(self, number: int) -> None:
        """The near end waits for word of this number."""
        if number in self._reports:
            self._far.tell(self.identity, Told("report", self._cut, b"", number, self._reports[number]))
        self._far.tell(self.identity, Told("accepted", self._cut, b"", self._accepted))
        if not self._ceased:
            self._far.tell(self.identity, Told("have", self._cut, b"", self._last))

    def cease(self) -> None:
        self._ceased = True
        self._waiting.clear()  # they are not accepted, so whoever takes our place is sent them

    def idle(self) -> bool:
        return not self._waiting and not self._handing

    def dry(self) -> bool:
        return self.idle() and not self._open
