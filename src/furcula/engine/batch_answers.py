"""What a batch function answered, member by member: who went on, who was packed with whom, who failed."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Sequence
from typing import Any

import msgspec

from furcula.engine.caught import CAUGHT
from furcula.engine.outcome import Failed, Many, Outcomes
from furcula.engine.outlets import Batch
from furcula.engine.splitting import as_child
from furcula.errors import ModuleError
from furcula.event import Event, Routed
from furcula.module import BatchFailed
from furcula.receipt import Slot

__all__ = ["Tried", "batch_outcome", "join_events", "tries_outcome"]


class Tried(msgspec.Struct):
    """A try at a batch, or what of it is not tried again.

    Attributes:
        answer: As the batch function gave it, or the exception it raised.
        originals: Data and headers that each member came with.
        attempts: Which try it was.
    """

    batch: Batch
    answer: Any
    originals: Any
    attempts: int


def batch_outcome(
    outcomes: Outcomes, batch: Batch, answer: Any, originals: Any = None, attempts: int = 1
) -> Awaitable[None] | None:
    """Settle what a batch function answered: events, None, or the exception it raised."""
    return outcomes.sort_out(*_results(outcomes, Tried(batch, answer, originals, attempts)))


def tries_outcome(outcomes: Outcomes, batch: Batch, tries: Sequence[Tried]) -> Awaitable[None] | None:
    """Settle what a batch function answered in several tries, each at some members: in the order of the batch.

    Within a try the order is that of its answer. Events that stand for several members come last.
    """
    if len(tries) == 1:
        return outcomes.sort_out(*_results(outcomes, tries[0]))
    places = {id(event): place for place, event in enumerate(batch)}
    parts = [zip(*_results(outcomes, tried), strict=True) for tried in tries]
    pairs = list(heapq.merge(*parts, key=lambda pair: places.get(id(pair[0]), len(places))))
    return outcomes.sort_out([event for event, _ in pairs], [result for _, result in pairs])


def _results(outcomes: Outcomes, tried: Tried) -> tuple[Batch, list[Any]]:
    """The events to settle, and for each what to do with it, in the order of the answer.

    An output that is one of the inputs carries its own share. New outputs, as many as there are inputs, stand for them
    one to one; otherwise they carry together the shares of all the inputs that were not returned.
    """
    batch, answer, originals, attempts = tried.batch, tried.answer, tried.originals, tried.attempts
    results: list[Any] = [None] * len(batch)
    if isinstance(answer, BatchFailed):
        odd = [index for index in answer.errors if type(index) is not int or not 0 <= index < len(batch)]
        if odd:
            wrong = ModuleError(f"{outcomes.name} failed member {odd[0]!r} of a batch of {len(batch)}")
            return _results(outcomes, Tried(batch, wrong, originals, attempts))
        for index, reason in answer.errors.items():
            results[index] = Failed(reason, attempts)
        answer = (
            [event for event, result in zip(batch, results, strict=True) if result is None]
            if (answer.result is None)
            else answer.result
        )
    elif isinstance(answer, BaseException):
        results = [Failed(answer, attempts) for _ in batch]
        answer = []
    if originals is not None:
        for event, result, original in zip(batch, results, originals, strict=True):
            if result is not None:
                event.data, event.headers = original
                result.touched = False
    if outcomes.is_sink:
        return batch, results
    if answer is None:
        answer = []
    if not isinstance(answer, list | tuple) or not all(isinstance(item, Event) for item in answer):
        error = ModuleError(f"{outcomes.name} takes a batch and must answer with a list of Events")
        return batch, [result or Failed(error) for result in results]
    places = {id(event): index for index, event in enumerate(batch)}
    fresh: Batch = []
    for item in answer:
        target = item.target if type(item) is Routed else item
        place = places.pop(id(target), None)
        if place is None or results[place] is not None:
            fresh.append(item)
        else:
            results[place] = item
    missing = [index for index in places.values() if results[index] is None]
    if not fresh or not missing:
        # Extra events without an input of their own are children of the last input that went on.
        if fresh:
            hosts = [index for index, result in enumerate(results) if result is not None and type(result) is not Failed]
            host = hosts[-1] if hosts else 0
            results[host] = _with_extra(batch[host], results[host], fresh)
        return _in_order(batch, results, answer)
    if len(fresh) == len(missing):
        for index, item in zip(missing, fresh, strict=True):
            results[index] = item
        return _in_order(batch, results, answer)
    if len(missing) == 1:
        results[missing[0]] = Many(list(fresh))
        return _in_order(batch, results, answer)
    try:
        pack = join_events([batch[index] for index in missing], fresh[0])
    except CAUGHT as error:  # what it answered is under way already, and cannot be copied
        for index in missing:
            results[index] = Failed(error, attempts)
        return batch, results
    outcomes.counters.joined += len(missing) - 1
    kept = [index for index in range(len(batch)) if index not in set(missing)]
    events = [*(batch[index] for index in kept), pack]
    answers = [*(results[index] for index in kept), Many(list(fresh))]
    if len(fresh) == 1:
        item = fresh[0]
        answers[-1] = pack.to(item.outbox) if type(item) is Routed else pack
    return _in_order(events, answers, answer)


def _with_extra(event: Event[Any], result: Any, extra: Batch) -> Any:
    """The answer for an input that brings `extra` events along, beside itself or its failure."""
    if type(result) is Failed:
        return Many(list(extra), result)
    try:
        first = as_child(event) if result is event else result
    except CAUGHT as error:  # it cannot be copied
        return Failed(error)
    return Many([first, *extra])


def _in_order(batch: Batch, results: list[Any], answer: Sequence[Any]) -> tuple[Batch, list[Any]]:
    """In the order that the batch function gave its answers."""
    rank = {id(item): position for position, item in enumerate(answer)}

    def place(index: int) -> int:
        result = results[index]
        if type(result) is Many and result.items:
            members = [rank[id(item)] for item in (batch[index], *result.items) if id(item) in rank]
            return min(members, default=len(rank))
        return rank.get(id(result), len(rank))

    order = sorted(range(len(batch)), key=place)
    if order != list(range(len(batch))):
        batch = [batch[index] for index in order]
        results = [results[index] for index in order]
    return batch, results


def join_events(members: Batch, result: Event[Any]) -> Event[Any]:
    """`result` (a new event, or one in an envelope) made to carry the shares of all members."""
    pack = result.target if type(result) is Routed else result
    assert pack is not None
    if pack._receipt is not None:
        pack = pack.duplicate(None)
        pack._id = None
    carriers = [carrier for member in members if (carrier := member.carrier()) is not None]
    pack._receipt = Slot(tuple(carriers), 1, None, carriers[0].created) if carriers else None
    if pack.parent is None:
        pack.parent = members[0].id
    ttls = [member.ttl for member in members if member.ttl is not None]
    pack.ttl = min(ttls) if ttls else pack.ttl
    return pack
