"""Media types: what a body is, what an answer may be, and the codec for each."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from furcula.codecs import Codec, codec
from furcula.errors import nearest
from furcula.statuses import NotAcceptable, UnsupportedMediaType

__all__ = [
    "FORM",
    "JSON",
    "LONGEST",
    "MULTIPART",
    "SSE",
    "choose",
    "decode",
    "encode",
    "essence",
    "media_types",
    "takes",
    "wants",
]

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
XML: Final = "application/xml"
TEXT: Final = "text/plain"
FORM: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"
BYTES: Final = "application/octet-stream"
SSE: Final = "text/event-stream"

#: Short names for what stands in `accepts` and `produces`.
NAMES: Final[Mapping[str, str]] = {
    "json": JSON,
    "msgpack": MSGPACK,
    "xml": XML,
    "text": TEXT,
    "html": "text/html",
    "form": FORM,
    "multipart": MULTIPART,
    "bytes": BYTES,
    "sse": SSE,
}

#: A longer Accept or Content-Type comes from nobody who means well. What is made of shorter ones is remembered.
LONGEST: Final = 500

_ALIASES: Final = {
    "text/xml": XML,
    "application/x-msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
    "text/json": JSON,
}

#: Charsets of the texts that are read: each name, without `-` and `_`, and Python's name for it. It is the client who
#: says it, and Python knows some that take quadratic time (punycode, idna), and remembers every name it was asked for.
_CHARSETS: Final[Mapping[str, str]] = {
    "utf8": "utf-8",
    "utf16": "utf-16",
    "utf16le": "utf-16-le",
    "utf16be": "utf-16-be",
    "utf32": "utf-32",
    "utf32le": "utf-32-le",
    "utf32be": "utf-32-be",
    "ascii": "ascii",
    "usascii": "ascii",
    "latin1": "iso8859-1",
    **{f"iso8859{part}": f"iso8859-{part}" for part in range(1, 17) if part != 12},  # there is no part 12
    **{f"{name}{page}": f"cp{page}" for page in range(1250, 1259) for name in ("windows", "cp")},
    "koi8r": "koi8-r",
    "koi8u": "koi8-u",
    "shiftjis": "shift_jis",
    "sjis": "shift_jis",
    "eucjp": "euc_jp",
    "iso2022jp": "iso2022_jp",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "big5": "big5",
    "euckr": "euc_kr",
}

_json = codec("json")
_msgpack = codec("msgpack")


def media_types(names: Iterable[str]) -> tuple[str, ...]:
    """Media types for short names and media types.

    Raises:
        ValueError: One is neither.
    """
    found = []
    for name in names:
        kind = NAMES.get(name, name).lower()
        if kind.count("/") != 1 or kind.startswith("/") or kind.endswith("/"):
            raise ValueError(
                f"{name!r} is not a media type{nearest(name, NAMES) or '; write json, or application/json'}"
            )
        found.append(kind)
    return tuple(found)


@functools.lru_cache(512)
def essence(content_type: str) -> tuple[str, dict[str, str]]:
    """A Content-Type as its type, lower case, and its parameters."""
    kind, *rest = content_type.split(";")
    parameters = {}
    for item in rest:
        name, _, value = item.partition("=")
        parameters[name.strip().lower()] = value.strip().strip('"')
    return kind.strip().lower(), parameters


def canonical(kind: str) -> str:
    """One name for the names of one form: `text/xml` and `image/svg+xml` are XML here."""
    if kind in _ALIASES:
        return _ALIASES[kind]
    if kind.endswith("+json"):
        return JSON
    return XML if kind.endswith("+xml") else kind


@functools.lru_cache(1024)
def takes(kind: str, accepted: tuple[str, ...]) -> bool:
    """May a body of this type come in where these are accepted? `text/*` accepts all texts."""
    plain = canonical(kind)
    return any(
        kind == one or plain == canonical(one) or (one.endswith("/*") and kind.startswith(one[:-1])) or one == "*/*"
        for one in accepted
    )


def check_taken(content_type: str | None, accepted: tuple[str, ...]) -> None:
    """Raises UnsupportedMediaType with what is accepted."""
    kind = essence(content_type)[0] if content_type else BYTES
    if not takes(kind, accepted):
        what = kind if content_type else "a body without a content type"
        listed = ", ".join(accepted)
        raise UnsupportedMediaType(f"{what} is not taken here; send {listed}", headers={"accept": listed})


# ------------------------------------------------------------------ bodies


def decode(content_type: str | None, raw: bytes) -> Any:
    """What a body says. Forms are read elsewhere; XML and what is not known stay bytes.

    Raises:
        InputError: It is not what it says it is.
        UnsupportedMediaType: Its charset is none of those that are read.
    """
    if content_type is None:
        return raw
    if content_type == JSON:
        return _json.decode(raw)
    kind, parameters = essence(content_type)
    plain = canonical(kind)
    if plain == JSON:
        return _json.decode(raw)
    if plain == MSGPACK:
        return _msgpack.decode(raw)
    if plain.startswith("text/"):
        charset = parameters.get("charset", "utf-8")
        known = _CHARSETS.get(charset.lower().replace("-", "").replace("_", ""))
        if known is None:
            raise UnsupportedMediaType(f"the charset {charset[:40]!r} is not known here")
        return _text(known).decode(raw)
    return raw


@functools.cache
def _text(charset: str) -> Codec:
    return codec("text", charset)


def _xml(data: Any) -> bytes:
    from furcula.codecs.xml import to_bytes  # lxml is an extra, and takes 20 ms to load

    return to_bytes(data, "response")


@functools.cache
def _encoders() -> dict[str, Callable[[Any], bytes]]:
    found: dict[str, Callable[[Any], bytes]] = {JSON: _json.encode, MSGPACK: _msgpack.encode}
    if importlib.util.find_spec("lxml") is not None:
        found[XML] = _xml
    return found


def encode(data: Any, accept: str | None, produces: tuple[str, ...] | None) -> tuple[str, bytes]:
    """Structured data in the best form that the client accepts, and that form's type.

    Raises:
        NotAcceptable: There is none.
        ValueError: The data cannot be said in that form.
    """
    if accept is None and produces is None:
        return JSON, _json.encode(data)
    kind, write = _form(accept, produces)
    return kind, write(data)


@functools.lru_cache(512)
def _form(accept: str | None, produces: tuple[str, ...] | None) -> tuple[str, Callable[[Any], bytes]]:
    encoders = _encoders()
    offered = tuple(encoders) if produces is None else tuple(one for one in produces if canonical(one) in encoders)
    kind = choose(accept, offered or (JSON,))
    if kind is None:
        raise NotAcceptable(f"the answer can be given as {', '.join(offered or (JSON,))}")
    return kind, encoders[canonical(kind)]


# ------------------------------------------------------------------ Accept


@functools.lru_cache(512)
def _ranges(accept: str) -> tuple[tuple[str, float], ...]:
    """The ranges of an Accept field with their weights; what cannot be read counts as nothing."""
    found = []
    for item in accept.split(","):
        kind, parameters = essence(item)
        if not kind:
            continue
        try:
            weight = float(parameters.get("q", "1"))
        except ValueError:
            weight = 0.0
        found.append((kind, min(max(weight, 0.0), 1.0)))
    return tuple(found)


@functools.lru_cache(1024)
def choose(accept: str | None, offered: tuple[str, ...]) -> str | None:
    """The offered type that an Accept field likes best (RFC 9110, 12.5.1); the earlier one among equals."""
    if not accept:
        return offered[0]
    ranges = _ranges(accept)
    if not ranges:
        return offered[0]
    best, best_weight = None, 0.0
    for kind in offered:
        weight = _weight(kind, ranges)
        if weight > best_weight:
            best, best_weight = kind, weight
    return best


def _weight(kind: str, ranges: tuple[tuple[str, float], ...]) -> float:
    major = kind.partition("/")[0]
    found, rank = 0.0, -1
    for pattern, weight in ranges:
        fits = 2 if pattern == kind else 1 if pattern == f"{major}/*" else 0 if pattern == "*/*" else -1
        if fits > rank:
            found, rank = weight, fits
    return found


def wants(accept: str | None, kind: str) -> bool:
    """Does an Accept field name this very type?"""
    return bool(accept) and any(pattern == kind and weight > 0 for pattern, weight in _ranges(accept or ""))


def check_acceptable(accept: str, produces: tuple[str, ...]) -> None:
    """Raises NotAcceptable where none of these is accepted."""
    if choose(accept, produces) is None:
        raise NotAcceptable(f"the answer can be given as {', '.join(produces)}")
