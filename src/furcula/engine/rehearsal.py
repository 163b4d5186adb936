"""A run for a test: sources replaced by what the test gives, sinks by lists, the clock moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from furcula.engine.director import Director
from furcula.engine.moving import MovingLoop, run_moving
from furcula.engine.statistics import Statistics
from furcula.event import Event
from furcula.flow import FlowGraph
from furcula.graph import EXCEPTION_PORTS, Place
from furcula.module import Source, describe

__all__ = ["EPOCH", "Rehearsal"]

#: The Unix time at which the moved clock starts: 2020-01-01 00:00:00 UTC.
EPOCH = 1_577_836_800.0


class Rehearsal:
    """What came out of a flow that was run for a test.

    `rehearsal["sink"]` is the list of Events that came to that sink, in order.

    Attributes:
        statistics: The figures.
        seconds: How long it took by the flow's own clock.
    """

    def __init__(self, collected: dict[str, list[Event[Any]]], statistics: Statistics, seconds: float):
        self._collected = collected
        self.statistics = statistics
        self.seconds = seconds

    def __getitem__(self, sink: str) -> list[Event[Any]]:
        try:
            return self._collected[sink]
        except KeyError:
            raise KeyError(f"{sink!r} is no sink that was replaced; those are {', '.join(self._collected)}") from None

    def data(self, sink: str) -> list[Any]:
        """The data of the events that came to a sink."""
        return [event.data for event in self[sink]]

    @classmethod
    def of(
        cls,
        flow: FlowGraph,
        inputs: Mapping[str, Any],
        *,
        replace: Mapping[str, Any],
        keep: Iterable[str],
        time_limit: float,
        **settings: Any,
    ) -> Rehearsal:
        """Run `flow` so. See `Flow.test`."""
        collected: dict[str, list[Event[Any]]] = {}
        copy = _rehearsed(flow, inputs, replace, set(keep), collected)

        async def run(loop: MovingLoop) -> Rehearsal:
            director = Director(copy, now=lambda: EPOCH + loop.time(), **settings)
            began = loop.time()
            async with asyncio.timeout(time_limit):
                statistics = await director.run()
            return cls(collected, statistics, loop.time() - began)

        return run_moving(run)


def _rehearsed(
    flow: FlowGraph,
    inputs: Mapping[str, Any],
    replace: Mapping[str, Any],
    keep: set[str],
    collected: dict[str, list[Event[Any]]],
) -> FlowGraph:
    copy = FlowGraph(flow.name, dead_letter=flow.dead_letter, ttl=flow.ttl, folder=flow.folder)
    feeding = {route.source for route in flow.routes if route.outbox not in EXCEPTION_PORTS}
    for name, place in flow.places.items():
        changed = _twin(place)
        stands_in = name in replace or (not place.is_source and name not in feeding and name not in keep)
        if stands_in and place.options.processes is not None:  # no other process could find what stands in for it
            changed.options = msgspec.structs.replace(place.options, processes=None, timeout=None)
        if name in replace:
            changed.subject, changed.bound = replace[name], {}
            changed.handling = None if place.is_source else describe(replace[name])
        elif place.is_source and name not in keep:
            changed.subject, changed.bound, changed.handling = _given(inputs.get(name, ())), {}, None
        elif name in inputs:
            raise KeyError(f"{name!r} is not a source")
        if not place.is_source and name not in feeding and name not in keep and name not in replace:
            collected[name] = []
            changed.subject, changed.bound = _collector(collected[name]), {}
            changed.handling = describe(changed.subject)
        elif place.is_source and place.inboxes:
            collected[name] = []
            changed.subject = _answered(inputs.get(name, ()), collected[name])
        copy.places[name] = changed
    copy.routes = list(flow.routes)
    return copy


def _twin(place: Place) -> Place:
    twin = Place.__new__(Place)
    twin.__dict__.update(place.__dict__)
    return twin


def _given(items: Any) -> Any:
    if callable(items):
        return items

    async def given() -> Any:
        for item in items:
            yield item.clone() if isinstance(item, Event) else item

    return given


def _collector(into: list[Event[Any]]) -> Callable[[Event[Any]], None]:
    def collect(event: Event[Any]) -> None:
        into.append(event)

    return collect


def _answered(items: Any, into: list[Event[Any]]) -> Any:

    class Answered(Source):
        inboxes = ("inbox",)

        def events(self) -> Any:
            return _given(items)()

        def process(self, event: Event[Any]) -> Event[Any]:
            into.append(event)
            return event

    return Answered()
