"""Listening on TCP and UDP: what `tcp.listen`, `udp.listen` and `syslog.listen` share.

A listener reads, has the bytes decoded, and admits. When the flow has no room, a TCP listener stops reading that
connection, so the peer's own writes begin to wait. UDP has no such way back: a listener keeps a bounded number of
datagrams, then drops, counts and logs.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

from furcula.codecs import BadFrame, Reader
from furcula.errors import FurculaError, InputError, Stopped
from furcula.event import Event
from furcula.module import Context
from furcula.modules.address import Address, peer_name
from furcula.modules.received import admit, admit_both, invalid
from furcula.sockets import BACKLOG, Wanted, is_handed, listening

__all__ = ["TcpListener", "UdpListener", "cannot_listen"]

#: When the flow stops, what was read waits so long for room. A module that is stuck must not hold up the stop.
PATIENCE_S: Final = 2.0


def cannot_listen(context: Context, address: Address | str | int, error: OSError) -> FurculaError:
    if error.errno == errno.EADDRINUSE:
        reason = "it is in use; stop what listens there, or choose another port (0: any free one)"
    elif error.errno in (errno.EACCES, errno.EPERM):
        reason = "that is not permitted; ports below 1024 need a privilege, so choose a higher one"
    else:
        reason = str(error)
    return FurculaError(f"{context.name} cannot listen on {address}: {reason}")


# ------------------------------------------------------------------ TCP


class TcpListener:
    """Accepts connections and admits what they say.

    Args:
        context: Of the module that listens.
        address: Where. Port 0: any free one.
        reader: Makes the reader of one connection.
        reuse_port: Let several processes listen on the same port, the system dealing out connections.
    """

    def __init__(self, context: Context, address: Address, reader: Callable[[], Reader], *, reuse_port: bool = False):
        self.context = context
        self.reader = reader
        self.connections: set[_Connection] = set()
        #: Things that were read and could not be admitted because the flow was stopping.
        self.dropped = 0
        self.ceased = False
        self._wanted = address
        self._reuse_port = reuse_port
        self._servers: list[asyncio.Server] = []

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = Wanted(self.context.name, "tcp", self._wanted.host, self._wanted.port, self._reuse_port)
        try:
            given = await listening(wanted)
            while given:
                server = await loop.create_server(lambda: _Connection(self), sock=given[0], backlog=BACKLOG)
                self._servers.append(server)
                del given[0]
        except OSError as error:
            for server in self._servers:
                server.close()
            raise cannot_listen(self.context, self._wanted, error) from error

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port as bound."""
        return [opened.getsockname()[:2] for server in self._servers for opened in server.sockets]

    async def cease(self) -> None:
        """Accept nothing more and read nothing more. Returns when what was read is admitted."""
        self.ceased = True
        for server in self._servers:
            server.close()
        for connection in self.connections:
            connection.cease()
        if waiting := [connection.waiting for connection in self.connections if connection.waiting is not None]:
            await asyncio.wait(waiting, timeout=PATIENCE_S)

    async def close(self) -> None:
        self.ceased = True
        for connection in list(self.connections):
            connection.close()
        for server in self._servers:
            server.close()
            await server.wait_closed()
        await asyncio.sleep(0)  # transports close their sockets one turn of the loop later
        if self.dropped:
            self.context.log.warning("%d that had been read when the flow stopped were not admitted", self.dropped)


