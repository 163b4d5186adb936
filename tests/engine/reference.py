"""SEMANTICS.md in code, slow and obvious: what a flow of simple modules must deliver, drop and fail.

A `Spec` is a flow as plain data. `build` makes a Flow of it; `interpret` says, event by event and by recursion, what
must come out. There is no queue, no batch, no task and no clock in the interpreter.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from furcula import Event, Flow, Options, Retry

# What a module does with the number n of an event.
KINDS = (
    "pass", "apass", "data", "map", "filter", "fail", "afail", "flaky", "split", "splitfail", "flat_map", "asplit",
    "route", "thread", "timeout", "batch", "abatch", "lanes", "lanes_flaky", "unordered", "wide", "keep", "resplit",
)  # fmt: skip

#: Kinds behind which only the order per key, or none, is promised.
UNORDERED = {"lanes", "lanes_flaky", "unordered", "join", "body", "turn"}


@dataclasses.dataclass
class Node:
    name: str
    kind: str
    modulus: int = 3
    rest: int = 0
    queue: int | None = None
    keep: bool = False


@dataclasses.dataclass
class Link:
    source: str
    port: str
    target: str
    inbox: str = "inbox"
    branch: str = "required"
    queue: int | None = None
    ttl: int | None = None

    def __str__(self) -> str:
        return (
            f"{self.source}{'' if self.port == 'outbox' else '.' + self.port} -> "
            f"{self.target}{'' if self.inbox == 'inbox' else '.' + self.inbox}"
        )


@dataclasses.dataclass
class Spec:
    count: int
    source: str = "sync"
    nodes: list[Node] = dataclasses.field(default_factory=list)
    links: list[Link] = dataclasses.field(default_factory=list)
    dead_letter: str | None = None


class Broken(Exception):
    """What the modules here raise."""


def hit(node: Node, n: int) -> bool:
    return n * 31 % node.modulus == node.rest % node.modulus


def children(node: Node, n: int) -> list[int]:
    return [n * 10 + i for i in range((n + node.rest) % 3)]


# ------------------------------------------------------------------ the flow


def behaviour(node: Node, collected: list[tuple[Any, ...]] | None) -> Any:
    """The function for a node. Every one notes its name in the trail of what it lets through."""
    name = node.name

    def note(data: dict[str, Any]) -> dict[str, Any]:
        data["trail"].append(name)
        return data

    def passes(event: Event) -> Event:
        note(event.data)
        return event

    async def waits(event: Event) -> Event:
        pause = event.data["n"] * 7 % 4
        if pause:
            await asyncio.sleep(pause * 0.01)
        return passes(event)

    def fails(event: Event) -> Event:
        if hit(node, event.data["n"]):
            event.data["spoiled"] = True
            raise Broken(name)
        return passes(event)

    async def afails(event: Event) -> Event:
        if event.data["n"] % 2:
            await asyncio.sleep(0.01)
        return fails(event)

    tries: Counter[tuple[Any, ...]] = Counter()

    async def flaky(event: Event) -> Event:
        mark = (event.id, *event.data["trail"], len(event.failures))
        tries[mark] += 1
        assert f"spoiled by {name}" not in event.data, "a try must see the original payload"
        if tries[mark] <= (event.data["n"] + node.rest) % 3:
            event.data[f"spoiled by {name}"] = True
            raise Broken(name)
        return passes(event)

    def data(data: dict) -> dict:  # type: ignore[type-arg]
        return note(data)

    def splits(event: Event) -> Iterator[Event]:
        for n in children(node, event.data["n"]):
            yield Event({"n": n, "trail": [*event.data["trail"], name]})

    def splits_itself(event: Event) -> Iterator[Event]:
        trail = list(event.data["trail"])
        for n in children(node, event.data["n"]):
            event.data = {"n": n, "trail": [*trail, name]}
            yield event

    def splits_and_fails(event: Event) -> Iterator[Event]:
        n = event.data["n"]
        yield from splits(event)
        if hit(node, n):
            raise Broken(name)

    async def asplits(event: Event) -> Any:
        for n in children(node, event.data["n"]):
            await asyncio.sleep(0.001)
            yield Event({"n": n, "trail": [*event.data["trail"], name]})

    def flat(data: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": n, "trail": [*data["trail"], name]} for n in children(node, data["n"])]

    def one(data: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"n": data["n"], "trail": [*data["trail"], name]}]

    def routes(event: Event) -> Event:
        if hit(node, event.data["n"]):  # the trail tells which way it went: another route, another order
            event.data["trail"].append(f"{name}.side")
            return event.to("side")
        return passes(event)

    async def slow(event: Event) -> Event:
        await asyncio.sleep(5 if hit(node, event.data["n"]) else 0.001)
        return passes(event)

    def batch(events: list[Event]) -> list[Event]:
        return [passes(event) for event in events]

    async def abatch(events: list[Event]) -> list[Event]:
        await asyncio.sleep(0.001)
        return [passes(event) for event in events if not hit(node, event.data["n"])]

    def joined(event: Event) -> Event:
        event.data = {"n": event.data["left"]["n"], "trail": [name]}
        return event

    def turn(event: Event) -> Event:
        note(event.data)
        event.data["turns"] = event.data.get("turns", 0) + 1
        return event.to("again") if event.data["turns"] <= (event.data["n"] + node.rest) % 4 else event

    def collects(event: Event) -> None:
        assert collected is not None
        data = event.data
        if "n" not in data:  # the parts of a join that was given up
            data = {"n": next(iter(data.values()))["n"], "trail": ()}
        collected.append((data["n"], tuple(data["trail"]), tuple(failure.module for failure in event.failures)))

    def keeps(data: dict[str, Any]) -> bool:
        if hit(node, data["n"]):
            return False
        note(data)
        return True

    return {
        "pass": passes, "apass": waits, "data": data, "map": note, "filter": keeps, "fail": fails, "afail": afails,
        "flaky": flaky, "split": splits, "splitfail": splits_and_fails, "flat_map": flat, "asplit": asplits,
        "route": routes, "thread": passes, "timeout": slow, "batch": batch, "abatch": abatch, "lanes": waits,
        "lanes_flaky": flaky, "unordered": waits, "wide": waits, "keep": fails, "sink": collects, "one": one,
        "join": joined, "body": waits, "turn": turn, "resplit": splits_itself,
    }[node.kind]  # fmt: skip


def options(node: Node) -> Options:
    changes: dict[str, Any] = {
        "flaky": {"retry": Retry(attempts=2, delay=0.02)},
        "lanes": {"key": lambda event: event.data["n"] % 4, "concurrency": 4},
        "lanes_flaky": {"key": lambda e: e.data["n"] % 4, "concurrency": 2, "retry": Retry(attempts=2, delay=0.02)},
        "unordered": {"order": "none", "concurrency": 3},
        "wide": {"concurrency": 4},
        "thread": {"thread": True, "concurrency": 2},
        "timeout": {"timeout": 1, "concurrency": 2},
        "keep": {"keep": "original"},
        "join": {"join": True, "join_timeout": 10_000},
    }.get(node.kind, {})
    if node.queue is not None:
        changes["queue"] = node.queue
    return Options(**changes)


def build(spec: Spec) -> tuple[Flow, dict[str, list[tuple[Any, ...]]]]:
    """The flow of a spec, and where its sinks collect `(n, trail, modules that failed)`."""
    flow = Flow("random", dead_letter=spec.dead_letter)

    def plain() -> Iterator[dict[str, Any]]:
        for n in range(spec.count):
            yield {"n": n, "trail": []}

    async def waiting() -> Any:
        for n in range(spec.count):
            if n % 3 == 0:
                await asyncio.sleep(0.01)
            yield {"n": n, "trail": []}

    flow.source(waiting if spec.source == "async" else plain, "source", thread=spec.source == "thread")
    collected: dict[str, list[tuple[Any, ...]]] = {}
    for node in spec.nodes:
        if node.kind == "sink":
            collected[node.name] = []
        function = behaviour(node, collected.get(node.name))
        inboxes = ("left", "right") if node.kind == "join" else None
        place = {"map": flow.map, "filter": flow.filter, "flat_map": flow.flat_map, "one": flow.flat_map}.get(
            node.kind, flow.module
        )
        rest = {} if inboxes is None else {"inboxes": inboxes}
        place(function, node.name, options=options(node), **rest)
    for link in spec.links:
        flow.connect(
            f"{link.source}.{link.port}",
            f"{link.target}.{link.inbox}",
            branch=link.branch,  # type: ignore[arg-type]
            queue=link.queue,
            ttl=link.ttl,
        )
    return flow, collected


# ------------------------------------------------------------------ what must come out


@dataclasses.dataclass
class Thing:
    """An event as the interpreter sees it."""

    n: int
    trail: tuple[str, ...]
    identity: object
    slot: list[str]
    failures: tuple[str, ...] = ()
    buried: bool = False
    ttl: int | None = None
    turns: int = 0

    def then(self, name: str, **changes: Any) -> Thing:
        return dataclasses.replace(self, trail=(*self.trail, name), **changes)


@dataclasses.dataclass
class Expected:
    """What must come out: for each sink what it gets, for each origin the sums, for each module its counts."""

    sinks: dict[str, list[tuple[Any, ...]]]
    origins: dict[str, Counter[str]]
    modules: dict[str, Counter[str]]


def interpret(spec: Spec) -> Expected:
    return _Interpreter(spec).run()


class _Interpreter:
    def __init__(self, spec: Spec):
        self.spec = spec
        self.nodes = {node.name: node for node in spec.nodes}
        self.links: dict[tuple[str, str], list[Link]] = defaultdict(list)
        for link in spec.links:
            self.links[link.source, link.port].append(link)
        self.sinks: dict[str, list[tuple[Any, ...]]] = {n.name: [] for n in spec.nodes if n.kind == "sink"}
        self.modules: dict[str, Counter[str]] = {name: Counter() for name in ["source", *self.nodes]}
        self.slots: dict[str, list[list[str]]] = defaultdict(list)
        self.tables: dict[str, dict[object, dict[str, Thing]]] = defaultdict(dict)

    def run(self) -> Expected:
        for n in range(self.spec.count):
            self.modules["source"]["received"] += 1
            self.emit("source", "outbox", Thing(n, (), object(), self.admit("source")))
        for node in self.spec.nodes:  # the flow ends: incomplete joins fail, from the sources down
            table = self.tables[node.name]
            while table:
                _, parts = table.popitem()
                self.modules[node.name]["joined"] += len(parts) - 1
                self.fail(node, next(iter(parts.values())), trail=())
        origins = {}
        for origin, slots in self.slots.items():
            counts = origins[origin] = Counter(admitted=len(slots))
            for fates in slots:
                worst = "failed" if "failed" in fates else "delivered" if "delivered" in fates else "dropped"
                counts[worst] += 1
        return Expected(self.sinks, origins, self.modules)

    def admit(self, origin: str) -> list[str]:
        slot: list[str] = []
        self.slots[origin].append(slot)
        return slot

    def is_sink(self, name: str) -> bool:
        return not any(port not in ("failed", "expired") for source, port in self.links if source == name)

    def emit(self, name: str, port: str, thing: Thing) -> None:
        """A thing leaves a module from a normal outbox."""
        count = self.modules[name]
        if self.is_sink(name):
            if name == "source":
                count["dropped"] += 1
                thing.slot.append("dropped")
            else:
                count["delivered"] += 1
                thing.slot.append("delivered")
        elif not self.links[name, port]:
            count["dropped"] += 1
            thing.slot.append("dropped")
        else:
            count["sent"] += 1
            self.along(name, port, thing)

    def along(self, name: str, port: str, thing: Thing) -> None:
        links = self.links[name, port]
        if all(link.branch != "required" for link in links):
            thing.slot.append("delivered")
        for link in links:
            if link.branch == "required":
                self.arrive(link, dataclasses.replace(thing))
            else:
                self.arrive(link, dataclasses.replace(thing, slot=self.admit(str(link))))

    def arrive(self, link: Link, thing: Thing) -> None:
        node = self.nodes[link.target]
        count = self.modules[node.name]
        count["received"] += 1
        if link.ttl is not None:
            thing.ttl = (link.ttl if thing.ttl is None else thing.ttl) - 1
            if thing.ttl < 0:
                if self.links[node.name, "expired"]:
                    count["sent"] += 1
                    self.along(node.name, "expired", thing)
                else:
                    self.fail(node, thing)
                return
        if node.kind == "join":
            self.join(node, link.inbox, thing)
        else:
            self.handle(node, thing)

    def join(self, node: Node, inbox: str, thing: Thing) -> None:
        parts = self.tables[node.name].setdefault(thing.identity, {})
        assert inbox not in parts, "the generator draws no joins of which this could happen"
        parts[inbox] = thing
        if len(parts) == 2:
            del self.tables[node.name][thing.identity]
            self.modules[node.name]["joined"] += 1
            left = parts["left"]
            failures = tuple(dict.fromkeys(left.failures + parts["right"].failures))
            self.emit(node.name, "outbox", dataclasses.replace(left, trail=(node.name,), failures=failures, turns=0))

    def drop(self, node: Node, thing: Thing) -> None:
        self.modules[node.name]["dropped"] += 1
        thing.slot.append("dropped")

    def fail(self, node: Node, thing: Thing, trail: tuple[str, ...] | None = None) -> None:
        self.modules[node.name]["failed"] += 1
        onward = dataclasses.replace(thing, failures=(*thing.failures, node.name))
        if trail is not None:
            onward.trail = trail
        if self.links[node.name, "failed"]:
            self.along(node.name, "failed", onward)
        elif self.spec.dead_letter and not thing.buried and node.name != self.spec.dead_letter:
            onward.buried = True
            self.arrive(Link(node.name, "dead", self.spec.dead_letter), onward)
        else:
            thing.slot.append("failed")

    def split(self, node: Node, thing: Thing, numbers: list[int], failed: bool) -> None:
        if self.is_sink(node.name):
            self.fail(node, thing) if failed else self.emit(node.name, "outbox", thing)
            return
        if not numbers and not failed:
            self.drop(node, thing)
            return
        self.modules[node.name]["born"] += len(numbers) + failed - 1
        for n in numbers:
            self.emit(node.name, "outbox", thing.then(node.name, n=n, identity=object(), turns=0))
        if failed:
            self.fail(node, thing)

    def handle(self, node: Node, thing: Thing) -> None:
        kind, n = node.kind, thing.n
        on = thing.then(node.name)
        if kind == "sink":
            self.sinks[node.name].append((n, thing.trail, thing.failures))
            self.modules[node.name]["delivered"] += 1
            thing.slot.append("delivered")
        elif kind in ("filter", "abatch") and hit(node, n):
            if self.is_sink(node.name):
                self.emit(node.name, "outbox", on)
            else:
                self.drop(node, thing)
        elif (kind in ("fail", "afail", "timeout", "keep") and hit(node, n)) or (
            kind in ("flaky", "lanes_flaky") and (n + node.rest) % 3 == 2
        ):
            self.fail(node, thing)
        elif kind in ("split", "flat_map", "asplit", "resplit"):
            self.split(node, thing, children(node, n), False)
        elif kind == "splitfail":
            self.split(node, thing, children(node, n), hit(node, n))
        elif kind == "one":
            self.split(node, thing, [n], False)
        elif kind == "route":
            if hit(node, n):
                self.emit(node.name, "side", thing.then(f"{node.name}.side"))
            else:
                self.emit(node.name, "outbox", on)
        elif kind == "turn":
            on.turns += 1
            self.emit(node.name, "again" if on.turns <= (n + node.rest) % 4 else "outbox", on)
        else:
            self.emit(node.name, "outbox", on)
