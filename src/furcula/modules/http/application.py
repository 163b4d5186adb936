"""The ASGI application: requests become events, and what comes back becomes the response.

A request passes `_enter` (its head), `_read` (its body), `_ask` (into the flow) and `finish` (its answer). Where it has
come as a whole and the flow does not wait, our own server lets it pass without a task: `at_once`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import msgspec

from furcula.errors import InputError, Stopped
from furcula.event import Event
from furcula.module import Context
from furcula.modules.http import media
from furcula.modules.http.answers import Response, problem, refusal
from furcula.modules.http.body import ClientLeft, Upload, form_fields, read, too_long
from furcula.modules.http.cors import Cors
from furcula.modules.http.exchange import Exchange, Gathering, Relay, new_id
from furcula.modules.http.routes import Route, Routes
from furcula.modules.http.scopes import client_of, fields_of, path_of, path_shown
from furcula.modules.http.sockets import Sockets
from furcula.modules.http.streams import NotBegun, StreamBroke, send_stream
from furcula.options import Duration, Size
from furcula.statuses import BadRequest, HttpError, InternalServerError, ServiceUnavailable

__all__ = ["Endpoint", "Settings", "Site"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=-]{1,128}")
_TRACE: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

#: Plain generators that are streamed at once; more of them take turns.
STREAM_THREADS: Final = 32
#: Bodies longer than this are not read in one go, and forms longer than this in a thread: they take 0.4 us a byte.
_AT_ONCE: Final = 64 * 1024
#: Bodies longer than this are compressed in a thread: it takes longer than others should wait.
_GZIP_IN_THREAD: Final = 128 * 1024
_TEXTUAL: Final = ("text/", "application/json", "application/xml", "application/javascript", "image/svg")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for every route that says nothing else. See `HttpListen`."""

    accepts: tuple[str, ...] | None = None
    produces: tuple[str, ...] | None = None
    timeout: Duration = Duration(30)
    max_body: Size = Size("10MB")
    on_drop: int = 204
    concurrent: int = 10_000
    backlog: int = 1000
    retry_after_s: int = 1
    raw_body: bool = False
    show_errors: bool = False
    gzip: int = 1024
    upload_memory: int = 1 << 20
    upload_folder: str | None = None
    access_log: bool = False
    cors: Cors | None = None
    announce: bool = False


class Endpoint(msgspec.Struct, frozen=True):
    """Where a route leads, all settled."""

    pattern: str
    outbox: str
    accepts: tuple[str, ...] | None
    produces: tuple[str, ...] | None
    timeout_s: float
    max_body: int
    on_drop: int
    make: Callable[[Site, Endpoint, str | None], Exchange]
    reply: str
    codec: str

    @classmethod
    def of(cls, route: Route, base: str, settings: Settings) -> Endpoint:
        return cls(
            base + route.path,
            route.outbox,
            media.media_types(route.accepts) if route.accepts is not None else settings.accepts,
            media.media_types(route.produces) if route.produces is not None else settings.produces,
            float(route.timeout if route.timeout is not None else settings.timeout),
            int(route.max_body if route.max_body is not None else settings.max_body),
            route.on_drop if route.on_drop is not None else settings.on_drop,
            {"first": Exchange, "all": Gathering}.get(route.reply, Relay),
            route.reply,
            route.codec,
        )


class _Visit:
    """One request on its way through the site.

    Attributes:
        exchange: Who asks, once it is known where the request leads.
        response: The answer, once there is one.
        asked: It is in the flow: what it needs is kept until it is settled.
    """

    __slots__ = ("accept", "asked", "began", "exchange", "fields", "headers", "response", "scope")

    def __init__(self, scope: Message):
        self.scope = scope
        self.accept: str | None = None
        self.asked = False
        self.began = 0.0
        self.exchange: Exchange | None = None
        self.fields: dict[str, str] = {}
        self.headers: dict[str, Any] = {}
        self.response: Response | None = None

    def clean_up(self) -> None:
        if not self.asked and self.exchange is not None and self.exchange.clean_up is not None:
            self.exchange.clean_up()


