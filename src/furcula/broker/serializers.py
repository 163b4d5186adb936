"""Bodies as bytes or text, by the serializer's name. It is applied when an event is put, so errors reach the caller."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from furcula.codecs import codec
from furcula.errors import ConfigurationError, InputError, nearest

__all__ = ["SERIALIZERS", "Serializer", "serializer"]

#: Makes bytes or text of a body. What it raises, the caller of `put` gets.
Serializer = Callable[[Any], bytes | str]


def _json(body: Any) -> str:
    return _encoded("json", body).decode()


def _msgpack(body: Any) -> bytes:
    return _encoded("msgpack", body)


def _encoded(name: str, body: Any) -> bytes:
    mine = getattr(_mine, name, None)  # a codec serves one thread at a time
    if mine is None:
        mine = codec(name)
        setattr(_mine, name, mine)
    try:
        return bytes(mine.encode(body))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the body cannot be said in {name}: {error}") from error


_mine = threading.local()

SERIALIZERS: dict[str, Serializer] = {"json": _json, "msgpack": _msgpack, "str": str}


def serializer(name: str | Serializer) -> Serializer:
    """The serializer of that name, or the function itself.

    Raises:
        ConfigurationError: There is none.
    """
    if callable(name):
        return name
    found = SERIALIZERS.get(name)
    if found is None:
        raise ConfigurationError(f"there is no serializer {name!r}{nearest(name, SERIALIZERS)}; or give a function")
    return found
