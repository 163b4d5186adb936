"""Decides, without running anything, how a flow runs: what is called directly, where a queue stands, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from furcula.engine.queue import DEFAULT_SIZE
from furcula.flow import FlowGraph
from furcula.graph import Edge, Place, Route, back_edges, components, edges, sink_side
from furcula.options import Durable, Overflow

__all__ = ["CYCLE_LIMIT", "ModulePlan", "Plan", "RoutePlan", "plan"]

#: Events that may be inside a cycle at once. Beyond ten times that (splits multiply them), turning events fail.
CYCLE_LIMIT = 256

Way = Literal["direct", "queue", "best-effort", "back", "gate"]


class ModulePlan(msgspec.Struct, frozen=True):
    """How one module runs.

    Attributes:
        way: `source`; `fused`: called directly by who feeds it; `queue`: behind a queue; `pool`: behind a queue, by
            workers that may wait.
        why: What makes it wait, for people who wonder.
        size: Places of its queue, 0 where it has none.
        region: The number of the cycle it belongs to, or None.
    """

    name: str
    way: Literal["source", "fused", "queue", "pool"]
    why: str = ""
    size: int = 0
    region: int | None = None


class RoutePlan(msgspec.Struct, frozen=True):
    """How one route runs.

    Attributes:
        route: The route; None for the way of uncaught failures to the dead-letter module.
        way: `direct`; `queue`: a queue of its own; `best-effort`; `back`: closes a cycle and never makes its sender
            wait; `gate`: leads into a cycle and waits until there is room inside.
        ttl: For `back`: what an event's ttl starts from, or None where no turn is charged.
        region: For `back` and `gate`: of which cycle.
    """

    source: str
    target: str
    route: Route | None
    way: Way
    size: int = DEFAULT_SIZE
    overflow: Overflow = "block"
    ttl: int | None = None
    region: int | None = None


class Plan(msgspec.Struct, frozen=True):
    """The plan of a flow.

    Attributes:
        order: The modules in topological order; those of one cycle stand together. Draining goes along it. A module
            that is a source and a sink stands in it twice.
        modules: By name.
        routes: In the order of the flow's routes, dead-letter ways last.
        regions: The modules of each cycle.
    """

    order: list[list[str]]
    modules: dict[str, ModulePlan]
    routes: list[RoutePlan]
    regions: list[list[str]]

    def __str__(self) -> str:
        lines = []
        for module in self.modules.values():
            queue = f", queue of {module.size}" if module.size else ""
            lines.append(f"{module.name}: {module.way}{queue}{' (' + module.why + ')' if module.why else ''}")
        for route in self.routes:
            if route.way != "direct":
                lines.append(f"{route.route or f'{route.source} failures -> {route.target}'}: {route.way}")
        return "\n".join(lines)


def plan(flow: FlowGraph, *, queue_everywhere: int | None = None) -> Plan:
    """Plan a flow that has no problems.

    Args:
        queue_everywhere: Put a queue of this size before every module, whatever the options say. For tests.
    """
    places = flow.places
    arrows = edges(places, flow.routes, flow.dead_letter)
    nodes = [*places, *(sink_side(name) for name, place in places.items() if place.is_source and place.inboxes)]
    order = components(nodes, [(edge.source, edge.target) for edge in arrows])
    self_loops = {edge.source for edge in arrows if edge.source == edge.target}
    regions = [component for component in order if len(component) > 1 or component[0] in self_loops]
    region_of = {name: number for number, region in enumerate(regions) for name in region}
    back = _closing(arrows, region_of)
    modules = {name: _module_plan(place, region_of.get(name), queue_everywhere) for name, place in places.items()}
    routes = [_route_plan(edge, index in back, region_of, flow) for index, edge in enumerate(arrows)]
    return Plan(order=order, modules=modules, routes=routes, regions=regions)


def _closing(arrows: list[Edge], region_of: Mapping[str, int]) -> set[int]:
    """The arrows that close cycles: those the user limited, and in what is left one for each remaining cycle."""
    inside = [
        (index, edge)
        for index, edge in enumerate(arrows)
        if edge.source in region_of and region_of[edge.source] == region_of.get(edge.target)
    ]
    closing = {index for index, edge in inside if edge.route is not None and edge.route.ttl is not None}
    rest = [(index, edge) for index, edge in inside if index not in closing]
    # The way to the dead-letter module is taken once by an event at most, so it is the better one to close a cycle.
    rest.sort(key=lambda pair: pair[1].route is None)
    found = back_edges([], [edge for _, edge in rest])
    return closing | {rest[position][0] for position in found}


def _module_plan(place: Place, region: int | None, queue_everywhere: int | None) -> ModulePlan:
    options, handling = place.options, place.handling
    if place.is_source and not place.inboxes:
        return ModulePlan(place.name, "source")
    # A durable queue stands in front of all that: what is planned here is behind it, in memory.
    places = options.queue if isinstance(options.queue, int) else None
    overflow = "block" if isinstance(options.queue, Durable) else options.overflow
    size = queue_everywhere or places or DEFAULT_SIZE
    why = ""
    if options.processes is not None:
        why = "a process" if options.processes == 1 else f"{options.processes} processes"
    elif handling is not None and handling.waits:
        why = "a coroutine"
    elif options.thread:
        why = "a thread"
    elif options.retry is not None:
        why = "it retries"
    elif options.key is not None:
        why = "it keeps lanes"
    elif options.isolate_context:
        why = "a context for each event"
    if why:
        return ModulePlan(place.name, "pool", why, size, region)
    if places is not None or overflow != "block" or queue_everywhere:
        return ModulePlan(place.name, "queue", "as asked", size, region)
    return ModulePlan(place.name, "fused", region=region)


def _route_plan(edge: Edge, closing: bool, region_of: Mapping[str, int], flow: FlowGraph) -> RoutePlan:
    route = edge.route
    region = region_of.get(edge.target)
    if closing:
        ttl = None
        if route is not None:
            ttl = route.ttl if route.ttl is not None else flow.ttl
        return RoutePlan(edge.source, edge.target, route, "back", ttl=ttl, region=region)
    if route is not None and route.branch == "best-effort":
        size = route.queue or DEFAULT_SIZE
        return RoutePlan(edge.source, edge.target, route, "best-effort", size, route.overflow or "drop-newest")
    if region is not None and region_of.get(edge.source) != region:
        size = (route.queue if route else None) or DEFAULT_SIZE
        overflow: Overflow = (route.overflow if route else None) or "block"
        return RoutePlan(edge.source, edge.target, route, "gate", size, overflow, region=region)
    if route is not None and route.queue is not None:
        return RoutePlan(edge.source, edge.target, route, "queue", route.queue, route.overflow or "block")
    return RoutePlan(edge.source, edge.target, route, "direct")
