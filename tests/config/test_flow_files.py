"""A flow file and the same flow in Python are the same flow."""

from __future__ import annotations

import pytest

from furcula import ConfigurationError, Flow, Options, Retry
from furcula.config import load, loads


def routes(flow):
    return [str(route) for route in flow.routes]


def test_a_file_says_what_python_says(folder):
    flow = loads(
        """
        flow: shop
        modules:
          n: shop:numbers
          label:
            use: shop:send
            with: {password: p, port: 8}
            concurrency: 4
            order: none
            retry: {attempts: 5, delay: 250ms, errors: [TimeoutError]}
            timeout: 2s
          twice: {map: "shop:double"}
          out: {use: "shop:sink", queue: 10, overflow: drop-oldest}
        routes:
          - n -> label -> twice -> out
          - label.failed, twice.failed -> out
        ttl: 3
        """,
        folder=folder,
    )
    assert flow.name == "shop"
    assert flow.ttl == 3
    assert list(flow.places) == ["n", "label", "twice", "out"]
    assert flow["n"].is_source
    assert flow["label"].options == Options(
        concurrency=4, order="none", retry=Retry(attempts=5, delay=0.25, errors=(TimeoutError,)), timeout=2
    )
    assert flow["label"].arguments["port"] == 8
    assert flow["twice"].role == "map"
    assert flow["out"].options == Options(queue=10, overflow="drop-oldest")
    assert routes(flow) == [
        "n -> label",
        "label -> twice",
        "twice -> out",
        "label.failed -> out",
        "twice.failed -> out",
    ]
    assert flow.problems() == []


def test_without_routes_the_modules_form_a_chain_in_file_order_without_the_dead_letter_module(folder):
    flow = loads(
        "modules: {n: 'shop:numbers', dead: 'shop:sink', d: {map: 'shop:double'}, out: 'shop:sink'}\ndead_letter: dead",
        folder=folder,
    )
    assert routes(flow) == ["n -> d", "d -> out"]
    assert flow.dead_letter == "dead"


def test_a_kind_alone_is_short_for_use(folder):
    flow = loads("modules: {n: 'shop:numbers', out: 'null'}", folder=folder)
    assert flow["out"].use == "null"


def test_a_generator_function_is_a_source_if_it_needs_nothing_more_than_it_is_given(folder):
    flow = loads(
        "modules: {a: 'shop:letters', b: {use: 'shop:numbers_up_to', with: {limit: 3}}, c: 'shop:split', "
        "r: 'shop:rows', t: 'shop:Ticks', out: 'shop:sink'}\nroutes: ['a, b, r, t -> c -> out']",
        folder=folder,
    )
    assert [name for name, place in flow.places.items() if place.is_source] == ["a", "b", "r", "t"]


def test_routes_in_the_long_form(folder):
    flow = loads(
        "modules: {n: 'shop:numbers', m: 'shop:letters', a: 'shop:sink', b: {use: 'shop:sink', inboxes: [side]}}\n"
        "routes:\n"
        "  - {from: [n, m], to: a, branch: best-effort, queue: 5}\n"
        "  - {from: n, to: b.side, queue: 7, overflow: fail}\n",
        folder=folder,
    )
    assert [(str(r), r.branch, r.queue, r.overflow) for r in flow.routes] == [
        ("n -> a", "best-effort", 5, None),
        ("m -> a", "best-effort", 5, None),
        ("n -> b.side", "required", 7, "fail"),
    ]


def test_a_key_may_be_a_path_or_a_function(folder):
    flow = loads(
        "modules: {n: 'shop:numbers', a: {use: 'shop:send', with: {password: p}, key: data.id},"
        " b: {use: 'shop:label', key: 'shop:ident'}}",
        folder=folder,
    )
    assert flow["a"].options.key == "data.id"
    assert flow["b"].options.key.__name__ == "ident"


def test_anchors_aliases_and_merges_are_written_out(folder):
    flow = loads(
        "modules:\n"
        "  n: shop:numbers\n"
        "  a: &fast {use: 'shop:send', with: &secret {password: p}, concurrency: 4}\n"
        "  b: {<<: *fast, concurrency: 2}\n"
        "  c: {use: 'shop:send', with: *secret}\n",
        folder=folder,
    )
    assert [flow[name].options.concurrency for name in "abc"] == [4, 2, 1]


