"""The server beneath: uvicorn's HTTP protocol in the flow's own loop, with limits of ours on what a client may do.

uvicorn's `Server` installs signal handlers and ends the process; the Director does both here, so only its protocol is
used. What this file adds to it:

* the size of a request's head is limited (431), however it arrives, and that of its target (414);
* a head that is not whole in time, and a body that comes too slowly, are given up (408). One timer looks at all
  connections; a timer for each request would cost more than the request;
* a body that nobody reads any more is swallowed up to a limit, so that the client sees why it was refused.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
import ssl
import stat
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from furcula.errors import FurculaError, MissingExtra
from furcula.modules.address import Address
from furcula.modules.http.answers import Response, problem
from furcula.options import Secret

try:
    import httptools
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
    from uvicorn.server import ServerState
except ImportError:
    raise MissingExtra("http.listen", "http") from None

__all__ = ["Limits", "Server", "Tls"]

#: Bytes a second below which a client is not slow but idle.
LEAST_RATE: Final = 500
#: Bytes of a refused body that are swallowed before the connection is broken off.
SWALLOWED: Final = 64 << 20
#: Seconds between two looks at the connections.
LOOK_S: Final = 0.5


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate.

    Attributes:
        cert: File with the certificate and those that vouch for it (PEM).
        key: File with its private key; None: it is in `cert`.
        password: Of the key.
        client_ca: File with certificates: a client must show one that these vouch for.
    """

    cert: str
    key: str | None = None
    password: Secret | None = None
    client_ca: str | None = None

    def context(self, folder: Path) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.set_alpn_protocols(["http/1.1"])
        try:
            password = self.password.reveal() if self.password is not None else ""
            made.load_cert_chain(folder / self.cert, folder / self.key if self.key else None, lambda: password)
            if self.client_ca is not None:
                made.load_verify_locations(folder / self.client_ca)
                made.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(name for name in (self.cert, self.key, self.client_ca) if name)
            raise FurculaError(f"the certificate cannot be loaded ({files}): {error}") from error
        return made


class Limits(msgspec.Struct, frozen=True):
    """What a client may do.

    Attributes:
        max_header: Bytes of a request's head.
        slow_s: Seconds within which a head must be whole, and from which a body must come at `LEAST_RATE`.
        keep_alive_s: Seconds that a connection may be idle between two requests.
    """

    max_header: int = 64 * 1024
    slow_s: float = 10.0
    keep_alive_s: float = 75.0


def _raw(response: Response) -> bytes:
    lines = [b"HTTP/1.1 %d %s" % (response.status, _REASONS.get(response.status, b"Error"))]
    lines += [name + b": " + value for name, value in response.headers]
    return b"\r\n".join([*lines, b"connection: close", b"", response.body])


