"""Answers that go on: generators and sequences of events as chunks, lines of JSON, or server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

from furcula.codecs import codec
from furcula.event import Event
from furcula.modules.http import media
from furcula.modules.http.answers import Response
from furcula.modules.http.exchange import Relay

__all__ = ["StreamBroke", "items_of", "send_stream", "sse_frame"]

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Seconds of silence after which a comment is sent, so that proxies keep the connection and a lost client is noticed.
HEARTBEAT_S: Final = 15.0
NDJSON: Final = "application/x-ndjson"
_SSE_FIELDS: Final = frozenset(("data", "event", "id", "retry"))

_json = codec("json")


class StreamBroke(Exception):
    """What gives a stream failed in the middle. The client is told by a connection that breaks off."""


async def items_of(stream: Any) -> AsyncIterator[Any]:
    """The items of a generator, plain or asynchronous. A plain one runs in a thread: it may block."""
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
        return
    iterator: Iterator[Any] = iter(stream)
    while True:
        item = await asyncio.to_thread(next, iterator, _END)
        if item is _END:
            return
        yield item


_END: Any = object()


async def send_stream(response: Response, *, send: Send, receive: Receive, head: bool, wants_sse: bool) -> None:
    """Send an answer whose body comes bit by bit.

    Ends when the items do, or the client leaves; then the generator is closed.

    Raises:
        StreamBroke: The generator raised, or gave what cannot be sent. What was sent, was sent.
    """
    items = items_of(response.stream)
    headers = response.headers
    given = next((value.decode("latin-1") for name, value in headers if name == b"content-type"), None)
    sse = wants_sse if given is None else media.essence(given)[0] == media.SSE
    relay = response.stream if isinstance(response.stream, Relay) else None
    first: Any = _END
    try:
        if head and relay is None:
            first_known = False
        else:
            # The first item tells what a stream without a type consists of.
            first = await _next(items)
            first_known = True
        if given is None:
            kind = media.SSE if sse else _kind_of(first if first_known else _END)
            headers = [*headers, (b"content-type", kind.encode("ascii"))]
            if sse:
                headers.append((b"cache-control", b"no-cache"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if head:
            await send({"type": "http.response.body", "body": b""})
            return
        frame = sse_frame if sse else _chunk
        leaving = asyncio.ensure_future(_left(receive))
        coming: asyncio.Future[Any] | None = None
        try:
            item = first
            while item is not _END:
                await send({"type": "http.response.body", "body": frame(item), "more_body": True})
                if leaving.done():
                    return
                coming = asyncio.ensure_future(_next(items))
                while not coming.done():
                    await asyncio.wait(
                        (coming, leaving), timeout=HEARTBEAT_S if sse else None, return_when=asyncio.FIRST_COMPLETED
                    )
                    if leaving.done():
                        return
                    if not coming.done():
                        await send({"type": "http.response.body", "body": b": \n\n", "more_body": True})
                item = coming.result()
        finally:
            leaving.cancel()
            if coming is not None and not coming.done():
                coming.cancel()
                await asyncio.wait([coming])
        if relay is not None and relay.failure is not None:
            if not sse:
                raise StreamBroke("the request failed after answers had gone out")
            failed = b"event: error\n" + sse_frame(relay.failure.body.decode("utf-8", "replace"))
            await send({"type": "http.response.body", "body": failed, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        if relay is not None and not relay.ended:
            relay.leave()
        await _close(items, response.stream)


async def _next(items: AsyncIterator[Any]) -> Any:
    try:
        return await anext(items)
    except StopAsyncIteration:
        return _END
    except asyncio.CancelledError:
        raise
    except Exception as error:
        raise StreamBroke(f"{type(error).__name__}: {error}") from error


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
