"""Data into XML."""

from __future__ import annotations

from typing import Any

from furcula.codecs.xml import to_bytes
from furcula.event import Event
from furcula.module import Module
from furcula.modules.xml.answer import say_content_type

__all__ = ["XmlWrite"]


class XmlWrite(Module):
    """Write plain data as a document, in the form that `xml.parse` reads.

    The document is bytes in UTF-8. As an answer over HTTP it is `application/xml`. What XML cannot say makes the event
    fail, naming the place in the data.

    Args:
        root: The name of the element around all of the data. Without it the data is a dict with one name, which is that
            of the root, as `xml.parse` gives it.
    """

    def __init__(self, *, root: str | None = None):
        if root is not None:
            to_bytes(None, root)  # ValueError for what is no name
        self._root = root

    def process(self, event: Event[Any]) -> Event[Any]:
        event.data = to_bytes(event.data, self._root)
        return say_content_type(event, "application/xml")
