"""What a child said of its answers, as what becomes of the events at home."""

from __future__ import annotations

from typing import Any

from furcula.engine.outcome import Failed, Many
from furcula.engine.outlets import Batch
from furcula.engine.processes.messages import DATA, FAILED, MANY, NEW, NO_EVENTS, SAME, UNCHANGED, hashable
from furcula.engine.processes.told import ToldError, rebuild
from furcula.event import Event
from furcula.module import BatchFailed

__all__ = ["result_of", "whole_result_of"]


def result_of(event: Event[Any], answer: Any) -> Any:
    """What a function answered about an event, as `Outcomes.sort_out` takes it."""
    if answer is None:
        return None
    if answer == UNCHANGED:
        return event
    kind = answer[0]
    if kind == DATA:
        event.data = answer[1]
        return event
    if kind == SAME:
        _, port, event.data, event.headers, key, tags, failures = answer
        event.key = hashable(key)
        event.tags = frozenset(tags)
        if len(failures) != len(event.failures):
            event.failures = event.failures[: len(failures)]
        return event if port is None else event.to(port)
    if kind == NEW:
        return _new(answer)
    if kind == MANY:
        _, items, failed = answer
        many = [item[1] if item[0] == DATA else _new(item) for item in items]
        return Many(many, None if failed is None else _failed(failed))
    assert kind == FAILED
    return _failed(answer[1])


def whole_result_of(batch: Batch, answer: Any) -> Any:
    """What a function of a whole batch answered, about the events at home."""
    if isinstance(answer, BaseException):
        return answer
    kind = answer[0]
    if kind == FAILED:
        return rebuild(ToldError(*answer[1]))
    if kind == NO_EVENTS:
        return NO_EVENTS
    _, members, told = answer
    errors = {index: rebuild(ToldError(*error)) for index, error in told}
    result: list[Any] | None = None
    if members is not None:
        result = []
        for place, new in members:
            item = _new(new)
            if place >= 0:
                target = item if new[1] is None else item.target
                event = batch[place]
                event.data, event.headers, event.key, event.tags = target.data, target.headers, target.key, target.tags
                item = event if new[1] is None else event.to(new[1])
            result.append(item)
    return BatchFailed(errors, result) if errors else result


def _failed(told: Any) -> Failed:
    # The event at home is as it was handed in.
    return Failed(rebuild(ToldError(*told)), touched=False)


def _new(answer: Any) -> Any:
    """An event that the function made."""
    _, port, data, headers, key, tags, _, own_id = answer
    event: Event[Any] = Event(data, headers, key=hashable(key), tags=frozenset(tags), _id=own_id)
    return event if port is None else event.to(port)
