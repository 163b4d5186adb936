"""One entry of `routes:` becomes routes of the flow."""

from __future__ import annotations

from typing import Any

from furcula.config.convert import Checker
from furcula.config.nodes import Node
from furcula.errors import ConfigurationError
from furcula.flow import FlowGraph
from furcula.graph import Branch
from furcula.module import Parameter
from furcula.options import Overflow

__all__ = ["ROUTE_FIELDS", "connect"]

_END = str | list[str]

#: What the long form of a route takes.
ROUTE_FIELDS = {
    field.name: field
    for field in (
        Parameter("from", _END, None, required=True, doc="An outbox: `a` or `a.failed`; or a list of them."),
        Parameter("to", _END, None, required=True, doc="An inbox: `b` or `b.side`; or a list of them."),
        Parameter("branch", Branch, "required", required=False, doc="best-effort: never holds up or fails the others."),
        Parameter("queue", int | None, None, required=False, doc="Places in a queue of the route's own."),
        Parameter("overflow", Overflow | None, None, required=False, doc="What that queue does when full."),
        Parameter("ttl", int | None, None, required=False, doc="Turns an event may make in this cycle."),
    )
}  # fmt: skip


def connect(flow: FlowGraph, node: Node, path: str, checker: Checker) -> None:
    """Add the routes of `a -> b -> c`, or of `{from: a, to: b, branch: best-effort}`, to the flow."""
    settings: dict[str, Any] = {}
    if node.broken:
        return
    before = len(checker.problems)
    if node.is_mapping:
        given = checker.fields(node, ROUTE_FIELDS, path, "key")
        if len(checker.problems) > before:
            return
        text = f"{_end(given.pop('from'))} -> {_end(given.pop('to'))}"
        settings = given
    elif isinstance(node.value, str):
        text = node.value
    else:
        checker.report("expected a route: 'a -> b', or {from: a, to: b}", path, node.location)
        return
    if "->" not in text:
        checker.report(f"{text!r} is not a route; write 'a -> b'", path, node.location)
        return
    try:
        flow.connect(text, location=node.location, **settings)
    except ConfigurationError as error:
        checker.report(error.problems[0].message, path, node.location)


def _end(given: Any) -> str:
    return ", ".join(given) if isinstance(given, list) else str(given)
