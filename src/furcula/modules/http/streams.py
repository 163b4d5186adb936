"""Answers that go on: generators and sequences of events as chunks, lines of JSON, or server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Executor
from typing import Any, Final

from furcula.codecs import codec
from furcula.event import Event
from furcula.modules.http import media
from furcula.modules.http.answers import Response
from furcula.modules.http.exchange import Relay, TooSlow, until_left

__all__ = ["NotBegun", "StreamBroke", "items_of", "send_stream", "sse_frame"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Seconds of silence after which a comment is sent, so that proxies keep the connection and a lost client is noticed.
HEARTBEAT_S: Final = 15.0
NDJSON: Final = "application/x-ndjson"
_SSE_FIELDS: Final = frozenset(("data", "event", "id", "retry"))

_json = codec("json")


class StreamBroke(Exception):
    """What gives a stream failed in the middle. The client is told by a connection that breaks off."""


class NotBegun(Exception):
    """It failed before anything was sent. `error` is why: there is still time for a proper answer."""

    def __init__(self, error: Exception):
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


async def items_of(stream: Any, threads: Executor) -> AsyncIterator[Any]:
    """The items of a generator, plain or asynchronous. A plain one runs in a thread: it may block."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
        return
    iterator: Iterator[Any] = iter(stream)
    loop = asyncio.get_running_loop()
    while True:
        item = await loop.run_in_executor(threads, next, iterator, _END)
        if item is _END:
            return
        yield item


_END: Any = object()
_LEFT: Any = object()


async def send_stream(
    response: Response, *, send: Send, receive: Receive, head: bool, wants_sse: bool, threads: Executor
) -> None:
    """Send an answer whose body comes bit by bit.

    Ends when the items do, or the client leaves; then the generator is closed.

    Args:
        head: Only the header is wanted.
        wants_sse: As server-sent events, unless the answer says another type.
        threads: Where plain generators run.

    Raises:
        NotBegun: The generator raised before its first item, and nothing was sent.
        StreamBroke: The generator raised later, or gave what cannot be sent. What was sent, was sent.
    """
    sending = _Sending(response, send, receive, wants_sse, threads)
    try:
        if head:
            await sending.begin(None)
            await send({"type": "http.response.body", "body": b""})
        else:
            await sending.all()
    finally:
        await sending.close()


class _Sending:
    """One stream on its way."""

    def __init__(self, response: Response, send: Send, receive: Receive, wants_sse: bool, threads: Executor):
        self._response = response
        self._send = send
        self._stream = response.stream
        self._relay = response.stream if isinstance(response.stream, Relay) else None
        self._items = items_of(response.stream, threads)
        named = next((value.decode("latin-1") for name, value in response.headers if name == b"content-type"), None)
        self._named = named is not None
        self._sse = wants_sse if named is None else media.essence(named)[0] == media.SSE
        self._leaving = asyncio.ensure_future(until_left(receive))
        self._coming: asyncio.Future[Any] | None = None

    async def begin(self, kind: str | None) -> None:
        headers = self._response.headers
        if not self._named and (self._sse or kind is not None):
            headers = [*headers, (b"content-type", (media.SSE if self._sse else kind or "").encode("ascii"))]
            if self._sse:
                headers.append((b"cache-control", b"no-cache"))
        await self._send({"type": "http.response.start", "status": self._response.status, "headers": headers})

    async def all(self) -> None:
        # Only of a stream whose type nobody has said does the first item have to tell it.
        known = self._named or self._sse
        if known:
            await self.begin(None)
            await self._put(b"")
        try:
            item = await self._next()
        except StreamBroke as error:
            if known or not isinstance(error.__cause__, Exception):
                raise
            raise NotBegun(error.__cause__) from error
        if item is _LEFT:
            return
        if not known:
            await self.begin(_kind_of(item))
        frame = sse_frame if self._sse else _chunk
        while item is not _END:
            await self._put(frame(item))
            item = await self._next()
            if item is _LEFT:
                return
        if self._relay is not None and self._relay.failure is not None:
            if not self._sse:
                raise StreamBroke("the request failed after answers had gone out")
            await self._put(b"event: error\n" + sse_frame(self._relay.failure.body.decode("utf-8", "replace")))
        await self._send({"type": "http.response.body", "body": b""})

    async def _put(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _next(self) -> Any:
        """The next item; `_END`; or `_LEFT` as soon as the client has."""
        self._coming = coming = asyncio.ensure_future(_next_of(self._items))
        while True:
            await asyncio.wait(
                (coming, self._leaving),
                timeout=HEARTBEAT_S if self._sse else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._leaving.done():
                return _LEFT
            if coming.done():
                return coming.result()
            await self._put(b": \n\n")

    async def close(self) -> None:
        self._leaving.cancel()
        coming = self._coming
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait([coming])
        if coming is not None and not coming.cancelled():
            coming.exception()  # it was told, or nobody is left to be told
        if self._relay is not None and not self._relay.ended:
            self._relay.leave()
        await _close(self._items, self._stream)


async def _next_of(items: AsyncIterator[Any]) -> Any:
    try:
        return await anext(items)
    except StopAsyncIteration:
        return _END
    except TooSlow as error:
        raise StreamBroke(str(error)) from error
    except Exception as error:
        raise StreamBroke(f"{type(error).__name__}: {error}") from error


async def _close(items: Any, stream: Any) -> None:
    with contextlib.suppress(Exception):
        await items.aclose()
    for name in ("aclose", "close"):
        close = getattr(stream, name, None)
        if close is not None:
            with contextlib.suppress(Exception):
                closed = close()
                if closed is not None:
                    await closed
            return


def _kind_of(item: Any) -> str:
    data = item.data if isinstance(item, Event) else item
    if isinstance(data, bytes | bytearray | memoryview) or item is _END:
        return media.BYTES
    return "text/plain; charset=utf-8" if isinstance(data, str) else NDJSON


def _chunk(item: Any) -> bytes:
    """One item as it stands in a plain body: bytes and text as they are, anything else as a line of JSON."""
    data = item.data if isinstance(item, Event) else item
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    if isinstance(data, str):
        return data.encode("utf-8", "surrogatepass")
    try:
        return _json.encode(data) + b"\n"
    except ValueError as error:
        raise StreamBroke(str(error)) from error


def sse_frame(item: Any) -> bytes:
    """One server-sent event (WHATWG HTML, 9.2).

    A dict of nothing but `data`, `event`, `id` and `retry` gives these fields; anything else is the data. Of an Event,
    `headers.event` names the kind, and the id is the Event's.
    """
    fields: dict[str, Any] = {}
    data = item
    if isinstance(item, Event):
        data = item.data
        if "event" in item.headers:
            fields["event"] = item.headers["event"]
        fields["id"] = item.id
    if type(data) is dict and "data" in data and _SSE_FIELDS.issuperset(data):
        fields.update(data)
        data = fields.pop("data")
    if isinstance(data, bytes | bytearray | memoryview):
        text = bytes(data).decode("utf-8", "replace")
    elif isinstance(data, str):
        text = data
    else:
        try:
            text = _json.encode(data).decode()
        except ValueError as error:
            raise StreamBroke(str(error)) from error
    lines = [f"{name}: {_one_line(value)}" for name, value in fields.items()]
    lines += [f"data: {line}" for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def _one_line(value: Any) -> str:
    return str(value).replace("\r", " ").replace("\n", " ").replace("\0", "")
