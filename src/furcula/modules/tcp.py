"""TCP: listen for values, and send them."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final, cast

from furcula.codecs import Framing, Reader
from furcula.codecs import codec as codec_named
from furcula.event import Event
from furcula.module import BatchFailed, Context, Module, Source
from furcula.modules.address import Address
from furcula.modules.encoding import encode_each
from furcula.modules.listening import TcpListener
from furcula.options import Duration, Size

__all__ = ["TcpListen", "TcpSend"]

MAX_FRAME: Final = Size("1MB")
TIMEOUT: Final = Duration(10)


class TcpListen(Source):
    """Listen on TCP, and make an event of each value that a connection sends.

    When the flow has no room, the connection is not read, so its sender waits. What cannot be read leaves by `invalid`,
    with its reason; the connection goes on. Headers: `peer`.

    Args:
        address: `host:port`, or a port on loopback. Port 0: any free one; see `addresses`.
        codec: What a value looks like: json, msgpack, text, binary.
        framing: Where it ends: lines, {delimiter: ";"}, length-prefix or {length-prefix: 2}, none (all of it).
        max_frame: Bytes that a value may have.
        charset: Of text and JSON.
        reuse_port: Let several processes listen on the same port.
    """

    shared: ClassVar[bool] = True
    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)

    def __init__(
        self,
        *,
        address: str | int,
        codec: str = "json",
        framing: str | dict[str, Any] = "lines",
        max_frame: Size = MAX_FRAME,
        charset: str = "utf-8",
        reuse_port: bool = False,
    ):
        self._address = Address.of(address)
        self._codec = codec_named(codec, charset)
        self._framing = Framing.of(framing)
        self._max_frame = max_frame
        self._reuse_port = reuse_port
        self._listener: TcpListener | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port as bound."""
        return self._listener.addresses if self._listener else []

    async def start(self, context: Context) -> None:
        listener = TcpListener(context, self._address, self._reader, reuse_port=self._reuse_port)
        await listener.open()
        self._listener = listener

    def _reader(self) -> Reader:
        return Reader.of(self._framing.framer(self._max_frame), self._codec)

    async def cease(self) -> None:
        if self._listener is not None:
            await self._listener.cease()

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.close()


class TcpSend(Module):
    """Send each event's data over one TCP connection, opened when first needed.

    An event is delivered when the system has taken all its bytes; TCP itself tells no more, so what a peer lost after
    that is lost. On a connection that has broken, a batch is sent once more over a new one: the peer may see some of it
    twice. Give the module a `retry` to wait for a peer that is down.

    Args:
        address: `host:port`, or a port on loopback.
        codec: What a value looks like: json, msgpack, text, binary.
        framing: Where it ends: lines, {delimiter: ";"}, length-prefix or {length-prefix: 2}, none.
        timeout: Seconds that connecting, or sending a batch, may take.
        charset: Of text and JSON.
    """

    def __init__(
        self,
        *,
        address: str | int,
        codec: str = "json",
        framing: str | dict[str, Any] = "lines",
        timeout: Duration = TIMEOUT,
        charset: str = "utf-8",
    ):
        self._address = Address.of(address)
        self._codec = codec_named(codec, charset)
        self._framing = Framing.of(framing)
        self._timeout = timeout
        self._line: _Line | None = None
        self._lock = asyncio.Lock()  # one batch at a time, also where the module's concurrency is above 1

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        frames, errors = encode_each([event.data for event in events], self._codec, self._framing)
        if frames:
            try:
                async with self._lock:
                    await self._send(b"".join(frames))
            except (OSError, TimeoutError) as error:
                failure = ConnectionError(f"{self._address}: {_reason(error, self._timeout)}")
                raise BatchFailed(dict.fromkeys(range(len(events)), failure) | errors) from error
        if errors:
            raise BatchFailed(errors)
        return events

    async def _send(self, raw: bytes) -> None:
        line = self._line
        if line is not None:
            try:
                await self._write(line, raw)
                return
            except TimeoutError:
                raise
            except OSError:  # it broke while we had nothing to say; once more over a new one
                self._hang_up()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            _, line = await loop.create_connection(_Line, self._address.host, self._address.port)
        self._line = line
        await self._write(line, raw)

    async def _write(self, line: _Line, raw: bytes) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await line.write(raw)
        except BaseException:  # part of a frame may be out, so nothing more can be said on this connection
            self._hang_up()
            raise

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    async def stop(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.finish()
            try:
                async with asyncio.timeout(self._timeout):
                    await line.gone
            except (TimeoutError, OSError):
                line.close()
                await asyncio.sleep(0)


def _reason(error: BaseException, timeout: Duration) -> str:
    return f"no answer within {float(timeout):g} s" if isinstance(error, TimeoutError) else str(error)


class _Line(asyncio.Protocol):
    """A connection that is only written to. `write` returns when the system has taken every byte."""

    def __init__(self) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._room: asyncio.Future[None] | None = None
        self._error: OSError | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # With no room at all in asyncio's own buffer, "there is room" means "the system has it".
        self._transport.set_write_buffer_limits(high=0)

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def eof_received(self) -> None:
        self._error = ConnectionResetError("the peer closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._error = exc if isinstance(exc, OSError) else ConnectionResetError("the peer closed the connection")
        if self._room is not None and not self._room.done():
            self._room.set_exception(self._error)
        if not self.gone.done():
            self.gone.set_result(None)

    async def write(self, raw: bytes) -> None:
        if self._error is not None:
            raise self._error
        assert self._transport is not None
        self._transport.write(raw)
        if self._room is not None:
            await self._room

    def finish(self) -> None:
        """Close once all is out."""
        if self._transport is not None:
            self._transport.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
