"""`--set` puts values over those of a file."""

from __future__ import annotations

import pytest

from furcula.config import loads

FILE = """
modules:
  n: shop:numbers
  a: {use: 'shop:send', with: {password: p, port: 1}}
  out: shop:sink
routes: [n -> a, a -> out]
"""


def test_values_are_read_as_yaml_and_put_over_those_of_the_file(folder):
    flow = loads(
        FILE,
        folder=folder,
        overrides=["modules.a.with.port=8", "modules.a.retry={attempts: 2}", "ttl=4", "modules.a.with.mode=x=y"],
    )
    assert flow["a"].bound["port"] == 8
    assert flow["a"].bound["mode"] == "x=y"
    assert flow["a"].options.retry.attempts == 2
    assert flow.ttl == 4


def test_the_short_form_of_a_module_can_be_added_to(folder):
    flow = loads(FILE, folder=folder, overrides=["modules.out.queue=5"])
    assert flow["out"].options.queue == 5


def test_an_item_of_a_list_is_named_by_its_number(folder):
    flow = loads(FILE, folder=folder, overrides=["routes.1=a.failed -> out"])
    assert str(flow.routes[1]) == "a.failed -> out"


def test_what_an_alias_shares_is_not_changed_for_the_other(folder):
    file = "modules:\n  n: shop:numbers\n  a: &a {map: 'shop:double'}\n  b: *a\n"
    flow = loads(file, folder=folder, overrides=["modules.a.queue=5"])
    assert (flow["a"].options.queue, flow["b"].options.queue) == (5, None)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("modules.b.with.port=1", "--set: modules.b.with.port: there is no module 'b'"),
        ("modules.a.with.prt=1", "--set: modules.a.with.prt: there is no argument 'prt', did you mean 'port'?"),
        ("modules.a.with.port=x", "--set: modules.a.with.port: expected a whole number, not a string (given x)"),
        ("modules.a.with.port", "--set: modules.a.with.port: write modules.NAME.with.ARGUMENT=VALUE"),
        ("..=1", "--set: ..: write modules.NAME.with.ARGUMENT=VALUE"),
        (
            "modules.a.with.port=[",
            "--set: modules.a.with.port: this is not YAML: while parsing a flow node, did not find expected node "
            "content",
        ),
        ("modules.a.with.password=12", "--set: modules.a.with.password: a secret is a string: write it in quotes (its "
         "value is not shown)"),
        ("wxyz=1", "--set: wxyz: there is no 'wxyz' in a flow file; known: flow, modules, routes, dead_letter, "
         "ttl, expose, cluster"),
    ],
)  # fmt: skip
def test_a_wrong_override_is_told(problems, setting, told):
    assert problems(FILE, overrides=[setting]) == [told]
