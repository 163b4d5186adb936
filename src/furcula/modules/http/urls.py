"""URLs made of templates, in which a value cannot be more than a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote, unquote

import jinja2
from markupsafe import Markup

from furcula.event import Event
from furcula.modules import template

__all__ = ["compile_url", "written"]

#: Characters that have a meaning in a URL, and stay what they are where the URL itself is written.
_MEANING: Final = "%!#$&'()*+,/:;=?@[]~"


def written(url: str) -> str:
    """`url` with all percent-encoded that cannot stand in one: blanks, line breaks, what is not ASCII."""
    return quote(url, safe=_MEANING)


def _value(value: Any) -> Any:
    """A value, percent-encoded to the last slash; one marked `| safe` is itself a piece of URL, and stays."""
    if isinstance(value, Markup):
        return value
    if value is None or isinstance(value, dict | list | tuple | set | bytes):
        raise ValueError(f"{type(value).__name__} cannot stand in a URL; text and numbers can")
    return quote(str(value), safe="")


_ENVIRONMENT: Final = template._ENVIRONMENT.overlay(finalize=_value)


def compile_url(text: str) -> Callable[[Event[Any]], str]:
    """What writes the URL for an event. The template sees what every template sees.

    Each value is percent-encoded, so that `/orders/{{ data.id }}` stays one step below `/orders`, whatever the id.
    `{{ data.url | safe }}` is taken as the URL, or part of one, that it is.

    Raises:
        ValueError: It is no template. And what it returns raises that for a value that cannot stand in a URL.
    """
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        fixed = written(text)
        return lambda event: fixed
    try:
        render = _ENVIRONMENT.from_string(text).render
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the template is wrong in line {error.lineno}: {error.message}") from None

    def url(event: Event[Any]) -> str:
        made = written(render(data=event.data, headers=event.headers, event=template._Seen(event)))
        # Dots need no encoding, and yet two of them lead one folder up.
        path = made.partition("#")[0].partition("?")[0]
        if any(unquote(step) in (".", "..") for step in path.split("/")):
            raise ValueError("a value would make the path of the URL lead elsewhere: it consists of dots")
        return made

    return url
