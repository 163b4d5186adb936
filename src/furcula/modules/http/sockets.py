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
from furcula.modules.http.scopes import client_of, fields_of, path_of
from furcula.receipt import Slot
from furcula.statuses import HttpError, NotFound

if TYPE_CHECKING:
    from furcula.modules.http.application import Endpoint, Site

__all__ = ["Sockets"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Messages of one connection that may be in the flow at once. Those that wait for room before it count too; one more is
#: read, and beyond that the connection is not read.
WINDOW: Final = 64
#: Seconds that a connection gets to take what is still to be sent when the flow stops, and that the news of its end
#: waits for room in the flow.
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
        #: What has been read and waits for room in the flow. `feeder` waits for that room, or the reader where WINDOW
        #: messages are in the flow.
        self.held: deque[Message] = deque()
        #: The flow has been told of this connection, if it wants to be.
        self.told = False
        self.reader: asyncio.Task[None] | None = None
        self.writer: asyncio.Task[None] | None = None
        self.feeder: asyncio.Future[None] | None = None
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
        #: Outboxes of announcements behind which the flow has no room: until it has.
        self._no_room: dict[str, asyncio.Future[Any]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def push(self, event: Event[Any]) -> None:
        """Send an event to the connections that its `headers.connection` names.

        Raises:
            NotFound: None of them is there. Some have left: the others got the event.
            TooSlow: A connection does not read, and has been closed for it. The others got the event.
        """
        wanted = event.headers["connection"]
        if wanted == "*":
            targets = list(self._open.values())
        else:
            names = wanted if isinstance(wanted, list | tuple) else [wanted]
            targets = [self._open[name] for name in names if isinstance(name, str) and name in self._open]
            if names and not targets:
                raise NotFound(f"there is no connection {' or '.join(map(repr, names[:3]))}")
        frames: dict[str, str | bytes] = {}
        slow: TooSlow | None = None
        for connection in targets:
            form = connection.endpoint.codec
            if form not in frames:
                frames[form] = _frame(event, form, self._site.show_errors)
            try:
                connection.put(frames[form])
            except TooSlow as error:
                slow = error
        if slow is not None and wanted != "*":
            raise slow

    # ------------------------------------------------------------------ one connection

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection until it is closed."""
        if (await receive())["type"] != "websocket.connect":
            return
        fields, path = fields_of(scope), path_of(scope)
        found = self._site.routes.socket(path)
        refused = (
            503
            if self._site.ceased or self._site.resumed is not None
            else 404
            if found is None
            else 0
            if self._may(fields)
            else 403
        )
        if not refused and len(self._open) >= self._site.settings.concurrent:
            refused = 503
        if refused or found is None:
            await _refuse(scope, send, problem(refused, {}, {}, None))
            return
        endpoint, params = found
        query = scope.get("query_string") or b""  # not every server says an empty one
        headers: dict[str, Any] = {
            "method": "WS",
            "path": path,
            "route": endpoint.pattern,
            "params": params or {},
            "request": fields,
            "client": client_of(scope),
            "connection": new_id(),
        }
        try:
            if query:
                headers["query"] = form_fields(query.decode("latin-1"), "the query")
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
        connection.told = "opened" not in self._site.announces
        if not connection.told:
            self._feed(connection, self._tell_opened(connection))
        connection.reader = asyncio.create_task(self._read(connection, receive), name="furcula http: websocket reader")
        try:
            # The reader ends when the client leaves or the flow drains, the writer when it has closed.
            await asyncio.wait((connection.reader, connection.writer), return_when=asyncio.FIRST_COMPLETED)
            stopping = connection.reader.cancelled() or connection.close_code == 1001
            if stopping and not connection.writer.done():
                await asyncio.wait((connection.writer,))
        finally:
            del self._open[connection.id]
            parts = [part for part in (connection.reader, connection.writer, connection.feeder) if part is not None]
            for part in parts:
                part.cancel()
            connection.held.clear()
            try:
                await asyncio.gather(*parts, return_exceptions=True)
                connection.left()
                await self._tell_closed(connection)
            finally:
                self._serving.discard(task)

    def _may(self, fields: Mapping[str, str]) -> bool:
        """May the page that opens this connection do so? Browsers do not ask, so the server has to look."""
        origin = fields.get("origin")
        if origin is None:
            return True
        cors = self._site.settings.cors
        if cors is not None and cors.allows(origin):
            return True
        try:
            own = urlsplit(origin).netloc
        except ValueError:  # `http://[`: no browser says so
            return False
        return bool(own) and own == fields.get("host")

    # ------------------------------------------------------------------ what comes in

    async def _read(self, connection: _Connection, receive: Receive) -> None:
        """Read on while the messages before wait for room in the flow: else nobody would notice that the client leaves.

        What is read and not asked yet counts as if it were in the flow.
        """
        while True:
            message = await receive()
            if message["type"] != "websocket.receive":
                return
            connection.held.append(message)
            if not self._go_on(connection):
                return
            while len(connection.asking) + len(connection.held) > WINDOW:
                connection.room.clear()
                await connection.room.wait()
                if not self._go_on(connection):
                    return

    def _go_on(self, connection: _Connection) -> bool:
        """Ask what is held, unless somebody waits already for room to do so. False: the flow takes nothing more."""
        if connection.feeder is None:
            try:
                wait = self._ask_held(connection)
            except Stopped:
                self._stopped(connection)
                return False
            if wait is not None:
                self._feed(connection, wait)
        return True

    def _feed(self, connection: _Connection, wait: Awaitable[None]) -> None:
        """Ask what is held when this wait is over."""

        def over(feeder: asyncio.Future[None]) -> None:
            if not feeder.cancelled() and (error := feeder.exception()) is not None:
                self._site.context.log.error("http: a WebSocket waited for room and got an error", exc_info=error)
            connection.feeder = None
            self._go_on(connection)
            connection.room.set()

        connection.feeder = asyncio.ensure_future(wait)
        connection.feeder.add_done_callback(over)

    def _ask_held(self, connection: _Connection) -> Awaitable[None] | None:
        while connection.held and len(connection.asking) < WINDOW:
            if self._site.resumed is not None:
                return asyncio.shield(self._site.resumed)
            wait = self._ask(connection, connection.held.popleft())
            if wait is not None:
                return wait
        return None

    def _ask(self, connection: _Connection, message: Message) -> Awaitable[None] | None:
        data: Any = message.get("text")
        if data is None:
            data = message.get("bytes")
        elif connection.endpoint.codec == "json":
            try:
                data = _json.decode(data.encode("utf-8"))
            except (InputError, UnicodeError) as error:
                detail = str(error) if isinstance(error, InputError) else "not UTF-8"
                with contextlib.suppress(TooSlow):
                    connection.put(problem(400, {"detail": detail}, {}, None).body.decode())
                return None
        asked = _Asked(connection, new_id())
        connection.asking.add(asked)
        headers = {**connection.headers, "request_id": asked.request_id}
        try:
            return self._site.context.ask(Event(data, headers), asked, connection.endpoint.outbox)
        except Stopped:
            connection.asking.discard(asked)
            raise

    def _stopped(self, connection: _Connection) -> None:
        connection.held.clear()
        connection.close(1001)

    # ------------------------------------------------------------------ announcements

    async def _tell_opened(self, connection: _Connection) -> None:
        """Announce a connection when there is room for that; its messages come after.

        A client that opens and closes connections as fast as it can adds nothing to a flow that is full: one that has
        left before its turn is not announced at all.
        """
        # Each that is opened will have been closed one day, so there must be room for that news too.
        while room := self._no_room.get("opened") or self._no_room.get("closed"):
            await asyncio.wait((room,))
        connection.told = True
        room = self._announce(connection, "opened")
        if room is not None:
            await asyncio.wait((room,))

    async def _tell_closed(self, connection: _Connection) -> None:
        """Announce the end of a connection that was announced: when there is room, or after a while in any case."""
        if "closed" not in self._site.announces or not connection.told:
            return
        try:
            async with asyncio.timeout(FAREWELL_S):
                while (room := self._no_room.get("closed")) and not self._site.ceased:
                    await asyncio.wait((room,))
        except TimeoutError:
            pass
        finally:
            self._announce(connection, "closed")

    def _announce(self, connection: _Connection, outbox: str) -> asyncio.Future[Any] | None:
        """Returns what ends when the flow has room for the next announcement; None: it has."""
        try:
            wait = self._site.context.admit([Event(None, dict(connection.headers))], outbox)
        except Stopped:
            return None
        if wait is None:
            return None
        room = self._no_room[outbox] = asyncio.ensure_future(wait)

        def there_is_room(room: asyncio.Future[Any]) -> None:
            if self._no_room.get(outbox) is room:
                del self._no_room[outbox]

        room.add_done_callback(there_is_room)
        return room

    # ------------------------------------------------------------------ their end

    def cease(self) -> None:
        """Read no more. What was read is still answered."""
        for connection in self._open.values():
            if connection.reader is None:
                continue
            connection.reader.cancel()
            if connection.feeder is not None:
                connection.feeder.cancel()
            if not connection.told:  # nor is anybody told now: as far as the flow knows, it was never there
                self._stopped(connection)
            while connection.held:  # room or not, this is the last occasion
                try:
                    self._ask(connection, connection.held.popleft())
                except Stopped:
                    self._stopped(connection)

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
        for room in tuple(self._no_room.values()):
            room.cancel()


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
