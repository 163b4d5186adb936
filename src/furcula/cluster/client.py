"""A connection to NATS that is meant to last: made again for ever, and what it is asked is asked again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from furcula.errors import ConfigurationError, FurculaError, MissingExtra, Stopped
from furcula.options import Secret

try:
    import nats.errors
    import nats.js.errors
    from nats.aio.client import Client as Nats
    from nats.js import JetStreamContext
except ImportError:
    raise MissingExtra("running on many machines", "cluster") from None

from furcula.transports.nats import connect, tls_context

__all__ = ["BROKEN", "Access", "Client", "tried"]

log = logging.getLogger("furcula.cluster")

T = TypeVar("T")

#: Between two of the same question.
AGAIN_S = 0.1
#: So long an answer of the server is waited for.
ANSWER_S = 5.0
#: So long a server is looked for before we give up, at the beginning only.
CONNECT_S = 15.0

#: The first server that can be told to store a message only where another still is the last of its subject.
OLDEST = (2, 12)

#: What a connection that is away, or a cluster that chooses a leader, raises.
BROKEN = (
    nats.errors.Error,
    nats.js.errors.ServiceUnavailableError,
    nats.js.errors.NoStreamResponseError,
    OSError,
    TimeoutError,
)


class Access(msgspec.Struct, frozen=True):
    """Where the cluster is, and who we are.

    Args:
        url: `nats://host:port`, several with commas between them. A user and a password, or a token, may stand in it.
        credentials: Path of a `.creds` file.
        tls_ca: Path of the certificates to trust; None: those of the system.
        tls_cert: Path of our own certificate, where the server wants one.
        tls_key: Path of its key.
    """

    url: str
    credentials: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def shown(self) -> str:
        """Where it is, for logs: without what nobody else should know."""
        return ",".join(_split(one)[0] for one in self.url.split(","))

    def options(self) -> dict[str, Any]:
        servers = []
        found: dict[str, Any] = {}
        for one in self.url.split(","):
            shown, user, password = _split(one)
            servers.append(shown)
            if user and password is not None:
                found.update(user=user, password=password.reveal())
            elif user:
                found["token"] = user
        if self.credentials is not None:
            if not Path(self.credentials).is_file():
                raise ConfigurationError(f"there is no file of credentials {self.credentials}")
            found["user_credentials"] = self.credentials
        if self.tls_ca or self.tls_cert or servers[0].startswith("tls:"):
            found["tls"] = tls_context(self.tls_ca, self.tls_cert, self.tls_key)
        return {"servers": servers, **found}


def _split(url: str) -> tuple[str, str, Secret | None]:
    """The address without who we are, and who we are."""
    try:
        parts = urlsplit(url if "//" in url else f"nats://{url}")
    except ValueError as error:
        raise ConfigurationError(f"the address of the cluster cannot be read: {error}") from None
    try:
        port = parts.port or 4222
    except ValueError:
        raise ConfigurationError(f"{parts.hostname}: the port must be a number") from None
    if parts.scheme not in ("nats", "tls") or not parts.hostname:
        raise ConfigurationError("a cluster is nats://host:port, or tls://host:port, or embedded")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    shown = urlunsplit((parts.scheme, f"{host}:{port}", "", "", ""))
    password = None if parts.password is None else Secret(unquote(parts.password))
    return shown, unquote(parts.username or ""), password


class Client:
    """One connection.

    Args:
        access: Where to.
        name: Shown by the server's monitoring.
        second: This process has another one, which tells when the server is away.

    Attributes:
        nats: The library's client.
        js: Its JetStream.
    """

    def __init__(self, access: Access, name: str, *, second: bool = False):
        self._access = access
        self._name = name
        self._second = second
        self.nats = Nats()
        self.js: JetStreamContext = self.nats.jetstream(timeout=ANSWER_S)
        self.closed = False
        self._was_open = False
        #: Told each time the connection has been made again.
        self.reconnected: list[Callable[[], None]] = []

    @property
    def shown(self) -> str:
        return self._access.shown

    @property
    def servers(self) -> int:
        """How many servers the cluster has."""
        known = {*self.nats._server_info.get("connect_urls", ())}
        return max(1, len(known))

    @property
    def clustered(self) -> bool:
        """Is the server one of several, though the others may be away?"""
        return bool(self.nats._server_info.get("cluster"))

    @property
    def max_body(self) -> int:
        """Bytes that a message may have, its headers taken off."""
        return max(self.nats.max_payload - 8192, self.nats.max_payload // 2)

    async def open(self) -> None:
        """Connect.

        Raises:
            FurculaError: No server answers, or it refuses us.
        """
        await connect(
            self.nats,
            self.shown,
            CONNECT_S,
            self._note,
            **self._access.options(),
            name=self._name,
            connect_timeout=2,
            ping_interval=5,
            max_outstanding_pings=2,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
        )
        self._was_open = True
        version = self.nats.connected_server_version
        if (version.major, version.minor) < OLDEST:
            await self.close()
            raise FurculaError(
                f"{self.shown} is nats-server {version.major}.{version.minor}; "
                f"stages need {'.'.join(map(str, OLDEST))} or later"
            )

    def _note(self, error: Exception) -> None:
        log.debug("%s: %s", self.shown, error)

    async def _disconnected(self) -> None:
        if self._was_open and not self.closed:
            level = logging.DEBUG if self._second else logging.WARNING
            log.log(level, "the connection to %s is lost; connecting again", self.shown)

    async def _reconnected(self) -> None:
        log.log(logging.DEBUG if self._second else logging.INFO, "connected to %s again", self.shown)
        for told in self.reconnected:
            told()

    @property
    def connected(self) -> bool:
        return self.nats.is_connected

    async def say(self, subject: str, body: bytes = b"", reply: str = "") -> None:
        """Publish without waiting for anything; lost where the connection is."""
        with contextlib.suppress(nats.errors.Error, OSError):
            await self.nats.publish(subject, body, reply)

    async def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(Exception):
            async with asyncio.timeout(2):
                await self.nats._flush_pending()
                while self.nats.pending_data_size and self.nats.is_connected:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        with contextlib.suppress(Exception):
            await self.nats.close()


async def tried(client: Client, ask: Callable[[], Awaitable[T]], *, for_s: float = 30.0) -> T:
    """Ask, again while there is no answer. A cluster that chooses a leader is silent for some seconds.

    Raises:
        FurculaError: No answer within `for_s`.
        nats.js.errors.APIError: An answer that asking again does not change.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + for_s
    while True:
        if client.closed:
            raise Stopped(f"the connection to {client.shown} is closed")
        try:
            return await ask()
        except nats.js.errors.ServiceUnavailableError as error:
            if error.err_code == 10039:
                raise FurculaError(f"{client.shown} has no JetStream; start nats-server with -js") from None
            if loop.time() >= deadline:
                raise FurculaError(f"NATS on {client.shown}: {error.description}") from None
        except nats.js.errors.NotFoundError:
            raise
        except nats.js.errors.APIError as error:
            # 10008: choosing a leader; 10074, 10005: too few servers are there as yet.
            code = getattr(error, "err_code", None)
            comes = code in (10008, 10005, 10077) or (code == 10074 and client.clustered)
            if not comes or loop.time() >= deadline:
                raise
        except BROKEN as error:
            if loop.time() >= deadline:
                raise FurculaError(f"NATS on {client.shown}: {error or type(error).__name__}") from None
        await asyncio.sleep(AGAIN_S)
