"""The JSON Schema of flow files, made from the code: for editors that complete and check while one types."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Literal

import msgspec

from furcula import registry
from furcula.config.places import ROLES, option_fields
from furcula.config.routes import ROUTE_FIELDS
from furcula.module import Parameter, argument_docs, parameters
from furcula.options import Cluster, Duration, Options, Secret, Size

__all__ = ["schema"]

#: A string with a variable in it may stand for a number or a boolean.
_VARIABLE = {"type": "string", "pattern": r"\$\{"}
_DURATION = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(ms|s|m|min|h|d)?\s*$"}
_SIZE = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgG]?[bB]?|[kKmMgG]i[bB])\s*$"}
_FUNCTION = {"type": "string", "pattern": r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"}
_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"anyOf": [{"type": "boolean"}, _VARIABLE]},
    int: {"anyOf": [{"type": "integer"}, _VARIABLE]},
    float: {"anyOf": [{"type": "number"}, _VARIABLE]},
    str: {"type": "string"},
    bytes: {"type": "string"},
    type(None): {"type": "null"},
    Duration: {"anyOf": [{"type": "number", "minimum": 0}, _DURATION, _VARIABLE]},
    Size: {"anyOf": [{"type": "integer", "minimum": 0}, _SIZE, _VARIABLE]},
    Secret: {"type": "string", "writeOnly": True},
}
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a flow file, with the kinds that are installed here."""
    name = {"type": "string"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A furcula flow",
        "type": "object",
        "required": ["modules"],
        "additionalProperties": False,
        "properties": {
            "flow": {**name, "description": "The flow's name, for logs and statistics."},
            "modules": {
                "type": "object",
                "description": "The modules by name; without routes they form a chain in this order.",
                "minProperties": 1,
                "additionalProperties": {"anyOf": [_use(), _module()]},
            },
            "routes": {"type": "array", "items": {"anyOf": [_arrows(), _fields(ROUTE_FIELDS.values())]}},
            "dead_letter": {**name, "description": "The module that gets failures which no `failed` route catches."},
            "ttl": {"type": "integer", "minimum": 1, "description": "Turns an event may make in any cycle."},
            "cluster": {
                **_type(Cluster),
                "description": "How stages are joined by JetStream, where they run with --cluster.",
            },
            "expose": {
                "type": "object",
                "description": "Ports of this flow where it is used inside another.",
                "additionalProperties": name,
            },
        },
    }


def _arrows() -> dict[str, Any]:
    return {"type": "string", "pattern": "->", "description": "a -> b.side -> c, or a.failed, b.failed -> dead"}


def _use() -> dict[str, Any]:
    return {
        "description": "A kind of module, a function (package.module:name), or another flow file.",
        "anyOf": [
            {"enum": sorted(registry.kinds())},
            _FUNCTION,
            {"type": "string", "pattern": r"\.ya?ml$"},
            _VARIABLE,
        ],
    }


def _module() -> dict[str, Any]:
    docs = argument_docs(Options)
    options = {name: _described(option, docs.get(name, ""), default=True) for name, option in option_fields().items()}
    ports = {"type": "array", "items": {"type": "string"}, "description": "Names, where the function has several."}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "use": _use(),
            **{role: _FUNCTION for role in ROLES if role != "use"},
            "with": {"type": "object", "description": "What the module itself takes."},
            "inboxes": ports,
            "outboxes": ports,
            **options,
        },
        "oneOf": [{"required": [role]} for role in ROLES],
        "allOf": [_arguments(kind) for kind in sorted(registry.kinds())],
    }


def _arguments(kind: str) -> dict[str, Any]:
    """What `with` takes where a module is of this kind."""
    when = {"properties": {"use": {"const": kind}}, "required": ["use"]}
    try:
        factory = registry.resolve(kind)
        found = parameters(factory, skip=0 if isinstance(factory, type) else 1)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    except Exception:  # a kind whose library is not installed: nothing is known about its arguments
        return {"if": when, "then": {}}
    then: dict[str, Any] = {"properties": {"with": _fields(found, open_ended)}}
    if any(parameter.required for parameter in found):
        then["required"] = ["with"]
    return {"if": when, "then": then}


def _fields(fields: Iterable[Parameter], open_ended: bool = False) -> dict[str, Any]:
    fields = list(fields)
    written: dict[str, Any] = {
        "type": "object",
        "additionalProperties": open_ended,
        "properties": {field.name: _described(field, field.doc) for field in fields},
    }
    required = [field.name for field in fields if field.required]
    return {**written, "required": required} if required else written


def _described(field: Parameter, doc: str, default: bool = False) -> dict[str, Any]:
    written = dict(_type(field.type))
    if doc:
        written["description"] = doc
    if default and isinstance(field.default, bool | int | float | str):
        written["default"] = field.default
    return written


def _type(kind: Any) -> dict[str, Any]:
    """The schema of one Python type; an empty one (anything) where the type says more than a schema can."""
    for simple, written in _SIMPLE.items():
        if kind is simple:
            return written
    origin, arguments = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(member) for member in arguments]}
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is collections.abc.Callable:
        return _FUNCTION
    if origin in _LISTS:
        return {"type": "array", "items": _type(arguments[0]) if arguments else {}}
    if origin in _MAPPINGS:
        return {"type": "object", "additionalProperties": _type(arguments[1]) if len(arguments) == 2 else True}
    if isinstance(origin, type) and issubclass(origin, msgspec.Struct):
        docs = argument_docs(origin)
        return _fields(
            Parameter(field.encode_name, field.type, field.default, field.required, docs.get(field.name, ""))
            for field in msgspec.structs.fields(origin)
        )
    if isinstance(origin, type) and issubclass(origin, PurePath | str):
        return {"type": "string"}
    return {}
