"""HTTP Basic (RFC 7617): a name and a password with every request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextvars
import functools
import hmac
import inspect
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.auth.credentials import (
    BadLine,
    WatchedFile,
    check_function,
    find_function,
    named_lines,
    one_of,
    quoted,
    take_authorization,
)
from furcula.modules.auth.passwords import Fits, read_hash
from furcula.options import Duration, Secret
from furcula.statuses import Unauthorized

__all__ = ["Basic"]

MINUTE: Final = Duration("1m")
#: Pairs of name and password that are remembered at once.
MOST_REMEMBERED: Final = 10_000
#: Passwords that are looked at at once. Each keeps a core busy; more would only make all of them slow.
THREADS: Final = max(2, os.cpu_count() or 2)


class Basic(Module):
    """Let requests pass that bring the name and the password of a user by HTTP Basic; refuse the others with a 401.

    `headers.auth` becomes `{"scheme": "basic", "user": name}`, and the password is taken out of the request. A name
    that nobody has takes as long to refuse as a wrong password. Hashes are looked at in threads, a few at once; give
    the module a `concurrency` above that, and put an `http.limit` in front of it. Only over TLS is a password safe.

    Args:
        users_file: Lines `name:hash`, as `htpasswd -B` writes them (bcrypt), or with a hash of
            `furcula.modules.auth.passwords.scrypt_hash`. Relative to the flow's folder; read again when it changes.
        users: Name -> password, instead.
        verify: A function, or `package.module:name` of one, that gets a name and a password and gives True, or a dict
            of what else is known of the user, which joins `headers.auth`; or False, None or an empty dict. A coroutine
            function is awaited, any other called in a thread.
        realm: What the user is asked to log in to.
        remember: So long a password that was right is not looked at again, unless the file changes. 0s: not at all.
    """

    def __init__(
        self,
        *,
        users_file: str | None = None,
        users: dict[str, Secret] | None = None,
        verify: Any = None,
        realm: str = "furcula",
        remember: Duration = MINUTE,
    ):
        one_of("auth.basic", users_file=users_file, users=users, verify=verify)
        if verify is not None:
            check_function(verify, "verify")
        self._challenge = f'Basic realm={quoted(realm)}, charset="UTF-8"'
        self._users_file = users_file
        self._verify = verify
        self._remember_s = float(remember)
        self._check: _Check | None = None if users is None else _Listed(users)
        self._threads: ThreadPoolExecutor | None = None

    def start(self, context: Context) -> None:
        if self._check is not None:
            return
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{context.name} password")
        remembered = _Remembered(self._remember_s, context.now)
        try:
            if self._users_file is not None:
                file = WatchedFile(context.folder / self._users_file, _read_users, context.log)
                self._check = _Hashed(file, self._threads, remembered)
            else:
                call = find_function(self._verify, context.folder)
                self._check = _Asked(call, self._threads, remembered)
        except FurculaError as error:
            self.stop()
            raise FurculaError(f"{context.name}: {error}") from error

    async def process(self, event: Event[Any]) -> Event[Any]:
        given = take_authorization(event, "basic")
        if given is None:
            raise Unauthorized("a name and a password are needed", challenge=self._challenge)
        pair = _read_pair(given)
        if pair is None:
            raise Unauthorized("the credentials cannot be read", challenge=self._challenge)
        assert self._check is not None
        known = await self._check(*pair)
        if known is None:
            raise Unauthorized("the name or the password is wrong", challenge=self._challenge)
        event.headers["auth"] = {**known, "scheme": "basic", "user": pair[0]}
        return event

    def stop(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def _read_pair(given: str) -> tuple[str, str] | None:
    """Name and password, or None: whatever a client sends, it is no error of ours."""
    try:
        text = base64.b64decode(given, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    name, colon, password = text.partition(":")
    if not colon or _CONTROL.search(text):
        return None
    return _normal(name), _normal(password)


def _normal(text: str) -> str:
    """The same characters, whichever way a client composes them (RFC 7617, 2.1)."""
    return unicodedata.normalize("NFC", text)


# ------------------------------------------------------------------ the ways of checking

#: What else is known of a user whose password was right. None: it was not.
Known = Mapping[str, Any] | None


class _Check(Protocol):
    async def __call__(self, name: str, password: str) -> Known: ...


class _Remembered:
    """Whose password was right a moment ago. Neither names nor passwords are kept, only an HMAC of both."""

    def __init__(self, for_s: float, now: Callable[[], float] = time.time):
        self._for_s = for_s
        self._now = now
        self._key = secrets.token_bytes(32)
        self._entries: dict[bytes, tuple[float, Mapping[str, Any]]] = {}

    def mark(self, version: int, name: str, password: str) -> bytes:
        # Neither part can have a NUL, so no two pairs give the same text.
        text = f"{version}\0{name}\0{password}"
        return hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")

    def get(self, mark: bytes) -> Known:
        found = self._entries.get(mark)
        return found[1] if found is not None and self._now() < found[0] else None

    def put(self, mark: bytes, known: Known) -> None:
        if known is None or not self._for_s:
            return
        self._entries.pop(mark, None)
        if len(self._entries) >= MOST_REMEMBERED:
            del self._entries[next(iter(self._entries))]
        self._entries[mark] = (self._now() + self._for_s, known)


class _Listed:
    """Passwords that stand in the flow."""

    def __init__(self, users: Mapping[str, Secret]):
        self._key = secrets.token_bytes(32)
        self._nobody = secrets.token_bytes(32)
        for name in users:
            if not name or ":" in name or _CONTROL.search(name):
                raise ValueError(f"users: {name!r} cannot be a name: it must not be empty or have a ':'")
        self._marks = {_normal(name): self._mark(_normal(secret.reveal())) for name, secret in users.items()}

    def _mark(self, password: str) -> bytes:
        return hmac.digest(self._key, password.encode("utf-8", "surrogatepass"), "sha256")

    async def __call__(self, name: str, password: str) -> Known:
        expected = self._marks.get(name, self._nobody)
        return {} if hmac.compare_digest(self._mark(password), expected) else None


def _read_users(text: str) -> dict[str, Fits]:
    found: dict[str, Fits] = {}
    for name, (line, rest) in named_lines(text, "name:hash").items():
        try:
            found[_normal(name)] = read_hash(rest)
        except ValueError as error:
            raise BadLine(line, f"the password of {name!r}: {error}") from None
    return found


class _Hashed:
    """Passwords whose hashes stand in a file."""

    def __init__(self, file: WatchedFile[dict[str, Fits]], threads: ThreadPoolExecutor, remembered: _Remembered):
        self._file = file
        self._threads = threads
        self._remembered = remembered
        self._key = secrets.token_bytes(32)

    async def __call__(self, name: str, password: str) -> Known:
        users = self._file.current()
        mark = self._remembered.mark(self._file.version, name, password)
        known = self._remembered.get(mark)
        if known is not None or not users:
            return known
        fits = users.get(name)
        work = functools.partial(self._look, mark, fits or self._decoy(users, name), password.encode())
        right = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        if not right or fits is None:
            return None
        self._remembered.put(mark, {})
        return {}

    def _look(self, mark: bytes, fits: Fits, password: bytes) -> bool:
        # Of many requests that came at once with the same password, the first was looked at while the others waited.
        return self._remembered.get(mark) is not None or fits(password)

    def _decoy(self, users: Mapping[str, Fits], name: str) -> Fits:
        """For a name that nobody has, somebody's hash, always the same: its costs are those of a user's."""
        drawn = int.from_bytes(hmac.digest(self._key, name.encode("utf-8", "surrogatepass"), "sha256")[:8], "big")
        return list(users.values())[drawn % len(users)]


class _Asked:
    """A function that knows."""

    def __init__(self, call: Callable[..., Any], threads: ThreadPoolExecutor, remembered: _Remembered):
        self._call = call
        self._waits = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004
        self._threads = threads
        self._remembered = remembered

    async def __call__(self, name: str, password: str) -> Known:
        mark = self._remembered.mark(0, name, password)
        known = self._remembered.get(mark)
        if known is not None:
            return known
        if self._waits:
            answer = await self._call(name, password)
        else:
            work = functools.partial(contextvars.copy_context().run, self._call, name, password)
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        known = _known(answer)
        self._remembered.put(mark, known)
        return known


def _known(answer: Any) -> Known:
    """A function that answers something else has a mistake in it, and nobody is let in by a mistake."""
    if answer is True:
        return {}
    if answer is False or answer is None:
        return None
    if isinstance(answer, Mapping):
        return answer or None
    raise TypeError(f"the function that verifies gave {type(answer).__name__}; it gives True, False, None or a dict")
