"""`majordomo.serve`: workers for a service; what comes back to the inbox is the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from furcula.codecs import BadFrame
from furcula.codecs import codec as codec_named
from furcula.errors import FurculaError, InputError, ModuleError, Stopped
from furcula.event import Event
from furcula.module import Context, Source
from furcula.modules.majordomo.protocol import (
    DISCONNECT,
    HEARTBEAT,
    INTERVAL,
    LIVENESS,
    READY,
    REPLY,
    REQUEST,
    WORKER,
    check_service,
    from_router,
)
from furcula.modules.received import invalid
from furcula.modules.zmq.dialogue import TIMEOUT, Question, trouble
from furcula.modules.zmq.wire import MAX_MESSAGE, Curve, Wire, check_address
from furcula.options import Duration, Retry, Size

__all__ = ["Serve"]

_BACK_OFF = Retry(delay=Duration(0.1), max_delay=Duration(5))


class Serve(Source):
    """Serve requests for a Majordomo service (MDP/0.1). What comes back to the inbox is the answer.

    A request that fails is answered as by `zmq.reply`. The answer is sent when all that came of the request is settled,
    since the router takes it for the word that the worker is ready for the next; but after `timeout` at the latest, and
    then more than `workers` may be under way. When the router is heard of no more, the worker connects anew, less and
    less often. A stop lets what is under way be answered first.

    Args:
        address: Of the router: tcp://127.0.0.1:5555.
        service: The service's name.
        workers: Requests that may be under way at once: to the router, so many workers.
        codec: What requests and answers hold: json, msgpack, text, binary.
        timeout: Seconds that an answer may take.
        interval: Time between heartbeats; a router that is silent for three of them has gone.
        curve: Encryption: `{server_key: …, public_key: …, secret_key: …}`.
        max_message: Bytes that a request may have.
    """

    inboxes: ClassVar[tuple[str, ...]] = ("inbox",)
    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)
    acknowledges: ClassVar[str] = "request"
    shared: ClassVar[bool] = True

    context: Context

    def __init__(
        self,
        *,
        address: str,
        service: str,
        workers: int = 1,
        codec: str = "json",
        timeout: Duration = TIMEOUT,
        interval: Duration = INTERVAL,
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        check_address(address)
        if workers < 1:
            raise ValueError("workers must be 1 or more")
        if not interval:
            raise ValueError("interval must be more than 0")
        self.address = address
        self.service = check_service(service)
        self.codec = codec_named(codec)
        self.timeout = timeout
        self.interval = interval
        self.curve = curve
        self.max_message = max_message
        self.ceased = False
        self._count = workers
        self._workers: list[_Worker] = []

    def start(self, context: Context) -> None:
        self.context = context
        self._workers = [_Worker(self) for _ in range(self._count)]

    def unready(self) -> str | None:
        """Why no request can come now, or None."""
        if any(worker.connected for worker in self._workers):
            return None
        return f"no router has been heard of at {self.address}"

    def unasked(self, event: Event[Any]) -> None:
        """Nobody waits for this event."""
        raise ModuleError("nobody asked: this event comes from no request")

    def cease(self) -> None:
        self.ceased = True
        for worker in self._workers:
            worker.cease()

    async def stop(self) -> None:
        for worker in self._workers:
            await worker.stop()


class _Worker:
    """One worker: it is ready for a request, or it is at one."""

    def __init__(self, serve: Serve):
        self.connected = False
        self._serve = serve
        self._wire: Wire | None = None
        self._heard = 0.0
        #: Requests that are not answered.
        self._owed = 0
        self._left = False
        self._tries = 0
        self._task = asyncio.get_running_loop().create_task(self._keep(), name="furcula majordomo worker")

    async def _keep(self) -> None:
        """Connect, send heartbeats, and connect anew when none come."""
        serve = self._serve
        while True:
            self._connect()
            while time.monotonic() - self._heard <= LIVENESS * serve.interval:
                await asyncio.sleep(serve.interval)
                self._send(HEARTBEAT)
            if self.connected or not self._tries:
                serve.context.log.warning("nothing is heard of the router at %s; connecting anew", serve.address)
            self.connected = False
            self._tries += 1
            await asyncio.sleep(_BACK_OFF.delay_s(min(self._tries, 20)))

    def _connect(self) -> None:
        if self._wire is not None:
            self._wire.close(linger_ms=0)
        serve = self._serve
        self._wire = Wire(
            "DEALER", serve.address, bind=False, curve=serve.curve, received=self._received,
            max_message=serve.max_message,
        )  # fmt: skip
        self._heard = time.monotonic()
        if not serve.ceased:
            self._send(READY, serve.service)

    def _send(self, command: bytes, *rest: bytes) -> None:
        if self._wire is not None:
            try:
                self._wire.try_send([b"", WORKER, command, *rest])
            except FurculaError as error:
                self._serve.context.log.debug("%s", error)

    def _received(self, messages: list[list[bytes]]) -> None:
        for frames in messages:
            try:
                command, rest = from_router(frames)
            except InputError as error:
                self._serve.context.log.warning("not understood, and dropped: %s", error)
                continue
            self._heard = time.monotonic()
            self.connected = True
            self._tries = 0
            if command == REQUEST:
                self._ask(rest[0], rest[2:])
            elif command == DISCONNECT and not self._serve.ceased:
                self._connect()

    def _ask(self, client: bytes, body: list[bytes]) -> None:
        serve, wire = self._serve, self._wire

        def send(answer: bytes) -> None:
            if wire is self._wire:  # else the router has given the request to another
                self._send(REPLY, client, b"", answer)
            self._owed -= 1
            if serve.ceased:
                self.cease()

        if serve.ceased:
            # It was on its way when we said that we leave; the router gives it to another.
            return
        self._owed += 1
        try:
            if len(body) != 1:
                raise InputError(f"a request has one frame, not {len(body)}")
            data = serve.codec.decode(body[0])
        except InputError as error:
            send(trouble(serve.codec, 400))
            bad = invalid(BadFrame.of(str(error), body[-1]), {})
            with suppress(Stopped):
                serve.context.admit([bad], "invalid")
            return
        reply = _Reply(send, serve.timeout)
        try:
            # One request is under way for each worker, so there is no more to hold back when the flow has no room.
            serve.context.ask(Event(data), Question(reply.put, serve.codec, serve.timeout, reply.settled))
        except Stopped:
            reply.put(trouble(serve.codec, 503))
            reply.settled()

    def cease(self) -> None:
        """Tell the router that this worker leaves: once, and not before every request is answered."""
        if not self._owed and not self._left:
            self._left = True
            self._send(DISCONNECT)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._wire is not None:
            self._wire.close()


class _Reply:
    """An answer that waits until its request is settled, but no longer than the client may be kept waiting."""

    def __init__(self, send: Callable[[bytes], None], timeout_s: float):
        self._send = send
        self._body: bytes | None = None
        self._ripe = False
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._now)

    def put(self, body: bytes) -> None:
        if self._ripe:
            self._send(body)
        else:
            self._body = body

    def settled(self) -> None:
        self._timer.cancel()
        self._now()

    def _now(self) -> None:
        self._ripe = True
        body, self._body = self._body, None
        if body is not None:
            self._send(body)
