"""Which request is being handled, so that every line logged meanwhile can name it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol

__all__ = ["CURRENT", "Correlation", "Noted"]


class Noted(Protocol):
    """What log lines can say of a request."""

    @property
    def notes(self) -> Mapping[str, str]:
        """`{"request_id": ..., "traceparent": ...}`"""


#: Whose event is being handled in this context, or None.
CURRENT: ContextVar[Noted | None] = ContextVar("furcula asker", default=None)


class Correlation(logging.Filter):
    """Gives each log record `request_id`, `traceparent` and `request` (` [request ...]`), empty where there is none.

    Add it to a handler: `handler.addFilter(Correlation())`. The command line's own handler has it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        asker = CURRENT.get()
        notes = asker.notes if asker is not None else {}
        request_id, traceparent = notes.get("request_id", ""), notes.get("traceparent", "")
        trace = f" trace {traceparent}" if traceparent else ""
        request = f" [request {request_id}{trace}]" if request_id else ""
        record.__dict__.update(request_id=request_id, traceparent=traceparent, request=request)
        return True
