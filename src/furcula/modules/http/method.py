"""A way for each method."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

from furcula.event import Event
from furcula.graph import EXCEPTION_PORTS
from furcula.module import Module
from furcula.statuses import MethodNotAllowed

__all__ = ["Method"]

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


class Method(Module):
    """Send each request on by the outbox of its method; answer methods that are not named with a 405.

    The outboxes are the methods in lower case: `get`, `post`. HEAD goes to `get`, unless it is named itself.

    Args:
        methods: The methods: `[GET, POST]`.
    """

    outboxes: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, methods: list[str]):
        ports = _ports_of(methods)
        self._ways = dict(ports)
        if "GET" in self._ways:
            self._ways.setdefault("HEAD", "get")
        self._allow = tuple(self._ways)

    @classmethod
    def ports(cls, *, methods: list[str]) -> dict[str, Any]:
        """The outboxes that follow from the arguments."""
        return {"outboxes": tuple(_ports_of(methods).values())}

    def choose(self, event: Event[Any]) -> str:
        method = event.get("headers.method")
        way = self._ways.get(method) if isinstance(method, str) else None
        if way is None:
            raise MethodNotAllowed(f"use {', '.join(self._allow)}", allow=self._allow)
        return way


def _ports_of(methods: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in methods:
        if not _NAME.fullmatch(name):
            raise ValueError(f"methods: {name!r} is not a method")
        if name.lower() in EXCEPTION_PORTS:
            raise ValueError(f"methods: {name!r} cannot be one: the outbox {name.lower()!r} is for what went wrong")
        if name.upper() in found:
            raise ValueError(f"methods: {name!r} is named twice")
        found[name.upper()] = name.lower()
    if not found:
        raise ValueError("methods: name at least one, such as GET")
    return found
