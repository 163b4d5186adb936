"""Part events by a condition."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from furcula.event import Event
from furcula.module import Module
from furcula.where import Where

__all__ = ["Match"]


class Match(Module):
    """Pass on the events for which a condition holds; the others leave by `nomatch`, or are dropped.

    The condition is a dotted path with operators: eq, ne, lt, le, gt, ge, in, not_in, matches (a regular expression),
    contains, starts_with, ends_with, exists, is_null; or `expr`. `not`, `all` and `any` combine conditions:
    `{where: data.severity, in: [err, crit]}`.

    Args:
        where: A dotted path, or a whole condition.
        expr: A JMESPath expression over `data`, `headers` and `tags`.
    """

    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "nomatch")
    optional: ClassVar[tuple[str, ...]] = ("nomatch",)

    def __init__(self, *, where: str | dict[str, Any] | None = None, expr: str | None = None, **conditions: Any):
        if isinstance(where, dict):
            conditions = {**conditions, "all": [where, *conditions.get("all", ())]}
        elif where is not None:
            conditions["where"] = where
        if expr is not None:
            conditions["expr"] = expr
        #: The condition.
        self.where = Where.of(conditions)
        self._test = self.where.test

    def choose(self, event: Event[Any]) -> Literal["outbox", "nomatch"]:
        return "outbox" if self._test(event) else "nomatch"
