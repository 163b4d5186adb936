"""One entry of `modules:` becomes a place in the flow."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from furcula import registry
from furcula.config import functions
from furcula.config.convert import Checker, given_in
from furcula.config.nodes import Node
from furcula.errors import ConfigurationError, Problem, nearest
from furcula.flow import FlowGraph
from furcula.graph import Place
from furcula.module import Parameter, Role, parameters
from furcula.options import Options, convert_value

__all__ = ["MODULE_KEYS", "ROLES", "begins_lineages", "is_flow_file", "option_fields", "place_module"]

#: The keys that say what a module is; each module has exactly one.
ROLES: dict[str, Role] = {"use": "module", "map": "map", "filter": "filter", "flat_map": "flat_map"}
#: All keys of a module besides the options.
MODULE_KEYS = (*ROLES, "with", "inboxes", "outboxes")


def option_fields() -> dict[str, Parameter]:
    """The options that every module takes. `key` is a path or the name of a function, which is a string as well."""
    fields = {
        field.name: Parameter(field.name, field.type, field.default, required=False)
        for field in msgspec.structs.fields(Options)
    }
    return {**fields, "key": Parameter("key", str | None, None, required=False)}


def is_flow_file(use: str) -> bool:
    return use.endswith((".yaml", ".yml"))


def begins_lineages(subject: Any, arguments: Mapping[str, Any]) -> bool:
    """Is a function or iterable under `use` a source? A generator function is one if `with` gives all it needs."""
    if isinstance(subject, type):
        return False  # a class says so itself, by deriving from Source
    if not callable(subject):
        return isinstance(subject, collections.abc.Iterable | collections.abc.AsyncIterable)
    if not (inspect.isgeneratorfunction(subject) or inspect.isasyncgenfunction(subject)):
        return False
    try:
        inspect.signature(subject).bind(**arguments)
    except TypeError:
        return False
    return True


def place_module(flow: FlowGraph, name: str, node: Node, location: str, folder: Path | None) -> list[Problem]:
    """Put the module that `node` describes into `flow`; return all that is wrong with it.

    Args:
        flow: Where it goes, under `name`.
        name: Its name.
        node: A mapping with exactly one of `ROLES`.
        location: Where its name stands.
        folder: Where functions are looked up. Call inside `functions.importable(folder)`.
    """
    problems: list[Problem] = []
    reading = _Reading(Checker(problems), f"modules.{name}", node, folder)
    subject, role, use = reading.subject()
    options = reading.options()
    ports = {port: reading.ports(port) for port in ("inboxes", "outboxes") if port in node.value}
    if subject is None:
        reading.arguments_untyped()
        return problems
    marked_source = isinstance(subject, Place) and subject.is_source
    if isinstance(subject, Place):
        subject = subject.subject
    is_class = isinstance(subject, type)
    source = role == "module" and not is_class and (marked_source or begins_lineages(subject, reading.names_given()))
    arguments = reading.arguments(subject, skip=0 if is_class or source else 1)
    reported = [problem.path for problem in problems]
    reported += [path for path, leaf in node.leaves(f"modules.{name}") if leaf.broken]
    try:
        flow.put(
            subject,
            name,
            source=True if source else None,
            role=role,
            options=options,
            inboxes=ports.get("inboxes"),
            outboxes=ports.get("outboxes"),
            arguments=arguments,
            use=use,
            location=location,
        )
    except ConfigurationError as error:
        problems += [found for found in error.problems if not _known(found, reported)]
    except (TypeError, ValueError) as error:  # raised by the module's own code, asked for its ports
        if not problems:
            problems.append(Problem(f"{name} cannot be placed: {error}", f"modules.{name}", location))
    if problems:
        flow.places.pop(name, None)
    return problems


def _known(problem: Problem, reported: list[str]) -> bool:
    """Is this about arguments, where the walk through the file has found all that is wrong with those already?"""
    about_arguments = ".with." in problem.path or "give all but the first" in problem.message
    return about_arguments and any(".with" in path for path in reported)


class _Reading:
    """Reads the parts of one module."""

    def __init__(self, checker: Checker, path: str, node: Node, folder: Path | None):
        self.checker = checker
        self.path = path
        self.node = node
        self.folder = folder

    def report(self, message: str, key: str) -> None:
        node = self.node.value.get(key, self.node)
        self.checker.report(message, f"{self.path}.{key}" if key else self.path, node.location)

    def subject(self) -> tuple[Any, Role, str | None]:
        """What runs here; its role; and the text that `use` must say again when the flow is written out."""
        given = [key for key in ROLES if key in self.node.value]
        if len(given) != 1:
            choice = "exactly one of use, map, filter and flat_map"
            self.report(f"a module has {choice}" + (f", not {' and '.join(given)}" if given else ""), "")
            return None, "module", None
        key = given[0]
        text = self.checker.check(self.node.value[key], str, f"{self.path}.{key}")
        if not isinstance(text, str) or self.node.value[key].broken:
            return None, "module", None
        role: Role = ROLES[key]
        try:
            if role != "module" or ":" in text:
                found = functions.find(text, self.folder)
                return found, role, None if functions.name_of(found) else text
            if text not in registry.kinds() and "." in text and (hint := self._as_function(text)):
                raise ConfigurationError(f"there is no kind of module {text!r}; a function is written {hint!r}")
            return registry.resolve(text), role, text
        except ConfigurationError as error:
            self.report(error.problems[0].message, key)
        except ImportError as error:
            self.report(f"the module {text!r} cannot be loaded: {error}", key)
        return None, role, None

    def _as_function(self, text: str) -> str:
        """`shop.enrich.add_owner` as `shop.enrich:add_owner`, if the folder has such a module."""
        module, _, name = text.rpartition(".")
        file = (self.folder or Path()) / Path(*module.split("."))
        return f"{module}:{name}" if file.with_suffix(".py").exists() else ""

    def options(self) -> Options | None:
        fields = option_fields()
        values: dict[str, Any] = {}
        before = len(self.checker.problems)
        for name, node in self.node.value.items():
            path = f"{self.path}.{name}"
            if name in MODULE_KEYS:
                continue
            if name not in fields:
                self.checker.report(self._unknown(str(name), fields), path, self.node.keys[name])
                continue
            found = len(self.checker.problems)
            given = self.checker.check(node, fields[name].type, path)
            if name == "key" and isinstance(given, str) and ":" in given:
                values[name] = self._key_function(given, path, node)
            elif not node.broken and len(self.checker.problems) == found:
                values[name] = given if name == "key" else convert_value(given, fields[name].type)
        for name, value in list(values.items()):
            try:
                Options(**{name: value})
            except ValueError as error:
                self.report(given_in(str(error), self.node.value[name]), name)
        return Options(**values) if len(self.checker.problems) == before else None

    def _unknown(self, name: str, fields: Mapping[str, Parameter]) -> str:
        hint = nearest(name, [*MODULE_KEYS, *fields])
        if not hint:
            hint = "; what the module itself takes stands under with:"
        return f"there is no option {name!r}{hint}"

    def _key_function(self, text: str, path: str, node: Node) -> Callable[[Any], Any] | None:
        try:
            found: Callable[[Any], Any] = functions.find(text, self.folder)
        except ConfigurationError as error:
            self.checker.report(error.problems[0].message, path, node.location)
            return None
        return found

    def ports(self, key: str) -> list[str]:
        given = self.checker.check(self.node.value[key], list[str], f"{self.path}.{key}")
        return given if isinstance(given, list) else []

    def names_given(self) -> dict[str, Any]:
        given = self.node.value.get("with")
        return dict.fromkeys(map(str, given.value)) if given is not None and given.is_mapping else {}

    def _with(self) -> Node | None:
        given: Node | None = self.node.value.get("with")
        if given is None or given.value is None or given.broken:
            return None
        if not given.is_mapping:
            self.report("expected a mapping of arguments", "with")
            return None
        return given

    def arguments(self, subject: Any, skip: int) -> dict[str, Any]:
        given = self._with()
        if not callable(subject):
            return given.plain() if given is not None else {}
        fields = {parameter.name: parameter for parameter in parameters(subject, skip=skip)}
        if given is None:
            given = Node({}, self.node.location)
        return self.checker.fields(given, fields, f"{self.path}.with", "argument", _takes_any(subject))

    def arguments_untyped(self) -> None:
        """There is nothing to check the arguments against; still say what YAML would misread in them."""
        given = self._with()
        if given is not None:
            self.checker.check(given, Any, f"{self.path}.with")


def _takes_any(subject: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(subject)
    except (TypeError, ValueError):
        return True  # some built-ins tell nothing
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
