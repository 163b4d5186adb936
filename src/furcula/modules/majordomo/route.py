"""`majordomo.route`: the one in the middle, who knows which worker is there for which service."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, ClassVar, Final

import msgspec

from furcula.codecs import codec as codec_named
from furcula.errors import FurculaError, InputError
from furcula.module import Context, Source
from furcula.modules.majordomo.protocol import (
    CLIENT,
    DISCONNECT,
    HEARTBEAT,
    INTERVAL,
    LIVENESS,
    READY,
    REPLY,
    REQUEST,
    WORKER,
    from_worker,
)
from furcula.modules.zmq.dialogue import trouble
from furcula.modules.zmq.wire import MAX_MESSAGE, Curve, Wire, check_address
from furcula.options import Duration, Size
from furcula.verdict import MAX_DELIVERIES

__all__ = ["Route"]

QUEUE: Final = 1000
EXPIRE: Final = Duration("1m")
#: Services that there may be; a client could name ever new ones.
SERVICES: Final = 1000

_json = codec_named("json")


class _Request(msgspec.Struct, gc=False):
    """A request: who asked for what, until when it is worth handing out, and how often it was."""

    client: bytes
    service: bytes
    body: list[bytes]
    until: float
    deliveries: int = 0


class _Worker:
    """A worker that is there: its service, when it was last heard of, and what it has in hand."""

    def __init__(self, identity: bytes, service: bytes, now: float):
        self.identity = identity
        self.service = service
        self.heard = now
        self.request: _Request | None = None


class _Service:
    """A service: workers that wait for work, longest first, and requests that wait for a worker."""

    def __init__(self) -> None:
        self.idle: deque[_Worker] = deque()
        self.waiting: deque[_Request] = deque()
        self.workers = 0


class Route(Source):
    """Hand requests for a service to the workers that are there for it (the broker of Majordomo, MDP/0.1).

    It begins no events: it is a flow of its own, or stands beside others in one. What a worker had in hand when it was
    heard of no more goes to the next, `max_deliveries` times in all; so a worker may see a request that another has
    done. A service whose queue is full, or whose request found no worker in time, is answered with
    `{"error": {"status": 503, …}}` in JSON. Clients may ask `mmi.service` for a name: 200 if somebody serves it, else
    404.

    When the flow stops, what waits and what still comes is refused with 503 at once; what workers have in hand goes on
    to its clients until all that the flow holds is done, and is refused then.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        interval: Time between heartbeats; a worker that is silent for three of them has gone.
        queue: Requests that may wait for one service.
        expire: How long a request may wait for a worker.
        max_deliveries: To how many workers a request is given, if they go.
        curve: Encryption: `{secret_key: …}`.
        max_message: Bytes that a message may have.
    """

    outboxes: ClassVar[tuple[str, ...]] = ()

    _context: Context
    _wire: Wire

    def __init__(
        self,
        *,
        address: str,
        interval: Duration = INTERVAL,
        queue: int = QUEUE,
        expire: Duration = EXPIRE,
        max_deliveries: int = MAX_DELIVERIES,
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        check_address(address)
        if not interval:
            raise ValueError("interval must be more than 0")
        if queue < 1 or max_deliveries < 1:
            raise ValueError("queue and max_deliveries must be 1 or more")
        self._address = address
        self._interval = interval
        self._queue = queue
        self._expire = expire
        self._max_deliveries = max_deliveries
        self._curve = curve
        self._max_message = max_message
        self._services: dict[bytes, _Service] = {}
        self._workers: dict[bytes, _Worker] = {}
        self._task: asyncio.Task[None] | None = None
        self._ceased = False
        #: Messages that were none, and requests that could not be served.
        self.malformed = 0
        self.refused = 0

    @property
    def address(self) -> str:
        """Where it is, once started; with the port that the system chose for port 0."""
        return self._wire.address if self._task else self._address

    def start(self, context: Context) -> None:
        self._context = context
        self._wire = Wire(
            "ROUTER",
            self._address,
            bind=True,
            curve=self._curve,
            received=self._received,
            options={"ROUTER_MANDATORY": 1, "ROUTER_HANDOVER": 1},
            max_message=self._max_message,
        )
        self._task = asyncio.get_running_loop().create_task(self._watch(), name=f"furcula {context.name} watches")

    # ------------------------------------------------------------------ what comes in

    def _received(self, messages: list[list[bytes]]) -> None:
        for frames in messages:
            try:
                if len(frames) < 4 or frames[1] != b"":
                    raise InputError("a message without identity, empty frame and header")
                if frames[2] == CLIENT:
                    self._from_client(frames[0], frames[3:])
                elif frames[2] == WORKER:
                    self._from_worker(frames[0], frames[3:])
                else:
                    raise InputError(f"the header {frames[2][:20]!r} is not MDP/0.1")
            except InputError as error:
                self.malformed += 1
                if self.malformed == 1:
                    self._context.log.warning("not understood, and dropped: %s", error)

    def _from_client(self, client: bytes, rest: list[bytes]) -> None:
        if len(rest) < 2:
            raise InputError("a client's message without service and body")
        name, body = rest[0], rest[1:]
        if name.startswith(b"mmi."):
            known = self._services.get(body[0])
            code = b"501" if name != b"mmi.service" else b"200" if known is not None and known.workers else b"404"
            self._send([client, b"", CLIENT, name, code])
            return
        request = _Request(client, name, body, time.monotonic() + self._expire)
        if self._ceased:
            self._refuse(request)
            return
        service = self._services.get(name)
        if service is None and len(self._services) < SERVICES:
            service = self._services[name] = _Service()
        if service is None or len(service.waiting) >= self._queue:
            self._refuse(request)
            return
        service.waiting.append(request)
        self._dispatch(service)

    def _from_worker(self, identity: bytes, rest: list[bytes]) -> None:
        command, rest = from_worker(rest)
        worker = self._workers.get(identity)
        if worker is not None:
            worker.heard = time.monotonic()
        if command == READY:
            if worker is not None or rest[0].startswith(b"mmi."):  # it began anew, or means what is ours
                self._forget(identity, tell=True)
                return
            worker = self._workers[identity] = _Worker(identity, rest[0], time.monotonic())
            service = self._services.setdefault(worker.service, _Service())
            service.workers += 1
            self._is_idle(worker, service)
        elif command == DISCONNECT:
            self._forget(identity, tell=False)
        elif worker is None:  # we were started after it: it has to say again what it is for
            self._send([identity, b"", WORKER, DISCONNECT])
        elif command == REPLY:
            request, worker.request = worker.request, None
            if request is not None and request.client == rest[0]:
                self._send([rest[0], b"", CLIENT, worker.service, *rest[2:]])
                self._is_idle(worker, self._services[worker.service])

    # ------------------------------------------------------------------ handing out

    def _is_idle(self, worker: _Worker, service: _Service) -> None:
        service.idle.append(worker)
        self._dispatch(service)

    def _dispatch(self, service: _Service) -> None:
        now = time.monotonic()
        while service.waiting and service.idle:
            request = service.waiting.popleft()
            if request.until < now:
                self._refuse(request)
                continue
            worker = service.idle.popleft()
            request.deliveries += 1
            worker.request = request
            if not self._send([worker.identity, b"", WORKER, REQUEST, request.client, b"", *request.body]):
                self._forget(worker.identity, tell=False)

    def _refuse(self, request: _Request) -> None:
        self.refused += 1
        self._send([request.client, b"", CLIENT, request.service, trouble(_json, 503)])

    def _forget(self, identity: bytes, *, tell: bool) -> None:
        """A worker has gone: what it had in hand is for the next."""
        worker = self._workers.pop(identity, None)
        if tell:
            self._send([identity, b"", WORKER, DISCONNECT])
        if worker is None:
            return
        service = self._services[worker.service]
        service.workers -= 1
        if worker in service.idle:
            service.idle.remove(worker)
        request = worker.request
        if request is None:
            return
        if request.deliveries < self._max_deliveries and not self._ceased:
            service.waiting.appendleft(request)
            self._dispatch(service)
        else:
            self._refuse(request)

    def _send(self, frames: list[bytes]) -> bool:
        try:
            return self._wire.try_send(frames)
        except FurculaError:  # that peer has gone
            return False

    async def _watch(self) -> None:
        """Send heartbeats, and notice who sends none; refuse what nobody was there for in time."""
        while True:
            await asyncio.sleep(self._interval)
            now = time.monotonic()
            for worker in list(self._workers.values()):
                if now - worker.heard > LIVENESS * self._interval:
                    self._context.log.warning("a worker for %s has gone", _shown(worker.service))
                    self._forget(worker.identity, tell=True)
                elif not self._send([worker.identity, b"", WORKER, HEARTBEAT]):
                    self._forget(worker.identity, tell=False)
            for name, service in list(self._services.items()):
                while service.waiting and service.waiting[0].until < now:
                    self._refuse(service.waiting.popleft())
                if not service.workers and not service.waiting:
                    del self._services[name]

    def cease(self) -> None:
        self._ceased = True
        for service in self._services.values():
            while service.waiting:
                self._refuse(service.waiting.popleft())

    async def stop(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        for worker in self._workers.values():
            if worker.request is not None:
                self._refuse(worker.request)
            self._send([worker.identity, b"", WORKER, DISCONNECT])
        self._wire.close()

    def figures(self) -> dict[str, Any]:
        """By service: workers, those that are idle, and requests that wait."""
        return {
            _shown(name): {"workers": one.workers, "idle": len(one.idle), "waiting": len(one.waiting)}
            for name, one in self._services.items()
        }


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
