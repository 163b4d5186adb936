"""A part of a flow that runs here, and what joins it to the parts that run elsewhere.

A *cut* is a route whose ends belong to different stages. Where one stage runs alone, each cut that leaves it ends in
what its `Joints` give for it, and each cut that comes to it begins there. What carries the events between is the
joints' own business: 0mq between the processes of one machine, JetStream between machines.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec

from furcula.engine.outlets import Consumer
from furcula.engine.plan import Plan
from furcula.errors import InputError
from furcula.event import Event
from furcula.flow import FlowGraph
from furcula.graph import Place, components
from furcula.options import Overflow
from furcula.receipt import Origin

__all__ = [
    "Arrivals", "Cut", "Joints", "Refuse", "Spawn", "cuts", "key_of", "share_of", "stage_order",
]  # fmt: skip

#: Fails events at the module that sent them: they could not leave.
Refuse = Callable[[list[tuple[Event[Any], Exception]]], None]
Spawn = Callable[[Coroutine[Any, Any, None], str], Any]


class Cut(msgspec.Struct, frozen=True):
    """A route from one stage to another.

    Attributes:
        name: The route as text, `a -> b`; `a failures -> b` for the way of uncaught failures to the dead-letter module.
        place: The module that it leads to.
        back: It is part of a cycle, so it must never make its sender wait.
    """

    name: str
    source: str
    target: str
    inbox: str
    from_stage: str
    to_stage: str
    place: Place
    overflow: Overflow = "block"
    back: bool = False


class Arrivals(msgspec.Struct, frozen=True):
    """Where the events of one cut enter this part.

    Attributes:
        entry: What takes them.
        origin: Under whose name they are admitted.
    """

    cut: Cut
    entry: Consumer
    origin: Origin


class Joints(Protocol):
    """What joins one part of a flow to the others. Made for one run of one Director."""

    #: What has not been taken from the other parts is kept for whoever takes it later. Otherwise a part that could be
    #: sent back what it sent itself must go on taking until all that it sent is settled.
    keeps: bool

    def leaving(self, cut: Cut, refuse: Refuse) -> Consumer:
        """The near end of a cut. Called for each that leaves, before `open`."""

    def arriving(self, arrivals: Arrivals) -> None:
        """The far end of a cut. Called for each that comes, before `open`."""

    async def open(self, spawn: Spawn) -> None:
        """Connect. Raises a FurculaError that names the address where that is not possible."""

    def begin(self) -> None:
        """Begin to take: all modules have started."""

    async def cease(self) -> None:
        """Take nothing more. What was taken and not admitted goes back."""

    def idle(self) -> bool:
        """Has all that was taken been handed on?"""

    def quiet(self) -> bool:
        """Has nothing come or gone for so long that what is held back here may be all that is missing?"""

    def settled(self) -> bool:
        """Is everything that left settled, as far as this part is concerned?"""

    def dry(self) -> bool:
        """Is everything that was taken settled, and has whoever sent it been told?"""

    def abandon(self) -> Mapping[str, int]:
        """The deadline has passed: what is not settled fails. Returns what was left, by the module it was going to."""

    async def close(self) -> None:
        """Close what `open` has opened. May be repeated."""

    def unready(self) -> str | None:
        """Why nothing can come or go now; None: it can."""


def key_of(cut: Cut) -> Callable[[Event[Any]], Any] | None:
    """What keeps events of a cut together: the key of the module that it leads to."""
    key = cut.place.options.key
    if key is None or callable(key):
        return key
    if key == "key":
        return lambda event: event.key
    where, _, name = key.partition(".")
    if where == "data" and name.isidentifier():  # the most common case by far, and asked of every event
        return lambda event: event.data.get(name) if type(event.data) is dict else event.get(key, None)
    return lambda event: event.get(key, None)


def share_of(key: Any, count: int) -> int:
    """Which of `count` a key belongs to: the same in every process, and the same for keys that are equal.

    Raises:
        InputError: It is of a type that has no bytes that are the same everywhere.
    """
    if type(key) is not str and type(key) is not int:
        key = _canonical(key)
    try:
        said = msgspec.msgpack.encode(key)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"a {type(key).__name__} cannot be a key between stages: {error}") from None
    return zlib.crc32(said) % count


def _canonical(key: Any) -> Any:
    """`1`, `1.0` and `True` are one key, and a set has no order."""
    if isinstance(key, bool) or (isinstance(key, float) and key.is_integer()):
        return int(key)
    if isinstance(key, tuple | list):
        return [_canonical(part) for part in key]
    if isinstance(key, set | frozenset):
        return sorted(msgspec.msgpack.encode(_canonical(part)) for part in key)
    return key


def cuts(flow: FlowGraph, planned: Plan) -> dict[int, Cut]:
    """The routes of a plan whose ends belong to different stages, by their place in it."""
    places = flow.places
    found = {}
    for index, route in enumerate(planned.routes):
        named = route.route or route
        source, target = named.source, named.target
        here, there = places[source].stage, places[target].stage
        if here == there:
            continue
        region = planned.modules[source].region
        found[index] = Cut(
            str(route.route) if route.route is not None else f"{source} failures -> {target}",
            source,
            target,
            route.route.inbox if route.route is not None else "inbox",
            here,
            there,
            places[target],
            route.overflow if route.way in ("queue", "best-effort") else "block",
            back=route.way == "back" or (region is not None and region == planned.modules[target].region),
        )
    return found


def stage_order(flow: FlowGraph, planned: Plan) -> list[list[str]]:
    """The stages of a flow from its sources down. Those that send to each other stand together."""
    stages = dict.fromkeys(place.stage for place in flow.places.values())
    return components(list(stages), [(cut.from_stage, cut.to_stage) for cut in cuts(flow, planned).values()])
