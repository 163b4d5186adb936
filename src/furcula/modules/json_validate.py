"""Data against a JSON Schema."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from furcula.errors import FurculaError, MissingExtra
from furcula.event import Event
from furcula.module import Context, Module
from furcula.statuses import UnprocessableContent

try:
    import jsonschema.validators
    import referencing
    import referencing.exceptions
    from referencing.jsonschema import DRAFT202012
except ImportError:  # pragma: no cover -- a test looks at it in a process of its own
    raise MissingExtra("JSON Schema", "schema") from None

__all__ = ["JsonValidate"]

#: So many errors of one event are told, each in so many characters: a message quotes the data.
MOST_ERRORS = 20
MOST_CHARACTERS = 300


class JsonValidate(Module):
    """Pass on the events whose data a JSON Schema allows; the others fail.

    The schema is of draft 2020-12, unless its `$schema` says another. The data stays as it is. What is not allowed
    answers 422, with `errors`: a list of `{path, message}`, the first twenty.

    A `$ref` leads to a place in the schema itself or to a JSON file in its folder (or those in it). Nothing is ever
    fetched; a reference that leads nowhere is found at the start.

    Args:
        schema: The schema, or the file that has it; a relative path is relative to the flow's folder.
    """

    def __init__(self, *, schema: str | dict[str, Any]):
        self._file = schema if isinstance(schema, str) else None
        if isinstance(schema, dict):
            self._validator = _validator(schema, None)

    def start(self, context: Context) -> None:
        if self._file is None:
            return
        path = context.folder / self._file
        try:
            self._validator = _validator(_read(path), path.resolve().parent)
        except OSError as error:
            raise FurculaError(f"{context.name} cannot read its schema {path}: {error}") from error
        except ValueError as error:
            raise FurculaError(f"{context.name}: the schema {path}: {error}") from None

    def process(self, event: Event[Any]) -> Event[Any]:
        try:
            found = list(itertools.islice(self._validator.iter_errors(event.data), MOST_ERRORS + 1))
        except RecursionError:
            raise UnprocessableContent("the data is nested more deeply than its schema can be followed") from None
        if not found:
            return event
        errors = [
            {"path": ".".join(map(str, error.absolute_path)), "message": _shortened(error.message)}
            for error in found[:MOST_ERRORS]
        ]
        more = ", and there are more" if len(found) > MOST_ERRORS else ""
        at = f"{errors[0]['path']}: " if errors[0]["path"] else ""
        raise UnprocessableContent(f"the schema does not allow this: {at}{errors[0]['message']}{more}", errors=errors)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # a UnicodeError too
        raise ValueError(f"{path.name} is not JSON: {error}") from None


def _validator(schema: Any, folder: Path | None) -> Any:
    """What validates by `schema`, all its references found.

    Raises:
        ValueError: It is no schema, or a reference leads nowhere.
    """
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.exceptions.SchemaError as error:
        at = ".".join(map(str, error.absolute_path))
        raise ValueError(f"it is no schema{f', at {at}' if at else ''}: {_shortened(error.message)}") from None
    neighbours = _Neighbours(folder)
    registry: Any = referencing.Registry(retrieve=neighbours.read)  # type: ignore[call-arg]
    resource = referencing.Resource.from_contents(schema, default_specification=DRAFT202012)
    try:
        for _ in _followed(resource, registry.resolver_with_root(resource), set()):
            pass
    except referencing.exceptions.Unresolvable as error:
        raise ValueError(f"its $ref {error.ref!r} leads nowhere{_why(error)}") from None
    # All that is referred to is here now; nothing is read or looked for later.
    return kind(schema, registry=referencing.Registry().with_resources(neighbours.found.items()))


def _followed(resource: Any, resolver: Any, seen: set[int]) -> Iterator[None]:
    """Look up every reference in a schema, and in the schemas that they lead to."""
    if id(resource.contents) in seen:
        return
    seen.add(id(resource.contents))
    yield
    resolver = resolver.in_subresource(resource)
    if isinstance(resource.contents, dict):
        for keyword in ("$ref", "$dynamicRef"):
            reference = resource.contents.get(keyword)
            if isinstance(reference, str):
                there = resolver.lookup(reference)
                target = referencing.Resource.from_contents(there.contents, default_specification=DRAFT202012)
                yield from _followed(target, there.resolver, seen)
    for inner in resource.subresources():
        yield from _followed(inner, resolver, seen)


class _Neighbours:
    """The schemas that others refer to by the names of their files."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self.found: dict[str, Any] = {}

    def read(self, uri: str) -> Any:
        if uri not in self.found:
            contents = self._contents(uri)
            self.found[uri] = referencing.Resource.from_contents(contents, default_specification=DRAFT202012)
        return self.found[uri]

    def _contents(self, uri: str) -> Any:
        parts, folder = urlsplit(uri), self._folder
        if parts.scheme or parts.netloc:
            raise _Elsewhere("it is not fetched; put a copy beside the schema")
        if folder is None:
            raise _Elsewhere("a schema that stands in the flow has no folder; put it into a file")
        path = (folder / unquote(parts.path)).resolve()
        if not path.is_relative_to(folder):
            raise _Elsewhere(f"it is not in {folder}; put a copy there")
        try:
            return _read(path)
        except (OSError, ValueError) as error:
            raise _Elsewhere(str(error)) from None


class _Elsewhere(Exception):
    """Why a reference is not followed."""


def _why(error: BaseException | None) -> str:
    while error is not None:
        if isinstance(error, _Elsewhere):
            return f": {error}"
        error = error.__cause__ or error.__context__
    return ""
