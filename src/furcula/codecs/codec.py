"""Codecs by name: `json`, `msgpack`, `text`, `binary`, `xml`. To add one, write its class and put it in `CODECS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import msgspec

from furcula.errors import InputError, nearest

__all__ = ["CODECS", "MAX_DEPTH", "Binary", "Codec", "Json", "Msgpack", "Text", "codec", "nested_too_deeply"]

#: Dicts and lists may stand this deep in one another. More is an attack: it would end later, in somebody's recursion.
MAX_DEPTH = 200


class Codec(Protocol):
    """One value as bytes. Made once, used for many values, from one thread at a time."""

    def encode(self, data: Any) -> bytes:
        """The bytes of `data`.

        Raises:
            ValueError: It cannot be said in this form. The message names the type, and where in `data` it stands.
        """

    def decode(self, raw: bytes) -> Any:
        """The value that `raw` says.

        Raises:
            InputError: It says none. Whatever the bytes are, nothing else is raised.
        """


def codec(name: str, charset: str = "utf-8") -> Codec:
    """The codec of that name.

    Args:
        name: One of `CODECS`.
        charset: For text and JSON: the encoding of the characters, always strict.

    Raises:
        ValueError: There is no such codec (with the nearest name), or no such charset.
    """
    made = CODECS.get(name)
    if made is None:
        raise ValueError(f"there is no codec {name!r}{nearest(name, CODECS) or '; there are ' + ', '.join(CODECS)}")
    try:
        "".encode(charset)
    except LookupError:
        raise ValueError(f"there is no charset {charset!r}") from None
    return made(charset)


class Json:
    """JSON by msgspec's rules: sets and tuples become lists, datetimes and UUIDs strings, bytes base64, NaN null."""

    def __init__(self, charset: str = "utf-8"):
        self._charset = None if _is_utf8(charset) else charset
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder().decode

    def encode(self, data: Any) -> bytes:
        try:
            raw = self._encode(data)
            return raw if self._charset is None else raw.decode().encode(self._charset)
        except _UNENCODABLE as error:
            raise _unencodable("JSON", self._encode, data, error) from None

    def decode(self, raw: bytes) -> Any:
        try:
            data = self._decode(raw if self._charset is None else str(raw, self._charset))
        except _UNDECODABLE as error:
            raise _undecodable("JSON", raw, error) from None
        # Depth is looked for only where there are brackets enough for it, which is next to never.
        if len(raw) > MAX_DEPTH and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and nested_too_deeply(data):
            raise InputError(_TOO_DEEP)
        return data


class Msgpack:
    """MessagePack by msgspec's rules: bytes and datetimes stay what they are, sets and tuples become lists."""

    def __init__(self, charset: str = "utf-8"):
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ext_hook=_refuse_extension).decode

    def encode(self, data: Any) -> bytes:
        try:
            return self._encode(data)
        except _UNENCODABLE as error:
            raise _unencodable("MessagePack", self._encode, data, error) from None

    def decode(self, raw: bytes) -> Any:
        try:
            data = self._decode(raw)
        except _UNDECODABLE as error:
            raise _undecodable("MessagePack", raw, error) from None
        if may_nest(raw) and nested_too_deeply(data):
            raise InputError(_TOO_DEEP)
        return data


class Text:
    """Characters as they are. Takes and gives a str."""

    def __init__(self, charset: str = "utf-8"):
        self._charset = charset

    def encode(self, data: Any) -> bytes:
        if not isinstance(data, str):
            raise ValueError(f"the codec 'text' takes a str, not {type(data).__name__}; 'json' takes any data")
        try:
            return data.encode(self._charset)
        except UnicodeError as error:
            raise ValueError(f"the text cannot be written in {self._charset}: {error}") from None

    def decode(self, raw: bytes) -> str:
        try:
            return str(raw, self._charset)
        except UnicodeError as error:
            raise InputError(f"not {self._charset}: {_unicode_reason(error)}") from None
        except TypeError:
            raise InputError(f"expected bytes, not {type(raw).__name__}") from None


