"""A connection to NATS. The one file that makes it."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from furcula.errors import MissingExtra
from furcula.modules.endpoint import Endpoint, Tls
from furcula.modules.sending import Outgoing
from furcula.options import Secret

try:
    import nats
    from nats.aio.client import Client
    from nats.errors import Error
except ImportError:
    raise MissingExtra("a module of NATS", "nats") from None

from furcula.transports.nats import flushed

__all__ = ["BROKEN", "Client", "Wire", "connect", "copied", "endpoint_of", "settled_down", "unsendable"]

#: What says that a connection does not work any more.
BROKEN: Final = (
    OSError,
    EOFError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionDrainingError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.StaleConnectionError,
    nats.errors.OutboundBufferLimitError,
)


#: What may be the name of a header.
_HEADER: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: What is left of a connection that could not be made is ended in that time.
ABANDONED_WITHIN_S: Final = 0.2


def endpoint_of(url: str, user: str | None, password: Secret | None) -> Endpoint:
    return Endpoint.of(url, {"nats": 4222, "tls": 4222}, secure=frozenset(("tls",)), user=user, password=password)


class Wire(msgspec.Struct):
    """A connection.

    Attributes:
        gone: Done when it is lost.
        lose: Says that it is lost.
        pings: Those that wait for their answer.
    """

    client: Client
    gone: asyncio.Future[None]
    lose: Callable[[BaseException | str | None], None]
    pings: set[asyncio.Task[None]]

    @property
    def is_deaf(self) -> bool:
        """Has the library ended what reads or writes for it? It says "connected" all the same."""
        return any(task is None or task.done() for task in (self.client._reading_task, self.client._flusher_task))


async def connect(
    endpoint: Endpoint,
    *,
    token: Secret | None,
    credentials: str | None,
    tls: Tls | None,
    folder: Path,
    timeout_s: float,
    lost: Callable[[BaseException | str | None], None],
    error: Callable[[Exception], None] | None = None,
) -> Wire:
    """Connect once. The library's own way of connecting again is not used: whoever keeps the line does it."""
    last: list[Exception] = []
    connected = False
    gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def noted(caught: Exception) -> None:
        last.append(caught)
        if error is not None:
            error(caught)

    def lose(reason: BaseException | str | None) -> None:
        if not gone.done():
            gone.set_result(None)
        if connected:
            lost(last[-1] if last else reason)

    def ended(task: asyncio.Task[None]) -> None:
        lose(None)

    async def closed() -> None:
        lose(None)

    context: ssl.SSLContext | None = (tls or Tls()).context(folder) if tls or endpoint.secure else None
    options: dict[str, Any] = {}
    if context is not None:
        options["tls"] = context
    if endpoint.user is not None:
        options.update(user=endpoint.user, password=endpoint.password.reveal() if endpoint.password else "")
    if token is not None:
        options["token"] = token.reveal()
    if credentials is not None:
        options["user_credentials"] = str(folder / credentials)
    client = Client()
    try:
        await client.connect(
            f"{endpoint.scheme}://{endpoint.address}",
            allow_reconnect=False,
            connect_timeout=max(1, int(timeout_s)),
            error_cb=noted,
            closed_cb=closed,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            **options,
        )
    except BaseException as failure:
        await _abandoned(client)
        if isinstance(failure, Error) and last:
            # The library says "no servers available" for everything; what it noted before says why.
            raise last[0] from None
        raise
    connected = True
    last.clear()
    for task in (client._reading_task, client._flusher_task):
        if task is not None:
            task.add_done_callback(ended)
    return Wire(client, gone, lose, set())


async def _abandoned(client: Client) -> None:
    """End a connection that was only half made. The library's own way waits for a task that it had not begun yet."""
    transport: Any = client._transport
    if transport is not None:
        transport.close()
    try:
        async with asyncio.timeout(ABANDONED_WITHIN_S):
            await client.close()
    except TimeoutError:
        pass


def unsendable(sent: Outgoing, headers: dict[str, str], most: int) -> str:
    """Why the server would not take this event, or nothing. It would break the connection for one that is too large.

    Args:
        most: Bytes that the server takes.
    """
    if not sent.to or any(character.isspace() for character in sent.to):
        return f"{sent.to!r} is no subject"
    for name in headers:
        if not _HEADER.fullmatch(name):
            return f"{name!r} cannot be the name of a header"
    # It counts headers, too: a first line of ten bytes, and four more for each header and two at the end.
    size = len(sent.body) + 12 + sum(len(name) + len(value.encode()) + 4 for name, value in headers.items())
    return f"it takes {most} bytes at most, and the event has {size} with its headers" if size > most else ""


def copied(headers: dict[str, str] | None) -> dict[str, Any]:
    return dict(headers) if headers else {}


async def settled_down(wire: Wire, timeout_s: float) -> None:
    """All that was sent before has been seen by the server: it answers a ping behind it.

    Raises:
        ConnectionError: It did not, and the connection is given up.
    """
    # The ping has a task of its own, which nobody cancels: the library stops reading for good when an answer comes that
    # is not waited for any more.
    answered = asyncio.ensure_future(_pinged(wire, timeout_s))
    wire.pings.add(answered)
    answered.add_done_callback(wire.pings.discard)
    both: list[asyncio.Future[Any]] = [answered, wire.gone]  # the library would wait for an answer of who has gone
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if wire.gone.done() or wire.is_deaf:
        raise ConnectionError("the connection was lost")


async def _pinged(wire: Wire, timeout_s: float) -> None:
    try:
        await flushed(wire.client, timeout_s)
    except nats.errors.FlushTimeoutError:
        wire.lose(f"no answer within {timeout_s:g} s")
    except (Error, OSError) as error:
        wire.lose(error)
    else:
        if wire.is_deaf:  # then the library sends no ping, and tells nothing of it
            wire.lose(None)
