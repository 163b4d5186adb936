"""What comes back from the flow, as an answer in HTTP's terms: status, header fields, bytes."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Final
from xml.sax.saxutils import escape

import msgspec

from furcula.codecs import codec
from furcula.event import Event, Failure
from furcula.modules.http import media
from furcula.receipt import Slot
from furcula.statuses import HttpError, title_of

__all__ = ["Response", "answer", "fields", "problem", "refusal", "unanswered"]

PROBLEM_JSON: Final = "application/problem+json"
PROBLEM_XML: Final = "application/problem+xml"

_json = codec("json")
_CONTENT_JSON: Final = (b"content-type", b"application/json")
_CONTENT_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_CONTENT_BYTES: Final = (b"content-type", b"application/octet-stream")

#: What the server writes itself, and a module cannot.
_FRAMING: Final = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer"))

#: Why a request was dropped, where that has a status of its own. Anything else is answered with `on_drop`.
_DROPPED: Final = {"overflow": 503, "throttled": 429, "unconnected": 501}


class Response(msgspec.Struct):
    """An answer.

    Attributes:
        headers: Header fields, names in lower case. `content-length` is among them, unless it is a stream.
        body: The body; empty for a stream.
        stream: An iterator, plain or asynchronous, that gives the body bit by bit.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    stream: Any = None


def answer(
    event: Event[Any],
    *,
    accept: str | None = None,
    produces: tuple[str, ...] | None = None,
    show_errors: bool = False,
) -> Response:
    """The answer that an event says.

    `headers.status` is its status and `headers.response` its header fields. Without a status, an event that failed on
    its way is answered as its last failure says.

    Raises:
        NotAcceptable: The client accepts no form in which this data could be given.
        ValueError: The data, or a header field, cannot be said.
    """
    headers = event.headers
    status = headers.get("status")
    if status is None:
        if event.failures:
            return failed(event.failures[-1], accept, show_errors)
        status = 200
    elif type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"headers.status is {status!r}, and a status is a number from 200 to 599")
    said = headers.get("response")
    data = event.data
    kind = type(data)
    if said is None:
        if status in (204, 304):
            return Response(status, [])
        if kind is dict or kind is list:
            media_type, body = media.encode(data, accept, produces)
            typed = _CONTENT_JSON if media_type is media.JSON else (b"content-type", media_type.encode("ascii"))
            return Response(status, [typed, (b"content-length", b"%d" % len(body))], body)
        if data is None:
            return Response(204 if status == 200 else status, [(b"content-length", b"0")] if status != 200 else [])
    named = None
    listed: list[tuple[bytes, bytes]] = []
    if said is not None:
        listed, named = fields(said)
    if status in (204, 304):
        return Response(status, listed)
    if _is_stream(data):
        length = said.get("content-length") if isinstance(said, Mapping) else None
        if isinstance(length, int | str) and str(length).isdigit():  # of a stream, only the module knows it
            listed.append((b"content-length", str(length).encode("ascii")))
        return Response(status, listed, stream=data)
    body, content = _body(data, named, accept, produces)
    if content is not None:
        listed.append(content)
    listed.append((b"content-length", b"%d" % len(body)))
    return Response(status, listed, body)


def _is_stream(data: Any) -> bool:
    return isinstance(data, types.GeneratorType) or hasattr(data, "__anext__") or hasattr(data, "__aiter__")


def _body(
    data: Any, named: str | None, accept: str | None, produces: tuple[str, ...] | None
) -> tuple[bytes, tuple[bytes, bytes] | None]:
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data), None if named else _content(_CONTENT_BYTES, produces)
    if isinstance(data, str):
        return data.encode("utf-8", "surrogatepass"), None if named else _content(_CONTENT_TEXT, produces)
    if data is None:
        return b"", None
    if named is not None:
        return media.encode(data, None, (media.essence(named)[0],))[1], None
    media_type, body = media.encode(data, accept, produces)
    return body, (b"content-type", media_type.encode("ascii"))


def _content(usual: tuple[bytes, bytes], produces: tuple[str, ...] | None) -> tuple[bytes, bytes]:
    """The type of bytes and text that name none: the only one the route produces, where it says one."""
    if produces is not None and len(produces) == 1:
        kind = produces[0]
        return (b"content-type", (f"{kind}; charset=utf-8" if kind.startswith("text/") else kind).encode("ascii"))
    return usual


