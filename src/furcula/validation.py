"""What is wrong with a flow, found without running it. Every problem names its module, port or route."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from furcula.errors import ConfigurationError, Problem, nearest
from furcula.graph import EXCEPTION_PORTS, Edge, Place, Route, components, edges, sink_side
from furcula.module import Module, types_meet
from furcula.naming import encode_arguments, import_name
from furcula.options import Durable

__all__ = ["problems", "warnings"]


def problems(
    places: Mapping[str, Place], routes: Sequence[Route], *, dead_letter: str | None = None, ttl: int | None = None
) -> list[Problem]:
    """Everything for which the flow must not start."""
    found: list[Problem] = []
    if not places:
        found.append(Problem("the flow has no modules", "modules"))
    if dead_letter is not None and dead_letter not in places:
        found.append(Problem(f"there is no module {dead_letter!r}{nearest(dead_letter, places)}", "dead_letter"))
    for index, route in enumerate(routes):
        found += _route_problems(places, route, f"routes[{index}]")
    seen: dict[tuple[str, str, str, str], int] = {}
    for index, route in enumerate(routes):
        first = seen.setdefault((route.source, route.outbox, route.target, route.inbox), index)
        if first != index:
            found.append(
                Problem(f"{route}: the same route stands at routes[{first}]", f"routes[{index}]", route.location)
            )
    for place in places.values():
        found += _option_problems(place)
        found += _making_problems(place)
    arrows = edges(places, routes, dead_letter)
    found += _reach_problems(places, routes, arrows, dead_letter)
    found += _cycle_problems(places, arrows, ttl)
    found += _durable_problems(places, arrows)
    return found


def warnings(places: Mapping[str, Place], routes: Sequence[Route]) -> list[Problem]:
    """What a user should know before the flow starts, and may have meant."""
    found = []
    connected = {(route.source, route.outbox) for route in routes}
    for place in places.values():
        declared = [port for port in place.outboxes or () if port not in EXCEPTION_PORTS]
        missing = [port for port in declared if (place.name, port) not in connected and port not in place.optional]
        if missing and len(missing) < len(declared):
            for port in missing:
                found.append(
                    Problem(
                        f"nobody is connected to {place.name}.{port}: what is sent there is dropped and counted",
                        f"modules.{place.name}",
                        place.location,
                    )
                )
        if place.is_source and not any(source == place.name for source, _ in connected):
            found.append(
                Problem(f"nobody is connected to the source {place.name}", f"modules.{place.name}", place.location)
            )
    return found + _sharing_warnings(places, routes)


def _sharing_warnings(places: Mapping[str, Place], routes: Sequence[Route]) -> list[Problem]:
    """Modules that more workers would not make faster: who puts a module into a stage may have meant to share it."""
    entered: dict[str, str] = {}
    for route in routes:
        source, target = places.get(route.source), places.get(route.target)
        if source is None or target is None or source.stage == target.stage or route.outbox in EXCEPTION_PORTS:
            continue
        # A join pairs by lineage and takes no key; what a source with an inbox answers goes to whoever asked.
        if (
            target.options.key is None
            and target.options.order == "kept"
            and not (target.options.join or target.is_source)
        ):
            entered.setdefault(target.name, source.stage)
    return [
        Problem(
            f"{name} is entered from the stage {stage}, and one worker at a time will take it: say key or order: none "
            "to share it",
            f"modules.{name}",
            places[name].location,
        )
        for name, stage in entered.items()
    ]


def _route_problems(places: Mapping[str, Place], route: Route, path: str) -> list[Problem]:
    found = []
    source, target = places.get(route.source), places.get(route.target)
    for name, place in ((route.source, source), (route.target, target)):
        if place is None:
            found.append(Problem(f"{route}: there is no module {name!r}{nearest(name, places)}", path, route.location))
    if source is not None and source.outboxes is not None:
        known = {*source.outboxes, "failed", "expired"}
        if source.is_source:
            known.add("invalid")
        if route.outbox not in known:
            found.append(
                Problem(
                    f"{route}: {source.name} has no outbox {route.outbox!r}"
                    f"{nearest(route.outbox, known) or '; it has ' + ', '.join(sorted(known))}",
                    path,
                    route.location,
                )
            )
    if target is not None:
        if target.is_source and not target.inboxes:
            found.append(Problem(f"{route}: {target.name} is a source and has no inbox", path, route.location))
        elif route.inbox not in target.inboxes:
            found.append(
                Problem(
                    f"{route}: {target.name} has no inbox {route.inbox!r}"
                    f"{nearest(route.inbox, target.inboxes) or '; it has ' + ', '.join(target.inboxes)}",
                    path,
                    route.location,
                )
            )
    if source is not None and target is not None and route.outbox not in EXCEPTION_PORTS:
        given, taken = source.handling, target.handling
        if given and taken and not target.options.join and not types_meet(given.output_type, taken.input_type):
            found.append(
                Problem(
                    f"{route}: {source.name} gives {_type_name(given.output_type)} "
                    f"and {target.name} takes {_type_name(taken.input_type)}",
                    path,
                    route.location,
                )
            )
    if route.overflow is not None and route.queue is None and route.branch == "required":
        found.append(Problem(f"{route}: overflow needs a queue on the route", path, route.location))
    if route.branch == "best-effort" and route.overflow == "block":
        message = f"{route}: a best-effort branch never makes its parent wait: overflow must be a drop, or fail"
        found.append(Problem(message, path, route.location))
    if route.queue is not None and route.queue < 1:
        found.append(Problem(f"{route}: queue must be 1 or more", path, route.location))
    if route.ttl is not None and route.ttl < 1:
        found.append(Problem(f"{route}: ttl must be 1 or more", path, route.location))
    return found


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _option_problems(place: Place) -> list[Problem]:
    options, handling = place.options, place.handling
    found: list[Problem] = []

    def wrong(option: str, message: str) -> None:
        found.append(Problem(f"{place.name} {message}", f"modules.{place.name}.{option}", place.location))

    waits = handling is None or handling.waits
    if options.timeout is not None and not options.thread and not waits and options.processes is None:
        wrong("timeout", "is a plain function and cannot be interrupted: a timeout needs a coroutine, or thread: true")
    if options.thread and handling is not None and handling.waits:
        wrong("thread", "is a coroutine; thread: true is for functions that block")
    if options.processes is not None:
        found += [
            Problem(f"{place.name} {message}", f"modules.{place.name}.processes", place.location)
            for message in _process_problems(place)
        ]
    elif options.concurrency > 1 and not options.thread and not waits and not place.is_source:
        wrong(
            "concurrency",
            "is a plain function and never waits: concurrency above 1 needs a coroutine, or thread: true",
        )
    if isinstance(options.queue, Durable):
        if not place.inboxes:
            wrong("queue", "is a source and has no queue; a durable one belongs to the module behind it")
        elif place.is_source:
            wrong("queue", "answers whoever asked, and who asked cannot be stored: it takes no durable queue")
        elif options.join:
            wrong("queue", "joins: who belongs together is not stored; put the durable queue behind it")
        if options.overflow == "drop-oldest":
            wrong("overflow", "has a durable queue, and what is stored is promised: overflow must be another")
    if options.join and len(place.inboxes) < 2:
        wrong("inboxes", "joins and needs two inboxes or more")
    if options.join and options.key is not None:
        wrong("key", "joins: events are paired by lineage, and it takes no key")
    if place.is_source and not place.inboxes:
        for option in ("key", "retry", "timeout", "join"):
            if getattr(options, option):
                wrong(option, f"is a source; {option} is for modules with an inbox")
    if handling is not None and handling.receives == "events":
        for option in ("key", "join", "thread"):
            if getattr(options, option):
                wrong(option, f"takes whole batches; {option} is for single events")
    return found


def _process_problems(place: Place) -> Iterator[str]:
    """Why a module cannot run in processes of its own."""
    options, handling = place.options, place.handling
    if place.is_source:
        yield "is a source; processes is for modules with an inbox only"
        return
    if handling is not None and handling.waits:
        yield "is a coroutine; processes is for plain functions that compute. One that waits needs no process"
    if options.thread:
        yield "has thread: true and processes; choose one of them"
    if options.concurrency > 1:
        yield "has concurrency and processes; each of its processes handles one event at a time"
    if isinstance(place.subject, type):
        yield from _class_problems(place.subject)
    try:
        import_name(place.subject)
    except ValueError as error:
        yield f"{error}. A process of its own finds it by its name"
    for name, value in place.arguments.items():
        try:
            encode_arguments(value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            yield (
                f"has the argument {name!r}, whose value of type {type(value).__name__} cannot be told to another "
                "process: give it in the form that YAML would have, as text or numbers"
            )


def _class_problems(subject: type) -> Iterator[str]:
    for method in ("flush", "unready"):
        if hasattr(subject, method):
            yield f"defines {method}(), which would be asked of a process that has its own part of the events only"
    own = [name for name in dir(subject) if name.startswith("process_") and name != "process_batch"]
    if own:
        yield f"defines {own[0]}(): with processes all inboxes are handled alike"
    for method in ("start", "stop"):
        if inspect.iscoroutinefunction(getattr(subject, method, None)):
            yield f"awaits in {method}(), and there is no event loop in a process of its own"


def _making_problems(place: Place) -> list[Problem]:
    """What a module's own `__init__` says of its arguments: it checks, and opens nothing (see `Module`)."""
    if isinstance(place.subject, type) and issubclass(place.subject, Module):
        try:
            place.subject(**place.bound)
        except ConfigurationError as error:
            return [Problem(p.message, f"modules.{place.name}.with", place.location) for p in error.problems]
        except (ValueError, TypeError, LookupError) as error:
            return [Problem(str(error), f"modules.{place.name}.with", place.location)]
    return []


