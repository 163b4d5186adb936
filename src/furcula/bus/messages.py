"""Messages as bytes: what the Bus puts into the bodies that a transport carries.

A frame holds a run of messages that one sender published on one channel, one after the other. Its first byte is the
version, the rest one MessagePack array, decoded in one call. A message is any value that JSON can say. MessagePack says
nearly all of them, and faster; the few that it cannot (integers beyond 64 bits, half surrogate pairs) and those that
JSON changes (tuples, keys that are numbers) travel as JSON inside an extension.
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, Final

import msgspec

from furcula.codecs.codec import MAX_DEPTH, may_nest
from furcula.errors import InputError

__all__ = ["OVERHEAD", "VERSION", "Run", "decode_run", "encode_message", "encode_run"]

VERSION: Final = 1
#: Bytes that a frame may need beside its messages.
OVERHEAD: Final = 1024

_HEAD = bytes([VERSION])
_JSON = 1
_PLAIN = (str, int, bool, type(None))


class Run(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """Messages that one sender published on one channel, one after the other.

    Attributes:
        stream: Tells one sending Bus from all others.
        sender: The name it goes by.
        begins: It has not published on the channel before, or has forgotten that it did.
        sequence: The place of the first message among all that it published on this channel.
        number: The place of the first message among all that it published.
        time: Unix time in seconds when the first message was published.
        messages: The messages.
    """

    stream: str
    sender: str
    begins: bool
    sequence: int
    number: int
    time: float
    messages: list[Any]


class _Head(msgspec.Struct, array_like=True, gc=False):
    stream: str
    sender: str
    begins: bool
    sequence: int
    number: int
    time: float


def _is_plain(value: Any, depth: int) -> bool:
    """Is it made of what MessagePack and JSON say alike?"""
    if not depth:
        return False
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is float:
        return isfinite(value)
    if kind is dict:
        for key, inner in value.items():
            if type(key) is not str or (type(inner) not in _PLAIN and not _is_plain(inner, depth - 1)):
                return False
        return True
    return kind is list and all(type(inner) in _PLAIN or _is_plain(inner, depth - 1) for inner in value)


_encode = msgspec.msgpack.Encoder().encode


def encode_message(message: Any) -> bytes:
    """The bytes of one message; later changes to it are not seen.

    Raises:
        TypeError, ValueError: JSON cannot say it (bytes, sets, objects, NaN, circles); the message says what.
    """
    if type(message) is str or _is_plain(message, MAX_DEPTH):
        try:
            return _encode(message)
        except (OverflowError, UnicodeEncodeError):
            pass
    try:
        text = json.dumps(message, allow_nan=False, separators=(",", ":"))
        _decode_json(text)
    except RecursionError:
        raise ValueError("the message is nested too deeply, or contains itself") from None
    return _encode(msgspec.msgpack.Ext(_JSON, text.encode("ascii")))


def encode_run(head: tuple[str, str, bool, int, int, float], messages: list[bytes]) -> bytes:
    """One frame of messages that have been encoded. `head` has the first six fields of a Run."""
    # The head is encoded as an array of six and made one of seven; the encoded messages follow as they are.
    begin = _encode(_Head(*head))
    count = len(messages)
    size = bytes((0x90 | count,)) if count < 16 else b"\xdd" + count.to_bytes(4, "big")
    return b"".join((_HEAD, b"\x97", begin[1:], size, *messages))


def _decode_json(raw: str | bytes | memoryview) -> Any:
    text = raw if isinstance(raw, str) else bytes(raw)
    value = json.loads(text, parse_constant=_refuse_constant)
    if not _is_shallow(value, MAX_DEPTH):
        raise ValueError("the message is nested too deeply")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _is_shallow(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return not isinstance(value, list) or (depth > 0 and all(_is_shallow(inner, depth - 1) for inner in value))


def _extension(code: int, data: memoryview) -> Any:
    if code != _JSON:
        raise ValueError(f"an extension {code} is no message")
    return _decode_json(data)


_decode = msgspec.msgpack.Decoder(Run, ext_hook=_extension).decode


def decode_run(body: bytes) -> Run:
    """The messages of a frame, each a value of its own.

    Raises:
        InputError: It is no such frame. Whatever the bytes are, nothing else is raised.
    """
    if body[:1] != _HEAD:
        raise InputError(f"a frame of the bus begins with the version {VERSION}, not with {body[:1]!r}")
    try:
        run = _decode(memoryview(body)[1:])
    except RecursionError:
        raise InputError("a frame of the bus is nested too deeply") from None
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"a frame of the bus is malformed: {error}") from None
    if run.sequence < 0 or run.number < 0:
        raise InputError("a frame of the bus is malformed: a negative number")
    if may_nest(body) and _too_deep(run.messages):
        raise InputError("a frame of the bus is nested too deeply")
    return run


def _too_deep(messages: list[Any]) -> bool:
    """Is a message nested deeper than one may be that is sent? How deep the decoder goes depends on the Python."""
    level = [message for message in messages if type(message) in (dict, list)]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
        if not level:
            return False
    return True
