"""Values of a file checked against Python types, so that every wrong one is reported, with its place.

msgspec converts, and stops at the first thing that is wrong. So the tree is walked along the type: structs field by
field, lists item by item; msgspec is asked about the leaves. What comes back are plain values, as the file gives them,
except that strings filled in from `${VAR}` have become the numbers or booleans that were asked for, and secrets have
become `Secret`.
"""

from __future__ import annotations

import collections.abc
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from furcula.config.nodes import Node, join_path
from furcula.config.secret import is_secret, secret_of
from furcula.errors import Problem, nearest
from furcula.module import Parameter
from furcula.options import Duration, Secret, Size, convert_value

__all__ = ["Checker", "given_in"]

_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_WORDS = {
    "int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false", "array": "a list",
    "object": "a mapping", "null": "nothing", "bytes": "bytes",
}  # fmt: skip


class Checker:
    """Checks nodes against types; what is wrong is added to `problems`."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems

    def report(self, message: str, path: str, location: str) -> None:
        self.problems.append(Problem(message, path, location))

    def fields(
        self, node: Node, fields: Mapping[str, Parameter], path: str, noun: str, open_ended: bool = False
    ) -> dict[str, Any]:
        """Check a mapping of named fields: each value, unknown names, and missing ones.

        Args:
            node: A mapping.
            fields: What may stand there.
            path: Where it stands.
            noun: What one of them is called in messages.
            open_ended: Take other names as well.
        """
        given: dict[str, Any] = {}
        for name, value in node.value.items():
            field = fields.get(name)
            if field is not None:
                given[name] = self.check(value, field.type, join_path(path, name))
            elif open_ended:
                given[str(name)] = self.check(value, Any, join_path(path, name))
            else:
                hint = nearest(name, fields) or ("; " + ("known: " + ", ".join(fields) if fields else "it takes none"))
                self.report(f"there is no {noun} {str(name)!r}{hint}", join_path(path, name), node.keys[name])
        for name, field in fields.items():
            if field.required and name not in node.value:
                self.report(f"the {noun} {name!r} is missing", path, node.location)
        return given

    def check(self, node: Node, kind: Any, path: str) -> Any:
        """Check a value against a type; return it in plain form."""
        if node.broken:
            return node.plain()
        if typing.get_origin(kind) is typing.Annotated and is_secret(typing.get_args(kind)[0]):
            kind = typing.get_args(kind)[0]
        members = _members(kind)
        if node.value is None and type(None) in members:
            return None
        members = [member for member in members if member is not type(None)]
        if len(members) > 1:
            return self._one_of(node, members, path)
        return self._check_one(node, members[0] if members else type(None), path)

    def _check_one(self, node: Node, kind: Any, path: str) -> Any:
        origin = typing.get_origin(kind) or kind
        arguments = typing.get_args(kind)
        if kind in (Any, object) or isinstance(kind, typing.TypeVar):
            return self._anything(node, path)
        if is_secret(kind):
            return self._secret(node, path)
        if node.is_mapping and isinstance(origin, type) and issubclass(origin, msgspec.Struct):
            return self._struct(node, origin, path)
        if node.is_list and origin in _LISTS:
            if origin is tuple and arguments[1:] != (...,) and arguments:
                return self._leaf(node, kind, path)
            item = arguments[0] if arguments else Any
            return [self.check(value, item, f"{path}[{index}]") for index, value in enumerate(node.value)]
        if node.is_mapping and origin in _MAPPINGS:
            value_kind = arguments[1] if len(arguments) == 2 else Any
            return {key: self.check(value, value_kind, join_path(path, key)) for key, value in node.value.items()}
        return self._leaf(node, kind, path)

    def _one_of(self, node: Node, members: list[Any], path: str) -> Any:
        """A union: the first member that takes the value; where one only has the right shape, its problems."""
        attempts = []
        for member in members:
            trial = Checker([])
            value = trial._check_one(node, member, path)
            if not trial.problems:
                return value
            attempts.append(trial.problems)
        deepest = max(attempts, key=lambda found: max(len(problem.path) for problem in found))
        if any(problem.path != path for problem in deepest):
            self.problems += deepest
            return node.plain()
        if any(is_secret(member) for member in members):
            return self._secret(node, path)
        if all(_type_word(member) for member in members):
            expected = " or ".join(dict.fromkeys(_type_word(member) for member in members))
            self.report(f"expected {expected} (given {_shown(node)}){_quoting(node, members)}", path, node.location)
        else:
            self.problems += deepest
        return node.plain()

    def _anything(self, node: Node, path: str) -> Any:
        for below, leaf in node.leaves(path):
            if leaf.trap:
                self.report(leaf.trap, below, leaf.location)
        return node.plain()

    def _secret(self, node: Node, path: str) -> Any:
        if isinstance(node.value, str):
            return secret_of(node)
        self.report("a secret is a string: write it in quotes (its value is not shown)", path, node.location)
        return Secret("")

    def _struct(self, node: Node, kind: type[msgspec.Struct], path: str) -> Any:
        before = len(self.problems)
        given = self.fields(node, _struct_fields(kind), path, "field", bool(kind.__struct_config__.tag))
        self._check_values(node, kind, given, path, [problem.path for problem in self.problems[before:]])
        return given

    def _check_values(
        self, node: Node, kind: type[msgspec.Struct], given: dict[str, Any], path: str, reported: list[str]
    ) -> None:
        """Rules of the struct itself: whatever its `__post_init__` refuses, field by field where that can be told."""
        blamed = bool(reported)
        for name, value in given.items():
            below = join_path(path, name)
            if node.value[name].broken or any(f"{known}.".startswith(f"{below}.") for known in reported):
                continue
            try:
                convert_value({name: value}, kind)
            except (ValueError, TypeError) as error:
                if "missing required field" not in str(error):
                    blamed = True
                    self.report(given_in(_plain_message(error), node.value[name]), below, node.value[name].location)
        if not blamed:
            try:
                convert_value(given, kind)
            except (ValueError, TypeError) as error:
                self.report(_plain_message(error), path, node.location)

    def _leaf(self, node: Node, kind: Any, path: str) -> Any:
        plain = node.plain()
        if node.trap and kind is not bool:
            expected = f"expected {_type_word(kind)}: " if _type_word(kind) and kind is not str else ""
            self.report(expected + node.trap, path, node.location)
            return plain
        if node.variable and kind in (int, float, bool):
            try:
                return msgspec.convert(plain, kind, strict=False)
            except ValueError:
                pass  # reported below, in the strict form's words
        if typing.get_origin(kind) is Literal:
            self._literal(node, typing.get_args(kind), path)
            return plain
        try:
            convert_value(plain, kind)
        except ValueError as error:
            self._report_leaf(node, kind, path, error)
        except TypeError:
            pass  # a type that msgspec does not know: whoever declared it checks it
        return plain

    def _literal(self, node: Node, allowed: tuple[Any, ...], path: str) -> None:
        if node.is_mapping or node.is_list or node.value not in allowed:
            hint = nearest(str(node.value), map(str, allowed))
            choice = ", ".join(str(one) for one in allowed)
            expected = f"expected one of {choice}" if len(allowed) > 1 else f"expected {choice}"
            self.report(f"{expected} (given {_shown(node)}){hint}", path, node.location)

    def _report_leaf(self, node: Node, kind: Any, path: str, error: ValueError) -> None:
        message, _, below = str(error).partition(" - at `$")
        message = _plain_message(ValueError(message))
        message = given_in(message, node) + _quoting(node, [kind])
        self.report(message, path + below.rstrip("`"), node.location)


def _members(kind: Any) -> list[Any]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return list(typing.get_args(kind))
    return [kind]


def _struct_fields(kind: type[msgspec.Struct]) -> dict[str, Parameter]:
    return {
        field.encode_name: Parameter(field.name, field.type, None, field.required)
        for field in msgspec.structs.fields(kind)
    }


def _type_word(kind: Any) -> str:
    if kind in (int, float, str, bool, bytes):
        return _WORDS[kind.__name__]
    if kind is Duration:
        return "a duration"
    if kind is Size:
        return "a size"
    if is_secret(kind):
        return "a string"
    origin = typing.get_origin(kind) or kind
    if origin in _LISTS:
        return "a list"
    if origin in _MAPPINGS or (isinstance(origin, type) and issubclass(origin, msgspec.Struct)):
        return "a mapping"
    if origin is collections.abc.Callable or origin is Callable:
        return "a function (package.module:name)"
    return ""


def _plain_message(error: Exception) -> str:
    """msgspec's message in the words of a flow file."""
    message = str(error).partition(" - at `$")[0]
    message = re.sub(r"`(\w+)`", lambda found: _WORDS.get(found[1], f"`{found[1]}`"), message)
    return message[:1].lower() + message[1:].replace(", got ", ", not ")


def _shown(node: Node) -> str:
    shown = repr(node.text or node.plain()) if node.is_mapping or node.is_list or not node.text else node.text
    return shown if len(shown) <= 60 else shown[:57] + "..."


def given_in(message: str, node: Node) -> str:
    """The message with the value that was given, unless it has it already."""
    named = any(isinstance(leaf.value, str) and repr(leaf.value) in message for _, leaf in node.leaves())
    return message if named else f"{message} (given {_shown(node)})"


def _quoting(node: Node, kinds: list[Any]) -> str:
    if str in kinds and node.text and not isinstance(node.value, str) and not node.trap:
        return f": write '{node.text}' in quotes"
    return ""