def _reach_problems(
    places: Mapping[str, Place], routes: Sequence[Route], arrows: Sequence[Edge], dead_letter: str | None
) -> list[Problem]:
    sources = [name for name, place in places.items() if place.is_source]
    fed = {(route.target, route.inbox) for route in routes}
    found = []
    unfed: set[str] = set()
    for name, place in places.items():
        if name == dead_letter or place.is_source:
            continue
        missing = [inbox for inbox in place.inboxes if (name, inbox) not in fed]
        everything = len(missing) == len(place.inboxes)
        if everything and not sources:
            continue  # a flow without sources is entered from outside, where nobody else feeds it
        if everything:
            unfed.add(name)
            found.append(Problem(f"nobody feeds {name}: no route leads to it", f"modules.{name}", place.location))
        elif place.options.join:
            for inbox in missing:
                found.append(
                    Problem(f"nobody feeds {name}.{inbox}, so it could never join", f"modules.{name}", place.location)
                )
    if sources:
        reached = set(sources)
        frontier = list(sources)
        while frontier:
            node = frontier.pop()
            for edge in arrows:
                if edge.source == node and edge.target not in reached:
                    reached.add(edge.target)
                    frontier.append(edge.target)
        for name, place in places.items():
            if name not in reached and name not in unfed:
                found.append(Problem(f"no source reaches {name}", f"modules.{name}", place.location))
    return found


