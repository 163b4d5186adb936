"""`majordomo.serve`: workers for a service; what comes back to the inbox is the answer."""

from __future__ import annotations

import asyncio
import time
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

    A request that fails is answered as by `zmq.reply`. When the router is heard of no more, the worker connects anew,
    less and less often. A stop lets what is under way be answered first.

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
        self._busy = False
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
        self._busy = False
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

        if serve.ceased:
            # It was on its way when we said that we leave; the router gives it to another.
            return
        self._busy = True
        try:
            if len(body) != 1:
                raise InputError(f"a request has one frame, not {len(body)}")
            data = serve.codec.decode(body[0])
        except InputError as error:
            send(trouble(serve.codec, 400))
            self._busy = False
            bad = invalid(BadFrame.of(str(error), body[-1]), {})
            with suppress(Stopped):
                serve.context.admit([bad], "invalid")
            return
        try:
            question = Question(send, serve.codec, serve.timeout, self._done)
            # One request is under way for each worker, so there is no more to hold back when the flow has no room.
            serve.context.ask(Event(data), question)
        except Stopped:
            send(trouble(serve.codec, 503))

    def _done(self) -> None:
        self._busy = False
        if self._serve.ceased:
            self._send(DISCONNECT)

    def cease(self) -> None:
        if not self._busy:
            self._send(DISCONNECT)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if self._wire is not None:
            self._wire.close()
