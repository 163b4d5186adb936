"""What a flow promises, path by path: SEMANTICS applied to the graph, without running anything.

For each way from a source to a sink: is every event delivered at least once, or at most once; where order is given up;
where events can be lost or come twice; and where failures go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from furcula.flow import FlowGraph
from furcula.graph import EXCEPTION_PORTS, Place, Route, components, edges
from furcula.options import Durable

__all__ = ["Explanation", "Path", "explain"]

#: So many paths are told one by one. Beyond that, as many as it takes to show every route once.
MAX_PATHS = 20
#: So many facts stand in one line of the text; the values have them all.
MAX_FACTS = 6

#: `message`: the source tells whoever gave it a message what became of it. `position`: the source goes on past settled
#: events only. `request`: it answers whoever sent the event. `none`: it cannot do anything. `caller`: it is no source;
#: events are put in from outside by somebody who can wait.
Acknowledges = Literal["message", "position", "request", "none", "caller"]


class Path(msgspec.Struct, frozen=True):
    """One way through a flow, and what is promised along it.

    Attributes:
        modules: The modules, from source to sink.
        ports: For each arrow, the outbox it leaves by.
        delivery: `at least once` or `at most once`.
        reasons: Why it is no more than that, or what makes it so.
        order: Where the order of the source is given up, or how it is kept; empty: it is kept throughout.
        loss: Where events can be lost, and what is dropped on purpose.
        duplicates: Where an event can be handled again.
        failures: Where the failures of these modules go.
        stages: Where it crosses from one stage to another, and what that means where those run apart; empty: nowhere.
    """

    modules: tuple[str, ...]
    ports: tuple[str, ...]
    delivery: Literal["at least once", "at most once"]
    reasons: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    loss: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """`listen -> check.bad -> out`"""
        ports = [*self.ports, "outbox"]
        named = zip(self.modules, ports, strict=True)
        return " -> ".join(name if port == "outbox" else f"{name}.{port}" for name, port in named)

    def __str__(self) -> str:
        lines = [
            self.title,
            f"  delivery    {self.delivery}: {_listed(self.reasons)}",
            f"  order       {_listed(self.order) or 'kept'}",
            f"  loss        {_listed(self.loss) or 'none'}",
            f"  duplicates  {_listed(self.duplicates) or 'none'}",
            f"  failures    {_listed(self.failures)}",
        ]
        if self.stages:
            # A line for each: they are sentences about one crossing each, or about one way to run.
            lines.append("  stages      " + "\n              ".join(self.stages))
        return "\n".join(lines)


def _listed(facts: tuple[str, ...]) -> str:
    if len(facts) > MAX_FACTS:
        facts = (*facts[:MAX_FACTS], f"and {len(facts) - MAX_FACTS} more of the kind")
    return "; ".join(facts)


class Explanation(msgspec.Struct, frozen=True):
    """What a flow promises. `str` of it is the text that `furcula explain` prints.

    Attributes:
        flow: The flow's name.
        paths: The paths, in the order of their sources.
        more: How many further paths there are. They are made of routes that the ones told here go along too.
    """

    flow: str
    paths: tuple[Path, ...]
    more: int = 0

    def __str__(self) -> str:
        text = "\n\n".join(str(path) for path in self.paths) or f"{self.flow}: no path leads from a source to a sink"
        if self.more:
            text += f"\n\n... and {self.more:,} more paths, each along routes that are told above"
        return text


def explain(flow: FlowGraph) -> Explanation:
    """Say what `flow` promises on each path. The flow need not be runnable."""
    ways, more = _ways(flow)
    teller = _Teller(flow)
    return Explanation(flow.name, tuple(teller.tell(start, way) for start, way in ways), more)


# ------------------------------------------------------------------ paths

_Way = tuple[str, tuple[Route, ...]]


def _ways(flow: FlowGraph) -> tuple[list[_Way], int]:
    """The paths to tell, each as its start and its routes; and how many more there are."""
    onward = _onward(flow)
    starts = [name for name, place in flow.places.items() if place.is_source and onward[name]]
    if not starts:  # a flow that is entered from outside
        fed = {route.target for route in flow.routes}
        starts = [name for name in flow.places if name not in fed and name != flow.dead_letter]
    total = _count(starts, onward)
    if total <= MAX_PATHS:
        return [(start, way) for start in starts for way in _every(start, onward, starts)], 0
    told = _covering(starts, onward)
    return told, total - len(told)


def _onward(flow: FlowGraph) -> dict[str, list[Route]]:
    """The routes that lead on from each module: not those of failures, and none that turns back."""
    onward: dict[str, list[Route]] = {name: [] for name in flow.places}
    for route in flow.routes:
        if route.source in onward and route.target in onward and route.outbox not in EXCEPTION_PORTS:
            onward[route.source].append(route)
    state: dict[str, str] = {}
    for root in flow.places:
        if root in state:
            continue
        state[root] = "open"
        stack = [(root, iter(list(onward[root])))]
        while stack:
            name, rest = stack[-1]
            for route in rest:
                # A source that is a sink too ends the paths that come back to it.
                if flow.places[route.target].is_source:
                    continue
                if state.get(route.target) == "open":
                    onward[name].remove(route)
                elif route.target not in state:
                    state[route.target] = "open"
                    stack.append((route.target, iter(list(onward[route.target]))))
                    break
            else:
                state[name] = "done"
                stack.pop()
    return onward


def _ends(route: Route, onward: Mapping[str, list[Route]], starts: list[str]) -> bool:
    """Does a path end with this route: in a sink, or back at a source that answers?"""
    return route.target in starts or not onward[route.target]


def _count(starts: list[str], onward: Mapping[str, list[Route]]) -> int:
    """How many paths there are, by adding up from the ends: there may be more than could ever be listed."""
    counts: dict[str, int] = {}
    order: list[str] = []
    seen: set[str] = set()
    for start in starts:
        stack = [(start, False)]
        while stack:
            name, done = stack.pop()
            if done:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack += [(route.target, False) for route in onward[name]]
    for name in order:
        counts[name] = sum(1 if _ends(route, onward, starts) else counts[route.target] for route in onward[name]) or 1
    return sum(counts[start] for start in starts)


def _every(start: str, onward: Mapping[str, list[Route]], starts: list[str]) -> Iterable[tuple[Route, ...]]:
    stack: list[tuple[Route, ...]] = [(route,) for route in reversed(onward[start])] or [()]
    while stack:
        way = stack.pop()
        if not way or _ends(way[-1], onward, starts):
            yield way
        else:
            stack += [(*way, route) for route in reversed(onward[way[-1].target])]


def _covering(starts: list[str], onward: Mapping[str, list[Route]]) -> list[_Way]:
    """Paths that together go along every route that can be reached: each the shortest way there, and on to an end."""
    reached: dict[str, tuple[str, tuple[Route, ...]]] = {start: (start, ()) for start in starts}
    queue = deque(starts)
    while queue:
        name = queue.popleft()
        for route in onward[name]:
            if route.target not in reached:
                reached[route.target] = (reached[name][0], (*reached[name][1], route))
                queue.append(route.target)
    told: list[_Way] = []
    covered: set[Route] = set()
    for name in reached:
        for route in onward[name]:
            if route in covered:
                continue
            start, way = reached[name]
            way = (*way, route)
            while not _ends(way[-1], onward, starts):
                further = onward[way[-1].target]
                # Along what was not told yet, so that few paths tell all.
                way = (*way, next((one for one in further if one not in covered), further[0]))
            covered.update(way)
            told.append((start, way))
    return told


# ------------------------------------------------------------------ promises


class _Teller:
    """Says what is promised along one path."""

    def __init__(self, flow: FlowGraph):
        self.flow = flow
        self.incoming: dict[str, list[Route]] = {}
        self.connected: set[tuple[str, str]] = set()
        self.failed: dict[str, list[str]] = {}
        for route in flow.routes:
            self.connected.add((route.source, route.outbox))
            if route.outbox == "failed":
                self.failed.setdefault(route.source, []).append(route.target)
            else:
                self.incoming.setdefault(route.target, []).append(route)
        arrows = [(edge.source, edge.target) for edge in edges(flow.places, flow.routes, None)]
        #: Modules that an event may come through more than once.
        self.turning = {
            name
            for component in components(flow.places, arrows)
            if len(component) > 1 or (component[0], component[0]) in arrows
            for name in component
        }

    def tell(self, start: str, way: tuple[Route, ...]) -> Path:
        source = self.flow.places[start]
        handling = [self.flow.places[route.target] for route in way]
        if not source.is_source:
            handling.insert(0, source)
        reasons, weak = self._delivery(source, way, handling)
        return Path(
            (start, *(route.target for route in way)),
            tuple(route.outbox for route in way),
            "at most once" if weak else "at least once",
            tuple(reasons),
            tuple(self._order(way, handling)),
            tuple(self._loss(source, way, handling)),
            tuple(self._duplicates(source, handling)),
            tuple(self._failures(source, handling)),
            tuple(self._stages(source, way, handling)),
        )

    def _delivery(self, source: Place, way: tuple[Route, ...], handling: list[Place]) -> tuple[list[str], bool]:
        weak = []
        acknowledges = _acknowledges(source)
        if acknowledges == "none":
            weak.append(f"{source.name} cannot be told what became of its events")
        weak += [f"{place.name} may {_dropping(place)} when its queue is full" for place in handling if _drops(place)]
        weak += [f"the route {route} drops when full" for route in way if _lossy(route)]
        weak += [f"the route {route} is best-effort" for route in way if route.branch == "best-effort"]
        if weak:
            return weak, True
        stored = [
            f"delivered once stored in {place.options.queue.durable}, the durable queue of {place.name}; what is "
            "read from it is removed when it is settled"
            for place in handling
            if isinstance(place.options.queue, Durable)
        ]
        if acknowledges == "request":
            return [f"{source.name} answers when an event is settled, and refuses what failed", *stored], False
        if acknowledges == "message":
            return [f"{source.name} acknowledges a message when its event is settled", *stored], False
        if acknowledges == "position":
            return [f"{source.name} goes on only past events that are settled", *stored], False
        return [f"whoever puts events into {source.name} can wait until they are settled", *stored], False

    def _order(self, way: tuple[Route, ...], handling: list[Place]) -> Iterable[str]:
        for place in handling:
            options = place.options
            incoming = self.incoming.get(place.name, [])
            if options.join:
                yield f"at {place.name} by completion of its joins"
            elif len(incoming) > 1 and not place.is_source:
                yield f"{place.name} merges {len(incoming)} routes as events arrive, each in its order"
            if isinstance(options.queue, Durable):
                yield f"kept by the durable queue of {place.name}, but for what it hands out again"
            if options.order == "none":
                yield f"given up at {place.name} (order: none)"
            elif options.key is not None:
                yield f"kept per key at {place.name}"
        for route in way:
            if route.branch == "best-effort":
                yield f"{route}: in its own order"
        turns = [place.name for place in handling if place.name in self.turning]
        if turns:
            yield f"kept per turn only in the cycle through {turns[0]}"

    def _loss(self, source: Place, way: tuple[Route, ...], handling: list[Place]) -> Iterable[str]:
        if _acknowledges(source) == "none":
            yield f"a crash loses what {source.name} had admitted and was not settled"
        for place in handling:
            if _drops(place):
                yield f"{place.name}: overflow {place.options.overflow}, counted"
        for route in way:
            if _lossy(route) or route.branch == "best-effort":
                yield f"{route}: overflow {route.overflow or 'drop-newest'}, counted"
        for place in handling:
            for port in self._unconnected(place):
                if port in place.optional:
                    yield f"on purpose: {place.name} drops what leaves by {port}"
                else:
                    yield f"{place.name}.{port} leads nowhere: dropped, counted"
            if place.role == "filter":
                yield f"on purpose: {place.name} filters"

    def _unconnected(self, place: Place) -> list[str]:
        """Outboxes that lead nowhere, beside others that lead on; with none leading on, the module is a sink."""
        declared = [port for port in place.outboxes or () if port not in EXCEPTION_PORTS]
        missing = [port for port in declared if (place.name, port) not in self.connected]
        return missing if len(missing) < len(declared) else []

    def _duplicates(self, source: Place, handling: list[Place]) -> Iterable[str]:
        acknowledges = _acknowledges(source)
        if acknowledges == "position":
            yield f"after a crash {source.name} reads again what was not settled"
        elif acknowledges == "message":
            yield f"{source.name} is given again what was not settled when it failed, lost its connection or crashed"
        elif acknowledges == "request":
            yield f"whoever asked {source.name} may ask again after a refusal or a crash"
        for place in handling:
            queue = place.options.queue
            if isinstance(queue, Durable):
                yield (
                    f"the durable queue of {place.name} hands out again what was in hand at a crash, and up to "
                    f"{queue.max_deliveries} times what failed in a way worth another try"
                )
            if place.options.processes is not None:
                yield f"{place.name} handles again what one of its processes had in hand when it died"
            retry = place.options.retry
            if retry is not None and retry.attempts > 1:
                yield f"{place.name} may handle an event up to {retry.attempts} times (retry)"

    def _failures(self, source: Place, handling: list[Place]) -> Iterable[str]:
        places = [place for place in handling if place.name != self.flow.dead_letter]
        by_target: dict[str, list[str]] = {}
        stored = ""
        queues = {place.name: place.options.queue for place in places if isinstance(place.options.queue, Durable)}
        for place in dict.fromkeys(place.name for place in places):
            caught = ", ".join(self.failed.get(place, ()))
            if place in queues:
                stored = f"dead letters in {queues[place].durable}"
            by_target.setdefault(caught or (self._dead_letter() or stored or self._uncaught(source)), []).append(place)
        for target, names in by_target.items():
            who = "all" if len(by_target) == 1 and len(names) > 1 else ", ".join(names)
            yield f"{who} -> {target}"
        if not by_target:
            yield "none can arise"

    def _stages(self, source: Place, way: tuple[Route, ...], handling: list[Place]) -> Iterable[str]:
        """Every sentence is about stages that run apart: in one process they change nothing."""
        names = {source.name, *(place.name for place in handling)}
        failing = [route for route in self.flow.routes if route.outbox == "failed" and route.source in names]
        crossing = [route for route in (*way, *failing) if self._crosses(route.source, route.target)]
        dead = self.flow.dead_letter
        sent = [
            place
            for place in handling
            if dead is not None
            and place.name != dead
            and place.name not in self.failed
            and self._crosses(place.name, dead)
        ]
        if not crossing and not sent:
            return
        if source.is_source and source.single:
            yield f"{source.name} runs in one worker at a time"
        elif source.is_source:
            yield f"{source.name} runs in every worker of {source.stage}, whose events are not in order with each other"
        for route in dict.fromkeys(crossing):
            yield f"{route} ({_between(self.flow, route)}): {self._sharing(self.flow.places[route.target])}"
        if dead is not None and sent:
            names_of = ", ".join(dict.fromkeys(place.name for place in sent))
            yield f"failures of {names_of} -> {dead} (to {self.flow.places[dead].stage}): " + self._sharing(
                self.flow.places[dead]
            )
        yield (
            "--processes: settled when the far side reports; sent again when a worker dies, so it may be handled "
            f"twice; a crash of all loses what {source.name} cannot give again"
        )
        cluster = self.flow.cluster
        yield (
            "--cluster: delivered when stored; what a worker had in hand when it died is handled again, and what that "
            f"sends on a second time is recognised within {_span(cluster.duplicate_window)}, if all the events of its "
            f"message (512 at most) were handled within {_span(cluster.together)}; a failure that nobody catches is a "
            f"dead letter of the cluster, after {cluster.max_deliveries} tries if it is worth another"
        )
        if _acknowledges(source) == "request":
            yield (
                f"--cluster: what somebody waits for at {source.name} goes by request, and is not stored; it fails "
                "when the worker that has it dies"
            )

    def _crosses(self, source: str, target: str) -> bool:
        return self.flow.places[source].stage != self.flow.places[target].stage

    def _sharing(self, place: Place) -> str:
        """How the events of a module are divided among the workers of its stage."""
        if place.is_source:
            return "back to the worker where somebody waits"
        if place.options.key is not None:
            return (
                f"in order by key, a key's events at one worker of {place.stage}; with --cluster in "
                f"{self.flow.cluster.partitions} partitions, of which each is at one"
            )
        if place.options.order == "none":
            return f"shared by all workers of {place.stage}, in no order"
        return f"in order, at one worker of {place.stage} at a time"

    def _dead_letter(self) -> str:
        return f"{self.flow.dead_letter} (dead letter)" if self.flow.dead_letter is not None else ""

    def _uncaught(self, source: Place) -> str:
        refused = {
            "message": f"told to whoever gave it to {source.name}: again or rejected",
            "request": f"refused by {source.name}",
            "position": f"refused at {source.name}, which goes on",
        }
        return f"logged, counted{', ' + refused[a] if (a := _acknowledges(source)) in refused else ''}"


def _between(flow: FlowGraph, route: Route) -> str:
    return f"{flow.places[route.source].stage} to {flow.places[route.target].stage}"


def _span(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _acknowledges(place: Place) -> Acknowledges:
    """What a source can do with the news that an event is settled: `Source.acknowledges`, which a class may set."""
    if not place.is_source:
        return "caller"
    subject: Any = place.subject
    is_function = callable(subject) and not isinstance(subject, type)
    found = "none" if is_function else getattr(subject, "acknowledges", "none")
    known: tuple[Acknowledges, ...] = ("message", "position", "request")
    return next((one for one in known if one == found), "none")


def _drops(place: Place) -> bool:
    return place.options.overflow in ("drop-newest", "drop-oldest")


def _dropping(place: Place) -> str:
    return "refuse the newest" if place.options.overflow == "drop-newest" else "drop the oldest"


def _lossy(route: Route) -> bool:
    return route.overflow in ("drop-newest", "drop-oldest")
