"""What a flow consists of, as values: places, ports, routes; and what can be asked of them as a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from furcula.module import Handling, Role
from furcula.options import Options, Overflow

__all__ = ["EXCEPTION_PORTS", "MAIN", "End", "Group", "Place", "Port", "Route", "components", "edges", "sink_side"]

#: Outboxes for what went wrong. A module with only these connected is a sink.
EXCEPTION_PORTS = frozenset(("failed", "invalid", "expired"))

#: The stage of modules that name none.
MAIN = "main"

Branch = Literal["required", "best-effort"]


class Route(msgspec.Struct, frozen=True):
    """One arrow of a flow.

    Attributes:
        branch: `required`: the event counts as delivered only when this consumer is done too. `best-effort`: the
            consumer gets a copy under an origin of its own and never holds up or fails the others.
        queue: Places in a queue of the route's own, or None for no such queue.
        overflow: What that queue does when full.
        ttl: On the route that closes a cycle: how many turns an event may make.
    """

    source: str
    outbox: str
    target: str
    inbox: str
    branch: Branch = "required"
    queue: int | None = None
    overflow: Overflow | None = None
    ttl: int | None = None
    location: str = ""

    def __str__(self) -> str:
        outbox = "" if self.outbox == "outbox" else f".{self.outbox}"
        inbox = "" if self.inbox == "inbox" else f".{self.inbox}"
        return f"{self.source}{outbox} -> {self.target}{inbox}"


class Place:
    """A module's place in a flow: what runs there, under which name and options. Wire places with `>>`.

    A place made from a function can still be called as that function was.

    Attributes:
        subject: The function, class, iterable or instance.
        is_source: Does it begin lineages?
        handling: How a function handles events; None for a class, which is asked when it is made for a run.
        inboxes: Names of the inboxes.
        outboxes: The outboxes that were declared, or None where any name that is wired is right.
        use: What the YAML form says under `use`, or None where the subject is a function found by import.
        arguments: What the YAML form says under `with`, as given.
        bound: The same, converted.
    """

    #: Wires two ends; set by the flow.
    connect: Callable[[Any, Any], None]

    def __init__(
        self,
        name: str,
        subject: Any,
        *,
        is_source: bool = False,
        role: Role = "module",
        handling: Handling | None = None,
        options: Options | None = None,
        inboxes: tuple[str, ...] = ("inbox",),
        outboxes: tuple[str, ...] | None = None,
        optional: tuple[str, ...] = (),
        use: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        bound: Mapping[str, Any] | None = None,
        location: str = "",
    ):
        self.name = name
        self.subject = subject
        self.is_source = is_source
        self.role: Role = role
        self.handling = handling
        self.options = options or Options()
        self.inboxes = inboxes
        self.outboxes = outboxes
        self.optional = optional
        self.use = use
        self.arguments = dict(arguments or {})
        self.bound = dict(self.arguments if bound is None else bound)
        self.location = location
        self.__doc__ = getattr(subject, "__doc__", None)
        self.__wrapped__ = subject

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.subject(*args, **kwargs)

    def __getitem__(self, port: str) -> Port:
        return Port(self, port)

    @property
    def stage(self) -> str:
        """The part of the flow that it belongs to."""
        return self.options.stage or MAIN

    @property
    def single(self) -> bool:
        """Is it a source that only one process may run at a time, where several run the flow?"""
        if not self.is_source:
            return False
        if self.options.single is not None:
            return self.options.single
        return not getattr(self.subject, "shared", False)

    @property
    def failed(self) -> Port:
        """Where events go that this module failed on."""
        return Port(self, "failed")

    @property
    def invalid(self) -> Port:
        """Where a source puts what it could not read."""
        return Port(self, "invalid")

    @property
    def expired(self) -> Port:
        """Where events go that used up their hops."""
        return Port(self, "expired")

    def __rshift__(self, other: Any) -> Any:
        self.connect(self, other)
        return _rest(other)

    def __rrshift__(self, other: Any) -> Any:
        self.connect(other, self)
        return self

    def __repr__(self) -> str:
        return f"<Place {self.name}>"


class Port:
    """One inbox or outbox of a place; which of them, the side of `>>` decides."""

    def __init__(self, place: Place, name: str):
        self.place = place
        self.name = name

    def __rshift__(self, other: Any) -> Any:
        self.place.connect(self, other)
        return _rest(other)

    def __rrshift__(self, other: Any) -> Any:
        self.place.connect(other, self)
        return self.place

    def __repr__(self) -> str:
        return f"<Port {self.place.name}.{self.name}>"


class Group(tuple[Any, ...]):
    """Several ends at once: `a >> (b, c) >> d` copies to both and merges again."""

    def __rshift__(self, other: Any) -> Any:
        end = self[0]
        place = end.place if isinstance(end, Port) else end
        place.connect(self, other)
        return _rest(other)


def _rest(other: Any) -> Any:
    if isinstance(other, Port):
        return other.place
    if isinstance(other, tuple | list):
        return Group(end.place if isinstance(end, Port) else end for end in other)
    return other


#: What `connect` takes as an end.
End: TypeAlias = "Place | Port | str | tuple[Any, str] | list[Any] | tuple[Any, ...]"


# ------------------------------------------------------------------ graph questions


class Edge(msgspec.Struct, frozen=True):
    """An arrow as the engine sees it: a route, or the way of an uncaught failure to the dead-letter module."""

    source: str
    target: str
    route: Route | None


def sink_side(name: str) -> str:
    """The receiving side of a module that is a source and a sink: a route back to it closes no cycle."""
    return f"{name}\x00sink"


def edges(places: Mapping[str, Place], routes: Iterable[Route], dead_letter: str | None) -> list[Edge]:
    """All arrows between existing modules, sources that are also sinks taken as two."""
    found = []
    fails_into: set[str] = set()
    for route in routes:
        if route.source in places and route.target in places:
            target = sink_side(route.target) if places[route.target].is_source else route.target
            found.append(Edge(route.source, target, route))
            if route.outbox == "failed":
                fails_into.add(route.source)
    if dead_letter in places:
        for name in places:
            if name not in fails_into and name != dead_letter:
                found.append(Edge(name, str(dead_letter), None))
    return found


def components(nodes: Iterable[str], arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The strongly connected components, each before those it leads to (Tarjan 1972, without recursion)."""
    successors: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in arrows:
        successors.setdefault(source, []).append(target)
        successors.setdefault(target, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    on_stack: set[str] = set()
    stack: list[str] = []
    found: list[list[str]] = []
    for root in successors:
        if root in index:
            continue
        work = [(root, iter(successors[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for successor in rest:
                if successor not in index:
                    index[successor] = low[successor] = len(index)
                    stack.append(successor)
                    on_stack.add(successor)
                    work.append((successor, iter(successors[successor])))
                    break
                if successor in on_stack:
                    low[node] = min(low[node], index[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    found.append(component[::-1])
    return found[::-1]


def back_edges(nodes: Iterable[str], arrows: Iterable[Edge]) -> set[int]:
    """Positions of the arrows that close cycles: without them the graph has none. Found in depth first order."""
    outgoing: dict[str, list[tuple[int, str]]] = {node: [] for node in nodes}
    for position, edge in enumerate(arrows):
        outgoing.setdefault(edge.source, []).append((position, edge.target))
        outgoing.setdefault(edge.target, [])
    state: dict[str, int] = {}
    found: set[int] = set()
    for root in outgoing:
        if root in state:
            continue
        state[root] = 1
        work = [(root, iter(outgoing[root]))]
        while work:
            node, rest = work[-1]
            for position, target in rest:
                if state.get(target) == 1:
                    found.add(position)
                elif target not in state:
                    state[target] = 1
                    work.append((target, iter(outgoing[target])))
                    break
            else:
                state[node] = 2
                work.pop()
    return found