class _Connection(asyncio.Protocol):
    def __init__(self, listener: TcpListener):
        self._listener = listener
        self._reader = listener.reader()
        self._headers: dict[str, Any] = {}
        self._transport: asyncio.Transport | None = None
        self._held: list[Any] = []
        self.waiting: asyncio.Task[None] | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._headers = {"peer": peer_name(transport.get_extra_info("peername"))}
        self._listener.connections.add(self)
        if self._listener.ceased:  # it was accepted in the turn of the loop in which we ceased
            transport.close()

    def data_received(self, data: bytes) -> None:
        self._take(self._reader.feed(data))

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._listener.connections.discard(self)

    def _end(self, error: Exception | None) -> None:
        """The stream has ended. Half a value left by a connection that broke is not taken for a whole one."""
        if self._ended or self._listener.ceased:
            return
        self._ended = True
        rest = self._reader.end()
        if error is not None:
            rest = [BadFrame(f"the connection broke inside it: {error}", _shown(item)) for item in rest]
        self._take(rest)

    def _take(self, items: list[Any]) -> None:
        if not items:
            return
        if self.waiting is not None:
            self._held += items
            return
        waits = self._admit(items)
        if waits is not None and self._transport is not None:
            self._transport.pause_reading()
            self.waiting = asyncio.ensure_future(self._wait(waits))

    def _admit(self, items: list[Any]) -> Awaitable[None] | None:
        try:
            return admit(self._listener.context, items, self._headers)
        except Stopped:
            self._listener.dropped += len(items)
            self._listener.ceased = True
            self.close()
            return None

    async def _wait(self, waits: Awaitable[None] | None) -> None:
        while waits is not None:
            # The shield: what we wait for may be shared, and must not be cancelled with us.
            await asyncio.shield(waits)
            items, self._held = self._held, []
            waits = self._admit(items) if items else None
        self.waiting = None
        if self._transport is not None and not self._transport.is_closing() and not self._listener.ceased:
            self._transport.resume_reading()

    def cease(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def close(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
        if self._transport is not None:
            self._transport.abort()


def _shown(item: Any) -> bytes:
    if isinstance(item, BadFrame):
        return item.raw
    return item if isinstance(item, bytes) else str(item).encode("utf-8", "backslashreplace")


# ------------------------------------------------------------------ UDP


class UdpListener:
    """Receives datagrams and admits what they say.

    It reads the socket itself, many datagrams for each turn of the loop, where asyncio's transport would take one.

    Args:
        context: Of the module that listens.
        address: Where. Port 0: any free one.
        decode: What a datagram says; raises InputError.
        max_message: Bytes that a datagram may have.
        reuse_port: Let several processes listen on the same port.
        pending: So many datagrams are kept while the flow has no room.
    """

    #: Datagrams read in one turn of the loop: about a millisecond's work.
    TURN = 200

    def __init__(
        self,
        context: Context,
        address: Address,
        decode: Callable[[bytes], Any],
        max_message: int,
        *,
        reuse_port: bool = False,
        pending: int = 10_000,
    ):
        self.context = context
        #: Datagrams that were dropped because the flow had no room, or was stopping.
        self.dropped = 0
        self._wanted = address
        self._decode = decode
        self._max = max_message
        self._reuse_port = reuse_port
        self._most = pending
        self._pending: deque[tuple[bytes, Any]] = deque()
        self._waiting: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._ceased = False

    async def open(self) -> None:
        wanted = Wanted(self.context.name, "udp", self._wanted.host, self._wanted.port, self._reuse_port)
        try:
            opened, *more = await listening(wanted)
        except OSError as error:
            raise cannot_listen(self.context, self._wanted, error) from error
        for other in more:  # systemd has two of this name
            other.close()
        self._socket = opened
        asyncio.get_running_loop().add_reader(opened.fileno(), self._readable)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port as bound."""
        return [self._socket.getsockname()[:2]] if self._socket and self._socket.fileno() >= 0 else []

    def _readable(self) -> bool:
        """Read what is there, up to a turn's worth. Returns: was it as much as that?"""
        assert self._socket is not None
        received: list[tuple[bytes, Any]] = []
        receive = self._socket.recvfrom
        try:
            while len(received) < self.TURN:
                received.append(receive(65536))
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:  # what an earlier answer of the system's met; the socket goes on
            self.context.log.debug("receiving: %s", error)
        full = len(received) == self.TURN
        if self._waiting is None:
            waits = self._admit(received) if received else None
            if waits is not None:
                self._waiting = asyncio.ensure_future(self._wait(waits))
        else:
            room = self._most - len(self._pending)
            self._pending.extend(received[:room])
            self._drop(len(received) - room)
        return full

    def _drop(self, count: int) -> None:
        if count > 0:
            before, self.dropped = self.dropped, self.dropped + count
            if before == 0 or before // 10_000 != self.dropped // 10_000:
                self.context.log.warning("the flow has no room: %d datagrams dropped so far", self.dropped)

    def _admit(self, received: list[tuple[bytes, Any]]) -> Awaitable[None] | None:
        good: list[Event[Any]] = []
        bad: list[Event[Any]] = []
        for raw, name in received:
            headers = {"peer": peer_name(name)}
            if len(raw) > self._max:
                bad.append(invalid(BadFrame.of(f"longer than {self._max} bytes", raw), headers))
                continue
            try:
                good.append(Event(self._decode(raw), headers))
            except InputError as error:
                bad.append(invalid(BadFrame.of(str(error), raw), headers))
        try:
            return admit_both(self.context, good, bad)
        except Stopped:
            self._drop(len(received))
            return None

    async def _wait(self, waits: Awaitable[None] | None) -> None:
        while True:
            if waits is not None:
                await asyncio.shield(waits)
            if not self._pending:
                break
            turn = [self._pending.popleft() for _ in range(min(self.TURN, len(self._pending)))]
            waits = self._admit(turn)
            if waits is None:
                await asyncio.sleep(0)
        self._waiting = None

    async def cease(self) -> None:
        """Read what has arrived, and no more. Returns when it is admitted."""
        if self._ceased or self._socket is None:
            return
        self._ceased = True
        for _ in range(self._most // self.TURN):
            if not self._readable():
                break
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if is_handed():  # others have the same port; the system would go on dealing out to this socket
            self._socket.close()
        if self._waiting is not None:
            await asyncio.wait([self._waiting], timeout=PATIENCE_S)

    async def close(self) -> None:
        if self._socket is None:
            return
        if not self._ceased:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if self._waiting is not None:
            self._waiting.cancel()
            self._drop(len(self._pending))
        self._socket.close()
        self._socket = None
