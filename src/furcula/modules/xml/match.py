"""Part documents by what stands in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from furcula.codecs.xml import document, etree
from furcula.event import Event
from furcula.module import Module

__all__ = ["XmlMatch"]

#: Ports that have a meaning of their own.
_RESERVED = ("failed", "invalid", "nomatch", "inbox")


class XmlMatch(Module):
    """Send documents to outboxes by XPath: to the first whose expression holds, else to `nomatch`, or drop them.

    An expression holds if it finds something, or is a true condition: `/order/line`, `number(/order/@total) > 100`.
    Takes bytes, text, or data in the form that `xml.parse` gives, and leaves it as it is.

    Args:
        routes: Outbox -> XPath 1.0 expression, tried in this order: `{big: "count(//line) > 10", rest: "/order"}`.
        namespaces: Prefix -> URI, for the expressions.
        root: For data that is no document yet: the name of the element around all of it. Without it the data has one
            name, as `xml.parse` gives it.
    """

    outboxes: ClassVar[tuple[str, ...] | None] = ("nomatch",)
    optional: ClassVar[tuple[str, ...]] = ("nomatch",)

    @staticmethod
    def ports(routes: Mapping[str, str], **rest: Any) -> dict[str, Any]:
        """The outboxes: those of the routes, and `nomatch`."""
        return {"outboxes": (*routes, "nomatch"), "optional": ("nomatch",)}

    def __init__(self, *, routes: dict[str, str], namespaces: dict[str, str] | None = None, root: str | None = None):
        if not routes:
            raise ValueError("routes needs at least one outbox and its expression")
        for name in routes:
            if name in _RESERVED:
                raise ValueError(f"an outbox cannot be named {name!r}")
        self._root = root
        self._tests = [(name, _compiled(name, path, namespaces or {})) for name, path in routes.items()]

    def choose(self, event: Event[Any]) -> str:
        root = document(event.data, self._root)
        return next((name for name, holds in self._tests if holds(root)), "nomatch")


def _compiled(name: str, path: str, namespaces: Mapping[str, str]) -> Any:
    try:
        etree.XPath(path, namespaces=namespaces, regexp=False)  # by itself first, so that ")(" is no way out of boolean
        holds = etree.XPath(f"boolean({path})", namespaces=namespaces, regexp=False, smart_strings=False)
        holds(etree.Element("nothing"))  # unknown functions and prefixes are found only now
    except etree.XPathError as error:
        raise ValueError(f"{name}: {path!r} is not an XPath expression: {error}") from None
    return holds
