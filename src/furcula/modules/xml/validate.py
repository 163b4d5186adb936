"""XML against a schema."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable
from typing import Any, cast

from furcula.codecs.xml import document, etree
from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.xml.own import own_file
from furcula.statuses import UnprocessableContent

__all__ = ["XmlValidate"]

#: So many errors of a document are told.
MOST_ERRORS = 20


class XmlValidate(Module):
    """Pass on the documents that an XML schema (XSD 1.0) allows; the others fail.

    Takes bytes, text, or data in the form that `xml.parse` gives, and leaves it as it is. A document that the schema
    does not allow answers 422, with `errors`: a list of `{line, message}`, the first twenty. What is no XML answers
    400.

    Args:
        schema: The schema's file; a relative path is relative to the flow's folder. What it includes and imports is
            taken from its own folder and those in it.
        root: For data that is no document yet: the name of the element around all of it. Without it the data has one
            name, as `xml.parse` gives it.
    """

    def __init__(self, *, schema: str, root: str | None = None):
        self._file = schema
        self._root = root
        # A schema keeps the errors of its last document, so one document at a time; that matters with `thread`.
        self._one = threading.Lock()

    def start(self, context: Context) -> None:
        path = context.folder / self._file
        try:
            self._schema = etree.XMLSchema(own_file(path).root)
        except OSError as error:
            raise FurculaError(f"{context.name} cannot read its schema {path}: {error}") from error
        except (ValueError, etree.XMLSchemaParseError) as error:
            raise FurculaError(f"{context.name}: the schema {path}: {error}") from None

    def process(self, event: Event[Any]) -> Event[Any]:
        root = document(event.data, self._root)
        with self._one:
            if self._schema.validate(root):
                return event
            found = list(itertools.islice(cast("Iterable[Any]", self._schema.error_log), MOST_ERRORS + 1))
        errors = [{"line": error.line, "message": error.message} for error in found[:MOST_ERRORS]]
        more = ", and there are more" if len(found) > MOST_ERRORS else ""
        first = errors[0] if errors else {"line": 0, "message": "not allowed"}
        raise UnprocessableContent(
            f"the schema does not allow this document: {first['message']} (line {first['line']}){more}", errors=errors
        )
