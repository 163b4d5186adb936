"""The dict that describes a pipeline, read into values and checked. Nothing runs here.

**Lineage.** What leaves an input rig is numbered 1, 2, 3…, and what comes out of a processor has the number of what
went in. An aggregated node puts together what has the same number. So both branches of one item meet again whatever
failed or overtook in between, and items of several rigs, which have no lineage in common, are paired like `zip`: the
n-th of one with the n-th of the other. A node that merges several inputs (`aggregate_inputs: False`) gives several
items for one number; what leaves it is numbered anew. Rigs and merging nodes are the *roots* of a node's numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from furcula.errors import ConfigurationError, Problem, nearest
from furcula.graph import components
from furcula.options import Options

__all__ = ["Node", "OnError", "read", "rig_groups"]

OnError = Literal["drop", "stop"]

#: Properties that are ours to give, beside `aggregate_inputs` and `on_error`: furcula's own options.
_OPTIONS = tuple(name for name in Options.__struct_fields__ if name != "join")
#: Places in the queue before a processor. Few, because what waits in one branch is held at the node where it meets.
QUEUE = 64
#: How long an item waits for its sibling. Long: a sibling that failed is found out earlier, when 10,000 are waiting.
JOIN_TIMEOUT_S = 3600.0
#: Items of different rigs wait for each other as long as it takes; the rigs themselves keep in step.
ZIP_TIMEOUT_S = 30 * 86400.0


class Node(msgspec.Struct, frozen=True):
    """One node of the graph.

    Attributes:
        predecessors: In the order of `nodes`; none for an input rig.
        joins: Does it take one item of each predecessor together?
        merges: Does it take the items of several predecessors one by one?
        roots: Whose numbers its items have.
    """

    name: str
    coro: Callable[..., Any]
    args: dict[str, Any]
    options: Options
    on_error: OnError
    predecessors: tuple[str, ...]
    successors: tuple[str, ...]
    joins: bool
    merges: bool
    roots: frozenset[str]

    @property
    def is_rig(self) -> bool:
        return not self.predecessors


def read(spec: Mapping[str, Any], coro_map: Callable[[str], Any] | Mapping[str, Any] | None) -> dict[str, Node]:
    """The nodes of a pipeline, in the order of `nodes`.

    Raises:
        ConfigurationError: All that is wrong, each problem with its node or edge.
    """
    found: list[Problem] = []
    if not isinstance(spec, Mapping) or not isinstance(spec.get("nodes"), Mapping):
        raise ConfigurationError([Problem("a pipeline is a dict with 'nodes' and 'graph'", "nodes")])
    nodes: Mapping[str, Any] = spec["nodes"]
    successors = _successors(nodes, spec.get("graph") or {}, found)
    predecessors = {
        name: tuple(other for other in nodes if name in successors[other]) for name in nodes
    }  # in the order of `nodes`, whatever the order of the graph
    found += _shape_problems(nodes, successors)
    parts = {name: _part(name, value, coro_map, found) for name, value in nodes.items()}
    if found:
        raise ConfigurationError(found)
    roots: dict[str, frozenset[str]] = {}
    for (name,) in components(nodes, [(a, b) for a in nodes for b in successors[a]]):
        several = len(predecessors[name]) > 1
        if not predecessors[name] or (several and not parts[name].aggregate):
            roots[name] = frozenset((name,))
        else:
            roots[name] = frozenset().union(*(roots[before] for before in predecessors[name]))
    built = {}
    for name, part in parts.items():
        several = len(predecessors[name]) > 1
        joins = several and part.aggregate
        options = part.options
        if joins:
            timeout = JOIN_TIMEOUT_S if len(roots[name]) == 1 else ZIP_TIMEOUT_S
            options = Options.of(options, join=True, join_timeout=part.join_timeout or timeout)
        built[name] = Node(
            name,
            part.coro,
            part.args,
            options,
            part.on_error,
            predecessors[name],
            successors[name],
            joins,
            several and not joins,
            roots[name],
        )
    return built


def rig_groups(nodes: Mapping[str, Node]) -> list[set[str]]:
    """The rigs whose items are paired with each other somewhere, and which therefore keep in step."""
    groups: list[set[str]] = []
    for node in nodes.values():
        meeting = {root for root in node.roots if nodes[root].is_rig} if node.joins else set()
        if len(meeting) > 1:
            for group in [group for group in groups if group & meeting]:
                groups.remove(group)
                meeting |= group
            groups.append(meeting)
    return groups


class _Part(msgspec.Struct):
    coro: Any
    args: dict[str, Any]
    options: Options
    join_timeout: Any
    aggregate: bool
    on_error: OnError


def _successors(nodes: Mapping[str, Any], graph: Mapping[str, Any], found: list[Problem]) -> dict[str, tuple[str, ...]]:
    successors: dict[str, tuple[str, ...]] = dict.fromkeys(nodes, ())
    mentioned = set(graph)
    for name, given in graph.items():
        # ("b") is a string and not a tuple of one: what its writer means is plain.
        after: Iterable[Any] = () if given is None else (given,) if isinstance(given, str) else tuple(given)
        mentioned |= set(after)
        if name not in nodes:
            found.append(Problem(f"there is no node {name!r}{nearest(name, nodes)}", f"graph.{name}"))
            continue
        for other in after:
            if other not in nodes:
                found.append(Problem(f"{name} -> {other}: no node {other!r}{nearest(other, nodes)}", f"graph.{name}"))
        if len(set(after)) != len(tuple(after)):
            found.append(Problem(f"{name} names the same successor twice", f"graph.{name}"))
        successors[name] = tuple(dict.fromkeys(other for other in after if other in nodes))
    for name in nodes:
        if name not in mentioned:
            found.append(Problem(f"{name} is unreachable: the graph does not mention it", f"nodes.{name}"))
    return successors


def _shape_problems(nodes: Mapping[str, Any], successors: Mapping[str, tuple[str, ...]]) -> list[Problem]:
    found = []
    arrows = [(name, other) for name in nodes for other in successors[name]]
    cyclic: set[str] = set()
    for component in components(nodes, arrows):
        if len(component) > 1 or (component[0], component[0]) in arrows:
            cyclic |= set(component)
            inside = [f"{a} -> {b}" for a, b in arrows if a in component and b in component]
            found.append(Problem(f"a pipeline has no cycles, and here is one: {', '.join(inside)}", "graph"))
    fed = {other for _, other in arrows}
    reached = {name for name in nodes if name not in fed}
    frontier = list(reached)
    while frontier:
        for other in successors[frontier.pop()]:
            if other not in reached:
                reached.add(other)
                frontier.append(other)
    for name in nodes:
        if name not in reached and name not in cyclic:
            found.append(Problem(f"{name} is unreachable: no input rig leads to it", f"nodes.{name}"))
    return found


def _part(name: str, value: Any, coro_map: Any, found: list[Problem]) -> _Part:
    path = f"nodes.{name}"

    def wrong(message: str, where: str) -> None:
        found.append(Problem(f"{name}: {message}", f"{path}.{where}"))

    value = value if isinstance(value, Mapping) else {"coro": value}
    for key in value:
        if key not in ("coro", "args", "properties"):
            wrong(f"there is no {key!r}{nearest(key, ('coro', 'args', 'properties'))}", str(key))
    coro = value.get("coro")
    if isinstance(coro, str):
        coro = _looked_up(coro, coro_map, wrong)
    elif not _is_coroutine_function(coro):
        wrong(f"coro must be a coroutine function (async def) or its name, not {coro!r}", "coro")
    args = dict(value.get("args") or {})
    if _is_coroutine_function(coro):
        try:
            inspect.signature(coro).bind(None, None, **args)
        except TypeError as error:
            wrong(f"{getattr(coro, '__qualname__', coro)} cannot take these args: {error}", "args")
    properties = dict(value.get("properties") or {})
    aggregate = properties.pop("aggregate_inputs", True)
    if not isinstance(aggregate, bool):
        wrong("aggregate_inputs must be True or False", "properties.aggregate_inputs")
    on_error = properties.pop("on_error", "drop")
    if on_error not in ("drop", "stop"):
        wrong(f"on_error must be 'drop' or 'stop', not {on_error!r}", "properties.on_error")
    join_timeout = properties.pop("join_timeout", None)
    known = ("aggregate_inputs", "on_error", *_OPTIONS)
    for key in [key for key in properties if key not in known]:
        wrong(f"there is no property {key!r}{nearest(key, known)}", f"properties.{key}")
        del properties[key]
    options = Options()
    try:
        options = Options.of(Options(queue=QUEUE), **properties)
    except ValueError as error:
        wrong(str(error), "properties")
    return _Part(coro, args, options, join_timeout, bool(aggregate), on_error)


def _looked_up(given: str, coro_map: Any, wrong: Callable[[str, str], None]) -> Any:
    if coro_map is None:
        wrong(f"its coro is the name {given!r}; give Plumber a coro_map that finds it", "coro")
        return None
    try:
        coro = coro_map[given] if isinstance(coro_map, Mapping) else coro_map(given)
    except Exception as error:  # it is the user's code, and may raise anything for a name it does not know
        hint = nearest(given, coro_map) if isinstance(coro_map, Mapping) else ""
        wrong(f"the coro_map does not find {given!r}{hint} ({type(error).__name__}: {error})", "coro")
        return None
    if not _is_coroutine_function(coro):
        wrong(f"the coro_map gives {coro!r} for {given!r}, which is not a coroutine function", "coro")
    return coro


def _is_coroutine_function(coro: Any) -> bool:
    return inspect.iscoroutinefunction(coro) or inspect.iscoroutinefunction(getattr(coro, "__call__", None))  # noqa: B004
