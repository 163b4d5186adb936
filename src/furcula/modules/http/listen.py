"""`http.listen`: requests enter the flow here, and what comes back here answers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from furcula.errors import ModuleError, StartFailed
from furcula.event import Event
from furcula.module import Context, Source
from furcula.modules.address import LOOPBACK, Address
from furcula.modules.http.application import Settings, Site
from furcula.modules.http.cors import Cors
from furcula.modules.http.media import media_types
from furcula.modules.http.routes import Route, Routes
from furcula.modules.http.server import Limits, Server, Tls
from furcula.modules.listening import cannot_listen
from furcula.options import Duration, Size
from furcula.sockets import grace_s

__all__ = ["HttpListen"]

#: Seconds that answers get to be written when everything else has stopped.
PATIENCE_S: Final = 5.0


class HttpListen(Source):
    """Listen for HTTP requests. Each becomes an event, and the first event of it that comes back here is the answer.

    The event: `data` is the body by its content type (JSON, MessagePack and forms as values, text as str, XML and
    anything else as bytes, nothing as None). `headers` has `method`, `path`, `route`, `params`, `query`, `cookies`,
    `request` (the header fields, lower case), `client`, `request_id`, and `traceparent` if the client sent one.

    The answer: `headers.status` (200) and `headers.response` (header fields); the data as bytes, text, or in the form
    that the client accepts (JSON, MessagePack, XML). A generator is streamed. An event that failed is answered as its
    exception says (`furcula.statuses`), as problem details; so is a request that fails where nothing catches it.
    Dropped: `on_drop`. Late: 504. No room in the flow: 503. Once the client has left, what waits is dropped and
    coroutines that are at it are cancelled.

    Args:
        port: Where to listen, on `host`; 0: any free one, see `addresses`.
        host: 127.0.0.1 is this machine only, 0.0.0.0 is open to all.
        unix: Path of a unix socket to listen on instead.
        fd: Number of an open listening socket to take over instead (systemd's first is 3).
        tls: `{cert: file, key: file, password: secret, client_ca: file}`.
        routes: `POST /orders/{id:int}`, `GET,PUT /x`, `* /y`, `WS /chat`; or `{route: ..., outbox: ..., accepts: ...,
            produces: ..., timeout: ..., max_body: ..., on_drop: ..., reply: first|all|stream|sse, codec: json|text}`.
            Default: everything.
        base: Stands before every path: `/api/v1`.
        accepts: Types of body taken (else 415): json, msgpack, xml, text, form, multipart, bytes, or media types.
        produces: Types that are answered with (else 406, before the request enters the flow).
        timeout: Seconds until a request without an answer gets a 504.
        max_body: Bytes of a body (else 413).
        max_header: Bytes of a request's head (else 431).
        slow: Seconds within which a head must have come; a body must go on coming (else 408).
        keep_alive: Seconds that a connection may be idle.
        on_drop: The status of a request whose events were all dropped.
        concurrent: Requests at once, and WebSockets at once (else 503).
        retry_after: What a 503 tells the client, in seconds.
        raw_body: Keep the bytes of the body at `headers.body` (for signatures).
        show_errors: Put exception, message and traceback into the answers. For development.
        gzip: Compress answers of at least so many bytes; 0: never.
        cors: `{origins: [...], headers: [...], expose: [...], credentials: false, max_age: 600}`, or the origins.
        upload_memory: Bytes of a file in a multipart form that stay in memory; a longer one goes to disk until the
            request is settled.
        upload_folder: Where to.
        backlog: Answers of one stream, or messages of one WebSocket, that may wait for a slow client before it is
            given up.
        max_message: Bytes of a WebSocket's message.
        announce: Send an event by `opened` and `closed` for each WebSocket.
        access_log: Log each request.
        reuse_port: Let several processes listen on the same port.
    """

    inboxes: ClassVar[tuple[str, ...]] = ("inbox",)
    outboxes: ClassVar[tuple[str, ...]] = ("outbox",)
    acknowledges: ClassVar[str] = "request"
    shared: ClassVar[bool] = True

    def __init__(
        self,
        *,
        port: int | None = None,
        host: str = LOOPBACK,
        unix: str | None = None,
        fd: int | None = None,
        tls: Tls | None = None,
        routes: list[Any] | None = None,
        base: str = "",
        accepts: list[str] | None = None,
        produces: list[str] | None = None,
        timeout: Duration = Duration(30),  # noqa: B008 -- a frozen value
        max_body: Size = Size("10MB"),  # noqa: B008
        max_header: Size = Size("64KB"),  # noqa: B008
        slow: Duration = Duration(10),  # noqa: B008
        keep_alive: Duration = Duration(75),  # noqa: B008
        on_drop: int = 204,
        concurrent: int = 10_000,
        retry_after: Duration = Duration(1),  # noqa: B008
        raw_body: bool = False,
        show_errors: bool = False,
        gzip: Size = Size(1024),  # noqa: B008
        cors: Cors | list[str] | str | None = None,
        upload_memory: Size = Size("1MB"),  # noqa: B008
        upload_folder: str | None = None,
        backlog: int = 1000,
        max_message: Size = Size("1MB"),  # noqa: B008
        announce: bool = False,
        access_log: bool = False,
        reuse_port: bool = False,
    ):
        given = [name for name, value in (("port", port), ("unix", unix), ("fd", fd)) if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; listen on one of them")
        if port is not None and not 0 <= port < 65536:
            raise ValueError(f"port: {port} is not a port (0 to 65535)")
        if base and (not base.startswith("/") or base.endswith("/") or "{" in base):
            raise ValueError(f"base: {base!r} must begin with '/', not end with one, and have no parameters")
        if not 200 <= on_drop <= 599:
            raise ValueError(f"on_drop: {on_drop} is not a status (200 to 599)")
        for name, number in (("concurrent", concurrent), ("backlog", backlog)):
            if number < 1:
                raise ValueError(f"{name}: must be 1 or more")
        self._where: Address | str | int = unix or (fd if fd is not None else Address(host, port or 0))
        self._placed = bool(given)
        self._tls = tls
        self._routes = table_of(routes)
        self._base = base
        Routes(base, [(route, None) for route in self._routes])  # for what it finds wrong
        self._limits = Limits(int(max_header), float(slow), float(keep_alive))
        self._max_message = int(max_message)
        self._reuse_port = reuse_port
        self._settings = Settings(
            accepts=media_types(accepts) if accepts is not None else None,
            produces=media_types(produces) if produces is not None else None,
            timeout=timeout,
            max_body=max_body,
            on_drop=on_drop,
            concurrent=concurrent,
            backlog=backlog,
            retry_after_s=max(1, round(float(retry_after))),
            raw_body=raw_body,
            show_errors=show_errors,
            gzip=int(gzip),
            upload_memory=int(upload_memory),
            upload_folder=upload_folder,
            access_log=access_log,
            cors=Cors.of(cors),
            announce=announce,
        )
        #: Where it runs, once started: an ASGI application.
        self.site: Site | None = None
        #: Another server hands requests to `site`: nothing is opened.
        self.mounted = False
        self._server: Server | None = None
        self._held = False

    @classmethod
    def ports(cls, *, routes: list[Any] | None = None, announce: bool = False, **rest: Any) -> dict[str, Any]:
        """An outbox for each that a route names."""
        named = list(dict.fromkeys(route.outbox for route in table_of(routes)))
        told = ["opened", "closed"] if announce else []
        return {"outboxes": (*named, *told), "optional": tuple(told)}

    @property
    def addresses(self) -> list[Any]:
        """Host and port as bound; the path of a unix socket."""
        return self._server.addresses if self._server is not None else []

    async def start(self, context: Context) -> None:
        self.site = Site(context, self._routes, self._base, self._settings)
        self.site.hold(self._held)
        if self.mounted:
            return
        if not self._placed:
            raise StartFailed(
                f"{context.name} is told neither `port` nor `unix` nor `fd`; give one, or mount flow.asgi"
            )
        tls = self._tls.context(context.folder) if self._tls is not None else None
        self._server = Server(self.site, self._limits, tls, self._max_message)
        try:
            await self._server.open(context.name, self._where, reuse_port=self._reuse_port)
        except OSError as error:
            raise cannot_listen(context, self._where, error) from error
        for address in self.addresses:
            scheme = "https" if tls is not None else "http"
            shown = f"{scheme}://{Address(*address)}" if isinstance(address, tuple) else f"{scheme}+unix:{address}"
            context.log.info("listening on %s", shown)

    def unasked(self, event: Event[Any]) -> None:
        """An event that answers no request is for a WebSocket, or astray."""
        if "connection" not in event.headers or self.site is None:
            raise ModuleError(
                "nobody asked: this event comes from no request, and has no headers.connection to say which WebSocket "
                "it is for"
            )
        self.site.push(event)

    def hold_requests(self, held: bool) -> None:
        """Admit nothing, or something again: what comes meanwhile is refused with a 503, what is under way goes on.

        A request that were let in and had to wait would only keep its client waiting. May be called before `start`.
        """
        self._held = held
        if self.site is not None:
            self.site.hold(held)

    async def cease(self) -> None:
        if self._server is not None:
            await self._server.cease(grace_s())
        if self.site is not None:
            await self.site.cease()

    async def stop(self) -> None:
        if self.site is not None:
            await self.site.close(PATIENCE_S)
        if self._server is not None:
            await self._server.close()


def table_of(routes: Sequence[Any] | None) -> list[Route]:
    """The routes as values. None: everything goes in.

    Raises:
        ValueError: A route is wrong.
    """
    if routes is None:
        routes = ["* /{path:path}"]
    if not routes:
        raise ValueError("routes: there is none; leave it out to take every request")
    return [Route.of(spec) for spec in routes]
