"""WebSockets: a connection is a source of messages, and a sink for what is addressed to it.

Each message is a request whose answers, none or many, are sent back. Besides, any event that reaches the listener's
inbox with `headers.connection` is sent to that connection: an id, a list of ids, or `*` for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from furcula.asking import Asker
from furcula.codecs import codec
from furcula.errors import InputError, Stopped
from furcula.event import Event, Failure
from furcula.modules.http.answers import Response, failed, problem
from furcula.modules.http.body import form_fields
from furcula.modules.http.exchange import TooSlow, new_id
from furcula.receipt import Slot
from furcula.statuses import HttpError, NotFound

if TYPE_CHECKING:
    from furcula.modules.http.application import Endpoint, Site

__all__ = ["Sockets"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Messages of one connection that may be in the flow at once. Beyond that it is not read.
WINDOW: Final = 64
#: Seconds that a connection gets to take what is still to be sent when the flow stops.
FAREWELL_S: Final = 2.0

_json = codec("json")


class _Connection:
    """One open WebSocket."""

    def __init__(self, site: Site, endpoint: Endpoint, headers: dict[str, Any]):
        self.site = site
        self.endpoint = endpoint
        self.headers = headers
        self.id: str = headers["connection"]
        self.asking: set[_Asked] = set()
        self.reader: asyncio.Task[None] | None = None
        self.writer: asyncio.Task[None] | None = None
        self.close_code: int | None = None
        self._waiting: deque[str | bytes] = deque()
        self._changed = asyncio.Event()
        self.room = asyncio.Event()

    def put(self, frame: str | bytes) -> None:
        if self.close_code is not None:
            raise TooSlow(f"the connection {self.id} is being closed")
        if len(self._waiting) >= self.site.backlog:
            self.close(1008)
            raise TooSlow(f"the connection {self.id} does not read: {len(self._waiting)} messages wait for it")
        self._waiting.append(frame)
        self._changed.set()

    def close(self, code: int) -> None:
        if self.close_code is None:
            self.close_code = code
            self._changed.set()

    async def write(self, send: Send) -> None:
        """Send what is put, until the connection is to be closed."""
        while True:
            while self._waiting and self.close_code != 1008:
                frame = self._waiting.popleft()
                await send({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})
            if self.close_code is not None:
                await send({"type": "websocket.close", "code": self.close_code})
                return
            self._changed.clear()
            await self._changed.wait()

    def left(self) -> None:
        for asked in tuple(self.asking):
            asked.leave()


class _Asked(Asker):
    """One message of a connection."""

    __slots__ = ("connection", "request_id")

    many = True

    def __init__(self, connection: _Connection, request_id: str):
        super().__init__()
        self.connection = connection
        self.request_id = request_id

    @property
    def notes(self) -> Mapping[str, str]:
        return {"request_id": self.request_id}

    def take(self, reply: Event[Any]) -> bool:
        if "connection" in reply.headers:
            self.connection.site.push(reply)
        else:
            connection = self.connection
            connection.put(_frame(reply, connection.endpoint.codec, connection.site.show_errors))
        return True

    def settled(self, slot: Slot) -> None:
        connection = self.connection
        connection.asking.discard(self)
        if len(connection.asking) < WINDOW:
            connection.room.set()
        if slot.fate == "failed" and not self.gone:
            failure = slot.failure
            show = connection.site.show_errors
            said = failed(failure, None, show) if isinstance(failure, Failure) else problem(500, {}, {}, None)
            with contextlib.suppress(TooSlow):
                connection.put(said.body.decode())


class Sockets:
    """All WebSockets of one listener."""

    def __init__(self, site: Site):
        self._site = site
        self._open: dict[str, _Connection] = {}
        self._serving: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._open)

    def push(self, event: Event[Any]) -> None:
        """Send an event to the connections that its `headers.connection` names.

        Raises:
            NotFound: There is no such connection.
            TooSlow: A connection does not read, and has been closed for it. The others got the event.
        """
        wanted = event.headers["connection"]
        frames = {codec: _frame(event, codec, self._site.show_errors) for codec in ("json", "text")}
        if wanted == "*":
            targets = list(self._open.values())
        else:
            names = wanted if isinstance(wanted, list) else [wanted]
            targets = [self._open[name] for name in names if isinstance(name, str) and name in self._open]
            if len(targets) < len(names):
                missing = next(name for name in names if name not in self._open)
                raise NotFound(f"there is no connection {missing!r}")
        slow: TooSlow | None = None
        for connection in targets:
            try:
                connection.put(frames[connection.endpoint.codec])
            except TooSlow as error:
                slow = error
        if slow is not None and wanted != "*":
            raise slow

    # ------------------------------------------------------------------ one connection

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection until it is closed."""
        if (await receive())["type"] != "websocket.connect":
            return
        fields: dict[str, str] = {}
        for name, value in scope["headers"]:
            fields[name.decode("latin-1")] = value.decode("latin-1")
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :] or "/"
        found = self._site.routes.socket(path)
        refused = 503 if self._site.ceased else 404 if found is None else 0 if self._may(fields) else 403
        if not refused and len(self._open) >= self._site.settings.concurrent:
            refused = 503
        if refused or found is None:
            await _refuse(scope, send, problem(refused, {}, {}, None))
            return
        endpoint, params = found
        client = scope["client"]
        headers: dict[str, Any] = {
            "method": "WS",
            "path": path,
            "route": endpoint.pattern,
            "params": params or {},
            "request": fields,
            "client": f"{client[0]}:{client[1]}" if client else "",
            "connection": new_id(),
        }
        try:
            if scope["query_string"]:
                headers["query"] = form_fields(scope["query_string"].decode("latin-1"), "the query")
        except HttpError as error:
            await _refuse(scope, send, problem(error.status, error.problem(), {}, None))
            return
        await send({"type": "websocket.accept"})
        connection = _Connection(self._site, endpoint, headers)
        self._open[connection.id] = connection
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        connection.writer = asyncio.create_task(connection.write(send), name="furcula http: websocket writer")
        connection.reader = asyncio.create_task(self._read(connection, receive), name="furcula http: websocket reader")
        try:
            self._tell(connection, "opened")
            # The reader ends when the client leaves or the flow drains, the writer when it has closed.
            await asyncio.wait((connection.reader, connection.writer), return_when=asyncio.FIRST_COMPLETED)
            if connection.reader.cancelled() and not connection.writer.done():
                await asyncio.wait((connection.writer,))
        finally:
            del self._open[connection.id]
            self._serving.discard(task)
            for part in (connection.reader, connection.writer):
                part.cancel()
            await asyncio.gather(connection.reader, connection.writer, return_exceptions=True)
            connection.left()
            self._tell(connection, "closed")

    def _may(self, fields: Mapping[str, str]) -> bool:
        """May the page that opens this connection do so? Browsers do not ask, so the server has to look."""
        origin = fields.get("origin")
        if origin is None:
            return True
        cors = self._site.settings.cors
        return (cors is not None and cors.allows(origin)) or urlsplit(origin).netloc == fields.get("host")

    def _tell(self, connection: _Connection, outbox: str) -> None:
        if outbox in self._site.announces:
            with contextlib.suppress(Stopped):
                self._site.context.admit([Event(None, dict(connection.headers))], outbox)

    async def _read(self, connection: _Connection, receive: Receive) -> None:
        site, endpoint = self._site, connection.endpoint
        while True:
            message = await receive()
            if message["type"] != "websocket.receive":
                return
            data: Any = message.get("text")
            if data is None:
                data = message.get("bytes")
            elif endpoint.codec == "json":
                try:
                    data = _json.decode(data.encode("utf-8"))
                except InputError as error:
                    connection.put(problem(400, {"detail": str(error)}, {}, None).body.decode())
                    continue
                except UnicodeError:
                    connection.put(problem(400, {"detail": "not UTF-8"}, {}, None).body.decode())
                    continue
            asked = _Asked(connection, new_id())
            connection.asking.add(asked)
            headers = {**connection.headers, "request_id": asked.request_id}
            try:
                wait = site.context.ask(Event(data, headers), asked, endpoint.outbox)
            except Stopped:
                connection.asking.discard(asked)
                connection.close(1001)
                return
            if wait is not None:
                await wait
            while len(connection.asking) >= WINDOW:
                connection.room.clear()
                await connection.room.wait()

    # ------------------------------------------------------------------ their end

    def cease(self) -> None:
        """Read no more. What was read is still answered."""
        for connection in self._open.values():
            if connection.reader is not None:
                connection.reader.cancel()

    async def close(self) -> None:
        """Send what is to be sent, then close."""
        for connection in self._open.values():
            connection.close(1001)
        if self._serving:
            _, pending = await asyncio.wait(tuple(self._serving), timeout=FAREWELL_S)
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)


def _frame(event: Event[Any], codec: str, show_errors: bool) -> str | bytes:
    """An event as a message: bytes as they are, text too where the codec is text, anything else as JSON.

    A failed event is its problem details.
    """
    if event.failures and "status" not in event.headers:
        return failed(event.failures[-1], None, show_errors).body.decode()
    data = event.data
    if codec == "text" and isinstance(data, str):
        return data
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    return _json.encode(data).decode()


async def _refuse(scope: Message, send: Send, response: Response) -> None:
    if "websocket.http.response" in scope.get("extensions", {}):
        start = {"type": "websocket.http.response.start", "status": response.status, "headers": response.headers}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": response.body})
    else:
        await send({"type": "websocket.close", "code": 1008})