class Binary:
    """Bytes as they are."""

    def __init__(self, charset: str = "utf-8"):
        pass

    def encode(self, data: Any) -> bytes:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"the codec 'binary' takes bytes, not {type(data).__name__}; 'json' takes any data")
        return bytes(data)

    def decode(self, raw: bytes) -> bytes:
        if not isinstance(raw, bytes | bytearray | memoryview):
            raise InputError(f"expected bytes, not {type(raw).__name__}")
        return bytes(raw)


def _xml(charset: str) -> Codec:
    from furcula.codecs.xml import Xml  # needs a library that is not always there, and takes 10 ms

    return Xml(charset)


#: name -> class; made with the charset.
CODECS: dict[str, Callable[[str], Codec]] = {
    "json": Json,
    "msgpack": Msgpack,
    "text": Text,
    "binary": Binary,
    "xml": _xml,
}


def _is_utf8(charset: str) -> bool:
    return charset.lower().replace("_", "-") in ("utf-8", "utf8")


# ------------------------------------------------------------------ depth

_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def nested_too_deeply(data: Any) -> bool:
    """Is something nested more than `MAX_DEPTH` deep in `data`? Walks level by level, without recursion."""
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _held(outer) if type(inner) in (dict, list)]
        if not level:
            return False
    return True


def _held(data: Any) -> Iterable[Any]:
    kind = type(data)
    if kind is dict:
        values: Iterable[Any] = data.values()
        return values
    return data if kind is list else ()


#: The bytes that open an array or a map. They occur in text too, so this tells only when there is no need to look.
_OPENING = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])


def may_nest(raw: bytes) -> bool:
    """May these bytes of MessagePack be nested more than `MAX_DEPTH` deep? Tells only when there is no need to look."""
    return len(raw) > MAX_DEPTH and len(raw) - len(raw.translate(None, _OPENING)) > MAX_DEPTH


# ------------------------------------------------------------------ what is said when it fails

_UNDECODABLE = (ValueError, TypeError, OverflowError, RecursionError, MemoryError)
_UNENCODABLE = (ValueError, TypeError, OverflowError, RecursionError)


def _refuse_extension(code: int, data: memoryview) -> Any:
    raise ValueError(f"extension type {code} is unknown")


def _undecodable(form: str, raw: bytes, error: BaseException) -> InputError:
    if isinstance(error, RecursionError):
        return InputError(_TOO_DEEP)
    if isinstance(error, UnicodeError):
        return InputError(f"not {form}: {_unicode_reason(error)}")
    if not raw:
        return InputError(f"not {form}: it is empty")
    reason = str(error).removeprefix(f"{form} is malformed: ")
    return InputError(f"not {form}: {reason[:1].lower()}{reason[1:]}")


def _unicode_reason(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding} ({error.reason})"
    return str(error)


def _unencodable(form: str, encode: Callable[[Any], bytes], data: Any, error: BaseException) -> ValueError:
    path, culprit = _culprit(encode, data)
    place = f" at {path}" if path else ""
    if isinstance(error, RecursionError):
        return ValueError(f"the data is nested too deeply for {form}, or contains itself")
    if isinstance(error, UnicodeError):
        return ValueError(f"{form} cannot hold the text{place}: {error}")
    if isinstance(culprit, dict):
        return ValueError(f"{form} cannot hold the dict{place}: {error}")
    return ValueError(f"{form} cannot hold a value of type {type(culprit).__name__}{place}: {error}")


def _culprit(encode: Callable[[Any], bytes], data: Any) -> tuple[str, Any]:
    """The innermost part of `data` that cannot be encoded, and the dotted path to it. Only a failure pays for this."""
    path: list[str] = []
    while len(path) <= MAX_DEPTH:
        for name, part in _named_parts(data):
            try:
                encode(part)
            except _UNENCODABLE:
                path.append(name)
                data = part
                break
        else:
            break
    return ".".join(path), data


def _named_parts(data: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(data, Mapping):
        return ((str(name), part) for name, part in data.items())
    if isinstance(data, list | tuple):
        return ((str(index), part) for index, part in enumerate(data))
    if isinstance(data, msgspec.Struct):
        return ((name, getattr(data, name)) for name in data.__struct_fields__)
    if hasattr(data, "__dataclass_fields__"):
        return ((name, getattr(data, name, None)) for name in data.__dataclass_fields__)
    return iter(())
