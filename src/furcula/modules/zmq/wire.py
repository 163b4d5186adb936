"""One 0mq socket on the event loop.

The loop watches the socket's descriptor. That tells only that something has changed, so each time the socket is read
until it is empty; and a send may use up the news of something to read, so after a send it is looked at too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from furcula.errors import ConfigurationError, FurculaError, MissingExtra
from furcula.options import Secret, Size

if TYPE_CHECKING:
    import zmq

__all__ = ["MAX_MESSAGE", "Curve", "Wire", "check_address", "zmq_library"]

MAX_MESSAGE: Final = Size("16MB")
#: Messages that are handed over together.
AT_ONCE: Final = 256
#: Milliseconds that closing waits for what was sent.
LINGER_MS: Final = 5000


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Encryption and proof of who one is (CURVE). All keys are Z85 text of 40 characters, as `zmq.curve_keypair` makes.

    Attributes:
        server_key: Of who connects: the public key of whoever binds.
        public_key: Of who connects: its own public key.
        secret_key: Its own secret key; of who binds, the one that belongs to what others know as `server_key`.
    """

    secret_key: Secret
    public_key: str | None = None
    server_key: str | None = None

    def __post_init__(self) -> None:
        for name in ("secret_key", "public_key", "server_key"):
            value = getattr(self, name)
            if value is not None and len(value) != 40:
                raise ValueError(f"curve.{name}: a key has 40 characters")
        if (self.public_key is None) != (self.server_key is None):
            raise ValueError(
                "curve: who connects gives server_key, public_key and secret_key; who binds secret_key only"
            )


def zmq_library() -> Any:
    """pyzmq.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import zmq
    except ImportError:
        raise MissingExtra("0mq", "zmq") from None
    return zmq


def check_address(address: str) -> None:
    """Raises ValueError if this is no address of a 0mq socket."""
    scheme, found, rest = address.partition("://")
    if found and rest and scheme in ("ipc", "inproc"):
        return
    if found and scheme == "tcp":
        try:
            parts = urlsplit(address.replace("://*", "://0.0.0.0"))
            if parts.hostname and parts.port is not None and not parts.path:
                return
        except ValueError:
            pass
    raise ValueError(f"{address!r} is no 0mq address; write tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name")


class Wire:
    """A socket.

    Args:
        kind: Its type, as in `zmq`: `PUSH`, `ROUTER`, ...
        address: Where.
        bind: Be there, and wait for peers; else connect to who is there or will be.
        curve: Encryption.
        received: Called with the messages that came together, each a list of frames. None: it only sends.
        options: Further socket options, by their name in `zmq`.
        max_message: A peer that sends a larger frame is disconnected.

    Raises:
        FurculaError: The address cannot be bound.
    """

    def __init__(
        self,
        kind: str,
        address: str,
        *,
        bind: bool,
        curve: Curve | None = None,
        received: Callable[[list[list[bytes]]], None] | None = None,
        options: dict[str, Any] | None = None,
        max_message: int = MAX_MESSAGE,
    ):
        self._zmq = library = zmq_library()
        self._received = received
        self._closed = False
        self._paused = False
        self._looking = False
        self._writable: asyncio.Future[None] | None = None
        self._context: Any = library.Context.instance()
        self._socket: zmq.Socket[bytes] = self._context.socket(getattr(library, kind))
        try:
            self._set_up(address, bind, curve, {"MAXMSGSIZE": max_message, **(options or {})})
        except BaseException:
            self._socket.close(linger=0)
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._look)
        self._soon()

    def _set_up(self, address: str, bind: bool, curve: Curve | None, options: dict[str, Any]) -> None:
        library, socket = self._zmq, self._socket
        for name, value in options.items():
            socket.setsockopt(getattr(library, name), value)
        if address.startswith("tcp://["):
            socket.setsockopt(library.IPV6, 1)
        if curve is not None:
            if bind == (curve.server_key is not None):
                raise ConfigurationError(
                    "curve: who binds gives secret_key only" if bind else "curve: who connects needs server_key too"
                )
            socket.setsockopt(library.CURVE_SECRETKEY, curve.secret_key.reveal().encode())
            if bind:
                socket.setsockopt(library.CURVE_SERVER, 1)
            else:
                assert curve.server_key is not None
                assert curve.public_key is not None
                socket.setsockopt(library.CURVE_SERVERKEY, curve.server_key.encode())
                socket.setsockopt(library.CURVE_PUBLICKEY, curve.public_key.encode())
        try:
            (socket.bind if bind else socket.connect)(address)
        except library.ZMQError as error:
            verb = "listened on" if bind else "connected to"
            raise FurculaError(f"{address} cannot be {verb}: {str(error).lower()}") from None

    @property
    def address(self) -> str:
        """Where it is, with the port that the system chose for port 0 (or `*`)."""
        return self._socket.getsockopt_string(self._zmq.LAST_ENDPOINT)

    def subscribe(self, topic: bytes) -> None:
        """Receive what begins with this. For SUB."""
        self._socket.setsockopt(self._zmq.SUBSCRIBE, topic)

    # ------------------------------------------------------------------ sending

    def try_send(self, frames: list[bytes]) -> bool:
        """Hand a message to the socket, if it has room now.

        Raises:
            FurculaError: A ROUTER has no such peer.
        """
        try:
            self._socket.send_multipart(frames, self._zmq.NOBLOCK)
        except self._zmq.Again:
            return False
        except self._zmq.ZMQError as error:
            raise FurculaError(str(error)) from None
        finally:
            self._soon()
        return True

    async def send(self, frames: list[bytes], timeout_s: float | None = None) -> bool:
        """Hand a message to the socket; wait for room, at most so long. Returns whether it was taken."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.try_send(frames):
                    if self._writable is None or self._writable.done():
                        self._writable = self._loop.create_future()
                    await asyncio.shield(self._writable)
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------------ receiving

    def pause(self) -> None:
        """Receive nothing for now: peers have to wait."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._soon()

    def take(self) -> list[list[bytes]]:
        """What can be received at once; for who has paused it."""
        messages: list[list[bytes]] = []
        try:
            while len(messages) < AT_ONCE:
                messages.append(self._socket.recv_multipart(self._zmq.NOBLOCK))
        except self._zmq.Again:
            pass
        return messages

    def _soon(self) -> None:
        if not self._looking and not self._closed:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        if self._closed:
            return
        events = int(self._socket.getsockopt(self._zmq.EVENTS))
        if events & self._zmq.POLLOUT and self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if not events & self._zmq.POLLIN or self._received is None or self._paused:
            return
        messages = self.take()
        if len(messages) == AT_ONCE:
            self._soon()
        if messages:
            self._received(messages)

    def close(self, linger_ms: int = LINGER_MS) -> None:
        """Close, in the background: what was sent still goes out, for so long; then an address is free again."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close(linger=linger_ms)
            if self._writable is not None and not self._writable.done():
                self._writable.cancel()
