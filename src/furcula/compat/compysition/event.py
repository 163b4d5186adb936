"""Events as Compysition's modules see them: a view of furcula's Event with an id that never changes."""

from __future__ import annotations

from typing import Any

import furcula.event
from furcula.event import MISSING, copy_data

__all__ = ["Event"]

Carried = furcula.event.Event

_EVENT_ID, _META_ID = "event_id", "meta_id"


class Event:
    """One event.

    `event_id` is given once and stays with every copy, through every module, also through a split; `meta_id` names the
    event that all this began with, and is the same unless a module gives another.

    Args:
        data: Anything.
        meta_id: Default: the `event_id`.
        headers: About the data. The two ids are kept here too, so that they cross process boundaries.
    """

    def __init__(self, data: Any = None, meta_id: str | None = None, *, headers: dict[str, Any] | None = None):
        self._carried: Carried[Any] = Carried(data, dict(headers or {}))
        if meta_id is not None:
            self.meta_id = meta_id

    @classmethod
    def of(cls, carried: Carried[Any]) -> Event:
        """A view of an event that moves through the flow."""
        event = cls.__new__(cls)
        event._carried = carried
        return event

    def view(self) -> Carried[Any]:
        """The event that this one is a view of, for modules of furcula's own: what they change is changed here."""
        return self._carried

    def carried(self) -> Carried[Any]:
        """A copy that can be sent. It shares nothing with this event, which may be changed and sent again."""
        event_id, meta_id = self.event_id, self.meta_id
        copy = Carried(copy_data(self.data), copy_data(self.headers), tags=self._carried.tags)
        copy.headers.update({_EVENT_ID: event_id, _META_ID: meta_id})
        return copy

    @property
    def data(self) -> Any:
        return self._carried.data

    @data.setter
    def data(self, data: Any) -> None:
        self._carried.data = data

    @property
    def headers(self) -> dict[str, Any]:
        return self._carried.headers

    @property
    def event_id(self) -> str:
        # Kept as a header from the first look, because the parts of a split get ids of their own in the engine.
        found = self._carried.headers.setdefault(_EVENT_ID, self._carried.id)
        return str(found)

    @property
    def meta_id(self) -> str:
        return str(self._carried.headers.get(_META_ID, self.event_id))

    @meta_id.setter
    def meta_id(self, meta_id: str) -> None:
        self._carried.headers[_META_ID] = meta_id

    @property
    def failures(self) -> tuple[furcula.event.Failure, ...]:
        """What went wrong with it so far: for modules behind an error queue."""
        return self._carried.failures

    def lookup(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path: `data.user.name`, `headers.host`, `event_id`; without such a first word, in data.

        `default` where there is nothing.
        """
        first = path.partition(".")[0]
        if path in (_EVENT_ID, _META_ID):
            return getattr(self, path)
        rooted = path if first in ("data", "headers") else f"data.{path}"
        found = self._carried.get(rooted, MISSING)
        return default if found is MISSING else found

    def clone(self) -> Event:
        """The same event a second time, ids included, with data of its own."""
        return Event.of(self.carried())

    def __repr__(self) -> str:
        return f"Event({self.data!r}, event_id={self.event_id!r})"
