"""What an answer says beside its data: `http.reply`, and the same as functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from furcula.event import Event
from furcula.module import Module
from furcula.modules.http.cookie import Cookie
from furcula.modules.http.urls import compile_url, written
from furcula.modules.template import compile_text

__all__ = ["Reply", "created", "no_content", "set_cookie"]

_FIELD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MEDIA_TYPE: Final = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+(\s*;\s*[\w-]+=(?:[\w!#$&^.+-]+|\"[^\"\\\r\n]*\"))*")
#: Fields that say how an answer is carried, which only who carries it can know.
_OF_THE_SERVER: Final = frozenset(
    ("content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer")
)

Write = Callable[[Event[Any]], str]


class Reply(Module):
    """Say how the event is to be answered, on its way back to `http.listen`: status, header fields, cookies.

    What is not given stays as it is; the status of an event that failed too.

    Args:
        status: 200 to 599. Default: 201 with a location, 204 if `empty`.
        headers: Header fields; the values may be templates, as in `template`.
        location: Where the thing is: `/orders/{{ data.id }}`. Values are percent-encoded; `{{ data.url | safe }}` is
            taken as the URL that it is.
        empty: Answer without a body.
        content_type: Of the body, instead of what its data would have.
        cookies: Name -> `{value: …, path: /, domain: …, max_age: 30d, secure: false, http_only: true, same_site: Lax}`.
            The value may be a template; one that cannot stand in a cookie makes the event fail.
    """

    def __init__(
        self,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        location: str | None = None,
        empty: bool = False,
        content_type: str | None = None,
        cookies: dict[str, Cookie] | None = None,
    ):
        if status is not None and not 200 <= status <= 599:
            raise ValueError(f"status: {status} is not the status of an answer (200 to 599)")
        if empty and content_type is not None:
            raise ValueError("empty and content_type are given, and what is empty has no type")
        if content_type is not None and not _MEDIA_TYPE.fullmatch(content_type):
            raise ValueError(f"content_type: {content_type!r} is not a media type; write application/json")
        self._status = status if status is not None else 204 if empty else 201 if location is not None else None
        self._empty = empty
        self._fields: list[tuple[str, Write]] = [(name, _compiled(name, text)) for name, text in _listed(headers)]
        if location is not None:
            self._fields.append(("location", _within("location", compile_url, location)))
        if content_type is not None:
            self._fields.append(("content-type", lambda event: content_type))
        self._cookies: list[tuple[str, Cookie, Write]] = []
        for name, cookie in (cookies or {}).items():
            try:
                cookie.check(name)
                if "{{" not in cookie.value and "{%" not in cookie.value:
                    cookie.field(name)
            except ValueError as error:
                raise ValueError(f"cookies: {error}") from None
            self._cookies.append((name, cookie, _within(f"cookies: {name}", compile_text, cookie.value)))

    def process(self, event: Event[Any]) -> Event[Any]:
        # All is made before anything is put, so that what cannot be made leaves the event as it came.
        fields = [(name, _field_value(name, write(event))) for name, write in self._fields]
        cookies = [cookie.field(name, write(event)) for name, cookie, write in self._cookies]
        if self._status is not None:
            event.headers["status"] = self._status
        if fields or cookies:
            said = _response(event)
            said.update(fields)
            for cookie in cookies:
                _add_cookie(said, cookie)
        if self._empty:
            event.data = None
        return event


def _listed(headers: dict[str, str] | None) -> list[tuple[str, str]]:
    found = [(name.lower(), text) for name, text in (headers or {}).items()]
    for name, _ in found:
        if not _FIELD.fullmatch(name):
            raise ValueError(f"headers: {name!r} is not the name of a header field")
        if name in _OF_THE_SERVER:
            raise ValueError(f"headers: http.listen writes {name} itself")
        if name == "set-cookie":
            raise ValueError("headers: set-cookie is written by cookies")
    return found


def _compiled(name: str, text: str) -> Write:
    write = _within(f"headers: {name}", compile_text, text)
    if "{{" not in text and "{%" not in text:
        _field_value(name, text)
    return write


def _within(what: str, make: Callable[[str], Write], text: str) -> Write:
    try:
        return make(text)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _field_value(name: str, text: str) -> str:
    """The value of a header field. One with a line break would begin another field, which nobody meant to send."""
    if any((char < " " and char != "\t") or char == "\x7f" for char in text):
        raise ValueError(f"the header field {name} would have a line break or another control character in it")
    return text.strip(" \t")


def _response(event: Event[Any]) -> dict[str, Any]:
    said = event.headers.get("response")
    if not isinstance(said, dict):
        said = event.headers["response"] = {}
    return said


def _add_cookie(said: dict[str, Any], cookie: str) -> None:
    there = said.get("set-cookie", [])
    said["set-cookie"] = [*(there if isinstance(there, list | tuple) else [there]), cookie]


# ------------------------------------------------------------------ for functions


def set_cookie(event: Event[Any], name: str, value: str = "", **attributes: Any) -> Event[Any]:
    """Set a cookie with the answer. Returns the event.

    >>> set_cookie(Event(), "session", "abc", secure=True).headers["response"]
    {'set-cookie': ['session=abc; HttpOnly; Path=/; SameSite=Lax; Secure']}

    Args:
        event: The event that is going to be the answer.
        name: Its name.
        value: Its value.
        attributes: path, domain, max_age, secure, http_only, same_site; see `Cookie`.

    Raises:
        ValueError: Browsers would not take it so.
    """
    field = Cookie(value=value, **attributes).field(name)
    _add_cookie(_response(event), field)
    return event


def created(event: Event[Any], location: str) -> Event[Any]:
    """Answer with 201 and where the new thing is. Returns the event.

    >>> created(Event(), "/orders/7").headers
    {'status': 201, 'response': {'location': '/orders/7'}}
    """
    event.headers["status"] = 201
    _response(event)["location"] = written(location)
    return event


def no_content(event: Event[Any]) -> Event[Any]:
    """Answer with 204 and no body. Returns the event."""
    event.headers["status"] = 204
    event.data = None
    return event
