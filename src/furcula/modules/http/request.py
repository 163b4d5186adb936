"""`http.request`: each event asks a server."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

from furcula.codecs import codec
from furcula.errors import InputError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.http.client import Answer, Auth, Client, check_field, check_url, decoded, failure
from furcula.modules.http.upstream import UpstreamRefused
from furcula.modules.http.urls import compile_url
from furcula.modules.template import compile_text
from furcula.options import Duration, Secret, Size

__all__ = ["Request"]

TIMEOUT: Final = Duration("30s")
CONNECT_TIMEOUT: Final = Duration("10s")
MAX_RESPONSE: Final = Size("16MB")

_METHOD: Final = re.compile(r"[A-Z][A-Z0-9-]*")
_RANGE: Final = re.compile(r"([1-5]\d\d)(?:\.\.([1-5]\d\d))?|([1-5])xx")
#: Requests of these methods have no body, unless one is asked for.
_WITHOUT_BODY: Final = frozenset(("GET", "HEAD", "DELETE", "OPTIONS", "TRACE"))
_MARKS: Final = ("{{", "{%", "{#")

#: What makes the body of an event's data, and the type that the request then names.
_FORMS: Final[Mapping[str, str]] = {
    "json": "application/json",
    "msgpack": "application/msgpack",
    "text": "text/plain; charset=utf-8",
    "bytes": "application/octet-stream",
    "form": "application/x-www-form-urlencoded",
}


class Request(Module):
    """Send a request to a server for each event. Where something is connected, the event goes on with the answer.

    Then `data` is the body of the answer (JSON and MessagePack as values, text as str, others as bytes, none as None),
    `headers.http_status` its status and `headers.http_headers` its header fields.

    An event fails with `UpstreamUnavailable` (or `UpstreamTimeout`) where another try may succeed: no connection, no
    answer in time, a status of 408, 425, 429 or 5xx; and with `UpstreamRefused` where it will not. To try again only
    the former, say `retry: {errors: ["furcula.modules.http.upstream:UpstreamUnavailable"]}`. Who asked us over HTTP is
    told 504 or 502, and nothing of what the server said. A request may be sent twice, after a connection broke for
    instance: a header field `idempotency-key: "{{ event.id }}"` tells a server that knows it.

    One request is sent after the other, unless the module has a `concurrency`.

    Args:
        url: `https://host/orders/{{ data.id }}`: a template, as in `template`, whose values are percent-encoded;
            `{{ data.url | safe }}` is taken as the URL that it is. Whoever decides it decides whom we ask.
        method: POST, GET, and so on.
        query: Name -> value, a template; added to the query of the URL.
        headers: Header fields; the values are templates. `traceparent` and `x-request-id` go along by themselves
            where the event has them.
        body: A dotted path (`data.order`), or a template, whose text is sent as it is. Default: the data; no body for
            GET, HEAD and DELETE.
        content_type: How the body is written: json, msgpack, text, bytes or form.
        accept: The statuses that are a success: `[200..299, 404]`.
        keep: Keep the data; whatever the body of the answer is, it is not looked at.
        auth: `{user: …, password: …}`, `{bearer: …}`, or `{header: x-api-key, key: …}`.
        timeout: Seconds for all of it, the wait for a free connection among them.
        connect_timeout: Seconds for making a connection.
        pool: Connections at once.
        verify: Check the server's certificate.
        ca_file: A file with the certificates that vouch for it, instead of the system's; relative to the flow's folder.
        follow_redirects: Go where the server points: ten times at most, never from https to http. `auth` does not go
            along to another site; other `headers` do.
        max_response: Bytes that an answer may have, unpacked.
    """

    def __init__(
        self,
        *,
        url: str,
        method: str = "POST",
        query: dict[str, str | int | float | bool] | None = None,
        headers: dict[str, str] | None = None,
        body: str | None = None,
        content_type: Literal["json", "msgpack", "text", "bytes", "form"] = "json",
        accept: tuple[int | str, ...] = ("200..299",),
        keep: bool = False,
        auth: Auth | None = None,
        timeout: Duration = TIMEOUT,
        connect_timeout: Duration = CONNECT_TIMEOUT,
        pool: int = 100,
        verify: bool = True,
        ca_file: str | None = None,
        follow_redirects: bool = False,
        max_response: Size = MAX_RESPONSE,
    ):
        self._client = Client(
            auth=auth,
            timeout=timeout,
            connect_timeout=connect_timeout,
            pool=pool,
            verify=verify,
            ca_file=ca_file,
            follow_redirects=follow_redirects,
            max_response=max_response,
        )
        self._method = method.upper()
        if not _METHOD.fullmatch(self._method):
            raise ValueError(f"method: {method!r} is not a method")
        if not _is_template(url):
            check_url(url)
        self._url = _within("url", compile_url, url)
        self._query = [(name, _within(f"query: {name}", compile_text, _word(value))) for name, value in _items(query)]
        self._headers = _compiled_headers(headers or {}, auth)
        self._content_type = _FORMS[content_type]
        self._encode = _ENCODE[content_type]
        self._data = _body_of(body) if body is not None else None if self._method in _WITHOUT_BODY else _all
        self._accept = _statuses(accept)
        self._keep = keep
        self._unread = self._accept if keep else frozenset()

    async def start(self, context: Context) -> None:
        await self._client.open(context)

    async def process(self, event: Event[Any]) -> Event[Any]:
        url, headers, body = self._made(event)
        answer = await self._client.ask(self._method, url, headers, body, unread=self._unread)
        if answer.status not in self._accept:
            raise failure(answer)
        if not self._keep:
            event.data = _decoded(answer)
        event.headers["http_status"] = answer.status
        event.headers["http_headers"] = answer.headers
        return event

    def _made(self, event: Event[Any]) -> tuple[str, dict[str, str], bytes | None]:
        """The request for an event: URL, header fields, body."""
        url = self._url(event)
        if self._query:
            pairs = urlencode([(name, write(event)) for name, write in self._query], quote_via=quote)
            url, _, _ = url.partition("#")
            url = f"{url}{'&' if '?' in url else '?'}{pairs}"
        headers = {}
        for name, source in (("traceparent", "traceparent"), ("x-request-id", "request_id")):
            value = event.headers.get(source)
            if isinstance(value, str) and value.isprintable() and value.isascii():
                headers[name] = value
        body = None
        if self._data is not None:
            data = self._data(event)
            body = data.encode() if isinstance(data, _Text) else self._encode(data)
            headers["content-type"] = self._content_type
        for name, write in self._headers:
            headers[name] = write(event)
            check_field(name, headers[name], "headers")
        return url, headers, body

    async def stop(self) -> None:
        await self._client.close()


def _decoded(answer: Answer) -> Any:
    try:
        return decoded(answer)
    except InputError as error:
        raise UpstreamRefused(
            f"{answer.asked} was answered {answer.status} with a body that is not what it says it is: {error} "
            "(keep: true does not look at it)",
            upstream_status=answer.status,
        ) from None


# ------------------------------------------------------------------ what is given


def _is_template(text: str) -> bool:
    return any(mark in text for mark in _MARKS)


def _items(query: Mapping[str, str | int | float | bool] | None) -> list[tuple[str, str | int | float | bool]]:
    return list((query or {}).items())


def _word(value: str | int | float | bool) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _within(what: str, make: Callable[[str], Callable[[Event[Any]], str]], text: str) -> Callable[[Event[Any]], str]:
    try:
        return make(text.reveal() if isinstance(text, Secret) else text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _compiled_headers(headers: Mapping[str, str], auth: Auth | None) -> list[tuple[str, Callable[[Event[Any]], str]]]:
    found = []
    taken = auth.field()[0] if auth is not None else None
    for name, text in headers.items():
        if name.lower() == taken:
            raise ValueError(f"headers: {name} is written by auth")
        if name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise ValueError(f"headers: {name} follows from the body and the connection, and is not to be set")
        check_field(name, "" if _is_template(text) else text, "headers")
        found.append((name.lower(), _within(f"headers: {name}", compile_text, text)))
    return found


def _statuses(accept: tuple[int | str, ...]) -> frozenset[int]:
    found: set[int] = set()
    for one in accept:
        match = _RANGE.fullmatch(str(one))
        if match is None:
            raise ValueError(f"accept: {one!r} is not a status; write 204, 200..299 or 2xx")
        if match[3]:
            found.update(range(int(match[3]) * 100, int(match[3]) * 100 + 100))
        else:
            found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not found:
        raise ValueError("accept: no status would be a success")
    return frozenset(found)


# ------------------------------------------------------------------ bodies


class _Text(str):
    """The text of a template: sent as it is, whatever type is named."""

    __slots__ = ()


def _all(event: Event[Any]) -> Any:
    return event.data


def _body_of(body: str) -> Callable[[Event[Any]], Any]:
    if _is_template(body):
        write = _within("body", compile_text, body)
        return lambda event: _Text(write(event))
    try:
        Event().has(body)
    except KeyError as error:
        raise ValueError(f"body: {error.args[0]}; or write a template") from None
    return lambda event: event.get(body)


def _bytes(data: Any) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"content_type: bytes takes bytes, and the body is {type(data).__name__}")
    return bytes(data)


def _text(data: Any) -> bytes:
    if not isinstance(data, str):
        raise TypeError(f"content_type: text takes a str, and the body is {type(data).__name__}; json takes any data")
    return data.encode()


def _form(data: Any) -> bytes:
    if not isinstance(data, Mapping):
        raise TypeError(f"content_type: form takes a dict, and the body is {type(data).__name__}")
    for name, value in data.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(one, str | int | float):
                raise TypeError(f"content_type: form cannot say {name!r}: it is {type(one).__name__}")
    return urlencode(data, doseq=True).encode()


_ENCODE: Final[Mapping[str, Callable[[Any], bytes]]] = {
    "json": codec("json").encode,
    "msgpack": codec("msgpack").encode,
    "text": _text,
    "bytes": _bytes,
    "form": _form,
}
