"""What a request asks of a thing that has versions: only if it has changed, only a part of it (RFC 9110, 13 and 14)."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["byte_range", "http_date", "unchanged"]

_ETAG: Final = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_RANGE: Final = re.compile(r"\s*bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)


def http_date(at: float) -> str:
    """A Unix time as HTTP says it."""
    return email.utils.formatdate(at, usegmt=True)


def _seconds(field: str) -> int | None:
    try:
        return int(email.utils.parsedate_to_datetime(field).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def unchanged(fields: Mapping[str, Any], etag: str, modified: float) -> bool:
    """Is what the client has still right? Then it is answered with a 304.

    Args:
        fields: The request's header fields.
        etag: The tag as it is now, in quotes.
        modified: Unix time of the last change.
    """
    tags = fields.get("if-none-match")
    if isinstance(tags, str):  # where it is given, the date does not count (13.1.3)
        return tags.strip() == "*" or etag in _ETAG.findall(tags)
    since = fields.get("if-modified-since")
    at = _seconds(since) if isinstance(since, str) else None
    return at is not None and int(modified) <= at


def byte_range(fields: Mapping[str, Any], size: int, etag: str, modified: float) -> tuple[int, int] | None:
    """The part that is asked for: the first byte, and the one after the last. None: all of it.

    A field that cannot be read, several ranges, and a range of a version that is gone (`If-Range`) mean all of it.

    Raises:
        IndexError: Nothing of the part is there.
    """
    field = fields.get("range")
    match = _RANGE.fullmatch(field) if isinstance(field, str) else None
    if match is None or not (match[1] or match[2]):
        return None
    condition = fields.get("if-range")
    if condition is not None and condition != etag and condition != http_date(int(modified)):
        return None
    if not match[1]:
        length = min(int(match[2]), size)
        if not length:
            raise IndexError
        return size - length, size
    first = int(match[1])
    last = int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return None
    if first >= size:
        raise IndexError
    return first, min(last + 1, size)
