"""A logging handler that puts records on a Broker, and does not follow its own tail."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from furcula.broker.ingress import INSIDE
from furcula.errors import FurculaError

if TYPE_CHECKING:
    from furcula.broker.broker import Broker

__all__ = ["BrokerHandler"]


class BrokerHandler(logging.Handler):
    """Puts each record on a Broker: `{"logger": …, "level": …, "message": …, "time": …}`.

    May be used before the Broker runs and from any thread; it never waits. What is logged inside a Broker, by its
    plugins, by tasks and calls that they begin, and by furcula itself, is not put again: one line would become
    thousands. Only threads that a plugin's library has begun by itself are not known as the Broker's: name their
    loggers in `without`.
    A record that the Broker does not take (it is full, or has stopped) is counted in `lost`.

    Args:
        broker: The Broker.
        routing_key: What the records are put with; default: the name of each record's logger.
        profile: The profile they are put under.
        level: Records below it are not put.
        without: Loggers whose records (and those of the ones below them) are not put.
    """

    def __init__(
        self,
        broker: Broker,
        *,
        routing_key: str | None = None,
        profile: str = "default",
        level: int = logging.NOTSET,
        without: Iterable[str] = (),
    ):
        super().__init__(level)
        self._broker = broker
        self._routing_key = routing_key
        self._profile = profile
        self._without = tuple(f"{name}." for name in ("furcula", *without))
        self._within = threading.local()
        #: Records that the Broker did not take.
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        inside = INSIDE.get() or getattr(self._within, "emitting", False)
        if inside or f"{record.name}.".startswith(self._without):
            return
        self._within.emitting = True
        try:
            key = record.name if self._routing_key is None else self._routing_key
            self._broker.put_nowait(key, self._body(record), self._profile)
        except FurculaError:
            self.lost += 1
        except Exception:
            self.handleError(record)
        finally:
            self._within.emitting = False

    def _body(self, record: logging.LogRecord) -> dict[str, Any]:
        body: dict[str, Any] = {
            "logger": record.name,
            "level": record.levelname,
            "message": record.getMessage(),
            "time": record.created,
        }
        if record.exc_info:
            body["exception"] = (self.formatter or logging.Formatter()).formatException(record.exc_info)
        return body
