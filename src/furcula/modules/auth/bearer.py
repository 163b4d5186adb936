"""Bearer tokens (RFC 6750): whoever has the token is let in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.auth.credentials import (
    Lookup,
    WatchedFile,
    digest_of,
    one_of,
    quoted,
    take_authorization,
)
from furcula.options import Duration, Secret
from furcula.statuses import Forbidden, Unauthorized

__all__ = ["Bearer"]

NO_TIME: Final = Duration(0)
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
#: RFC 6749, 3.3: what a scope may consist of.
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


class Bearer(Module):
    """Let requests pass that bring a bearer token: one of a list, or a JSON web token that a key of ours signed.

    `headers.auth` becomes `{"scheme": "bearer", "user": name}`; with JSON web tokens the user is the claim `sub`, and
    `claims` and `scopes` are there too. The token is taken out of the request. A request without one, or with a wrong
    one, is refused with a 401, one whose token lacks a scope with a 403.

    Args:
        tokens: Name -> token; or only the tokens, and then no user is known (None).
        jwt_key: Instead, the key of JSON web tokens: a shared secret (HS256), or a public key in PEM form.
        jwt_key_file: Or a file that has it; relative to the flow's folder, read again when it changes.
        algorithms: Those that web tokens may be signed with: `[RS256]`. Never chosen by the token.
        audience: Whom web tokens must be for; a web token that names an audience is refused where this is not given.
        issuer: Who must have made them.
        leeway: By how much clocks may differ.
        required: Claims that must be there.
        scopes: All of these must be among the token's claim `scope` (or `scp`, or `scopes`).
        realm: Named in the challenge.
    """

    def __init__(
        self,
        *,
        tokens: list[Secret] | dict[str, Secret] | None = None,
        jwt_key: Secret | None = None,
        jwt_key_file: str | None = None,
        algorithms: tuple[str, ...] = (),
        audience: str | list[str] | None = None,
        issuer: str | list[str] | None = None,
        leeway: Duration = NO_TIME,
        required: tuple[str, ...] = ("exp",),
        scopes: tuple[str, ...] = (),
        realm: str = "furcula",
    ):
        one_of("auth.bearer", tokens=tokens, jwt_key=jwt_key, jwt_key_file=jwt_key_file)
        self._challenge = f"Bearer realm={quoted(realm)}"
        self._scopes = tuple(scopes)
        for scope in self._scopes:
            if not _SCOPE.fullmatch(scope):
                raise ValueError(f"scopes: {scope!r} cannot be a scope: no spaces, quotes or backslashes")
        self._lookup: Lookup[str | None] | None = None
        self._key_file = jwt_key_file
        self._key: Any = None
        self._file: WatchedFile[Any] | None = None
        if tokens is not None:
            if algorithms or audience or issuer or self._scopes:
                raise ValueError("algorithms, audience, issuer and scopes are for JSON web tokens (jwt_key)")
            self._lookup = _lookup(tokens)
            return
        from furcula.modules.auth.web_token import WebTokens  # an extra, and 60 ms to load

        self._web = WebTokens(
            algorithms, audience=audience, issuer=issuer, leeway_s=float(leeway), required=tuple(required)
        )
        if jwt_key is not None:
            try:
                self._key = self._web.key(jwt_key.reveal())
            except ValueError as error:
                raise ValueError(f"jwt_key: {error}") from None

    def start(self, context: Context) -> None:
        if self._key_file is None:
            return
        try:
            self._file = WatchedFile(
                context.folder / self._key_file, lambda text: self._web.key(text.strip()), context.log
            )
        except FurculaError as error:
            raise FurculaError(f"{context.name}: {error}") from error

    def process(self, event: Event[Any]) -> Event[Any]:
        token = take_authorization(event, "bearer")
        if token is None:
            # No word of an error: who brings nothing has done nothing wrong yet (RFC 6750, 3.1).
            raise Unauthorized("a bearer token is needed", challenge=self._challenge)
        if not _TOKEN.fullmatch(token):
            raise self._refused("the token cannot be read")
        if self._lookup is not None:
            owner = self._lookup.owner(token)
            if owner is None:
                raise self._refused("the token is not known")
            event.headers["auth"] = {"scheme": "bearer", "user": owner[0]}
            return event
        claims = self._claims(token)
        scopes = _scopes_of(claims)
        if missing := [scope for scope in self._scopes if scope not in scopes]:
            needed = " ".join(self._scopes)
            challenge = f'{self._challenge}, error="insufficient_scope", scope="{needed}"'
            raise Forbidden(f"the token lacks {', '.join(missing)}", headers={"www-authenticate": challenge})
        event.headers["auth"] = {"scheme": "bearer", "user": claims.get("sub"), "claims": claims, "scopes": scopes}
        return event

    def _claims(self, token: str) -> dict[str, Any]:
        from furcula.modules.auth.web_token import BadToken

        try:
            return self._web.claims(token, self._key if self._file is None else self._file.current())
        except BadToken as error:
            raise self._refused(str(error)) from None

    def _refused(self, why: str) -> Unauthorized:
        return Unauthorized(why, challenge=f'{self._challenge}, error="invalid_token", error_description="{why}"')


def _lookup(tokens: list[Secret] | dict[str, Secret]) -> Lookup[str | None]:
    named: list[tuple[str | None, Secret]] = (
        list(tokens.items()) if isinstance(tokens, dict) else [(None, token) for token in tokens]
    )
    if not named:
        raise ValueError("tokens: there is none, so nobody could ever be let in")
    for index, (name, token) in enumerate(named):
        if not _TOKEN.fullmatch(token.reveal()):
            which = f"number {index + 1}" if name is None else repr(name)
            raise ValueError(f"tokens: {which} cannot be a token: letters, digits and - . _ ~ + / only")
    try:
        return Lookup((name, digest_of(token.reveal())) for name, token in named)
    except ValueError:
        raise ValueError("tokens: two of them are the same") from None


def _scopes_of(claims: Mapping[str, Any]) -> list[str]:
    """RFC 9068 has one string of words in `scope`; others write `scp` or `scopes`, and lists."""
    said = next((claims[name] for name in ("scope", "scp", "scopes") if name in claims), "")
    if isinstance(said, str):
        return said.split()
    return [scope for scope in said if isinstance(scope, str)] if isinstance(said, list) else []
