"""Text from events, by Jinja templates in a sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.sandbox

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import Context, Module

__all__ = ["Template", "compile_text"]

# The sandbox keeps templates from changing lists and dicts and from reaching into Python's insides. What a template
# names and the event has not is an error, not an empty string: a failing expression is a failure.
_ENVIRONMENT = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True
)


class _Seen:
    """The event as a template sees it: its parts to be read, and nothing that would change it."""

    __slots__ = ("_event",)

    def __init__(self, event: Event[Any]):
        self._event = event

    id = property(lambda self: self._event.id)
    created = property(lambda self: self._event.created)
    data = property(lambda self: self._event.data)
    headers = property(lambda self: self._event.headers)
    key = property(lambda self: self._event.key)
    parent = property(lambda self: self._event.parent)
    tags = property(lambda self: sorted(self._event.tags))
    failures = property(lambda self: self._event.failures)


def compile_text(text: str) -> Callable[[Event[Any]], str]:
    """What renders `text` for an event.

    The template sees `data`, `headers` and `event`. A text without placeholders costs nothing.

    Raises:
        ValueError: It is no template; the message names the line.
    """
    if not any(mark in text for mark in ("{{", "{%", "{#")):
        return lambda event: text
    try:
        render = _ENVIRONMENT.from_string(text).render
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the template is wrong in line {error.lineno}: {error.message}") from None
    return lambda event: render(data=event.data, headers=event.headers, event=_Seen(event))


class Template(Module):
    """Render a template for each event, and put the text into it.

    The template is Jinja's, in a sandbox. It sees `data`, `headers` and `event` (id, created, key, tags, failures).
    What it names and the event has not makes the event fail.

    Args:
        template: The template.
        file: Or a file that has it; a relative path is relative to the flow's folder.
        target: The dotted path where the text goes.
    """

    def __init__(self, *, template: str | None = None, file: str | None = None, target: str = "data"):
        if (template is None) == (file is None):
            raise ValueError("template needs one of: template, file")
        self._file = file
        self._target = target
        self._render = compile_text(template or "")
        try:
            Event().has(target)
        except KeyError as error:
            raise ValueError(error.args[0]) from None

    def start(self, context: Context) -> None:
        if self._file is None:
            return
        path = context.folder / self._file
        try:
            self._render = compile_text(path.read_text("utf-8"))
        except (OSError, UnicodeError) as error:
            raise FurculaError(f"{context.name} cannot read its template {path}: {error}") from error
        except ValueError as error:
            raise FurculaError(f"{context.name}: {path}: {error}") from None

    def process(self, event: Event[Any]) -> Event[Any]:
        text = self._render(event)
        if self._target == "data":
            event.data = text
            return event
        return event.set(self._target, text)
