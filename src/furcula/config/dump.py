"""A Flow becomes a flow file that loads as the same flow."""

from __future__ import annotations

import inspect
from pathlib import PurePath
from typing import Any

import msgspec
import yaml

from furcula.config import functions
from furcula.config.places import begins_lineages
from furcula.config.scalars import read_scalar
from furcula.config.secret import reference
from furcula.config.variables import escape
from furcula.errors import ConfigurationError, Problem
from furcula.flow import FlowGraph
from furcula.graph import Place, Route
from furcula.module import holds_secret, parameters
from furcula.options import Duration, Options, Retry, Secret, Size

__all__ = ["dump"]


def dump(flow: FlowGraph) -> str:
    """The flow as YAML. Functions are written as `package.module:name`, secrets as the variables they came from.

    Raises:
        ConfigurationError: Something in the flow cannot be named in a file: a lambda, a local function, a list that
            is a source. With every such thing.
    """
    problems: list[Problem] = []
    written: dict[str, Any] = {"flow": flow.name}
    written["modules"] = {name: _module(place, problems) for name, place in flow.places.items()}
    written["routes"] = [_route(route) for route in flow.routes]
    if flow.dead_letter is not None:
        written["dead_letter"] = flow.dead_letter
    if flow.ttl is not None:
        written["ttl"] = flow.ttl
    cluster = _struct(flow.cluster)
    if cluster:
        written["cluster"] = cluster
    exposed = {port[1:]: ".".join(end) for port, end in flow.exposed.items() if port.startswith(".")}
    if exposed:
        written["expose"] = exposed
    if problems:
        raise ConfigurationError(problems)
    text: str = yaml.dump(written, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _module(place: Place, problems: list[Problem]) -> dict[str, Any]:
    path = f"modules.{place.name}"

    def cannot(message: str, at: str = "") -> None:
        problems.append(Problem(message, at or path, place.location))

    key = place.role if place.role in ("map", "filter", "flat_map") else "use"
    name = place.use or functions.name_of(place.subject)
    if name is None:
        cannot(_why_nameless(place))
    elif place.role == "module" and not inspect.isclass(place.subject):
        reads_as_source = begins_lineages(place.subject, dict.fromkeys(place.arguments))
        if reads_as_source != place.is_source:
            cannot(f"in a file {name} would be {'a' if reads_as_source else 'no'} source")
    written: dict[str, Any] = {key: escape(name or "")}
    if place.arguments:
        kinds = {parameter.name: parameter.type for parameter in parameters(place.subject)}
        arguments = {}
        for argument, value in place.arguments.items():
            at = f"{path}.with.{argument}"
            if argument in kinds and holds_secret(kinds[argument]):
                value = place.bound.get(argument, value)  # converted: what is secret in it is a Secret
            try:
                arguments[argument] = _plain(value, at)
            except TypeError as error:
                cannot(str(error), at)
        written["with"] = arguments
    written.update(_options(place, cannot))
    derived = _derived_ports(place)
    if derived is None or place.inboxes != derived.inboxes:
        written["inboxes"] = list(place.inboxes)
    if place.outboxes is not None and (derived is None or place.outboxes != derived.outboxes):
        written["outboxes"] = list(place.outboxes)
    return written


def _why_nameless(place: Place) -> str:
    subject = place.subject
    name = getattr(subject, "__qualname__", "")
    if getattr(subject, "__module__", None) == "__main__":
        why = f"{name} is defined in the script that runs"
    elif "<lambda>" in name:
        why = "a lambda has no name"
    elif "<locals>" in name:
        why = f"{name} is defined inside a function"
    else:
        why = f"{type(subject).__name__} {name} cannot be found by import".replace("  ", " ")
    return f"{why}: a file can name only what stands at the top of an importable module"


def _derived_ports(place: Place) -> Place | None:
    """The place as a file would make it, without ports of its own."""
    try:
        return FlowGraph().put(
            place.subject, "x", source=place.is_source or None, role=place.role, arguments=place.arguments, location=""
        )
    except (ConfigurationError, TypeError):
        return None


def _options(place: Place, cannot: Any) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for field in msgspec.structs.fields(Options):
        value = getattr(place.options, field.name)
        if value == field.default:
            continue
        if field.name == "key" and not isinstance(value, str):
            value = functions.name_of(value)
            if value is None:
                cannot("the key is a function that a file cannot name", f"modules.{place.name}.key")
        written[field.name] = _struct(value) if isinstance(value, msgspec.Struct) else _plain(value, field.name)
    return written


def _struct(value: msgspec.Struct) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for field in msgspec.structs.fields(value):
        part = getattr(value, field.name)
        if part == field.default:
            continue
        if isinstance(value, Retry) and field.name == "errors":
            part = [kind.__name__ if kind.__module__ == "builtins" else functions.name_of(kind) for kind in part]
        written[field.encode_name] = _struct(part) if isinstance(part, msgspec.Struct) else _plain(part, field.name)
    return written


def _plain(value: Any, path: str) -> Any:
    """A value as YAML can say it."""
    if isinstance(value, Secret):
        return reference(value, path)
    if isinstance(value, str):
        return escape(str(value))
    if isinstance(value, Duration):
        return _duration(value)
    if isinstance(value, Size):
        return int(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, PurePath):
        return escape(str(value))
    if isinstance(value, dict):
        return {_plain(key, path): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, msgspec.Struct):
        # Part by part: msgspec would take a Secret for the str that it is.
        parts = {field.encode_name: (getattr(value, field.name), field) for field in msgspec.structs.fields(value)}
        return {name: _plain(part, f"{path}.{name}") for name, (part, field) in parts.items() if part != field.default}
    raise TypeError(f"{type(value).__name__} cannot be written in YAML")


def _duration(value: float) -> str:
    if value and value < 1 and (value * 1000).is_integer():
        return f"{int(value * 1000)}ms"
    return f"{int(value) if value.is_integer() else float(value)!r}s"


def _route(route: Route) -> Any:
    written: dict[str, Any] = {}
    if route.branch != "required":
        written["branch"] = route.branch
    for name in ("queue", "overflow", "ttl"):
        if getattr(route, name) is not None:
            written[name] = getattr(route, name)
    if not written:
        return str(route)
    source, _, target = str(route).partition(" -> ")
    return {"from": source, "to": target, **written}


class _Dumper(yaml.SafeDumper):
    """Quotes every string that a reader of either YAML could take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    scalar = read_scalar(text)
    if scalar.trap or not isinstance(scalar.value, str):
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text)


_Dumper.add_representer(str, _quoted)