def test_locations_of_modules_and_routes_are_lines_of_the_file(folder):
    file = folder / "flow.yaml"
    file.write_text("modules:\n  n: shop:numbers\n  out: shop:sink\nroutes:\n  - n -> out\n")
    flow = load(file)
    assert flow["out"].location == f"{file}:3:3"
    assert flow.routes[0].location == f"{file}:5:5"


def test_relative_paths_of_modules_are_relative_to_the_file(folder):
    (folder / "flow.yaml").write_text("modules: {n: shop:numbers, out: shop:sink}")
    assert load(folder / "flow.yaml").folder == folder


# ------------------------------------------------------------------ a flow inside a flow


def test_a_flow_file_inside_another_appears_under_its_name(folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "local.py").write_text("def more(n: int) -> int:\n    return n + 1\n")
    (folder / "parts" / "inner.yaml").write_text("modules: {more: {map: 'local:more'}, again: {map: 'local:more'}}")
    flow = loads("modules: {n: 'shop:numbers', inner: {use: ./parts/inner.yaml}, out: 'shop:sink'}", folder=folder)
    assert list(flow.places) == ["n", "inner/more", "inner/again", "out"]
    assert routes(flow) == ["inner/more -> inner/again", "n -> inner/more", "inner/again -> out"]
    assert flow.problems() == []


def test_a_flow_made_in_python_can_stand_inside_a_file(folder):
    flow = loads("modules: {n: 'shop:numbers', part: 'shop:inner', out: 'shop:sink'}", folder=folder)
    assert routes(flow) == ["part/twice -> part/again", "n -> part/twice", "part/again -> out"]


def test_a_problem_inside_an_inner_flow_has_its_place_in_that_file(folder, problems):
    (folder / "inner.yaml").write_text("modules:\n  a: {map: 'shop:double', timeout: 1s}\n  b: {map: 'shop:dubble'}\n")
    found = problems("modules: {n: 'shop:numbers', inner: {use: inner.yaml}}")
    inner = folder / "inner.yaml"
    assert found == [
        f"{inner}:2:36: modules.a.timeout: a is a plain function and cannot be interrupted: a timeout needs a "
        "coroutine, or thread: true",
        f"{inner}:3:12: modules.b.map: shop has no 'dubble', did you mean 'double'?",
    ]


def test_which_port_of_an_inner_flow_is_meant_is_said_under_expose(folder, problems):
    inner = "modules: {a: {map: 'shop:double'}, b: {map: 'shop:double'}}\nroutes: []\n"
    outer = "modules:\n  n: shop:numbers\n  inner: {use: inner.yaml}\nroutes:\n  - n -> inner\n"
    (folder / "inner.yaml").write_text(inner)
    assert problems(outer)[:1] == [
        "flow.yaml:5:5: routes[0]: n -> inner: more than one module of the flow 'inner' could be meant: say which with "
        "`expose:` in its file"
    ]
    (folder / "inner.yaml").write_text(inner + "expose: {inbox: b, other: a.inbox}\n")
    assert routes(loads(outer.replace("- n -> inner", "- n -> inner\n  - n -> inner.other"), folder=folder)) == [
        "n -> inner/b",
        "n -> inner/a",
    ]


def test_a_flow_inside_itself_is_refused(folder):
    file = folder / "flow.yaml"
    file.write_text("modules:\n  n: shop:numbers\n  a: {use: ./flow.yaml}\n")
    with pytest.raises(ConfigurationError) as caught:
        load(file)
    assert str(caught.value) == (
        f"{file}:3:12: modules.a.use: ./flow.yaml is being read already: a flow cannot be inside itself"
    )


def test_an_inner_flow_takes_no_options(folder, problems):
    (folder / "inner.yaml").write_text("modules: {a: {map: 'shop:double'}}")
    assert problems("modules:\n  n: shop:numbers\n  a: {use: inner.yaml, with: {b: 1}}\n") == [
        "flow.yaml:3:24: modules.a.with: with cannot stand beside a flow that is used; its modules have their own"
    ]


# ------------------------------------------------------------------ it runs


def test_a_loaded_flow_runs(folder):
    flow = loads(
        "modules: {n: 'shop:numbers', even: {filter: 'shop:is_even'}, twice: {flat_map: 'shop:repeat'}, "
        "out: 'shop:sink'}",
        folder=folder,
    )
    assert isinstance(flow, Flow)
    statistics = flow.run()
    assert (statistics.admitted, statistics.delivered, statistics.dropped) == (3, 1, 2)
    assert statistics.balanced