def fields(said: Any) -> tuple[list[tuple[bytes, bytes]], str | None]:
    """Header fields as bytes, and the content type among them.

    Raises:
        ValueError: A name or a value is none that may stand in a header.
    """
    if not isinstance(said, Mapping):
        raise ValueError(f"headers.response must be a dict of header fields, not {type(said).__name__}")
    found: list[tuple[bytes, bytes]] = []
    content_type = None
    for name, value in said.items():
        lower = str(name).lower()
        if lower in _FRAMING:
            continue
        if not lower or not lower.isascii() or not _TOKEN.issuperset(lower):
            raise ValueError(f"headers.response: {name!r} is not the name of a header field")
        key = lower.encode("ascii")
        for one in value if isinstance(value, list | tuple) else (value,):
            text = str(one)
            if not _writable(text):
                raise ValueError(f"headers.response.{lower}: the value has a line break or another control character")
            try:
                found.append((key, text.encode("latin-1")))
            except UnicodeEncodeError:
                raise ValueError(
                    f"headers.response.{lower}: the value has a character that a header cannot hold"
                ) from None
        if lower == "content-type":
            content_type = str(value)
    return found, content_type


_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


def _writable(text: str) -> bool:
    return text.isprintable() or not any((char < " " and char != "\t") or char == "\x7f" for char in text)


# ------------------------------------------------------------------ what went wrong


def failed(failure: Failure, accept: str | None, show_errors: bool, retry_after: str = "1") -> Response:
    """The answer for a request that failed.

    An error that says no status is a 500, or a 503 where the same request may succeed later, and tells nothing of
    itself, unless `show_errors`.
    """
    status = failure.status
    if status is None:
        status = 503 if failure.retryable else 500
    members = dict(failure.problem)
    if show_errors:
        members["error"] = {
            "module": failure.module,
            "type": failure.type,
            "message": failure.message,
            "traceback": failure.traceback,
        }
    headers = dict(failure.headers)
    if status in (503, 504) and failure.retryable:
        headers.setdefault("retry-after", retry_after)
    return problem(status, members, headers, accept)


def unanswered(slot: Slot, accept: str | None, on_drop: int, show_errors: bool, retry_after: str) -> Response:
    """The answer for a request of which nothing came back."""
    if slot.fate == "failed":
        if isinstance(slot.failure, Failure):
            return failed(slot.failure, accept, show_errors, retry_after)
        return problem(500, {}, {}, accept)
    if slot.fate == "delivered":
        return Response(202, [(b"content-length", b"0")])
    status = _DROPPED.get(slot.reason, on_drop)
    if status >= 400:
        return problem(status, {}, {"retry-after": retry_after} if status in (429, 503) else {}, accept)
    return Response(status, [] if status in (204, 304) else [(b"content-length", b"0")])


def refusal(error: HttpError, accept: str | None) -> Response:
    """The answer for a request that did not enter the flow."""
    return problem(error.status, error.problem(), error.headers, accept)


def problem(status: int, members: Mapping[str, Any], headers: Mapping[str, str], accept: str | None) -> Response:
    """Problem details (RFC 9457), in XML where the client would rather have that than JSON."""
    try:
        listed, _ = fields(headers)
    except ValueError:
        listed = []
    if status < 400:  # 304 and other redirections are no problems
        if status != 304:
            listed.append((b"content-length", b"0"))
        return Response(status, listed)
    if status == 426:  # the server's own, but for the one answer that has to say it
        listed.append((b"upgrade", b"websocket"))
    details = {"type": "about:blank", "title": title_of(status), "status": status, **members}
    kind = media.choose(accept, (media.JSON, PROBLEM_JSON, PROBLEM_XML, media.XML)) if accept else None
    if kind in (PROBLEM_XML, media.XML):
        body, content_type = _problem_xml(details), PROBLEM_XML
    else:  # also where neither is accepted: an error in another form helps more than none
        body, content_type = _problem_json(details), PROBLEM_JSON
    listed.append((b"content-type", content_type.encode("ascii")))
    listed.append((b"content-length", b"%d" % len(body)))
    return Response(status, listed, body)


def _problem_json(details: dict[str, Any]) -> bytes:
    try:
        return _json.encode(details)
    except ValueError:  # some extension that JSON cannot say
        return _json.encode({name: details[name] for name in ("type", "title", "status")})


def _problem_xml(details: Mapping[str, Any]) -> bytes:
    inside = "".join(_member(name, value) for name, value in details.items())
    text = f'<?xml version="1.0" encoding="UTF-8"?><problem xmlns="urn:ietf:rfc:7807">{inside}</problem>'
    return text.encode("utf-8", "replace")


def _member(name: str, value: Any) -> str:
    """One member, by RFC 9457's appendix B: items of a list are `i` elements."""
    tag = "".join(char if char.isalnum() or char in "_-" else "_" for char in str(name)) or "_"
    if not (tag[0].isalpha() or tag[0] == "_"):
        tag = f"_{tag}"
    if isinstance(value, Mapping):
        inside = "".join(_member(key, item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        inside = "".join(_member("i", item) for item in value)
    else:
        text = "" if value is None else str(value)
        inside = escape("".join(char if char >= " " or char in "\t\n\r" else " " for char in text))
    return f"<{tag}>{inside}</{tag}>"