def _durable_problems(places: Mapping[str, Place], arrows: Sequence[Edge]) -> list[Problem]:
    nodes = [*places, *(sink_side(name) for name, place in places.items() if place.is_source)]
    pairs = [(edge.source, edge.target) for edge in arrows]
    return [
        Problem(
            f"{name} stands in a cycle, and has a durable queue: a cycle is limited by what is inside it, which a "
            "store does not tell. Put the queue in front of the cycle",
            f"modules.{name}.queue",
            places[name].location,
        )
        for component in components(nodes, pairs)
        for name in component
        if name in places
        and isinstance(places[name].options.queue, Durable)
        and (len(component) > 1 or (name, name) in pairs)
    ]


def _cycle_problems(places: Mapping[str, Place], arrows: Sequence[Edge], ttl: int | None) -> list[Problem]:
    if ttl is not None:
        return []
    # A route with a ttl limits every cycle through it, so what is left must have none.
    endless = [edge for edge in arrows if edge.route is not None and edge.route.ttl is None]
    nodes = [*places, *(sink_side(name) for name, place in places.items() if place.is_source)]
    found = []
    for component in components(nodes, [(edge.source, edge.target) for edge in endless]):
        inside = [edge for edge in endless if edge.source in component and edge.target in component]
        if inside:
            first = inside[-1].route
            names = " -> ".join([*component, component[0]])
            found.append(
                Problem(
                    f"the cycle {names} has no limit: give the route back a ttl (how many turns an event may make), "
                    "or the whole flow one",
                    "routes",
                    first.location if first else "",
                )
            )
    return found
