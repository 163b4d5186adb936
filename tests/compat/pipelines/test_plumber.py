"""The Plumber: what a dict describes is what runs, and every item is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from typing import Any

import pytest

from furcula.compat.pipelines import PipelineFailed, Plumber
from furcula.errors import ConfigurationError, SourceFailed
from furcula.testing import assert_settled

LIMIT_S = 20


async def numbers(self: Any, output_q: Any, count: int = 5, start: int = 0) -> None:
    for number in range(start, start + count):
        await output_q.put(number)


async def letters(self: Any, output_q: Any, text: str = "abc") -> None:
    for letter in text:
        await output_q.put(letter)


async def double(self: Any, elt: tuple[int]) -> int:
    return 2 * elt[0]


async def negate(self: Any, elt: tuple[int]) -> int:
    return -elt[0]


async def collect(self: Any, elt: tuple[Any, ...]) -> Any:
    return elt


async def pass_on(self: Any, elt: tuple[Any]) -> Any:
    return elt[0]


async def slow(self: Any, elt: tuple[int]) -> int:
    await asyncio.sleep(0.002 * (elt[0] % 3))
    return elt[0]


async def fails_on_three(self: Any, elt: tuple[int]) -> int:
    if elt[0] == 3:
        raise ValueError("three")
    return elt[0]


REGISTRY = {f.__name__: f for f in (numbers, letters, double, negate, collect, pass_on, slow, fails_on_three)}

DIAMOND: dict[str, Any] = {
    "nodes": {
        "rig": {"coro": "numbers", "args": {"count": 4}, "properties": {"aggregate_inputs": False}},
        "left": {"coro": "double", "args": {}, "properties": {"aggregate_inputs": True}},
        "right": {"coro": "negate", "args": {}, "properties": {"aggregate_inputs": True}},
        "end": {"coro": "collect", "args": {}, "properties": {"aggregate_inputs": True}},
    },
    "graph": {"rig": ("left", "right"), "left": ("end",), "right": ("end",), "end": None},
}


async def finish(plumber: Plumber, **expected: Any) -> dict[str, list[Any]]:
    async with asyncio.timeout(LIMIT_S):
        results = await plumber.wait()
    assert_settled(plumber.statistics())
    for name, value in expected.items():
        assert getattr(plumber.statistics(), name) == value
    return results


async def some_results(plumber: Plumber) -> None:
    while not plumber.results:
        await asyncio.sleep(0)


def chain(*coros: Any, **properties: dict[str, Any]) -> dict[str, Any]:
    """Nodes one behind the other, named by their coroutines."""
    names = [coro if isinstance(coro, str) else coro.__name__ for coro in coros]
    return {
        "nodes": {
            name: {"coro": coro, "args": {}, "properties": properties.get(name, {})}
            for name, coro in zip(names, coros, strict=True)
        },
        "graph": {name: (after,) if after else None for name, after in zip(names, [*names[1:], None], strict=True)},
    }


# ---------------------------------------------------------------------- what is computed


async def test_the_dict_graph_runs_and_an_aggregated_node_gets_one_item_of_each_predecessor() -> None:
    results = await finish(Plumber(DIAMOND, coro_map=REGISTRY.__getitem__), delivered=4)
    assert results == {"end": [(0, 0), (2, -1), (4, -2), (6, -3)]}


async def test_a_graph_read_from_json_runs_too() -> None:
    results = await finish(Plumber(json.loads(json.dumps(DIAMOND)), coro_map=REGISTRY))
    assert results["end"][3] == (6, -3)


@pytest.mark.parametrize("order", [("end", "right", "left", "rig"), ("left", "end", "rig", "right")])
async def test_wiring_does_not_depend_on_the_order_of_the_graph(order: tuple[str, ...]) -> None:
    turned = {"nodes": DIAMOND["nodes"], "graph": {name: DIAMOND["graph"][name] for name in order}}
    assert (await finish(Plumber(turned, coro_map=REGISTRY)))["end"][3] == (6, -3)


async def test_the_order_of_nodes_is_the_order_in_the_tuple() -> None:
    nodes = {name: DIAMOND["nodes"][name] for name in ("right", "end", "left", "rig")}
    assert (await finish(Plumber({**DIAMOND, "nodes": nodes}, coro_map=REGISTRY)))["end"][3] == (-3, 6)


async def test_a_node_that_does_not_aggregate_gets_each_item_by_itself() -> None:
    spec = json.loads(json.dumps(DIAMOND))
    spec["nodes"]["end"]["properties"]["aggregate_inputs"] = False
    results = await finish(Plumber(spec, coro_map=REGISTRY))
    assert sorted(results["end"]) == sorted([(0,), (2,), (4,), (6,), (0,), (-1,), (-2,), (-3,)])


async def test_a_single_predecessor_gives_tuples_of_one() -> None:
    assert await finish(Plumber(chain("letters", "collect"), REGISTRY)) == {"collect": [("a",), ("b",), ("c",)]}


async def test_none_is_a_result_that_goes_on_and_no_result_of_a_sink() -> None:
    async def nothing(self: Any, elt: Any) -> None:
        return None

    async def is_none(self: Any, elt: Any) -> bool:
        return elt == (None,)

    results = await finish(Plumber(chain(letters, nothing, is_none)))
    assert results == {"is_none": [True, True, True]}
    assert await finish(Plumber(chain(letters, nothing)), delivered=3) == {}


async def test_several_sinks_each_get_a_copy_of_their_own() -> None:
    async def dicts(self: Any, output_q: Any) -> None:
        await output_q.put({"seen": []})

    async def mark(self: Any, elt: Any, word: str) -> Any:
        elt[0]["seen"].append(word)
        return elt[0]

    spec = {
        "nodes": {
            "rig": {"coro": dicts},
            "a": {"coro": mark, "args": {"word": "a"}},
            "b": {"coro": mark, "args": {"word": "b"}},
        },
        "graph": {"rig": ("a", "b")},
    }
    assert await finish(Plumber(spec)) == {"a": [{"seen": ["a"]}], "b": [{"seen": ["b"]}]}


async def test_every_processor_sees_the_context_and_its_own_self() -> None:
    async def greet(self: Any, elt: Any) -> str:
        self.seen = getattr(self, "seen", 0) + 1
        return f"{self.env_vars['greeting']} {elt[0]} {self.seen}"

    results = await finish(Plumber(chain(letters, greet), env_vars={"greeting": "hello"}))
    assert results == {"greet": ["hello a 1", "hello b 2", "hello c 3"]}


async def test_args_may_have_the_names_that_the_framework_uses_itself() -> None:
    async def named(self: Any, elt: Any, **args: Any) -> Any:
        return args

    clashing = {"name": 1, "coro": 2, "event": 3, "options": 4, "queue": 5, "timeout": 6, "inbox": 7, "args": 8}
    spec = chain(letters, named)
    spec["nodes"]["named"]["args"] = clashing
    assert (await finish(Plumber(spec)))["named"][0] == clashing


# ---------------------------------------------------------------------- lineage


async def test_after_one_failure_in_a_branch_every_other_pair_is_still_right() -> None:
    spec = json.loads(json.dumps(DIAMOND))
    spec["nodes"]["left"]["coro"] = "fails_on_three"
    spec["nodes"]["rig"]["args"]["count"] = 50
    plumber = Plumber(spec, coro_map=REGISTRY)
    results = await finish(plumber, failed=1, delivered=49)
    assert results["end"] == [(n, -n) for n in range(50) if n != 3]


async def test_a_branch_that_reorders_still_meets_its_siblings() -> None:
    spec = json.loads(json.dumps(DIAMOND))
    spec["nodes"]["left"] = {"coro": "slow", "properties": {"concurrency": 8, "order": "none"}}
    spec["nodes"]["rig"]["args"]["count"] = 60
    results = await finish(Plumber(spec, coro_map=REGISTRY))
    assert sorted(results["end"]) == [(n, -n) for n in range(60)]


def two_rigs(**changes: Any) -> dict[str, Any]:
    return {
        "nodes": {
            "numbers": {"coro": numbers, "args": {"count": 3, **changes}},
            "letters": {"coro": letters},
            "both": {"coro": collect},
        },
        "graph": {"numbers": "both", "letters": "both"},
    }


async def test_several_rigs_are_paired_like_zip() -> None:
    assert await finish(Plumber(two_rigs())) == {"both": [(0, "a"), (1, "b"), (2, "c")]}


async def test_what_finds_no_partner_fails_and_is_counted() -> None:
    plumber = Plumber(two_rigs(count=5))
    assert len((await finish(plumber, failed=2))["both"]) == 3


async def test_a_failure_behind_one_rig_does_not_shift_the_pairs() -> None:
    spec = two_rigs(count=5)
    spec["nodes"]["letters"]["args"] = {"text": "abcde"}
    spec["nodes"]["checked"] = {"coro": fails_on_three}
    spec["graph"] = {"numbers": "checked", "checked": "both", "letters": "both"}
    results = await finish(Plumber(spec))
    assert results == {"both": [("a", 0), ("b", 1), ("c", 2), ("e", 4)]}


async def test_a_fast_rig_keeps_in_step_with_the_slow_one_it_is_paired_with() -> None:
    put = 0
    go_on = asyncio.Event()

    async def fast(self: Any, output_q: Any) -> None:
        nonlocal put
        for number in range(1000):
            await output_q.put(number)
            put = number + 1

    async def late(self: Any, output_q: Any) -> None:
        await go_on.wait()
        for number in range(1000):
            await output_q.put(number)

    spec = {
        "nodes": {"fast": {"coro": fast}, "late": {"coro": late}, "both": {"coro": collect}},
        "graph": {"fast": ("both",), "late": ("both",)},
    }
    plumber = Plumber(spec)
    await plumber.create_pipeline()
    for _ in range(300):
        await asyncio.sleep(0)
    assert put <= 64
    go_on.set()
    assert (await finish(plumber, failed=0))["both"] == [(n, n) for n in range(1000)]


async def test_behind_a_merge_the_branches_of_each_item_meet_again() -> None:
    spec = {
        "nodes": {
            "one": {"coro": numbers, "args": {"count": 3}},
            "two": {"coro": numbers, "args": {"count": 3, "start": 10}},
            "merged": {"coro": pass_on, "properties": {"aggregate_inputs": False}},
            "left": {"coro": double},
            "right": {"coro": negate},
            "end": {"coro": collect},
        },
        "graph": {"one": "merged", "two": "merged", "merged": ("left", "right"), "left": "end", "right": "end"},
    }
    results = await finish(Plumber(spec), failed=0)
    assert sorted(results["end"]) == sorted((2 * n, -n) for n in (0, 1, 2, 10, 11, 12))


# ---------------------------------------------------------------------- running


async def test_put_waits_when_there_is_no_room() -> None:
    put = 0
    open_up = asyncio.Event()

    async def counting(self: Any, output_q: Any) -> None:
        nonlocal put
        for number in range(500):
            await output_q.put(number)
            put += 1

    async def gate(self: Any, elt: Any) -> Any:
        await open_up.wait()
        return elt[0]

    plumber = Plumber(chain(counting, gate, gate=({"queue": 8})))
    await plumber.create_pipeline()
    for _ in range(200):
        await asyncio.sleep(0)
    assert put < 20
    open_up.set()
    assert (await finish(plumber))["gate"] == list(range(500))


async def test_put_nowait_refuses_while_there_is_no_room() -> None:
    refused = asyncio.Event()
    open_up = asyncio.Event()

    async def pushing(self: Any, output_q: Any) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            for number in range(500):
                output_q.put_nowait(number)
        refused.set()
        await open_up.wait()

    async def gate(self: Any, elt: Any) -> Any:
        await open_up.wait()
        return elt[0]

    plumber = Plumber(chain(pushing, gate, gate={"queue": 8}))
    await plumber.create_pipeline()
    async with asyncio.timeout(LIMIT_S):
        await refused.wait()
    open_up.set()
    assert 0 < len((await finish(plumber))["gate"]) < 20


async def test_concurrency_keeps_the_order_and_its_bound() -> None:
    inside = most = 0

    async def busy(self: Any, elt: tuple[int]) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.001 * (elt[0] % 3))
        inside -= 1
        return elt[0]

    spec = chain(numbers, busy, busy={"concurrency": 4})
    spec["nodes"]["numbers"]["args"] = {"count": 40}
    assert (await finish(Plumber(spec)))["busy"] == list(range(40))
    assert most == 4


async def test_a_paused_node_handles_nothing_until_it_goes_on() -> None:
    ended = asyncio.Event()

    async def staying(self: Any, output_q: Any) -> None:
        await numbers(self, output_q)
        await ended.wait()

    plumber = Plumber(chain(staying, double, collect))
    plumber.pause("double")
    await plumber.create_pipeline()
    for _ in range(100):
        await asyncio.sleep(0)
    assert plumber.results == {}
    assert plumber.statistics().modules["double"].paused
    plumber.resume("double")
    ended.set()
    assert len((await finish(plumber))["collect"]) == 5


async def test_a_paused_rig_puts_nothing_until_it_goes_on() -> None:
    plumber = Plumber(chain("numbers", "collect"), REGISTRY)
    plumber.pause("numbers")
    await plumber.create_pipeline()
    for _ in range(100):
        await asyncio.sleep(0)
    assert plumber.statistics().admitted == 0
    plumber.resume("numbers")
    assert len((await finish(plumber))["collect"]) == 5


async def endless(self: Any, output_q: Any) -> None:
    while True:
        await output_q.put(1)


async def test_cancel_ends_an_endless_pipeline_and_accounts_for_what_was_inside() -> None:
    plumber = Plumber(chain(endless, pass_on, collect))
    await plumber.create_pipeline()
    async with asyncio.timeout(LIMIT_S):
        await some_results(plumber)
        await plumber.cancel()
        await plumber.cancel()
    results = await finish(plumber)
    assert set(results["collect"]) == {(1,)}


async def test_cancel_with_a_deadline_drains() -> None:
    plumber = Plumber(chain(endless, slow, collect))
    await plumber.create_pipeline()
    async with asyncio.timeout(LIMIT_S):
        await some_results(plumber)
        await plumber.cancel(deadline="10s")
    await finish(plumber, failed=0)
    assert plumber.statistics().delivered == plumber.statistics().admitted


async def test_cancel_before_the_start_means_that_nothing_runs() -> None:
    plumber = Plumber(chain(endless, collect))
    await plumber.cancel()
    assert await finish(plumber, admitted=0) == {}


async def test_a_rig_may_clean_up_and_put_a_last_item_when_it_is_cancelled() -> None:
    async def polite(self: Any, output_q: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await output_q.put("goodbye")

    plumber = Plumber(chain(polite, collect))
    await plumber.create_pipeline()
    async with asyncio.timeout(LIMIT_S):
        await plumber.cancel(deadline="5s")
    assert await finish(plumber) == {"collect": [("goodbye",)]}


async def test_a_cancelled_wait_leaves_the_pipeline_running() -> None:
    plumber = Plumber(chain(endless, pass_on))
    waiting = asyncio.ensure_future(plumber.wait())
    await some_results(plumber)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert plumber.statistics().delivered
    async with asyncio.timeout(LIMIT_S):
        await plumber.cancel()


@pytest.mark.skipif(sys.platform == "win32", reason="it is stopped by a signal")
async def test_with_signals_the_first_one_drains() -> None:
    plumber = Plumber(chain(endless, slow, collect), signals=True)
    await plumber.create_pipeline()
    await some_results(plumber)
    os.kill(os.getpid(), signal.SIGTERM)
    await finish(plumber, failed=0)
    assert plumber.statistics().delivered == plumber.statistics().admitted


def test_when_its_loop_is_shut_down_a_pipeline_ends_and_accounts_for_what_was_inside() -> None:
    plumber = Plumber(chain(endless, slow, collect))

    async def main() -> None:
        await plumber.create_pipeline()
        await some_results(plumber)  # and returns without a word to the pipeline

    asyncio.run(main())
    assert_settled(plumber.statistics())


async def test_results_are_bounded() -> None:
    spec = chain(numbers, pass_on)
    spec["nodes"]["numbers"]["args"] = {"count": 30}
    assert await finish(Plumber(spec, keep_results=10), delivered=30) == {"pass_on": list(range(20, 30))}


# ---------------------------------------------------------------------- failures


async def test_an_item_that_fails_is_logged_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "furcula.flow"):
        results = await finish(Plumber(chain("numbers", "fails_on_three", "collect"), REGISTRY), failed=1, delivered=4)
    assert results == {"collect": [(0,), (1,), (2,), (4,)]}
    assert "ValueError: three" in caplog.text


async def test_a_node_may_stop_the_pipeline_when_it_fails() -> None:
    spec = chain(endless, fails_on_three, collect, fails_on_three={"on_error": "stop"})

    async def counting(self: Any, output_q: Any) -> None:
        number = 0
        while True:
            await output_q.put(number)
            number += 1

    spec["nodes"]["endless"]["coro"] = counting
    plumber = Plumber(spec)
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(
            PipelineFailed, match=r"fails_on_three failed, and its on_error is 'stop': ValueError: three"
        ):
            await plumber.wait()
    assert_settled(plumber.statistics())
    assert plumber.results.get("collect", []) in [[(0,), (1,), (2,)][:n] for n in range(4)]


async def test_a_retried_node_stops_the_pipeline_only_when_its_tries_are_used_up() -> None:
    tried = []

    async def flaky(self: Any, elt: Any) -> Any:
        tried.append(elt[0])
        if len(tried) < 3:
            raise OSError("not yet")
        return elt[0]

    retry = {"attempts": 3, "delay": 0}
    results = await finish(Plumber(chain(letters, flaky, flaky={"on_error": "stop", "retry": retry})))
    assert results == {"flaky": ["a", "b", "c"]}


async def test_a_rig_that_raises_is_reported_when_what_it_put_is_processed() -> None:
    async def broken(self: Any, output_q: Any) -> None:
        await output_q.put(1)
        raise OSError("the line went dead")

    plumber = Plumber(chain(broken, collect))
    with pytest.raises(SourceFailed, match="the line went dead"):
        await plumber.wait()
    assert plumber.results == {"collect": [(1,)]}


async def test_a_rig_that_raises_may_stop_the_others() -> None:
    async def broken(self: Any, output_q: Any) -> None:
        raise OSError("the line went dead")

    spec = {
        "nodes": {
            "broken": {"coro": broken, "properties": {"on_error": "stop"}},
            "endless": {"coro": endless},
            "end": {"coro": pass_on, "properties": {"aggregate_inputs": False}},
        },
        "graph": {"broken": "end", "endless": "end"},
    }
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(PipelineFailed, match="broken failed"):
            await Plumber(spec).wait()


# ---------------------------------------------------------------------- what is wrong with a graph


def spoiled(**graph: Any) -> dict[str, Any]:
    return {"nodes": DIAMOND["nodes"], "graph": {**DIAMOND["graph"], **graph}}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (spoiled(left=("ent",)), r"left -> ent: no node 'ent', did you mean 'end'\?"),
        (spoiled(lefd=("end",)), r"there is no node 'lefd', did you mean 'left'\?"),
        (spoiled(end=("left",)), r"no cycles, and here is one: left -> end, end -> left"),
        (spoiled(left=("end", "end")), "left names the same successor twice"),
        ({"nodes": {**DIAMOND["nodes"], "lone": {"coro": "double"}}, "graph": DIAMOND["graph"]}, "lone is unreachable"),
        (
            {
                "nodes": {n: {"coro": "double"} for n in "abcd"},
                "graph": {"a": ("b",), "c": ("d",), "d": ("c", "b")},
            },
            "here is one: c -> d, d -> c",
        ),
        (
            {"nodes": {"a": {"coro": "dubble"}}, "graph": {"a": None}},
            r"does not find 'dubble', did you mean 'double'\?",
        ),
        ({"nodes": {"a": {"coro": print}}, "graph": {"a": None}}, "a: coro must be a coroutine function"),
        ({"nodes": {"a": {"coro": numbers, "args": {"cout": 3}}}, "graph": {"a": None}}, "a: numbers cannot take"),
        ({"nodes": {"a": {"coro": numbers, "arg": {}}}, "graph": {"a": None}}, r"no 'arg', did you mean 'args'\?"),
        (
            chain(numbers, double, double={"agregate_inputs": True}),
            r"no property 'agregate_inputs', did you mean 'aggregate_inputs'\?",
        ),
        (chain(numbers, double, double={"on_error": "explode"}), "double: on_error must be 'drop' or 'stop'"),
        (chain(numbers, double, double={"concurrency": 0}), "double: concurrency must be 1 or more"),
        ({"graph": {}}, "a pipeline is a dict with 'nodes' and 'graph'"),
    ],
)
def test_what_is_wrong_is_said_with_its_node_or_edge(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Plumber(spec, REGISTRY)


def test_a_name_without_a_coro_map_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="give Plumber a coro_map"):
        Plumber(DIAMOND)


def test_an_unknown_node_is_not_paused() -> None:
    with pytest.raises(ConfigurationError, match=r"no node 'lefd', did you mean 'left'\?"):
        Plumber(DIAMOND, REGISTRY).pause("lefd")


# ---------------------------------------------------------------------- names and drawings


async def test_nodes_may_have_any_names() -> None:
    spec = {
        "nodes": {"1st node.": {"coro": letters}, "1st node?": {"coro": pass_on}, "end": {"coro": collect}},
        "graph": {"1st node.": ("1st node?", "end"), "1st node?": ("end",)},
    }
    assert await finish(Plumber(spec)) == {"end": [("a", "a"), ("b", "b"), ("c", "c")]}


def test_the_graph_is_drawn_for_mermaid() -> None:
    assert Plumber(DIAMOND, REGISTRY).graph().splitlines() == [
        "flowchart LR",
        '  n0(["rig<br/><small>numbers</small>"])',
        '  n1["left<br/><small>double</small>"]',
        '  n2["right<br/><small>negate</small>"]',
        '  n3["end<br/><small>collect</small>"]',
        "  n0 --> n1",
        "  n0 --> n2",
        "  n1 --> n3",
        "  n2 --> n3",
    ]
