"""`${VAR}` fills in strings of a file that is parsed already."""

from __future__ import annotations

import pytest

from furcula.config import loads

FILE = "modules:\n  n: shop:numbers\n  a: {use: 'shop:label', with: {text: \"%s\"}}\n"


def text_of(folder, text, **environment):
    return loads(FILE % text, folder=folder, environment=environment)["a"].bound["text"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("${A}", "1"),
        ("a ${A} b ${B}", "a 1 b two"),
        ("${C:-three}", "three"),
        ("${EMPTY:-three}", "three"),
        ("${EMPTY}", ""),
        ("${A:-three}", "1"),
        ("${C:-}", ""),
        ("$${A}", "${A}"),
        ("$A and $", "$A and $"),
    ],
)
def test_a_variable_is_filled_in(folder, written, read):
    assert text_of(folder, written, A="1", B="two", EMPTY="") == read


def test_a_variable_cannot_bring_in_structure(folder):
    evil = "x}, retry: {attempts: 9}, with: {text: y\n  b: shop:sink"
    flow = loads(FILE % "${EVIL}", folder=folder, environment={"EVIL": evil})
    assert flow["a"].bound["text"] == evil
    assert list(flow.places) == ["n", "a"]
    assert flow["a"].options.retry is None


def test_a_variable_in_a_variable_is_not_looked_at_again(folder):
    assert text_of(folder, "${A}", A="${B}", B="no") == "${B}"


def test_a_variable_alone_becomes_the_number_or_boolean_that_is_expected(folder):
    flow = loads(
        """
        modules:
          n: shop:numbers
          a:
            use: shop:send
            concurrency: ${MANY}
            timeout: ${LONG:-2s}
            retry: {attempts: "${MANY}"}
            with: {password: p, port: "${PORT:-80}", active: "${ACTIVE}", rates: {x: "${RATE}"}, mode: "${PORT:-80}"}
        """,
        folder=folder,
        environment={"MANY": "7", "ACTIVE": "true", "RATE": "0.5"},
    )
    place = flow["a"]
    assert (place.options.concurrency, place.options.timeout, place.options.retry.attempts) == (7, 2.0, 7)
    assert place.bound["port"] == 80
    assert place.bound["active"] is True
    assert place.bound["rates"] == {"x": 0.5}


def test_a_variable_of_the_wrong_kind_is_told(problems):
    found = problems(
        "modules:\n  n: shop:numbers\n  a: {use: 'shop:send', concurrency: '${MANY}', with: {password: p}}\n",
        environment={"MANY": "seven"},
    )
    assert found == [
        "flow.yaml:3:38: modules.a.concurrency: expected a whole number, not a string (given 'seven')",
    ]


def test_a_variable_that_is_not_set_is_told_by_name(problems):
    found = problems(FILE % "${LABLE} ${Z}", environment={"LABEL": "hidden"})
    assert found == [
        "flow.yaml:3:39: modules.a.with.text: the variable LABLE is not set, did you mean 'LABEL'?; a default is "
        "written ${LABLE:-default}",
        "flow.yaml:3:39: modules.a.with.text: the variable Z is not set; a default is written ${Z:-default}",
    ]


@pytest.mark.parametrize("text", ["${", "${A", "${A B}", "${A-x}", "${}"])
def test_a_half_written_variable_is_told(problems, text):
    assert problems(FILE % text, environment={"A": "1"}) == [
        "flow.yaml:3:39: modules.a.with.text: '${' begins a variable: write ${NAME} or ${NAME:-default}, and $${ for a "
        "literal '${'"
    ]


def test_keys_are_left_alone(folder):
    flow = loads(
        "modules: {n: 'shop:numbers', a: {use: 'shop:open_ended', with: {'${A}': 1}}}", folder=folder, environment={}
    )
    assert flow["a"].arguments == {"${A}": 1}
