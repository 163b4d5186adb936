"""How a worker logs: to stderr, each line with the worker's name."""

from __future__ import annotations

import logging

from furcula.correlation import Correlation

__all__ = ["log_as"]


class _Line(logging.Formatter):
    """`12:30:01 WARNING main/1 orders/price: …`"""

    def __init__(self, worker: str):
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        flow, place = getattr(record, "flow", ""), getattr(record, "furcula_module", "")
        where = "/".join(part for part in (flow, place) if part) or record.name
        head = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname} {self._worker} {where}"
        text = f"{head}: {record.getMessage()}{getattr(record, 'request', '')}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def log_as(worker: str, level: int) -> None:
    """Log from now on under this worker's name."""
    logger = logging.getLogger("furcula")
    logger.setLevel(level)
    handler = logging.StreamHandler()
    handler.setFormatter(_Line(worker))
    handler.addFilter(Correlation())
    logger.handlers[:] = [handler]
    logger.propagate = False
