"""The plainest modules: a sink, a counter, a log, and a way in from outside."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, ClassVar, Literal

from furcula.event import Event
from furcula.module import Context, Module, Source

__all__ = ["Count", "Inlet", "Log", "Null"]


class Null(Module):
    """Take every event and do nothing with it: delivered."""

    outboxes: ClassVar[tuple[str, ...]] = ()

    def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        return events


class Count(Module):
    """Count the events that pass. Logs the sum when the flow stops.

    Args:
        by: A dotted path: count by the value there too. 1,000 values are told apart; the rest is counted together.
    """

    MOST_VALUES: ClassVar[int] = 1000

    def __init__(self, *, by: str | None = None):
        self._by = by
        self._context: Context | None = None
        #: Events that have passed.
        self.total = 0
        #: The same by the value at `by`, as text; `(others)` for values beyond the first thousand, `(none)` for none.
        self.values: Counter[str] = Counter()
        if by is not None:
            _check_path(by)

    def start(self, context: Context) -> None:
        self._context = context

    def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        self.total += len(events)
        if self._by is not None:
            for event in events:
                value = str(event.get(self._by, "(none)"))
                if value not in self.values and len(self.values) >= self.MOST_VALUES:
                    value = "(others)"
                self.values[value] += 1
        return events

    def stop(self) -> None:
        if self._context is not None:
            most = ", ".join(f"{value}: {count}" for value, count in self.values.most_common(10))
            self._context.log.info("%d events%s", self.total, f" ({most})" if most else "")


class Log(Module):
    """Log each event, and pass it on.

    Args:
        level: debug, info, warning, error or critical.
        text: Stands before the data.
        limit: So many characters of the data are logged.
    """

    def __init__(
        self,
        *,
        level: Literal["debug", "info", "warning", "error", "critical"] = "info",
        text: str = "",
        limit: int = 1000,
    ):
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._text = f"{text} " if text else ""
        self._limit = limit
        self._log: logging.LoggerAdapter[logging.Logger] | None = None

    def start(self, context: Context) -> None:
        self._log = context.log

    def process(self, event: Event[Any]) -> Event[Any]:
        log = self._log
        if log is not None and log.isEnabledFor(self._level):
            shown = str(event.data)
            if len(shown) > self._limit:
                shown = f"{shown[: self._limit]}… ({len(shown)} characters)"
            log.log(self._level, "%s%s%s", self._text, shown, _failed(event))
        return event


def _failed(event: Event[Any]) -> str:
    if not event.failures:
        return ""
    last = event.failures[-1]
    return f" (failed in {last.module}: {last.type}: {last.message})"


class Inlet(Source):
    """A way in from outside: what is put with `Director.put`, or asked with `Director.ask`, enters the flow here.

    What is routed back to its inbox is the answer to whoever asked. It never ends by itself.
    """

    inboxes: ClassVar[tuple[str, ...]] = ("inbox",)
    shared: ClassVar[bool] = True

    def start(self, context: Context) -> None:
        """Nothing is to be opened, and `context.finished()` is for whoever puts to say."""


def _check_path(path: str) -> None:
    try:
        Event().has(path)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
