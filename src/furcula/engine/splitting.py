"""Taking the items of a split off a generator, so that none can change another afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

from furcula.engine.caught import CAUGHT
from furcula.engine.outcome import Failed, Many
from furcula.event import Event, Routed

__all__ = ["as_child", "iterate", "own_item", "take"]


def iterate(call: Callable[[Any], Any], argument: Any) -> Iterator[Any]:
    yield from call(argument)


def take(items: Iterator[Any], event: Event[Any], most: int) -> Many:
    """Up to `most` items of one event's split. Copies the event itself where it is yielded: it may yet be changed."""
    found: list[Any] = []
    try:
        for item in itertools.islice(items, most):
            found.append(own_item(item, event))
    except CAUGHT as error:
        return Many(found, Failed(error))
    return Many(found)


def own_item(item: Any, event: Event[Any]) -> Any:
    if item is event:
        return as_child(event)
    if type(item) is Routed and item.target is event:
        return as_child(event).to(item.outbox)
    return item


def as_child(event: Event[Any]) -> Event[Any]:
    child = event.duplicate(None)
    child._id = None
    return child
