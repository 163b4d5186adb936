"""The flow as a value: modules and the routes between them, checked, drawn and explained without running."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import itertools
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from furcula import validation
from furcula.errors import ConfigurationError, Problem, nearest
from furcula.graph import Branch, End, Group, Place, Port, Route
from furcula.module import ArgumentProblem, Handling, Role, Source, bind_arguments, describe
from furcula.options import Cluster, Options, Overflow, convert_value

__all__ = ["FlowGraph"]

_NAME = re.compile(r"[^\W\d][\w/-]*")


class FlowGraph:
    """Modules and the routes between them.

    Args:
        name: The flow's name, for logs and statistics.
        dead_letter: The module to which failures go that no `failed` route catches (a name or a place).
        ttl: How many turns an event may make in any cycle whose routes say no ttl of their own.
        folder: What relative paths in modules' arguments are relative to; None: the working directory.
        cluster: How its stages are joined by JetStream: a Cluster, or a dict of its arguments.
    """

    def __init__(
        self,
        name: str = "flow",
        *,
        dead_letter: str | Place | None = None,
        ttl: int | None = None,
        folder: str | Path | None = None,
        cluster: Cluster | Mapping[str, Any] | None = None,
    ):
        self.name = name
        given: Any = dict(cluster) if isinstance(cluster, Mapping) else cluster
        self.cluster: Cluster = Cluster() if given is None else convert_value(given, Cluster)
        self.places: dict[str, Place] = {}
        self.routes: list[Route] = []
        self.ttl = ttl
        self.folder = Path(folder) if folder is not None else None
        self.exposed: dict[str, tuple[str, str]] = {}
        self._dead_letter = dead_letter

    @property
    def dead_letter(self) -> str | None:
        """The name of the module to which failures go that no `failed` route catches."""
        chosen = self._dead_letter
        return chosen.name if isinstance(chosen, Place) else chosen

    @dead_letter.setter
    def dead_letter(self, chosen: str | Place | None) -> None:
        self._dead_letter = chosen

    def __getitem__(self, name: str) -> Place:
        try:
            return self.places[name]
        except KeyError:
            raise KeyError(f"there is no module {name!r}{nearest(name, self.places)}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.places

    # -------------------------------------------------------------- modules

    def module(
        self,
        subject: Any = None,
        name: str | None = None,
        /,
        *,
        options: Options | None = None,
        inboxes: Iterable[str] | None = None,
        outboxes: Iterable[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Any:
        """Place a module: a function of any shape over an Event, its data, or a batch; or a class.

        Works as a decorator, with and without arguments, and as a plain call. Options may be given as keywords.

        Args:
            subject: The function or class.
            name: Its name in the flow; default: its own.
            options: How it is run.
            inboxes: Names of its inboxes, where it has others than `inbox`.
            outboxes: Names of its outboxes; a name outside them is then an error. Default: any that is wired.
            arguments: Keyword arguments bound to the function or handed to the class.

        Returns:
            The place, to be wired. It can be called as the function could.
        """
        if subject is None:
            return lambda found: self.module(
                found, name, options=options, inboxes=inboxes, outboxes=outboxes, arguments=arguments, **changes
            )
        return self.put(
            subject, name, options=options, inboxes=inboxes, outboxes=outboxes, arguments=arguments, changes=changes
        )

    def source(self, subject: Any = None, name: str | None = None, /, **rest: Any) -> Any:
        """Place a source: a generator function, an async generator function, an iterable, or a class."""
        if subject is None:
            return lambda found: self.source(found, name, **rest)
        options, arguments = rest.pop("options", None), rest.pop("arguments", None)
        outboxes = rest.pop("outboxes", None)
        return self.put(
            subject, name, source=True, options=options, outboxes=outboxes, arguments=arguments, changes=rest
        )

    def map(self, subject: Any = None, name: str | None = None, /, **rest: Any) -> Any:
        """Place a function over bare data; its answer becomes the data, None too."""
        return self._bare("map", subject, name, rest)

    def filter(self, subject: Any = None, name: str | None = None, /, **rest: Any) -> Any:
        """Place a predicate over bare data; events for which it is false are dropped."""
        return self._bare("filter", subject, name, rest)

    def flat_map(self, subject: Any = None, name: str | None = None, /, **rest: Any) -> Any:
        """Place a function over bare data that answers with an iterable; each item becomes an event."""
        return self._bare("flat_map", subject, name, rest)

    def _bare(self, role: Role, subject: Any, name: str | None, rest: dict[str, Any]) -> Any:
        if subject is None:
            return lambda found: self._bare(role, found, name, rest)
        rest = dict(rest)
        options, arguments = rest.pop("options", None), rest.pop("arguments", None)
        outboxes = rest.pop("outboxes", None)
        return self.put(subject, name, role=role, options=options, outboxes=outboxes, arguments=arguments, changes=rest)

    def put(
        self,
        subject: Any,
        name: str | None = None,
        *,
        source: bool | None = None,
        role: Role = "module",
        options: Options | None = None,
        inboxes: Iterable[str] | None = None,
        outboxes: Iterable[str] | None = None,
        arguments: Mapping[str, Any] | None = None,
        changes: Mapping[str, Any] | None = None,
        use: str | None = None,
        location: str | None = None,
    ) -> Place:
        """Place `subject`; what `module`, `source`, `map` and the YAML loader come down to.

        Raises:
            ConfigurationError: All that is wrong with its name, its options and its arguments.
        """
        if isinstance(subject, Place):
            subject = subject.subject
        arguments = dict(arguments or {})
        location = _caller() if location is None else location
        name = self._free_name(name, subject)
        path = f"modules.{name}"
        found: list[Problem] = []
        if not _NAME.fullmatch(name):
            found.append(Problem(f"{name!r} is not a name: use letters, digits, '_', '-' and '/'", path, location))
        if name in self.places:
            found.append(Problem(f"there are two modules named {name!r}", path, location))
        try:
            options = Options.of(options, **(changes or {}))
        except ValueError as error:
            found.append(Problem(str(error), path, location))
        bound: dict[str, Any] = {}
        handling: Handling | None = None
        is_class = isinstance(subject, type) and role == "module"
        is_source = _is_source(subject) if source is None else source
        if callable(subject) and (is_class or arguments):
            bound, wrong = bind_arguments(subject, arguments, skip=0 if is_class or is_source else 1)
            found += [argument_problem(path, problem, location) for problem in wrong]
        elif arguments:
            found.append(Problem(f"{name} takes no arguments", f"{path}.with", location))
        ports: dict[str, Any] = {"inboxes": () if is_source else ("inbox",)}
        if role in ("map", "filter", "flat_map"):
            ports["outboxes"] = ("outbox",)  # bare data says no outbox to leave by
        try:
            handling = _handling_of(
                functools.partial(subject, **bound) if bound and not is_class else subject, role, is_source
            )
        except TypeError as error:
            found.append(Problem(str(error), path, location))
        declared = subject if is_class else type(subject)
        if is_class or isinstance(subject, Source):
            ports["inboxes"] = tuple(getattr(declared, "inboxes", ("inbox",)))
            declared_outboxes = getattr(declared, "outboxes", ("outbox",))
            ports["outboxes"] = None if declared_outboxes is None else tuple(declared_outboxes)
            ports["optional"] = tuple(getattr(declared, "optional", ()))
            if not found:  # what depends on wrong arguments would only hide what is wrong
                try:
                    ports.update(_ports_by_arguments(declared, bound))
                except ValueError as error:
                    found.append(Problem(str(error), f"{path}.with", location))
        if inboxes is not None:
            ports["inboxes"] = tuple(inboxes)
        if outboxes is not None:
            ports["outboxes"] = tuple(outboxes)
        if found:
            raise ConfigurationError(found)
        place = Place(
            name,
            subject,
            is_source=is_source,
            role=role,
            handling=handling,
            options=options,
            use=use,
            arguments=arguments,
            bound=bound,
            location=location,
            **ports,
        )
        place.connect = self._wire
        self.places[name] = place
        return place

    def _free_name(self, name: str | None, subject: Any) -> str:
        if name is not None:
            return name
        plain = getattr(subject, "__name__", None) or type(subject).__name__
        plain = re.sub(r"\W", "_", plain).strip("_") or "module"
        if isinstance(subject, type):
            plain = plain.lower()
        candidate, number = plain, 1
        while candidate in self.places:
            number += 1
            candidate = f"{plain}_{number}"
        return candidate

    # -------------------------------------------------------------- routes

    def connect(
        self,
        source: End,
        target: End | None = None,
        /,
        *,
        branch: Branch = "required",
        queue: int | None = None,
        overflow: Overflow | None = None,
        ttl: int | None = None,
        location: str | None = None,
    ) -> None:
        """Connect an outbox with an inbox, or several with several.

        Each end is a place, a port, `"name"` or `"name.port"`, a `(place, "port")` pair, or a list of those. One string
        with arrows says it whole: `flow.connect("a.failed, b.failed -> dead")`.
        """
        location = _caller() if location is None else location
        chain: list[Any] = [source, target]
        if target is None:
            if not isinstance(source, str) or "->" not in source:
                raise ConfigurationError([Problem("connect needs two ends, or 'a -> b'", "routes", location)])
            chain = [[end.strip() for end in part.split(",")] for part in source.split("->")]
            if any(not end for part in chain for end in part):
                raise ConfigurationError([Problem(f"{source!r}: an end is missing", "routes", location)])
        for left, right in itertools.pairwise(chain):
            # In the middle of a chain a port names the inbox; the chain goes on from the normal outbox.
            middle = left is not chain[0]
            for source_name, outbox in self._ends(left, "outbox"):
                for target_name, inbox in self._ends(right, "inbox"):
                    self.routes.append(
                        Route(
                            source_name,
                            "outbox" if middle else outbox,
                            target_name,
                            inbox,
                            branch=branch,
                            queue=queue,
                            overflow=overflow,
                            ttl=ttl,
                            location=location,
                        )
                    )

    def _wire(self, source: Any, target: Any) -> None:
        self.connect(source, target, location=_caller())

    def _ends(self, end: Any, default: str) -> list[tuple[str, str]]:
        if isinstance(end, Place):
            self._own(end)
            return [self._inner(end.name, default)]
        if isinstance(end, Port):
            self._own(end.place)
            return [self._inner(end.place.name, end.name)]
        if isinstance(end, str):
            name, dot, port = end.partition(".")
            return [self._inner(name, port if dot else default)]
        if isinstance(end, tuple) and len(end) == 2 and isinstance(end[1], str) and not isinstance(end, Group):
            inside = self._ends(end[0], default)
            return [(name, end[1]) for name, _ in inside]
        if isinstance(end, FlowGraph):
            raise ConfigurationError("a flow is placed first: inner = flow.include(other); then wire inner")
        if isinstance(end, list | tuple):
            return [pair for one in end for pair in self._ends(one, default)]
        raise ConfigurationError(f"{end!r} is not a module, a port or a name")

    def _own(self, place: Place) -> None:
        if self.places.get(place.name) is not place and not isinstance(place, _Included):
            raise ConfigurationError(f"{place.name} belongs to another flow")

    def _inner(self, name: str, port: str) -> tuple[str, str]:
        return self.exposed.get(f"{name}.{port}", (name, port))

    # -------------------------------------------------------------- a flow inside a flow

    def expose(self, **ports: Place | Port | str) -> None:
        """Say which ports this flow has where it is used inside another: `inner.expose(inbox=parse, failed=dead)`."""
        for port, end in ports.items():
            default = "inbox" if port == "inbox" else "outbox"
            self.exposed[f".{port}"] = self._ends(end, default)[0]

    def include(self, inner: FlowGraph, name: str | None = None) -> Place:
        """Use a flow inside this one. Its modules appear as `name/module`; what is returned is wired like a module.

        Ports that `inner.expose` did not name are found where only one module can be meant: the inbox is that of the
        one module nobody feeds, the outbox that of the one module that feeds nobody.
        """
        name = name or inner.name
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{name!r} is not a name for a flow")
        for place in inner.places.values():
            copied = Place(
                f"{name}/{place.name}",
                place.subject,
                is_source=place.is_source,
                role=place.role,
                handling=place.handling,
                options=place.options,
                inboxes=place.inboxes,
                outboxes=place.outboxes,
                optional=place.optional,
                use=place.use,
                arguments=place.arguments,
                bound=place.bound,
                location=place.location,
            )
            copied.connect = self._wire
            if copied.name in self.places:
                raise ConfigurationError(f"there are two modules named {copied.name!r}")
            self.places[copied.name] = copied
        for route in inner.routes:
            self.routes.append(
                Route(
                    f"{name}/{route.source}",
                    route.outbox,
                    f"{name}/{route.target}",
                    route.inbox,
                    branch=route.branch,
                    queue=route.queue,
                    overflow=route.overflow,
                    ttl=route.ttl if route.ttl is not None or inner.ttl is None else inner.ttl,
                    location=route.location,
                )
            )
        if inner.dead_letter is not None:
            catching = {route.source for route in inner.routes if route.outbox == "failed"}
            for place in inner.places.values():
                if place.name not in catching and place.name != inner.dead_letter:
                    self.connect(f"{name}/{place.name}.failed", f"{name}/{inner.dead_letter}")
        fed = {route.target for route in inner.routes}
        feeding = {route.source for route in inner.routes if route.outbox not in ("failed", "invalid", "expired")}
        entries = [p.name for p in inner.places.values() if not p.is_source and p.name not in fed]
        entries = [entry for entry in entries if entry != inner.dead_letter]
        exits = [p.name for p in inner.places.values() if p.name not in feeding and p.name != inner.dead_letter]
        for port, candidates in (("inbox", entries), ("outbox", exits)):
            if len(candidates) == 1:
                self.exposed[f"{name}.{port}"] = (f"{name}/{candidates[0]}", port)
        for port, (inside, inside_port) in inner.exposed.items():
            if port.startswith("."):
                self.exposed[f"{name}{port}"] = (f"{name}/{inside}", inside_port)
        included = _Included(name, inner)
        included.connect = self._wire
        return included

    # -------------------------------------------------------------- questions

    def problems(self) -> list[Problem]:
        """Everything for which the flow must not start; empty if it may."""
        return validation.problems(self.places, self.routes, dead_letter=self.dead_letter, ttl=self.ttl)

    def warnings(self) -> list[Problem]:
        """What a user should know before the flow starts, and may have meant."""
        return validation.warnings(self.places, self.routes)

    def check(self) -> None:
        """Raise ConfigurationError with all problems, if there are any. Runs nothing."""
        found = self.problems()
        if found:
            raise ConfigurationError(found)

    def __repr__(self) -> str:
        return f"<Flow {self.name}: {len(self.places)} modules, {len(self.routes)} routes>"


class _Included(Place):
    """A flow used inside another, as an end to wire."""

    def __init__(self, name: str, inner: FlowGraph):
        super().__init__(name, inner)


def argument_problem(path: str, problem: ArgumentProblem, location: str) -> Problem:
    return Problem(str(problem), f"{path}.with.{problem.argument}{problem.path}", location)


def _is_source(subject: Any) -> bool:
    if isinstance(subject, type):
        return issubclass(subject, Source)
    return isinstance(subject, Source)


def _handling_of(subject: Any, role: Role, is_source: bool) -> Handling | None:
    if is_source:
        return _source_handling(subject)
    if isinstance(subject, type) and role == "module":
        for method in ("process_batch", "process", "choose"):
            handler = getattr(subject, method, None)
            if handler is not None:
                return describe(types.MethodType(handler, object()), "choose" if method == "choose" else "module")
        raise TypeError(f"{subject.__name__} has no process(event): a module needs one, or derives from Source")
    if hasattr(subject, "process") and not callable(subject):
        raise TypeError(f"give the class {type(subject).__name__} and its arguments, not an instance of it")
    if not callable(subject):
        raise TypeError(f"{subject!r} is not a function or a class")
    return describe(subject, role)


def _source_handling(subject: Any) -> Handling | None:
    """The type that a source's generator is annotated to yield."""
    if isinstance(subject, type | Source):
        handler = getattr(subject, "events", None)
        if handler is None and not hasattr(subject, "start"):
            raise TypeError(f"{_label(subject)} has neither events() nor start(context)")
        return None
    if not callable(subject):
        if isinstance(subject, collections.abc.Iterable | collections.abc.AsyncIterable):
            return None
        raise TypeError(f"{subject!r} is not a source: give a generator function, an iterable or a class")
    if inspect.iscoroutinefunction(subject):
        raise TypeError(f"{_label(subject)} is a coroutine and gives one value; a source yields")
    from_annotation = describe(_taking_one(subject))
    return Handling(subject, from_annotation.shape, "data", output_type=from_annotation.output_type)


