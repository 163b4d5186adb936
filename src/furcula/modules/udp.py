"""UDP: listen for datagrams, and send them."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, ClassVar, Final

from furcula.codecs import codec as codec_named
from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import BatchFailed, Context, Module, Source
from furcula.modules.address import Address
from furcula.modules.listening import UdpListener
from furcula.options import Size

__all__ = ["UdpListen", "UdpSend"]

MAX_FRAME: Final = Size("64kB")


class UdpListen(Source):
    """Listen on UDP, and make an event of each datagram.

    UDP cannot make its sender wait: while the flow has no room, 10,000 datagrams are kept, and more are dropped,
    counted and logged. What cannot be read leaves by `invalid`, with its reason. Headers: `peer`.

    Args:
        address: `host:port`, or a port on loopback. Port 0: any free one; see `addresses`.
        codec: What a datagram says: json, msgpack, text, binary.
        max_frame: Bytes that a datagram may have.
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
        max_frame: Size = MAX_FRAME,
        charset: str = "utf-8",
        reuse_port: bool = False,
    ):
        self._address = Address.of(address)
        self._codec = codec_named(codec, charset)
        self._max_frame = max_frame
        self._reuse_port = reuse_port
        self._listener: UdpListener | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port as bound."""
        return self._listener.addresses if self._listener else []

    @property
    def dropped(self) -> int:
        """Datagrams that were dropped because the flow had no room."""
        return self._listener.dropped if self._listener else 0

    async def start(self, context: Context) -> None:
        listener = UdpListener(context, self._address, self._codec.decode, self._max_frame, reuse_port=self._reuse_port)
        await listener.open()
        self._listener = listener

    async def cease(self) -> None:
        if self._listener is not None:
            await self._listener.cease()

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.close()


class UdpSend(Module):
    """Send each event's data as one UDP datagram.

    An event is delivered when the system has taken the datagram. Whether it arrives, nobody tells.

    Args:
        address: `host:port`, or a port on loopback.
        codec: What a datagram says: json, msgpack, text, binary.
        charset: Of text and JSON.
    """

    def __init__(self, *, address: str | int, codec: str = "json", charset: str = "utf-8"):
        self._address = Address.of(address)
        self._codec = codec_named(codec, charset)
        self._socket: socket.socket | None = None
        self._target: Any = None

    async def start(self, context: Context) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_DGRAM)
        except OSError as error:
            raise FurculaError(f"{context.name} cannot send to {self._address}: {error}") from error
        family, kind, protocol, _, self._target = found[0]
        self._socket = socket.socket(family, kind, protocol)
        self._socket.setblocking(False)

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        assert self._socket is not None
        errors: dict[int, BaseException] = {}
        for index, event in enumerate(events):
            try:
                raw = self._codec.encode(event.data)
                try:
                    self._socket.sendto(raw, self._target)
                except (BlockingIOError, InterruptedError):
                    await asyncio.get_running_loop().sock_sendto(self._socket, raw, self._target)
            except ValueError as error:
                errors[index] = error
            except OSError as error:
                errors[index] = self._explained(error, len(raw))
        if errors:
            raise BatchFailed(errors)
        return events

    def _explained(self, error: OSError, size: int) -> OSError:
        if error.errno == errno.EMSGSIZE:
            return OSError(errno.EMSGSIZE, f"{self._address}: {size} bytes are too many for a datagram")
        return OSError(error.errno, f"{self._address}: {error.strerror or error}")

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
