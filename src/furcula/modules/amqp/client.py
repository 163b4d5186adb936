"""A connection to an AMQP broker. The one file that makes it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote

import msgspec

from furcula.errors import MissingExtra
from furcula.modules.endpoint import Endpoint, Tls
from furcula.options import Secret

try:
    import aio_pika
    from aio_pika.abc import AbstractChannel, AbstractConnection
    from aio_pika.exceptions import AMQPConnectionError, AMQPError, ChannelInvalidStateError
except ImportError:
    raise MissingExtra("a module of AMQP", "amqp") from None

__all__ = ["BROKEN", "Declare", "DeclareExchange", "Session", "connect", "endpoint_of"]

#: What says that a connection or its channel does not work any more.
BROKEN: Final = (OSError, EOFError, AMQPError, ChannelInvalidStateError)


class Declare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a queue is made where it does not exist. One that exists otherwise is an error.

    Attributes:
        durable: It survives a restart of the broker.
        exclusive: It is this connection's only, and ends with it.
        auto_delete: It ends with its last consumer.
        arguments: `{x-queue-type: quorum, x-dead-letter-exchange: dead}` and the like.
    """

    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: dict[str, Any] = {}


class DeclareExchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an exchange is made where it does not exist.

    Attributes:
        type: direct, fanout, topic or headers.
        durable: It survives a restart of the broker.
        auto_delete: It ends with its last queue.
        arguments: `{alternate-exchange: …}` and the like.
    """

    type: Literal["direct", "fanout", "topic", "headers"] = "direct"
    durable: bool = True
    auto_delete: bool = False
    arguments: dict[str, Any] = {}


class Session:
    """A connection and its channel."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel):
        self.connection = connection
        self.channel = channel
        #: Set once the connection or the channel is gone.
        self.ended = False
        #: What its user keeps with it.
        self.arrivals: Any = None
        self.queue: Any = None
        self.consumer = ""
        self.exchange: Any = None

    async def close(self) -> None:
        self.ended = True
        await self.connection.close()


def endpoint_of(url: str, user: str | None, password: Secret | None) -> Endpoint:
    return Endpoint.of(url, {"amqp": 5672, "amqps": 5671}, secure=frozenset(("amqps",)), user=user, password=password)


async def connect(
    endpoint: Endpoint,
    *,
    tls: Tls | None,
    folder: Path,
    timeout_s: float,
    lost: Callable[[BaseException | str | None], None],
    returned: bool = False,
) -> Session:
    """Connect once, and open a channel with publisher confirms.

    Args:
        returned: A mandatory message that nobody could be given raises.
    """
    secure = tls is not None or endpoint.secure
    try:
        connection = await aio_pika.connect(
            host=endpoint.host,
            port=endpoint.port,
            login=endpoint.user or "guest",
            password=endpoint.password.reveal() if endpoint.password is not None else "guest",
            virtualhost=unquote(endpoint.path[1:]) or "/",
            ssl=secure,
            ssl_context=(tls or Tls()).context(folder) if secure else None,
            timeout=timeout_s,
            client_properties={"connection_name": "furcula"},
        )
    except AMQPConnectionError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            # The library gives its number for one of the system's errors, and that one means another thing.
            raise error.__cause__ from None
        raise
    try:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=returned)
    except BaseException:
        await connection.close()
        raise
    session = Session(connection, channel)

    def closed(_: Any, error: BaseException | None = None) -> None:
        if not session.ended:
            session.ended = True
            if session.arrivals is not None:
                session.arrivals.end(ConnectionError("the connection was lost"))
            lost(error if error is not None and str(error) else None)

    channel.close_callbacks.add(closed)
    connection.close_callbacks.add(closed)
    return session