def _taking_one(subject: Callable[..., Any]) -> Callable[..., Any]:
    """The function as if it took the data, so that `describe` reads what it gives."""

    def reads(data: Any) -> Any: ...

    reads.__annotations__ = {"data": Any}
    answer = getattr(subject, "__annotations__", {}).get("return")
    if answer is not None and not isinstance(answer, str):
        reads.__annotations__["return"] = answer
    reads.__qualname__ = _label(subject)
    if inspect.isgeneratorfunction(subject) or inspect.isasyncgenfunction(subject):
        arguments = getattr(answer, "__args__", ()) if answer is not None else ()
        reads.__annotations__["return"] = arguments[0] if arguments else Any
    return reads


def _ports_by_arguments(declared: type, bound: Mapping[str, Any]) -> dict[str, Any]:
    """Ports that depend on arguments: a class may say `ports(**arguments) -> {"outboxes": …, "optional": …}`."""
    ports = getattr(declared, "ports", None)
    return dict(ports(**bound)) if ports is not None else {}


def _label(subject: Any) -> str:
    return getattr(subject, "__qualname__", None) or type(subject).__name__


_HERE = str(Path(__file__).parent)


def _caller() -> str:
    """`file:line` of the user's code that is placing or wiring."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        back = frame.f_back
        if back is None:
            return ""
        frame = back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else ""
