"""Conditions: what holds for an event, what does not, and what is no condition at all."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furcula.event import Event
from furcula.where import MEANT, OPERATORS, Where

EVENT = Event(
    {
        "severity": "err",
        "size": 12,
        "ok": True,
        "none": None,
        "items": [{"price": 3}, {"price": 5}],
        "user": {"name": "Ada", "roles": ["admin", "dev"]},
    },
    {"host": "web-1"},
    tags=frozenset(("urgent",)),
)


@pytest.mark.parametrize(
    "spec",
    [
        {"where": "data.severity", "eq": "err"},
        {"where": "data.severity", "ne": "info"},
        {"where": "data.severity", "in": ["err", "crit"]},
        {"where": "data.severity", "not_in": ["info"]},
        {"where": "data.severity", "matches": "^e"},
        {"where": "data.severity", "matches": "r"},
        {"where": "data.severity", "contains": "rr"},
        {"where": "data.severity", "starts_with": "er"},
        {"where": "data.severity", "starts_with": ["x", "er"]},
        {"where": "data.severity", "ends_with": "rr"},
        {"where": "data.severity", "lt": "f"},
        {"where": "data.size", "eq": 12},
        {"where": "data.size", "eq": 12.0},
        {"where": "data.size", "in": [11, 12]},
        {"where": "data.size", "lt": 13},
        {"where": "data.size", "le": 12},
        {"where": "data.size", "gt": 11},
        {"where": "data.size", "ge": 12, "lt": 13},
        {"where": "data.ok", "eq": True},
        {"where": "data.none", "is_null": True},
        {"where": "data.none", "exists": True},
        {"where": "data.size", "is_null": False},
        {"where": "data.items.1.price", "eq": 5},
        {"where": "data.user", "contains": "name"},
        {"where": "data.user", "eq": {"name": "Ada", "roles": ["admin", "dev"]}},
        {"where": "data.user.roles", "contains": "admin"},
        {"where": "headers.host", "starts_with": "web-"},
        {"where": "tags", "contains": "urgent"},
        {"where": "data", "contains": "size"},
        {"expr": "data.size > `3`"},
        {"expr": "length(data.items) == `2` && headers.host == 'web-1'"},
        {"expr": "data.items[?price > `4`]"},
        {"expr": "contains(tags, 'urgent')"},
        "expr: data.size > `3`",
        {"not": {"where": "data.size", "gt": 100}},
        {"all": [{"where": "data.size", "gt": 1}, {"where": "data.severity", "eq": "err"}]},
        {"any": [{"where": "data.size", "gt": 100}, {"where": "data.severity", "eq": "err"}]},
        {"where": "data.size", "gt": 1, "not": {"where": "data.severity", "eq": "info"}},
    ],
)
def test_it_holds(spec: Any) -> None:
    assert Where.of(spec)(EVENT) is True


@pytest.mark.parametrize(
    "spec",
    [
        {"where": "data.severity", "eq": "info"},
        {"where": "data.severity", "ne": "err"},
        {"where": "data.severity", "not_in": ["err"]},
        {"where": "data.severity", "exists": False},
        {"where": "data.size", "ge": 12, "lt": 12},
        {"where": "data.none", "is_null": False},
        {"where": "tags", "contains": "calm"},
        {"expr": "data.size < `3`"},
        {"expr": "data.nothing"},
        {"expr": "data.items[?price > `9`]"},
        {"not": {"where": "data.size", "gt": 1}},
        {"all": [{"where": "data.size", "gt": 1}, {"where": "data.severity", "eq": "info"}]},
        {"any": [{"where": "data.size", "gt": 100}, {"where": "data.severity", "eq": "info"}]},
    ],
)
def test_it_does_not_hold(spec: Any) -> None:
    assert Where.of(spec)(EVENT) is False


OPERANDS: dict[str, Any] = {
    "in": [1], "not_in": [1], "matches": "x", "contains": 1, "exists": True, "is_null": True, "starts_with": "x",
    "ends_with": "x",
}  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("path", ["data.nothing", "data.severity.deeper", "headers.nothing", "data.items.9"])
def test_what_is_missing_satisfies_only_ne_and_not_in(operator: str, path: str) -> None:
    spec = {"where": path, operator: OPERANDS.get(operator, 1)}
    assert Where.of(spec)(EVENT) is (operator in ("ne", "not_in"))


def test_what_is_missing_does_not_exist_and_is_not_null_either() -> None:
    assert Where.of({"where": "data.nothing", "exists": False})(EVENT)
    assert not Where.of({"where": "data.nothing", "is_null": False})(EVENT)


@pytest.mark.parametrize(
    "spec",
    [
        {"where": "data.severity", "gt": 3},
        {"where": "data.size", "lt": "13"},
        {"where": "data.none", "lt": 3},
        {"where": "data.user", "ge": 3},
        {"where": "data.ok", "gt": 0},
        {"where": "data.size", "matches": "1"},
        {"where": "data.size", "contains": 1},
        {"where": "data.size", "starts_with": "1"},
        {"where": "data.user", "in": ["x"]},
        {"where": "data.user", "in": [1, "x"]},
        {"expr": "length(data.size) > `1`"},
    ],
)
def test_values_that_cannot_be_compared_do_not_match_and_do_not_raise(spec: Any) -> None:
    assert Where.of(spec)(EVENT) is False


@pytest.mark.parametrize(
    ("said", "meant"),
    [("is", "eq"), ("equals", "eq"), ("==", "eq"), ("!=", "ne"), (">=", "ge"), ("regex", "matches"), ("eqq", "eq")],
)
def test_an_operator_by_another_name_is_refused_with_ours(said: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"^a condition has no '{re.escape(said)}', did you mean '{meant}'\?$"):
        Where.of({"where": "data.size", said: 4})


def test_every_name_that_is_meant_is_one_of_ours() -> None:
    ours = {"where", "expr", "not", "all", "any", *OPERATORS}
    assert set(MEANT.values()) <= ours
    assert not set(MEANT) & ours


def test_true_and_1_are_different_values() -> None:
    assert not Where.of({"where": "data.ok", "eq": 1})(EVENT)
    assert not Where.of({"where": "data.ok", "in": [1, 2]})(EVENT)
    assert not Where.of({"where": "data", "eq": True})(Event(1))
    assert Where.of({"where": "data", "in": [1, True]})(Event(True))


def test_data_that_is_no_dict_is_reached_too() -> None:
    assert Where.of({"where": "data", "matches": "disk full"})(Event("the disk full again"))
    assert not Where.of({"where": "data.severity", "eq": "err"})(Event("text"))
    assert Where.of({"where": "data.0", "eq": 7})(Event([7]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"where": "data.x", "xyzzy": 1}, "no 'xyzzy'; it has where, expr"),
        ({"where": "data.x", "start_with": "a"}, "did you mean 'starts_with'"),
        ({"were": "data.x", "eq": 1}, "did you mean 'where'"),
        ({"where": "data.x"}, "what of 'data.x'"),
        ({"eq": 1}, "needs 'where'"),
        ({"where": "date.x", "eq": 1}, "a path begins with one of"),
        ({"where": 5, "eq": 1}, "dotted path"),
        ({"where": "data.x", "in": "err"}, "take a list"),
        ({"where": "data.x", "matches": "("}, "not a regular expression"),
        ({"where": "data.x", "exists": "yes"}, "true or false"),
        ({"where": "data.x", "gt": [1]}, "a number or a string"),
        ({"where": "data.x", "starts_with": 1}, "a string or a list"),
        ({"expr": "data.x >"}, "is not JMESPath"),
        ({"expr": "lenght(data.x)"}, "did you mean 'length'"),
        ({"expr": "data.items[?starts_wth(name, 'x')]"}, "did you mean 'starts_with'"),
        ({"expr": 5}, "takes a JMESPath expression"),
        ({"any": []}, "takes a list"),
        ({"not": "x"}, "a condition is written"),
        ({}, "empty"),
        ("data.x", "a condition is written"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_nearest_right_name(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Where.of(spec)


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers())


@given(values | st.dictionaries(st.sampled_from("xy"), values), values, st.sampled_from(list(OPERATORS)))
def test_a_condition_that_compiles_always_answers_and_not_turns_it_round(
    data: Any, operand: Any, operator: str
) -> None:
    spec = {"where": "data.x", operator: operand}
    try:
        where = Where.of(spec)
    except ValueError:
        return
    answer = where(Event(data))
    assert answer in (True, False)
    assert Where.of({"not": spec})(Event(data)) is not answer