_REASONS: Final = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class _Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, server: Server):
        super().__init__(server.config, server.state, {}, server.loop)
        self._server = server
        self._limits = server.limits
        self._refusing = server.refusing
        # Bytes since the request that is coming in began, and when that was; 0: none is coming in.
        self._bytes = 0
        self.since = server.loop.time()
        self._in_head = True
        self._closing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.server_state.total_requests < 0:  # the server is closed, and this was in the queue
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._swallow(len(data))
            return
        self._unset_keepalive_if_required()
        self._bytes += len(data)
        if not self.since:
            self.since = self.loop.time()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.refuse(400, f"the request cannot be read: {cause or error}"[:200])
            return
        if self._in_head and self._bytes > self._limits.max_header:
            self.refuse(431, f"the head of a request may have {self._limits.max_header} bytes")
        elif self._bytes > SWALLOWED and self.cycle is not None and self.cycle.response_complete and self.since:
            self.transport.abort()

    def _swallow(self, count: int) -> None:
        self._bytes += count
        if self._bytes > SWALLOWED:
            self.transport.abort()

    # ------------------------------------------------------------------ told by the parser

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        limit = self._limits.max_header
        # Only if so much has come at all can the head be too long; then it is measured.
        if self._bytes > limit:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limit:
                usual, self.app = self.app, self._refusing[414 if len(self.url) > limit // 2 else 431]
                try:
                    super().on_headers_complete()
                finally:
                    self.app = usual
                return
        super().on_headers_complete()
        # The application's task begins a turn later, and finds there how to answer this very request at once.
        self.scope["furcula.respond"] = functools.partial(self.respond, self.cycle)  # type: ignore[typeddict-unknown-key]

    def on_message_complete(self) -> None:
        self._bytes = 0
        self.since = 0.0
        self._in_head = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.since and not self._in_head:  # the answer came before the body: from here on it is swallowed
            self.flow.resume_reading()

    def respond(self, cycle: RequestResponseCycle, response: Response) -> bool:
        """Write a whole answer at once, if that can be done now.

        By ASGI, head and body are two messages, and so two writes: on loopback the second one costs 12 us of the 40
        that a request takes. This does to uvicorn's request what its `send` does with both.

        Returns:
            False: it cannot; answer by ASGI's messages.
        """
        if cycle.response_started or self.flow.write_paused or cycle.disconnected:
            return False
        status = response.status
        parts = [STATUS_LINE[status], self._server.date]
        for name, value in response.headers:
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        if response.body and cycle.scope["method"] != "HEAD":
            parts.append(response.body)
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        self.transport.write(b"".join(parts))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    # ------------------------------------------------------------------ refusing

    def refuse(self, status: int, detail: str) -> None:
        """Answer what is no whole request, and break off."""
        self._closing = True
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            # Behind a request that is still being answered, this would be taken for that one's answer.
            under_way = cycle is not None and not cycle.response_complete and not cycle.more_body
            if not under_way:
                self.transport.write(_raw(problem(status, {"detail": detail}, {}, None)))
        self._gone()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(1.0, self.transport.abort)
        else:
            self.transport.close()

    def _gone(self) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def look(self, now: float) -> None:
        """Is the client too slow?"""
        if not self.since or self._closing:
            return
        if self.flow.read_paused:  # we are not reading
            self.since = now
            return
        allowed = self._limits.slow_s
        if not self._in_head:
            allowed += self._bytes / LEAST_RATE
        if now - self.since > allowed:
            self.refuse(408, "the request did not come in time")


class Server:
    """Listens, and hands what comes to an ASGI application.

    Args:
        app: The application.
        limits: What a client may do.
        tls: The certificate, for HTTPS.
        max_message: Bytes of a WebSocket's message.
    """

    def __init__(self, app: Any, limits: Limits, tls: ssl.SSLContext | None, max_message: int):
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.state = ServerState()
        self.config = Config(
            app,
            http=HttpToolsProtocol,
            ws="websockets-sansio",
            ws_max_size=max_message,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=cast(int, limits.keep_alive_s),
        )
        self.config.load()
        #: Applications that say no, by status.
        self.refusing = {status: _refusing(status) for status in (414, 431)}
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._unlink: str | None = None
        #: The field that stands on every answer.
        self.date = b""
        # What breaks in the application is logged there, with the flow and the request; uvicorn would say it again.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    # ------------------------------------------------------------------ opening

    async def open(self, where: Address | str | int, *, reuse_port: bool = False) -> None:
        """Listen.

        Args:
            where: An address; the path of a unix socket; or the number of an open listening socket.
        """
        self._tick()
        if isinstance(where, Address):
            self._server = await self.loop.create_server(
                lambda: _Protocol(self),
                where.host,
                where.port,
                ssl=self._tls,
                backlog=2048,
                reuse_port=reuse_port or None,
            )
        elif isinstance(where, str):
            _remove_stale(where)
            self._server = await self.loop.create_unix_server(
                lambda: _Protocol(self), where, ssl=self._tls, backlog=2048
            )
            self._unlink = where
        else:
            taken = socket.socket(fileno=where)
            taken.setblocking(False)
            self._server = await self.loop.create_server(
                lambda: _Protocol(self), sock=taken, ssl=self._tls, backlog=2048
            )

    @property
    def addresses(self) -> list[Any]:
        """Host and port as bound; the path of a unix socket."""
        if self._server is None:
            return []
        names = [opened.getsockname() for opened in self._server.sockets]
        return [name[:2] if isinstance(name, tuple) else name for name in names]

    def _tick(self) -> None:
        date = formatdate(time.time(), usegmt=True).encode("ascii")
        self.state.default_headers = [(b"date", date)]
        self.date = b"date: " + date + b"\r\n"
        now = self.loop.time()
        for connection in tuple(self.state.connections):
            if isinstance(connection, _Protocol):
                connection.look(now)
        self._ticking = self.loop.call_later(LOOK_S, self._tick)

    # ------------------------------------------------------------------ closing

    async def cease(self) -> None:
        """Accept nothing more; idle connections are closed, the others when they have their answer."""
        # What has reached this machine is still taken: two turns of the loop accept and read it.
        for _ in range(2):
            await asyncio.sleep(0)
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.state.connections):
            if isinstance(connection, _Protocol):
                connection.shutdown()

    async def close(self) -> None:
        """Close what is left."""
        if self._ticking is not None:
            self._ticking.cancel()
        if self._server is not None:
            self._server.close()
        self.state.total_requests = -(1 << 60)
        for connection in tuple(self.state.connections):
            transport = connection.transport
            if transport is not None:
                transport.close()
        for _ in range(3):  # transports write what they have, and close their sockets a turn later
            await asyncio.sleep(0)
        for connection in tuple(self.state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in tuple(self.state.tasks):
            task.cancel()
        if self.state.tasks:
            await asyncio.wait(tuple(self.state.tasks), timeout=1)
        await asyncio.sleep(0)
        if self._unlink is not None:
            Path(self._unlink).unlink(missing_ok=True)


def _refusing(status: int) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = problem(status, {}, {}, None)
        headers = [*response.headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    return app


def _remove_stale(path: str) -> None:
    """Remove a unix socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except OSError:
        return
    probe = socket.socket(socket.AF_UNIX)
    try:
        probe.connect(path)
    except OSError:
        Path(path).unlink(missing_ok=True)
    finally:
        probe.close()
