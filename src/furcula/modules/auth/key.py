"""API keys: a long random text that stands for a client."""

from __future__ import annotations

import re
from typing import Any, Final

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.auth.credentials import (
    MOST_CHARACTERS,
    BadLine,
    Lookup,
    WatchedFile,
    digest_of,
    fields_of,
    named_lines,
    one_of,
    quoted,
    without,
)
from furcula.options import Secret
from furcula.statuses import Unauthorized

__all__ = ["Key"]

_FIELD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HASHED: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Key(Module):
    """Let requests pass that bring one of the API keys; refuse the others with a 401.

    `headers.auth` becomes `{"scheme": "key", "user": name}`, and the key is taken out of the request. A key in a query
    ends in the logs of servers on its way; prefer a header.

    Args:
        keys: Name -> key.
        keys_file: Instead, lines `name:key`, or `name:sha256:HEX` with the SHA-256 of the key (`printf %s KEY |
            sha256sum`). Relative to the flow's folder; read again when it changes.
        header: The header field that has the key. Default: x-api-key, unless `query` or `cookie` is given.
        query: Or the query parameter.
        cookie: Or the cookie.
        realm: Named in the challenge.
    """

    def __init__(
        self,
        *,
        keys: dict[str, Secret] | None = None,
        keys_file: str | None = None,
        header: str | None = None,
        query: str | None = None,
        cookie: str | None = None,
        realm: str = "furcula",
    ):
        one_of("auth.key", keys=keys, keys_file=keys_file)
        places = [(part, name) for part, name in (("query", query), ("cookies", cookie)) if name is not None]
        if header is not None or not places:
            places.append(("request", (header or "x-api-key").lower()))
        if len(places) > 1:
            raise ValueError("auth.key looks in one place: header, query or cookie")
        self._part, self._name = places[0]
        if not _FIELD.fullmatch(self._name) and self._part != "query":
            raise ValueError(f"{self._name!r} is not the name of a {'cookie' if cookie else 'header field'}")
        self._challenge = f"ApiKey realm={quoted(realm)}"
        self._keys_file = keys_file
        self._lookup: Lookup[str] | None = None
        self._file: WatchedFile[Lookup[str]] | None = None
        if keys is not None:
            self._lookup = _listed(keys)

    def start(self, context: Context) -> None:
        if self._keys_file is None:
            return
        try:
            self._file = WatchedFile(context.folder / self._keys_file, _read_keys, context.log)
        except FurculaError as error:
            raise FurculaError(f"{context.name}: {error}") from error

    def process(self, event: Event[Any]) -> Event[Any]:
        given = self._take(event)
        if given is None:
            raise Unauthorized("an API key is needed", challenge=self._challenge)
        lookup = self._file.current() if self._file is not None else self._lookup
        assert lookup is not None
        owner = lookup.owner(given) if isinstance(given, str) and len(given) <= MOST_CHARACTERS else None
        if owner is None:
            raise Unauthorized("the API key is not known", challenge=self._challenge)
        event.headers["auth"] = {"scheme": "key", "user": owner[0]}
        return event

    def _take(self, event: Event[Any]) -> Any:
        """What stands in the place of the key, taken out of the request; None if nothing does."""
        found = event.headers.get(self._part)
        given = found.get(self._name) if isinstance(found, dict) else None
        without(event, self._part, self._name)
        if self._part == "cookies":
            self._take_from_cookie_field(event)
        return given

    def _take_from_cookie_field(self, event: Event[Any]) -> None:
        field = fields_of(event).get("cookie")
        if not isinstance(field, str):
            return
        left = [pair for pair in field.split(";") if pair.partition("=")[0].strip() != self._name]
        without(event, "request", "cookie")
        if left:
            event.headers["request"]["cookie"] = ";".join(left).strip()


def _listed(keys: dict[str, Secret]) -> Lookup[str]:
    if not keys:
        raise ValueError("keys: there is none, so nobody could ever be let in")
    for name, key in keys.items():
        if not key.reveal():
            raise ValueError(f"keys: that of {name!r} is empty")
    try:
        return Lookup((name, digest_of(key.reveal())) for name, key in keys.items())
    except ValueError as error:
        raise ValueError(f"keys: {error}") from None


def _read_keys(text: str) -> Lookup[str]:
    found: dict[str, bytes] = {}
    for name, (line, rest) in named_lines(text, "name:key or name:sha256:HEX").items():
        hashed = _HASHED.fullmatch(rest)
        if hashed is None and rest.startswith("sha256:"):
            raise BadLine(line, f"the SHA-256 of {name!r} is damaged: it has 64 hexadecimal digits")
        found[name] = bytes.fromhex(hashed[1]) if hashed else digest_of(rest)
    return Lookup(found.items())
