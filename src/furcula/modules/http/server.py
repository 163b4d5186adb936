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
import contextlib
import contextvars
import logging
import os
import ssl
import sys
import time
from collections import deque
from email.utils import formatdate
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from furcula.errors import FurculaError, MissingExtra
from furcula.modules.address import Address
from furcula.modules.http.answers import Response, problem
from furcula.options import Secret
from furcula.sockets import BACKLOG, Wanted, is_activated, is_handed, listening

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
#: Seconds for which a connection that is being closed takes what its client still sends.
LINGER_S: Final = 2.0
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


_REASONS: Final = {
    400: b"Bad Request",
    408: b"Request Timeout",
    414: b"URI Too Long",
    431: b"Request Header Fields Too Large",
}


class _TooLong(Exception):
    """Raised in the parser's calls, to make it stop."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status = status


class _Trailers(list[tuple[bytes, bytes]]):
    """Takes the fields after a chunked body, and keeps none: whoever looked at the head for us has not seen them."""

    def __init__(self, limit: int):
        self.size = 0
        self._limit = limit

    def append(self, field: tuple[bytes, bytes]) -> None:
        self.size += len(field[0]) + len(field[1]) + 4
        if self.size > self._limit:
            raise _TooLong(431, f"the trailers of a request may have {self._limit} bytes")


class _Protocol(HttpToolsProtocol):
    """One connection.

    The parser calls back for each part of a request, so what is overridden here costs every request: no more than has
    to be, and uvicorn's own methods are called by name, which `super()` would do more slowly.
    """

    def __init__(self, server: Server):
        super().__init__(server.config, server.state, {}, server.loop)
        self._server = server
        self._max_header = server.limits.max_header
        #: Requests that have no whole answer yet, oldest first.
        self._unanswered: deque[RequestResponseCycle] = deque()
        # Of the request that is coming in: since when (0: none is), and how many bytes of it have come, or a little
        # more. A connection that says nothing at all is timed from its beginning.
        self._since = server.now
        self._bytes = 0
        self._trailers = _Trailers(self._max_header)
        # A request that came while the parser runs; what is done with it depends on whether it comes as a whole.
        self._parsing = False
        self._first: RequestResponseCycle | None = None
        self._idle_since = server.now
        self._closing = False
        # What was not yet read by the client when we last looked, and since when.
        self._unread = 0
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.server_state.total_requests < 0:  # the server is closed, and this was in the queue
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unanswered.clear()
        super().connection_lost(exc)
        if self._server.ceasing and self._server.all_left():
            self._server.left.set()

    def data_received(self, data: bytes) -> None:
        if self._closing:  # nobody reads it; but to close at once would take the answer back
            self._bytes += len(data)
            if self._bytes > SWALLOWED:
                self.transport.abort()
            return
        if self._since:
            self._bytes += len(data)
        else:
            self._since = self._server.now
            self._bytes = len(data)
        self._parsing = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self._should_upgrade():
                self.cycle.keep_alive = False  # what follows may be of a protocol that we do not speak
                self._begin_first()
                return
            self._begin_first()
            if self._unanswered:
                self.refuse(400, "there are requests before it without an answer")
            else:
                self.handle_websocket_upgrade()
            return
        except httptools.HttpParserError as error:
            self._begin_first()
            cause = error.__context__
            if isinstance(cause, _TooLong):
                self.refuse(cause.status, str(cause))
            else:
                self.refuse(400, "the request cannot be read")
            return
        self._begin_first()
        if self._since:
            self._not_yet_whole()
        elif self._in_head():  # the beginning of the next request came with the end of the last
            self._since = self._server.now
            self._bytes = 0

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._parsing and self._server.at_once is not None:
            self._first = cycle
        else:
            HttpToolsProtocol._start_asgi_task(self, cycle, app)

    def _begin_first(self) -> None:
        """Begin to handle the request that came: at once if it is here as a whole, else by a task."""
        self._parsing = False
        cycle, self._first = self._first, None
        if cycle is None:
            return
        site = self._server.at_once
        if site is None or cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected:
            HttpToolsProtocol._start_asgi_task(self, cycle, self.app)
            return
        # In a context of its own, as a task would: a module may set variables.
        context = contextvars.copy_context()
        visit = context.run(site.at_once, cycle.scope, bytes(cycle.body))
        if visit is None:
            HttpToolsProtocol._start_asgi_task(self, cycle, self.app)
            return
        plain = site.plain(visit)
        if plain is not None and self.respond(cycle, plain):
            site.done()
            return

        async def rest(scope: Any, receive: Any, send: Any) -> None:
            if plain is not None:
                visit.response = plain
            await site.finish(visit, receive, send)

        context.run(HttpToolsProtocol._start_asgi_task, self, cycle, rest)

    def _not_yet_whole(self) -> None:
        """What came in did not complete the request."""
        if self._in_head():
            if self._bytes > self._max_header:
                self.refuse(431, f"the head of a request may have {self._max_header} bytes")
        elif self._bytes > SWALLOWED and self.cycle.response_complete:
            self.transport.abort()

    def _in_head(self) -> bool:
        """Has a request begun whose head is not complete?"""
        return self.scope is not None and (self.cycle is None or self.scope is not self.cycle.scope)

    # ------------------------------------------------------------------ told by the parser

    def on_headers_complete(self) -> None:
        limit = self._max_header
        if self._bytes > limit or len(self.url) > limit:
            # So much has come that the head may be too long. (Where several requests came at once, it may be theirs.)
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > limit:
                status = 414 if len(self.url) > limit // 2 else 431
                raise _TooLong(status, f"the head of a request may have {limit} bytes")
        if self.url[:1] != b"/" and self.url.count(b"/") == 2:  # http://host, which stands for http://host/
            self.url += b"/"
        if not self._since:  # it came together with the one before it
            self._since = self._server.now
        before = self.cycle
        HttpToolsProtocol.on_headers_complete(self)
        cycle = self.cycle
        if cycle is not before:  # else it is an upgrade
            if self._server.ceasing:
                cycle.keep_alive = False
            self._unanswered.append(cycle)
            self.headers = self._trailers
            self._trailers.size = 0
            # The application's task begins a turn later, and finds there how to answer this very request at once.
            self.scope["furcula.server"] = (self, cycle)  # type: ignore[typeddict-unknown-key]

    def on_message_complete(self) -> None:
        self._since = 0.0
        HttpToolsProtocol.on_message_complete(self)

    def on_response_complete(self) -> None:
        # As uvicorn has it, but for a timer of this connection's own: `look` sees who is idle.
        if self._unanswered:
            self._unanswered.popleft()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._idle_since = self._server.now

    # ------------------------------------------------------------------ answering

    def respond(self, cycle: RequestResponseCycle, response: Response) -> bool:
        """Write a whole answer at once, if that can be done now.

        By ASGI, head and body are two messages, and so two writes: on loopback the second one costs 12 us of the 40
        that a request takes. This does to uvicorn's request what its `send` does with both.

        Returns:
            False: it cannot; answer by ASGI's messages.
        """
        if cycle.response_started or self.flow.write_paused or cycle.disconnected:
            return False
        if cycle.waiting_for_100_continue:  # the body may come all the same, or the next request: nobody can tell
            cycle.keep_alive = False
            cycle.waiting_for_100_continue = False
        parts = [STATUS_LINE[response.status], self._server.date]
        for name, value in response.headers:
            parts += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        if response.body and cycle.scope["method"] != "HEAD":
            parts.append(response.body)
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join(parts))
        cycle.message_event.set()
        if not cycle.keep_alive:
            if cycle.more_body:
                self._linger()
            else:
                self.transport.close()
        cycle.on_response()
        return True

    def say_goodbye(self) -> None:
        """Close after the next answer, or after that which is under way."""
        if self._unanswered:
            self._unanswered[-1].keep_alive = False

    def abort(self) -> None:
        """Break off an answer that cannot be completed. The client sees that it is not whole."""
        self.transport.abort()

    # ------------------------------------------------------------------ refusing

    def refuse(self, status: int, detail: str) -> None:
        """Answer what is no whole request, and break off once the requests before it are answered."""
        broken = self.cycle if not self._in_head() and self.cycle is not None and self.cycle.more_body else None
        if broken is not None and broken in self._unanswered:
            self._unanswered.remove(broken)
            broken.disconnected = True
            broken.message_event.set()
            self.pipeline = deque(entry for entry in self.pipeline if entry[0] is not broken)
        self._closing = True
        self._since = 0.0
        if self._unanswered:
            # Whatever was said now would be taken for the answer to one of these.
            self._unanswered[-1].keep_alive = False
            return
        if broken is None or not broken.response_started:
            self.transport.write(_raw(problem(status, {"detail": detail}, {}, None)))
        self._linger()

    def _linger(self) -> None:
        """Close, but let the client read first why: to close with input unread would reset the connection."""
        self._closing = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self.transport.close()

    def look(self, now: float) -> None:
        """Is the client too slow, in sending or in reading?"""
        unread = self.transport.get_write_buffer_size()
        if unread != self._unread or not unread:
            self._unread, self._unread_since = unread, now
        elif now - self._unread_since > self._server.limits.slow_s:
            self.transport.abort()
            return
        if self._closing:
            return
        if not self._since:
            # As below, the time is that of the look before: not before its time, and up to two looks after it.
            if not self._unanswered and now - self._idle_since > self._server.limits.keep_alive_s + LOOK_S:
                self.transport.close()
            return
        if self.flow.read_paused:  # we are not reading
            self._since = now
            return
        # Times of arrival are those of the last look.
        allowed = self._server.limits.slow_s + LOOK_S
        if not self._in_head():
            allowed += self._bytes / LEAST_RATE
        if now - self._since > allowed:
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
        self._tls = tls
        #: A TLS handshake is part of what a client may be slow in.
        self._tls_limits: dict[str, Any] = {"ssl_handshake_timeout": limits.slow_s} if tls is not None else {}
        self._servers: list[asyncio.Server] = []
        #: Nothing is accepted any more; who is connected gets one more answer.
        self.ceasing = False
        self.left = asyncio.Event()
        self._ticking: asyncio.TimerHandle | None = None
        #: The path of the unix socket, and which file it was: another server may have put its own there since.
        self._unlink: tuple[str, int] | None = None
        #: What can answer a request that has come as a whole without a task, if the application can do so.
        self.at_once = app if hasattr(app, "at_once") else None
        #: The time of the loop when we last looked: exact enough to tell who is slow, and free.
        self.now = self.loop.time()
        #: The field that stands on every answer.
        self.date = b""
        # What breaks in the application is logged there, with the flow and the request; uvicorn would say it again.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    # ------------------------------------------------------------------ opening

    async def open(self, module: str, where: Address | str | int, *, reuse_port: bool = False) -> None:
        """Listen.

        Args:
            module: The name of the module that listens.
            where: An address; the path of a unix socket; or the number of an open listening socket.
        """
        self._tick()
        if isinstance(where, Address):
            wanted = Wanted(module, "tcp", where.host, where.port, reuse_port)
        elif isinstance(where, str):
            wanted = Wanted(module, "unix", where)
        else:
            wanted = Wanted(module, "fd", port=where)
        given = await listening(wanted)
        if isinstance(where, str) and not is_handed() and not is_activated(wanted):
            self._unlink = (where, os.stat(where).st_ino)
        create = self.loop.create_unix_server if isinstance(where, str) else self.loop.create_server
        options: dict[str, Any] = {"ssl": self._tls, "backlog": BACKLOG, **self._tls_limits}
        if isinstance(where, str) and sys.version_info >= (3, 13):
            options["cleanup_socket"] = False  # others may listen on it still
        try:
            while given:
                self._servers.append(await create(lambda: _Protocol(self), sock=given[0], **options))
                del given[0]
        except BaseException:
            for made in given:
                made.close()
            raise

    @property
    def addresses(self) -> list[Any]:
        """Host and port as bound; the path of a unix socket."""
        names = [opened.getsockname() for server in self._servers for opened in server.sockets]
        return [name[:2] if isinstance(name, tuple) else name for name in names]

    def _tick(self) -> None:
        date = formatdate(time.time(), usegmt=True).encode("ascii")
        self.state.default_headers = [(b"date", date)]
        self.date = b"date: " + date + b"\r\n"
        self.now = now = self.loop.time()
        for connection in tuple(self.state.connections):
            if isinstance(connection, _Protocol):
                connection.look(now)
        self._ticking = self.loop.call_later(LOOK_S, self._tick)

    # ------------------------------------------------------------------ closing

    async def cease(self, grace_s: float = 0.0) -> None:
        """Accept nothing more; idle connections are closed, the others when they have their answer.

        Args:
            grace_s: Others have taken this server's place: for so many seconds an idle connection may bring its next
                request. Its answer says that the connection is closed, so no client writes to one that is.
        """
        # What has reached this machine is still taken: two turns of the loop accept and read it.
        for _ in range(2):
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        if grace_s:
            self.ceasing = True
            for connection in tuple(self.state.connections):
                if isinstance(connection, _Protocol):
                    connection.say_goodbye()
            if not self.all_left():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.left.wait(), grace_s)
        for connection in tuple(self.state.connections):
            if isinstance(connection, _Protocol):
                connection.shutdown()

    def all_left(self) -> bool:
        """Is nobody connected? WebSockets do not count: they are told."""
        return not any(isinstance(connection, _Protocol) for connection in self.state.connections)

    async def close(self) -> None:
        """Close what is left."""
        if self._ticking is not None:
            self._ticking.cancel()
        for server in self._servers:
            server.close()
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
            path, inode = self._unlink
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