class Site:
    """All that one `http.listen` serves. An ASGI application.

    Attributes:
        active: Requests that are being handled or answered.
        refused: Answers that never entered the flow, by status.
        ceased: The flow drains: nothing new is taken.
        resumed: Nothing new is taken until this is done; None: it is.
    """

    def __init__(self, context: Context, routes: Iterable[Route], base: str, settings: Settings):
        self.context = context
        self.settings = settings
        self.show_errors = settings.show_errors
        #: Outboxes on which WebSockets are announced.
        self.announces = ("opened", "closed") if settings.announce else ()
        self.backlog = settings.backlog
        self.retry_after = str(settings.retry_after_s)
        self.active = 0
        self.refused: Counter[int] = Counter()
        self.ceased = False
        self.resumed: asyncio.Future[None] | None = None
        # Nothing has to be added to an answer, unless it is long or a stream.
        self._plain = settings.cors is None and not settings.access_log
        self._least_gzip = settings.gzip or 1 << 62
        self.sockets = Sockets(self)
        self.routes = Routes(base, [(route, Endpoint.of(route, base, settings)) for route in routes])
        self.push = self.sockets.push
        self._no_room: dict[str, asyncio.Future[Any]] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._endless: set[asyncio.Task[Any]] = set()
        self._quiet: asyncio.Event = asyncio.Event()
        # Plain generators may block for long; what else goes to threads here must not wait for them.
        self._threads = ThreadPoolExecutor(STREAM_THREADS, "furcula http stream")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "websocket":
            await self.sockets.serve(scope, receive, send)
            return
        if kind != "http":
            raise RuntimeError(f"furcula serves http and websocket, not {kind}")
        visit = _Visit(scope)
        self.active += 1
        try:
            data = await self._read(visit, receive) if self._enter(visit) else None
            self._ask(visit, data)
        except asyncio.CancelledError:
            self.done()
            raise
        except Exception as error:
            self._refuse(visit, error)
        finally:
            visit.clean_up()
        await self.finish(visit, receive, send)

    def at_once(self, scope: Message, body: bytes) -> _Visit | None:
        """Handle a request that is here as a whole, as far as that goes without waiting.

        Most requests are answered when this returns, and have cost no task. Call `finish` with any that is not, or
        whose answer is not `plain`.

        Returns:
            None: nothing was done, it has to be read bit by bit.
        """
        if len(body) > _AT_ONCE:
            return None
        visit = _Visit(scope)
        self.active += 1
        try:
            if self._enter(visit):
                if visit.fields.get("content-type", "").startswith(media.MULTIPART):
                    self.active -= 1
                    return None
                data = self._decoded(visit, body)
            else:
                data = None
            self._ask(visit, data)
        except Exception as error:
            self._refuse(visit, error)
        return visit

    def plain(self, visit: _Visit) -> Response | None:
        """The answer to write, if there is one and nothing has to be done about it any more."""
        response = visit.response
        if response is None or not self._plain or response.stream is not None:
            return None
        if len(response.body) >= self._least_gzip:
            return None
        if visit.exchange is not None:
            response.headers.append((b"x-request-id", visit.exchange.request_id.encode("ascii")))
            visit.exchange = None
        return response

    async def finish(self, visit: _Visit, receive: Receive, send: Send) -> None:
        """Wait for the answer, if it is not there, and send it."""
        scope = visit.scope
        try:
            exchange = visit.exchange
            if visit.asked and visit.response is None and exchange is not None:
                if exchange.response is None:
                    await exchange.wait(receive, exchange.endpoint.timeout_s)
                visit.response = exchange.response
            response = visit.response
            plain = self.plain(visit)
            if plain is not None:
                ours = scope.get("furcula.server")
                if ours is None or not ours[0].respond(ours[1], plain):
                    await send({"type": "http.response.start", "status": plain.status, "headers": plain.headers})
                    await send({"type": "http.response.body", "body": plain.body})
            elif response is not None:
                if exchange is not None:
                    response.headers.append((b"x-request-id", exchange.request_id.encode("ascii")))
                await self._send(scope, response, exchange, visit.fields, receive, send)
            if visit.began:
                self._log_access(scope, response, exchange, time.perf_counter() - visit.began)
        except StreamBroke as error:
            self.context.log.error("http: the stream for %s broke: %s", path_shown(scope), error)
            if "furcula.server" not in scope:
                raise _Aborted from None  # what other servers do about that is to close the connection
            scope["furcula.server"][0].abort()
        except asyncio.CancelledError:
            if not self.ceased:
                raise
            # A stream that was ended because the flow stops.
        except Exception:
            self.context.log.exception("http: an answer to %s could not be sent", path_shown(scope))
            raise
        finally:
            self.done()

    # ------------------------------------------------------------------ the steps of a request

    def _enter(self, visit: _Visit) -> bool:
        """Look at the head of a request: where it leads, and what its event says.

        Returns:
            Is there a body?

        Raises:
            HttpError: It is refused.
        """
        scope = visit.scope
        settings = self.settings
        if settings.access_log:
            visit.began = time.perf_counter()
        visit.fields = fields = fields_of(scope)
        accept = fields.get("accept")
        if accept is not None and len(accept) > media.LONGEST:
            accept = None
        visit.accept = accept
        method = scope["method"]
        path = path_of(scope)
        if self.active > settings.concurrent or self.ceased:
            why = "it is being stopped" if self.ceased else "too many requests at once"
            raise ServiceUnavailable(why, retry_after=settings.retry_after_s)
        if self.resumed is not None:
            raise self._not_now()
        version = scope["http_version"]
        if "host" not in fields and version == "1.1":
            raise BadRequest("there is no Host")
        if method == "OPTIONS":
            visit.response = self._options(path, fields)
            if visit.response is not None:
                return False
        endpoint: Endpoint
        endpoint, params = self.routes.find(method, path)
        if endpoint.produces is not None and accept is not None:
            media.check_acceptable(accept, endpoint.produces)
        visit.exchange = exchange = endpoint.make(self, endpoint, accept)
        request_id = fields.get("x-request-id", "")
        if not request_id or not _ID.fullmatch(request_id):
            request_id = new_id()
        exchange.request_id = request_id
        visit.headers = headers = {
            "method": method,
            "path": path,
            "route": endpoint.pattern,
            "params": params or {},
            "request": fields,
            "client": client_of(scope),
            "request_id": request_id,
        }
        if query := scope.get("query_string"):
            headers["query"] = form_fields(query.decode("latin-1"), "the query")
        if "cookie" in fields:
            headers["cookies"] = _cookies(fields["cookie"])
        if "traceparent" in fields and _TRACE.fullmatch(fields["traceparent"]):
            headers["traceparent"] = exchange.trace = fields["traceparent"]
        if settings.raw_body:
            headers["body"] = b""
        length = fields.get("content-length")
        if length is None:
            # From HTTP/2 on, a body needs no field to say that it is there.
            if "transfer-encoding" not in fields and version <= "1.1":
                return False
        elif length == "0":
            return False
        content_type = fields.get("content-type")
        if content_type is not None and len(content_type) > media.LONGEST:
            raise BadRequest(f"the Content-Type has more than {media.LONGEST} characters")
        if endpoint.accepts is not None:
            media.check_taken(content_type, endpoint.accepts)
        if length is not None and len(length) > 6 and int(length) > endpoint.max_body:
            raise too_long(endpoint.max_body)  # before the client is told to go on
        return True

    async def _read(self, visit: _Visit, receive: Receive) -> Any:
        """What the body says, once it is there."""
        exchange = visit.exchange
        assert exchange is not None
        most = exchange.endpoint.max_body
        kind, parameters = media.essence(visit.fields.get("content-type", ""))
        if kind == media.MULTIPART:
            boundary = parameters.get("boundary", "")
            if not boundary or len(boundary) > 70 or not boundary.isascii():
                raise BadRequest("the multipart form has no boundary")
            upload = Upload(boundary, most, self.settings.upload_memory, self.settings.upload_folder)
            exchange.clean_up = upload.close
            return await upload.read(receive)
        body = await read(receive, most, visit.fields.get("content-length"))
        if kind == media.FORM and len(body) > _AT_ONCE:
            if self.settings.raw_body:
                visit.headers["body"] = body
            return await asyncio.to_thread(form_fields, body.decode("latin-1"))
        return self._decoded(visit, body)

    def _decoded(self, visit: _Visit, body: bytes) -> Any:
        exchange = visit.exchange
        assert exchange is not None
        if len(body) > exchange.endpoint.max_body:
            raise too_long(exchange.endpoint.max_body)
        if self.settings.raw_body:
            visit.headers["body"] = body
        content_type = visit.fields.get("content-type")
        if content_type != media.JSON and content_type is not None and media.essence(content_type)[0] == media.FORM:
            return form_fields(body.decode("latin-1"))
        return media.decode(content_type, body)

    def _ask(self, visit: _Visit, data: Any) -> None:
        """Let the request into the flow."""
        exchange = visit.exchange
        if exchange is None:  # it is answered already
            return
        outbox = exchange.endpoint.outbox
        if self.resumed is not None:  # since its head was looked at
            raise self._not_now()
        if outbox in self._no_room:
            raise ServiceUnavailable("there is no room now", retry_after=self.settings.retry_after_s)
        visit.asked = True
        wait = self.context.ask(Event(data, visit.headers), exchange, outbox)
        if wait is not None:
            self._until_there_is_room(outbox, wait)
        visit.response = exchange.response

    def _not_now(self) -> ServiceUnavailable:
        return ServiceUnavailable("nothing is admitted now", retry_after=self.settings.retry_after_s)

    def _refuse(self, visit: _Visit, error: Exception) -> None:
        """The answer to a request that did not enter the flow."""
        if isinstance(error, ClientLeft):
            return
        if isinstance(error, Stopped):
            visit.asked = False
            error = ServiceUnavailable("it is being stopped", retry_after=1)
        elif isinstance(error, InputError) and not isinstance(error, HttpError):
            error = BadRequest(str(error))
        if isinstance(error, HttpError):
            self.refused[error.status] += 1
            visit.response = refusal(error, visit.accept)
        else:
            self.context.log.error("http: a request to %s broke the listener", path_shown(visit.scope), exc_info=error)
            visit.response = problem(500, {}, {}, visit.accept)

    def done(self) -> None:
        """A request has its answer."""
        self.active -= 1
        if not self.active:
            self._quiet.set()

    def _options(self, path: str, fields: Mapping[str, str]) -> Response | None:
        """The answer to OPTIONS where no route takes it, and to a preflight of CORS."""
        if path == "*":
            return Response(204, [])
        preflight = self.settings.cors is not None and "access-control-request-method" in fields
        if not preflight:
            with contextlib.suppress(HttpError):
                self.routes.find("OPTIONS", path)
                return None
        allowed = self.routes.allowed(path)
        if not allowed:
            return None
        headers = [(b"allow", ", ".join(allowed).encode("ascii"))]
        if self.settings.cors is not None:
            headers += self.settings.cors.preflight(fields, allowed)
        return Response(204, headers)

    def _until_there_is_room(self, outbox: str, wait: Awaitable[None]) -> None:
        """The flow has no room behind this outbox. What comes there is refused until it has."""
        room = asyncio.ensure_future(_awaited(wait))
        self._no_room[outbox] = room

        def there_is_room(room: asyncio.Future[Any]) -> None:
            if self._no_room.get(outbox) is room:
                del self._no_room[outbox]

        room.add_done_callback(there_is_room)

    # ------------------------------------------------------------------ what goes out

    async def _send(
        self,
        scope: Message,
        response: Response,
        exchange: Exchange | None,
        fields: Mapping[str, str],
        receive: Receive,
        send: Send,
    ) -> None:
        headers = response.headers
        if self.ceased:
            headers.append((b"connection", b"close"))
        cors = self.settings.cors
        if cors is not None:
            headers += cors.fields(fields.get("origin"))
        if response.stream is not None:
            await self._send_stream(scope, response, exchange, fields, receive, send)
            return
        body = response.body
        if self.settings.gzip and len(body) >= self.settings.gzip:
            body = await _compressed(response, fields.get("accept-encoding", ""))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _send_stream(
        self,
        scope: Message,
        response: Response,
        exchange: Exchange | None,
        fields: Mapping[str, str],
        receive: Receive,
        send: Send,
    ) -> None:
        accept = exchange.accept if exchange is not None else None
        reply = exchange.endpoint.reply if exchange is not None else "first"
        sse = reply == "sse" or media.wants(accept, media.SSE)
        task = asyncio.current_task()
        assert task is not None
        # A client of server-sent events comes back by itself; anything else is let come to its end when we stop.
        streams = self._endless if sse else self._streams
        streams.add(task)
        try:
            await send_stream(
                response,
                send=send,
                receive=receive,
                head=scope["method"] == "HEAD",
                wants_sse=sse,
                threads=self._threads,
            )
        except NotBegun as broken:
            if not isinstance(broken.error, HttpError):
                self.context.log.error("http: the stream for %s broke: %s", path_shown(scope), broken)
            error = broken.error if isinstance(broken.error, HttpError) else InternalServerError()
            refused = refusal(error, accept)
            await send({"type": "http.response.start", "status": refused.status, "headers": refused.headers})
            await send({"type": "http.response.body", "body": refused.body})
        finally:
            streams.discard(task)

    def _log_access(self, scope: Message, response: Response | None, exchange: Exchange | None, seconds: float) -> None:
        status = response.status if response is not None else "left"
        request = f" [request {exchange.request_id}]" if exchange is not None else ""
        path = path_shown(scope)
        self.context.log.info("%s %s %s %.1f ms%s", scope["method"], path, status, seconds * 1000, request)

    def hold(self, held: bool) -> None:
        """Take nothing new, or take it again. WebSockets stay open; what they say waits."""
        if held and self.resumed is None:
            self.resumed = asyncio.get_running_loop().create_future()
        elif not held and self.resumed is not None:
            self.resumed.set_result(None)
            self.resumed = None

    # ------------------------------------------------------------------ its end

    async def cease(self) -> None:
        """Take nothing more. Returns when streams that have an end have come to it."""
        self.ceased = True
        self._plain = False
        self.sockets.cease()
        for task in tuple(self._endless):
            task.cancel()
        while self._streams:
            await asyncio.wait(tuple(self._streams))

    async def close(self, patience_s: float) -> None:
        """Let answers that are under way be sent; end what is left."""
        self.ceased = True
        self._plain = False
        await self.sockets.close()
        if self.active:
            self._quiet.clear()
            try:
                await asyncio.wait_for(self._quiet.wait(), patience_s)
            except TimeoutError:
                pass
        for task in (*self._streams, *self._endless):
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for room in self._no_room.values():
            room.cancel()
        self._no_room.clear()


