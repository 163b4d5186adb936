"""What sinks of brokers share: where an event goes, what bytes it becomes, and the two ways in which it may fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from furcula.codecs import codec as codec_named
from furcula.errors import DeliveryError
from furcula.event import Event
from furcula.module import BatchFailed

__all__ = ["ID", "PLACES", "Destination", "Outgoing", "Refused", "Unavailable", "report"]

#: The header that carries an event's id to a broker.
ID: Final = "furcula-id"
#: What sources write about where a message was; it does not go along when the event is published again.
PLACES: Final = frozenset(
    (
        *("channel", "deliveries", "entry", "exchange", "list", "offset", "partition", "qos", "reason", "reply_to"),
        *("retain", "routing_key", "sequence", "stream", "subject", "topic"),
    )
)


class Unavailable(DeliveryError):
    """The broker is away or too slow; another try may succeed. With `retry`, a module waits out a restart."""

    status = 503


class Refused(DeliveryError):
    """The broker (or a limit of its) will not have this event: too large, no such exchange, nobody to route it to."""

    retryable = False
    status = 502


class Outgoing(msgspec.Struct):
    """One event on its way out.

    Attributes:
        index: Its place in the batch.
        to: The subject, routing key, topic, channel, stream or list.
        headers: Text by name; the event's id among them.
    """

    index: int
    to: str
    body: bytes
    headers: dict[str, str]
    event: Event[Any]


class Destination:
    """Where the events of a sink go: always to the same place, or to one that the event names.

    Args:
        name: What it is called: `subject`, `routing_key`, …
        fixed: The place where the event names none, or None.
        path: A dotted path into the event, or None.
        codec: What bodies are written in.
        required: Either must be given. (An AMQP routing key may be empty.)
    """

    def __init__(self, name: str, fixed: str | None, path: str | None, codec: str, *, required: bool = True):
        if required and not fixed and not path:
            raise ValueError(f"say {name}, or {name}_from, or both")
        self._name = name
        self._fixed = fixed
        self._path = path
        self._encode = codec_named(codec).encode

    def of(self, event: Event[Any]) -> str:
        """Where this event goes.

        Raises:
            Refused: It names no place, and there is no fixed one.
        """
        found = event.get(self._path, None) if self._path else None
        if found is None or found == "":
            found = self._fixed
        if found is None:
            raise Refused(f"the event has nothing at {self._path!r}, and {self._name} gives no place to send it to")
        if not isinstance(found, str):
            raise Refused(f"{self._path!r} is {type(found).__name__}; the {self._name} must be text")
        return found

    def prepared(self, events: Iterable[Event[Any]]) -> tuple[list[Outgoing], dict[int, BaseException]]:
        """What can be sent, and an error by index for each event that cannot."""
        ready: list[Outgoing] = []
        errors: dict[int, BaseException] = {}
        for index, event in enumerate(events):
            try:
                ready.append(Outgoing(index, self.of(event), self._encode(event.data), _texts(event), event))
            except Refused as error:
                errors[index] = error
            except ValueError as error:
                errors[index] = Refused(str(error))  # it cannot be written, however often that is tried
        return ready, errors


def _texts(event: Event[Any]) -> dict[str, str]:
    """Those headers that are plain values, as text. What is structured stays here."""
    headers: Mapping[str, Any] = event.headers
    texts = {
        name: value if type(value) is str else str(value).lower() if value is True or value is False else str(value)
        for name, value in headers.items()
        if name not in PLACES and isinstance(value, str | int | float)
    }
    texts[ID] = event.id
    return texts


def report(events: list[Event[Any]], errors: dict[int, BaseException]) -> list[Event[Any]]:
    """What `process_batch` answers.

    Raises:
        BatchFailed: Some have an error, each its own. With an option `retry`, those whose error is worth another try
            are handed over once more, and no others.
    """
    if errors:
        raise BatchFailed(errors)
    return events
