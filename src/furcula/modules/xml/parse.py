"""XML into data."""

from __future__ import annotations

from typing import Any

from furcula.codecs.xml import MAX_SIZE, etree, parse, to_dict
from furcula.event import Event
from furcula.module import Module
from furcula.options import Size

__all__ = ["XmlParse"]

_MAX_SIZE = Size(MAX_SIZE)


class XmlParse(Module):
    """Read a document, in bytes or text, into plain data.

    The data is a dict with one name, that of the root: `<order id="7"><sku>x</sku></order>` becomes
    `{"order": {"@id": "7", "sku": "x"}}`. Attributes are `@name`, a name that repeats is a list, text beside attributes
    is `#text`, text mixed with elements is in `#content`, an empty element is None, and a name in a namespace is
    `{uri}name`. All values are text.

    What is no XML makes the event fail with line and column, and answers 400. A document with a DOCTYPE is refused;
    nothing is ever fetched.

    Args:
        max_size: Bytes that a document may have.
    """

    def __init__(self, *, max_size: Size = _MAX_SIZE):
        self._max_size = max_size

    def process(self, event: Event[Any]) -> Event[Any]:
        data = event.data
        # An element was parsed by whoever put it there.
        event.data = to_dict(data if etree.iselement(data) else parse(data, max_size=self._max_size))
        return event