class _Aborted(Exception):
    """The response cannot be completed: the server closes the connection, and so tells the client."""


async def _awaited(wait: Awaitable[None]) -> None:
    await wait


def _cookies(text: str) -> dict[str, str]:
    """The cookies of a request (RFC 6265, 5.4), as browsers send them; what is no pair is passed over."""
    found: dict[str, str] = {}
    for pair in text.split(";"):
        name, equals, value = pair.partition("=")
        if equals:
            found.setdefault(name.strip(), value.strip().strip('"'))
    return found


async def _compressed(response: Response, accepted: str) -> bytes:
    """The body, compressed if that is wanted and worth it; the header fields are changed with it."""
    headers, body = response.headers, response.body
    kind = next((value for name, value in headers if name == b"content-type"), b"").decode("latin-1")
    plain = media.canonical(media.essence(kind)[0])
    if not plain.startswith(_TEXTUAL) or response.status == 206:
        return body
    # A strong ETag stands for these very bytes.
    if any(name == b"content-encoding" or (name == b"etag" and value[:2] != b"W/") for name, value in headers):
        return body
    headers.append((b"vary", b"accept-encoding"))
    if not accepted or len(accepted) > media.LONGEST:
        return body
    if media.choose(accepted, ("gzip",)) is None:
        return body
    if len(body) > _GZIP_IN_THREAD:
        packed = await asyncio.to_thread(gzip.compress, body, 5, mtime=0)
    else:
        packed = gzip.compress(body, 5, mtime=0)
    headers[:] = [(name, value) for name, value in headers if name != b"content-length"]
    headers += [(b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(packed))]
    return packed
