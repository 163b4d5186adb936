"""0mq both ways: answer requests (ROUTER), and ask (one DEALER for each request under way).

A request that fails is answered too, or its client would wait for ever: with `{"error": {"status": 503, "title": …}}`
in the codec of the answers (in JSON, where that has no mappings). `zmq.request` makes a failure of such an answer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from furcula.asking import Asker
from furcula.codecs import BadFrame, Codec
from furcula.codecs import codec as codec_named
from furcula.errors import FurculaError, InputError, ModuleError, Stopped
from furcula.event import Event, Failure
from furcula.module import Context, Module, Source
from furcula.modules.received import invalid
from furcula.modules.sending import Refused, Unavailable
from furcula.modules.zmq.wire import MAX_MESSAGE, Curve, Wire, check_address
from furcula.options import Duration, Size
from furcula.receipt import Slot
from furcula.statuses import title_of

__all__ = ["Pool", "Question", "Reply", "Request", "checked_answer", "trouble"]

TIMEOUT: Final = Duration("30s")
#: Requests under way before more are left unread.
MOST: Final = 1000

_json = codec_named("json")
#: Why a request was dropped, where that has a status of its own.
_DROPPED: Final = {"overflow": 503, "throttled": 429, "unconnected": 501, "abandoned": 503}


class Question(Asker):
    """One request, until it is answered.

    Args:
        send: Sends the answer's body.
        codec: What answers are written in.
        done: Called once when all of the request is settled.
    """

    __slots__ = ("_answered", "_codec", "_done", "_send", "_timer")

    def __init__(self, send: Callable[[bytes], None], codec: Codec, timeout_s: float, done: Callable[[], None]) -> None:
        super().__init__()
        self._send = send
        self._codec = codec
        self._done = done
        self._answered = False
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._too_late)

    def take(self, reply: Event[Any]) -> bool:
        if reply.failures and "status" not in reply.headers:
            self._say(trouble(self._codec, _status(reply.failures[-1])))
        else:
            self._say(self._codec.encode(reply.data))
        return True

    def settled(self, slot: Slot) -> None:
        if not self._answered:
            if slot.fate == "delivered":
                self._say(_encoded(self._codec, None))
            elif slot.fate == "dropped":
                self._say(trouble(self._codec, _DROPPED.get(slot.reason, 404)))
            else:
                failure = slot.failure
                self._say(trouble(self._codec, _status(failure) if isinstance(failure, Failure) else 500))
        self._timer.cancel()
        self._done()

    def _too_late(self) -> None:
        if not self._answered:
            self.over = True
            self._say(trouble(self._codec, 504))

    def _say(self, body: bytes) -> None:
        self._answered = True
        self._timer.cancel()
        self._send(body)


def _status(failure: Failure) -> int:
    if failure.status is not None:
        return failure.status
    return 503 if failure.retryable else 500


def trouble(codec: Codec, status: int) -> bytes:
    """The answer to a request that failed."""
    return _encoded(codec, {"error": {"status": status, "title": title_of(status)}})


def _encoded(codec: Codec, data: Any) -> bytes:
    try:
        return codec.encode(data)
    except ValueError:  # text and bytes have no mappings
        return _json.encode(data)


class Reply(Source):
    """Answer requests (0mq ROUTER, for clients with REQ or DEALER). What comes back to the inbox is the answer.

    A request that fails is answered with `{"error": {"status": …, "title": …}}`, as is one without an answer in time
    (504). One that is delivered without an answer is answered with null. A request that cannot be read leaves by
    `invalid`, and is answered with status 400.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        bind: Be there for clients to connect to; else connect.
        codec: What requests and answers hold: json, msgpack, text, binary.
        timeout: Seconds that an answer may take.
        curve: Encryption, as for `zmq.pull`.
        max_message: Bytes that a request may have; a peer that sends more is disconnected.
    """

    inboxes: ClassVar[tuple[str, ...]] = ("inbox",)
    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)
    acknowledges: ClassVar[str] = "request"

    _context: Context

    def __init__(
        self,
        *,
        address: str,
        bind: bool = True,
        codec: str = "json",
        timeout: Duration = TIMEOUT,
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        check_address(address)
        self._address = address
        self._bind = bind
        self._codec = codec_named(codec)
        self._timeout = timeout
        self._curve = curve
        self._max_message = max_message
        self._wire: Wire | None = None
        self._open = 0
        self._ceased = False
        self._waiting: asyncio.Task[None] | None = None
        self._less = asyncio.Event()

    @property
    def address(self) -> str:
        """Where it is, once started; with the port that the system chose for port 0."""
        return self._wire.address if self._wire else self._address

    def start(self, context: Context) -> None:
        self._context = context
        self._wire = Wire(
            "ROUTER",
            self._address,
            bind=self._bind,
            curve=self._curve,
            received=self._received,
            options={"ROUTER_MANDATORY": 1},
            max_message=self._max_message,
        )

    def _received(self, messages: list[list[bytes]]) -> None:
        waits: list[Awaitable[None]] = []
        for frames in messages:
            wait = self._ask(frames)
            if wait is not None:
                waits.append(wait)
        if (waits or self._open >= MOST) and self._wire is not None and not self._ceased:
            self._wire.pause()
            self._waiting = asyncio.ensure_future(self._wait(waits))

    async def _wait(self, waits: list[Awaitable[None]]) -> None:
        for wait in waits:
            await wait
        while self._open >= MOST:
            self._less.clear()
            await self._less.wait()
        if self._wire is not None:
            self._wire.resume()

    def _ask(self, frames: list[bytes]) -> Awaitable[None] | None:
        try:
            end = frames.index(b"", 1) + 1
        except ValueError:
            end = 1  # a DEALER that leaves the empty frame out
        envelope, rest = frames[:end], frames[end:]

        def send(body: bytes) -> None:
            self._send([*envelope, body])

        if self._ceased:
            send(trouble(self._codec, 503))
            return None
        try:
            if len(rest) != 1:
                raise InputError(f"a request has one frame behind its envelope, not {len(rest)}")
            data = self._codec.decode(rest[0])
        except InputError as error:
            send(trouble(self._codec, 400))
            try:
                return self._context.admit([invalid(BadFrame.of(str(error), frames[-1]), {})], "invalid")
            except Stopped:
                return None
        self._open += 1
        try:
            return self._context.ask(Event(data), Question(send, self._codec, self._timeout, self._done))
        except Stopped:
            self._open -= 1
            send(trouble(self._codec, 503))
            return None

    def _done(self) -> None:
        self._open -= 1
        self._less.set()

    def _send(self, frames: list[bytes]) -> None:
        if self._wire is None:
            return
        try:
            if not self._wire.try_send(frames):
                self._context.log.warning("an answer is lost: its client does not read")
        except FurculaError as error:  # it has left
            self._context.log.debug("an answer is lost: %s", error)

    def unasked(self, event: Event[Any]) -> None:
        """Nobody waits for this event."""
        raise ModuleError("nobody asked: this event comes from no request")

    async def cease(self) -> None:
        self._ceased = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.cancel()
            await asyncio.wait([self._waiting])
        if self._wire is not None:
            self._wire.resume()  # who asks now is told that it is too late

    def stop(self) -> None:
        if self._wire is not None:
            self._wire.close()


# ------------------------------------------------------------------ asking


class _Line:
    """One socket of a pool, and who waits for an answer over it.

    Attributes:
        envelope: What stands before the answer that is waited for.
        strange: Messages that were not that answer.
    """

    def __init__(self, make: Callable[[Callable[[list[list[bytes]]], None]], Wire]):
        self.envelope: list[bytes] = []
        self.strange = 0
        self._answer: asyncio.Future[list[bytes]] | None = None
        self.wire = make(self._received)

    def expect(self, envelope: list[bytes]) -> asyncio.Future[list[bytes]]:
        self.envelope, self.strange = envelope, 0
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def _received(self, messages: list[list[bytes]]) -> None:
        for frames in messages:
            count = len(self.envelope)
            if self._answer is None or self._answer.done() or frames[:count] != self.envelope:
                self.strange += 1
            else:
                self._answer.set_result(frames[count:])


class Pool:
    """Sockets for requests under way, one each: a late answer cannot be taken for another request's.

    Args:
        make: Makes a socket that hands what it receives to the function given.
        correlate: Put a frame before each request that its answer brings back, as 0mq has it for envelopes (and for
            REQ_CORRELATE): so a second answer to one request is not taken for the answer to the next. What the peer
            would not bring back tells nothing: without it, a socket that received what nobody waits for is given up.
        reuse: A socket may be used for several requests, one after the other.
    """

    def __init__(
        self,
        make: Callable[[Callable[[list[list[bytes]]], None]], Wire],
        *,
        correlate: bool,
        reuse: bool = True,
    ):
        self._make = make
        self._correlate = correlate
        self._reuse = reuse
        self._idle: list[_Line] = []
        self._all: set[_Line] = set()

    async def ask(self, frames: list[bytes], timeout_s: float, where: str) -> list[bytes]:
        """Send a request, and wait for the answer.

        Raises:
            Unavailable: There was none in time.
        """
        line = self._idle_line()
        envelope = [os.urandom(8).hex().encode()] if self._correlate else []
        answer = line.expect(envelope)
        try:
            async with asyncio.timeout(timeout_s):
                if not line.wire.try_send([*envelope, *frames]):
                    await line.wire.send([*envelope, *frames])
                return await answer
        except TimeoutError:
            strange = f"; {line.strange} that came did not answer it" if line.strange else ""
            raise Unavailable(f"no answer from {where} within {timeout_s:g} s{strange}") from None
        finally:
            if self._reuse and answer.done() and not answer.cancelled():
                self._idle.append(line)
            else:  # an answer may still come; nobody will be there
                self._give_up(line)

    def _idle_line(self) -> _Line:
        while self._idle:
            line = self._idle.pop()
            if self._correlate or not line.strange:
                return line
            self._give_up(line)
        line = _Line(self._make)
        self._all.add(line)
        return line

    def _give_up(self, line: _Line) -> None:
        self._all.discard(line)
        line.wire.close(linger_ms=0)

    def close(self) -> None:
        for line in self._all:
            line.wire.close(linger_ms=0)


def checked_answer(data: Any, where: str) -> Any:
    """The answer, unless it says that the request failed.

    Raises:
        Unavailable: It may succeed later.
        Refused: It will not.
    """
    if isinstance(data, dict) and len(data) == 1 and isinstance(error := data.get("error"), dict):
        status = error.get("status")
        if isinstance(status, int):
            kind = Unavailable if status in (408, 425, 429, 503, 504) else Refused
            raise kind(f"{where} answered {status} {error.get('title', '')}".rstrip())
    return data


class Request(Module):
    """Ask a peer that replies (0mq REP or ROUTER, as `zmq.reply`); the answer becomes the event's data.

    Give it a `concurrency` to have several requests under way. A request without an answer in time fails, worth another
    try; the peer may have seen it all the same.

    A frame goes before the empty one of each request, and the peer brings it back with the answer: REP does so by
    itself, and a ROUTER that takes all up to the empty frame for the envelope. So a peer that answers twice confuses
    nobody.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        codec: What requests and answers hold: json, msgpack, text, binary.
        timeout: Seconds that an answer may take.
        correlate: Put that frame before a request. False, for a ROUTER that expects its peers to be plain REQ: each
            request has a connection of its own instead, which takes longer.
        curve: Encryption: `{server_key: …, public_key: …, secret_key: …}`.
        max_message: Bytes that an answer may have.
    """

    def __init__(
        self,
        *,
        address: str,
        codec: str = "json",
        timeout: Duration = TIMEOUT,
        correlate: bool = True,
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        check_address(address)
        self._address = address
        self._codec = codec_named(codec)
        self._timeout = timeout
        self._curve = curve
        self._max_message = max_message
        self._pool = Pool(self._wire, correlate=correlate, reuse=correlate)

    def _wire(self, received: Callable[[list[list[bytes]]], None]) -> Wire:
        return Wire(
            "DEALER", self._address, bind=False, curve=self._curve, received=received, max_message=self._max_message
        )

    async def process(self, event: Event[Any]) -> Event[Any]:
        body = self._codec.encode(event.data)
        frames = await self._pool.ask([b"", body], self._timeout, self._address)
        if len(frames) < 2 or frames[0] != b"":
            raise InputError(f"the answer of {self._address} has no empty frame and body, but {len(frames)} frame(s)")
        event.data = checked_answer(self._codec.decode(frames[1]), self._address)
        return event

    def stop(self) -> None:
        self._pool.close()
