"""The demo of `pipelines`: a server that runs the graphs of strangers, and survives them."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import socketio
from tests.examples.running import EXAMPLES, LIMIT_S, Program, running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the server is stopped by a signal")

FOLDER = EXAMPLES / "socketio"


@pytest.fixture(scope="module")
def server() -> Iterator[Program]:
    """One server for all of these tests: whatever they send, it has to be there for the next."""
    with running(str(FOLDER / "server.py"), "--port", "0") as program:
        program.url()
        yield program
        assert program.runs
        program.signal(signal.SIGTERM)
        assert program.end() == 0, program


class Client:
    """A client that keeps what it is sent."""

    def __init__(self, *, acknowledges: bool = True) -> None:
        self.sio = socketio.AsyncClient(reconnection=False)
        self.results: list[Any] = []
        self.ended: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.first = asyncio.Event()
        self.holds = asyncio.Event()
        if acknowledges:
            self.holds.set()
        self.sio.on("result", self.result)
        for name in ("done", "refused", "disconnect"):
            self.sio.on(name, self._keeper(name))

    def _keeper(self, name: str) -> Any:
        async def keep(*given: Any) -> None:
            await self.ended.put((name, given[0] if given else None))

        return keep

    async def result(self, found: Any) -> None:
        self.results.append(found["value"])
        self.first.set()
        await self.holds.wait()

    async def send(self, *graph: Any) -> None:
        await self.sio.emit("run", graph)

    async def answer(self) -> tuple[str, Any]:
        async with asyncio.timeout(LIMIT_S):
            return await self.ended.get()


@pytest.fixture
async def client(server: Program) -> AsyncIterator[Client]:
    made = Client()
    await made.sio.connect(server.url())
    yield made
    made.holds.set()
    await made.sio.disconnect()


def chain(*coros: str, count: int = 3, **args: Any) -> dict[str, Any]:
    """A graph of a rig and coroutines one after the other."""
    names = [f"n{index}" for index in range(len(coros) + 1)]
    nodes: dict[str, Any] = {"n0": {"coro": "numbers", "args": {"count": count}}}
    nodes |= {name: {"coro": coro, "args": args} for name, coro in zip(names[1:], coros, strict=True)}
    return {"nodes": nodes, "graph": {name: [after] for name, after in itertools.pairwise(names)}}


# ------------------------------------------------------------------ what it is for


def test_the_client_s_program_prints_the_results_of_its_graph(server: Program, tmp_path: Path) -> None:
    with running(str(FOLDER / "client.py"), "--url", server.url()) as program:
        assert program.end() == 0, program
        assert program.lines == [
            "n4: a-AA-a",
            "n4: kciuq-QUICKKCIUQ-quick",
            "n4: nworb-BROWNNWORB-brown",
            "n4: xof-FOXXOF-fox",
            "4 admitted, 4 delivered, 0 dropped, 0 failed",
        ]
    graph = tmp_path / "graph.json"
    graph.write_text(json.dumps(chain("revers")))
    with running(str(FOLDER / "client.py"), "--url", server.url(), "--graph", str(graph)) as program:
        assert program.end() == 1
        assert program.errors == [
            "n1: there is no coroutine 'revers' to stand after other nodes;"
            " there are reverse, upper, join, append_reverse"
        ]


def test_a_client_without_a_server_says_so() -> None:
    with running(str(FOLDER / "client.py"), "--url", "http://127.0.0.1:9") as program:
        assert program.end() == 2
        assert "is server.py running?" in program.errors[-1]


async def test_results_come_while_the_pipeline_runs_and_a_slow_client_makes_it_wait(client: Client) -> None:
    client.holds.clear()
    await client.send(chain("join", count=1000))
    async with asyncio.timeout(LIMIT_S):
        await client.first.wait()
    assert client.results == ["0"]
    assert client.ended.empty()
    client.holds.set()
    assert await client.answer() == ("done", {"admitted": 1000, "delivered": 1000, "dropped": 0, "failed": 0})
    assert client.results == [str(number) for number in range(1000)]


async def test_every_client_gets_its_own_results(server: Program) -> None:
    clients = [Client() for _ in range(5)]
    for number, one in enumerate(clients):
        await one.sio.connect(server.url())
        await one.send(chain("reverse", count=10 + number))
    for number, one in enumerate(clients):
        assert (await one.answer())[0] == "done"
        assert one.results == [str(item)[::-1] for item in range(10 + number)]
        await one.sio.disconnect()


async def test_a_client_may_ask_again_but_not_twice_at_once(client: Client) -> None:
    client.holds.clear()
    await client.send(chain("join"))
    async with asyncio.timeout(LIMIT_S):
        await client.first.wait()
    await client.send(chain("join"))
    assert await client.answer() == ("refused", {"problems": ["your last pipeline still runs"]})
    client.holds.set()
    assert (await client.answer())[0] == "done"
    await client.send(chain("join"))
    assert (await client.answer())[0] == "done"


async def test_a_client_that_leaves_takes_its_pipeline_with_it(server: Program) -> None:
    before = len(server.lines)
    leaver = Client(acknowledges=False)
    await leaver.sio.connect(server.url())
    await leaver.send(chain("join", count=1000))
    async with asyncio.timeout(LIMIT_S):
        await leaver.first.wait()
    await leaver.sio.disconnect()
    leaver.holds.set()
    ended = re.compile(r"a pipeline has ended: (\d+) admitted, 0 open")

    def said(lines: list[str]) -> bool:
        return any(ended.fullmatch(line) for line in lines[before:])

    lines = await asyncio.to_thread(server.until, said)
    (admitted,) = [int(found[1]) for line in lines[before:] if (found := ended.fullmatch(line))]
    assert admitted < 1000


# ------------------------------------------------------------------ what it refuses

NAMES = [
    "__import__", "__import__('os').system('true')", "os.system", "os", "eval", "exec", "open", "globals", "getattr",
    "__class__", "reverse.__globals__", "reverse.__class__", "__builtins__", "furcula.compat.pipelines:Plumber",
    "subprocess.run", "main", "Demo", "plumber_for", "RIGS", "words ", "WORDS", "", "..", "\x00", "x" * 65,
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["rig", "processor"])
async def test_a_name_that_is_not_in_the_table_is_refused_and_runs_nothing(
    name: str, place: str, client: Client
) -> None:
    graph = chain("reverse" if place == "rig" else name)
    if place == "rig":
        graph["nodes"]["n0"] = {"coro": name}
    await client.send(graph)
    kind, said = await client.answer()
    assert kind == "refused"
    assert any("there is no coroutine" in problem or "Expected `str`" in problem for problem in said["problems"])
    assert client.results == []


BIG = {f"n{index}": {"coro": "reverse"} for index in range(33)}

MALFORMED = {
    "nothing": None,
    "text": "nodes",
    "a list": [1, 2],
    "no graph": {"nodes": {"a": {"coro": "words"}}},
    "no nodes": {"nodes": {}, "graph": {}},
    "nodes of another kind": {"nodes": [], "graph": {}},
    "a node of another kind": {"nodes": {"a": "words"}, "graph": {}},
    "a coroutine that is no name": {"nodes": {"a": {"coro": {"__reduce__": 1}}}, "graph": {"a": None}},
    "an unknown part": {"nodes": {}, "graph": {}, "coro_map": "globals"},
    "an unknown node": {"nodes": {"a": {"coro": "words"}}, "graph": {"a": ["b"]}},
    "an edge from nowhere": {"nodes": {"a": {"coro": "words"}}, "graph": {"a": None, "b": ["a"]}},
    "a cycle": {
        "nodes": {name: {"coro": "reverse"} for name in "ab"},
        "graph": {"a": ["b"], "b": ["a"]},
    },
    "a cycle of one": {"nodes": {"a": {"coro": "reverse"}}, "graph": {"a": ["a"]}},
    "too many nodes": {"nodes": BIG, "graph": {}},
    "too many edges": {"nodes": {"a": {"coro": "words"}}, "graph": {"a": ["b"] * 33}},
    "a name that is too long": {"nodes": {"a" * 65: {"coro": "words"}}, "graph": {}},
    "a processor at the beginning": {"nodes": {"a": {"coro": "reverse"}}, "graph": {"a": None}},
    "a rig inside": {"nodes": {"a": {"coro": "words"}, "b": {"coro": "words"}}, "graph": {"a": ["b"]}},
    "a node that the graph does not mention": {"nodes": {"a": {"coro": "words"}}, "graph": {}},
    "too many items": chain("join", count=1001),
    "fewer than no items": chain("join", count=-1),
    "items of another kind": chain("join", count="9"),  # type: ignore[arg-type]
    "args that it does not take": chain("join", sep="x"),
    "args that would be ours": chain("reverse", self=1),
    "args of another kind": chain("join", separator={"a": 1}),
    "a property that names an import": {
        "nodes": {"a": {"coro": "words", "properties": {"retry": {"errors": ["antigravity:Any"]}}}},
        "graph": {"a": None},
    },
    "a property of ours": {"nodes": {"a": {"coro": "words", "properties": {"concurrency": 9}}}, "graph": {"a": None}},
}


@pytest.mark.parametrize("graph", MALFORMED.values(), ids=MALFORMED)
async def test_a_graph_that_cannot_be_run_is_answered_with_what_is_wrong(graph: Any, client: Client) -> None:
    await client.send(graph)
    kind, said = await client.answer()
    assert kind == "refused"
    assert 1 <= len(said["problems"]) <= 20
    assert all(0 < len(problem) <= 300 for problem in said["problems"])


async def test_another_number_of_messages_is_refused(client: Client) -> None:
    await client.sio.emit("run", (1, 2, 3))
    assert await client.answer() == ("refused", {"problems": ["send one graph"]})


async def test_values_that_would_double_without_end_fail_and_the_pipeline_ends(client: Client) -> None:
    await client.send(chain(*["append_reverse"] * 30, count=2))
    assert await client.answer() == ("done", {"admitted": 2, "delivered": 0, "dropped": 0, "failed": 2})


async def test_a_message_that_is_too_long_costs_its_sender_the_connection_and_nobody_else(
    client: Client, server: Program
) -> None:
    other = Client()
    await other.sio.connect(server.url(), transports=["websocket"])
    await other.send({"nodes": {"a": {"coro": "words", "args": {"text": "x" * 200_000}}}, "graph": {"a": None}})
    assert (await other.answer())[0] == "disconnect"
    await client.send(chain("join"))
    assert (await client.answer())[0] == "done"


async def test_what_is_nested_without_end_is_survived(client: Client, server: Program) -> None:
    other = Client()
    await other.sio.connect(server.url(), transports=["websocket"])
    await other.sio.eio.send('2["run",' + "[" * 40_000 + "]" * 40_000 + "]")
    await client.send(chain("join"))
    assert (await client.answer())[0] == "done"
    await other.sio.disconnect()
    assert server.runs


def test_a_signal_ends_the_server_with_a_pipeline_in_it() -> None:
    with running(str(FOLDER / "server.py"), "--port", "0") as program:

        async def leave_it_running() -> None:
            client = Client(acknowledges=False)
            await client.sio.connect(program.url())
            await client.send(chain("join", count=1000))
            async with asyncio.timeout(LIMIT_S):
                await client.first.wait()
                program.signal(signal.SIGTERM)
                assert (await client.answer())[0] == "disconnect"
            client.holds.set()
            await client.sio.disconnect()

        asyncio.run(leave_it_running())
        assert program.end() == 0, program
        assert any(line.startswith("a pipeline has ended") for line in program.lines)
