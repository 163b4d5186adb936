"""Conditions on events: one small language for match, switch, tap and breakpoints.

A condition is a dotted path with operators, or `expr:` in JMESPath; `not`, `all` and `any` combine conditions:

    {where: data.severity, in: [err, crit]}
    {where: data.size, ge: 10, lt: 100}
    {expr: "length(data.items) > `3`"}
    {any: [{where: tags, contains: urgent}, {not: {where: headers.host, starts_with: "test-"}}]}

Everything said in one condition must hold. A condition is a question and always has an answer: where nothing stands at
the path, or a value cannot be compared with what is asked (a word with a number), the answer is no; only `ne`, `not_in`
and `exists: false` say yes to what is not there. `true` and `1` are different values, as they are in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jmespath
import jmespath.exceptions
import jmespath.functions

from furcula.errors import nearest
from furcula.event import Event

__all__ = ["MEANT", "OPERATORS", "Where"]

#: What a path leads to where there is nothing. (`Event.get` takes MISSING for "no default was given" and raises.)
NOTHING: Final = object()

Test = Callable[[Event[Any]], bool]
Check = Callable[[Any], bool]
Reach = Callable[[Event[Any]], Any]


class Where:
    """A condition, compiled. Call it with an event.

    Attributes:
        spec: The condition as it was written.
    """

    __slots__ = ("spec", "test")

    def __init__(self, spec: Any, test: Test):
        self.spec = spec
        #: The condition as a bare function, for the hot path.
        self.test = test

    def __call__(self, event: Event[Any]) -> bool:
        return self.test(event)

    def __repr__(self) -> str:
        return f"Where({self.spec!r})"

    @classmethod
    def of(cls, spec: Any) -> Where:
        """Compile a condition.

        Args:
            spec: A mapping as shown above, a string `"expr: …"`, or a Where.

        Raises:
            ValueError: It is no condition; the message says what is wrong, with the nearest valid name.
        """
        if isinstance(spec, Where):
            return spec
        if isinstance(spec, str) and spec.startswith("expr:"):
            spec = {"expr": spec.removeprefix("expr:").strip()}
        if not isinstance(spec, Mapping):
            raise ValueError(f"a condition is written {{where: data.x, eq: 1}} or {{expr: …}}, not {spec!r}")
        return cls(spec, _compile(spec))


_COMBINING = ("where", "expr", "not", "all", "any")
#: What other languages call an operator, too far from our name for it to be found by its letters.
MEANT: Final = {
    "is": "eq", "equals": "eq", "equal": "eq", "==": "eq", "=": "eq",
    "is_not": "ne", "not_equal": "ne", "not_equals": "ne", "!=": "ne", "<>": "ne",
    "<": "lt", "<=": "le", "lte": "le", ">": "gt", ">=": "ge", "gte": "ge",
    "one_of": "in", "is_in": "in", "not in": "not_in", "none_of": "not_in",
    "regex": "matches", "regexp": "matches", "re": "matches", "~": "matches", "=~": "matches",
    "includes": "contains", "has": "contains", "prefix": "starts_with", "suffix": "ends_with",
    "present": "exists", "null": "is_null", "and": "all", "or": "any", "path": "where", "field": "where",
}  # fmt: skip


def _compile(spec: Mapping[str, Any]) -> Test:
    tests: list[Test] = []
    operators = {name: value for name, value in spec.items() if name not in _COMBINING}
    for name in operators:
        if name not in OPERATORS:
            known = (*_COMBINING, *OPERATORS)
            meant = f", did you mean {MEANT[name]!r}?" if name in MEANT else nearest(str(name), known)
            raise ValueError(f"a condition has no {name!r}{meant or '; it has ' + ', '.join(known)}")
    if "where" in spec:
        if not operators:
            raise ValueError(f"what of {spec['where']!r}? say one of {', '.join(OPERATORS)}")
        tests += [_plain(spec["where"], name, value) for name, value in operators.items()]
    elif operators:
        raise ValueError(f"{next(iter(operators))!r} needs 'where': a dotted path")
    if "expr" in spec:
        tests.append(_expression(spec["expr"]))
    if "not" in spec:
        inner = Where.of(spec["not"]).test
        tests.append(lambda event: not inner(event))
    if "all" in spec:
        tests.append(_all(_several("all", spec["all"])))
    if "any" in spec:
        some = _several("any", spec["any"])
        tests.append(lambda event: any(test(event) for test in some))
    if not tests:
        raise ValueError("the condition is empty")
    return tests[0] if len(tests) == 1 else _all(tests)


def _all(tests: list[Test]) -> Test:
    return lambda event: all(test(event) for test in tests)


def _several(name: str, specs: Any) -> list[Test]:
    if not isinstance(specs, list | tuple) or not specs:
        raise ValueError(f"{name!r} takes a list of conditions")
    return [Where.of(spec).test for spec in specs]


# ------------------------------------------------------------------ paths and operators


def _plain(path: Any, operator: str, operand: Any) -> Test:
    reach = _reach(path)
    check = OPERATORS[operator](operand)
    if operator in ("ne", "not_in"):
        return lambda event: not check(reach(event))  # what is missing is neither equal nor in anything
    if type(operand) is str and operator == "eq" and path.startswith("data.") and path.count(".") == 1:
        return _field_is(path.removeprefix("data."), operand, reach)
    return lambda event: check(reach(event))


def _field_is(name: str, word: str, reach: Reach) -> Test:
    """The commonest condition of all, a word in a field of the data, without a call for each part of it."""

    def test(event: Event[Any]) -> bool:
        data = event.data
        return bool((data.get(name) if type(data) is dict else reach(event)) == word)

    return test


def _reach(path: Any) -> Reach:
    """A function from an event to what stands at `path`, or to NOTHING."""
    if not isinstance(path, str) or not path:
        raise ValueError(f"'where' takes a dotted path such as data.severity, not {path!r}")
    try:
        Event().has(path)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    root, *rest = path.split(".")
    if root == "data" and len(rest) == 1:
        name = rest[0]

        def field(event: Event[Any]) -> Any:
            data = event.data
            return data.get(name, NOTHING) if type(data) is dict else event.get(path, NOTHING)

        return field
    if root == "headers" and len(rest) == 1:
        name = rest[0]
        return lambda event: event.headers.get(name, NOTHING)
    return lambda event: event.get(path, NOTHING)


def _equal(operand: Any) -> Check:
    if isinstance(operand, bool | int | float):
        # Python takes True for 1. JSON and whoever reads the condition do not.
        is_bool = isinstance(operand, bool)
        return lambda value: value == operand and isinstance(value, bool) is is_bool
    return lambda value: bool(value == operand)


def _in(operand: Any) -> Check:
    if not isinstance(operand, list | tuple | set | frozenset):
        raise ValueError(f"'in' and 'not_in' take a list, not {operand!r}")
    if all(type(item) is str for item in operand):
        words = frozenset(operand)
        return lambda value: type(value) is str and value in words
    checks = [_equal(item) for item in operand]
    return lambda value: any(check(value) for check in checks)


def _order(name: str, compare: Callable[[Any, Any], Any]) -> Callable[[Any], Check]:
    def with_operand(operand: Any) -> Check:
        if operand is None or isinstance(operand, bool | list | tuple | Mapping):
            raise ValueError(f"{name!r} takes a number or a string, not {operand!r}")

        def check(value: Any) -> bool:
            if value is NOTHING or isinstance(value, bool):
                return False
            try:
                return bool(compare(value, operand))
            except TypeError:
                return False

        return check

    return with_operand


def _matches(operand: Any) -> Check:
    try:
        search = re.compile(operand).search
    except (re.error, TypeError) as error:
        raise ValueError(f"{operand!r} is not a regular expression: {error}") from None
    if isinstance(operand, bytes):
        return lambda value: isinstance(value, bytes) and search(value) is not None
    return lambda value: isinstance(value, str) and search(value) is not None


def _contains(operand: Any) -> Check:
    equal = _equal(operand)

    def check(value: Any) -> bool:
        if isinstance(value, str):
            return isinstance(operand, str) and operand in value
        if isinstance(value, list | tuple | set | frozenset | Mapping):
            return any(equal(item) for item in value)
        return False

    return check


def _affix(name: str, method: Callable[[str, Any], bool]) -> Callable[[Any], Check]:
    def with_operand(operand: Any) -> Check:
        wanted = tuple(operand) if isinstance(operand, list | tuple) else (operand,)
        if not wanted or not all(isinstance(word, str) for word in wanted):
            raise ValueError(f"{name!r} takes a string or a list of strings, not {operand!r}")
        return lambda value: isinstance(value, str) and method(value, wanted)

    return with_operand


def _exists(operand: Any) -> Check:
    _check_flag("exists", operand)
    return lambda value: (value is not NOTHING) is operand


def _is_null(operand: Any) -> Check:
    _check_flag("is_null", operand)
    return lambda value: value is not NOTHING and (value is None) is operand


def _check_flag(name: str, operand: Any) -> None:
    if not isinstance(operand, bool):
        raise ValueError(f"{name!r} takes true or false, not {operand!r}")


#: name -> what makes a check of the value from the operand. `ne` and `not_in` are turned round in `_plain`.
OPERATORS: dict[str, Callable[[Any], Check]] = {
    "eq": _equal,
    "ne": _equal,
    "lt": _order("lt", lambda value, operand: value < operand),
    "le": _order("le", lambda value, operand: value <= operand),
    "gt": _order("gt", lambda value, operand: value > operand),
    "ge": _order("ge", lambda value, operand: value >= operand),
    "in": _in,
    "not_in": _in,
    "matches": _matches,
    "contains": _contains,
    "starts_with": _affix("starts_with", str.startswith),
    "ends_with": _affix("ends_with", str.endswith),
    "exists": _exists,
    "is_null": _is_null,
}


# ------------------------------------------------------------------ JMESPath


def _expression(text: Any) -> Test:
    if not isinstance(text, str):
        raise ValueError(f"'expr' takes a JMESPath expression, not {text!r}")
    try:
        compiled = jmespath.compile(text)
    except jmespath.exceptions.JMESPathError as error:
        raise ValueError(f"{text!r} is not JMESPath: {str(error).splitlines()[0]}") from None
    _check_functions(compiled.parsed, text)

    def test(event: Event[Any]) -> bool:
        seen = {"data": event.data, "headers": event.headers, "tags": sorted(event.tags)}
        try:
            return _true(compiled.search(seen))
        except jmespath.exceptions.JMESPathTypeError:  # a function was given what it cannot take: no
            return False

    return test


def _check_functions(tree: Any, text: str) -> None:
    """JMESPath itself would notice an unknown function only at the first event that comes to it."""
    pending = [tree]
    while pending:
        part = pending.pop()
        if not isinstance(part, dict):
            continue
        known = jmespath.functions.Functions.FUNCTION_TABLE
        if part.get("type") == "function_expression" and part["value"] not in known:
            raise ValueError(f"{text!r}: JMESPath has no function {part['value']!r}{nearest(part['value'], known)}")
        pending += part.get("children", ())


def _true(value: Any) -> bool:
    """Truth as JMESPath has it: null, false and what is empty are not true; 0 is."""
    return value is not None and value is not False and value not in ("", [], {})
