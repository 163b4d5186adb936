"""Runs a pipeline for each client that asks, over Socket.IO: the demo of `pipelines`, on furcula.

    pip install 'furcula' python-socketio aiohttp
    python server.py                  # in one terminal: it listens on 127.0.0.1:8080; --port 0 takes any free one
    python client.py                  # in another

A client sends `run` with a graph. Its nodes have names of coroutines, which are looked up in `RIGS` and `PROCESSORS`
below: nothing that a client sends is ever looked up in code, imported or evaluated. It gets back

* `result`, for everything that a node without successors returns: `{"node": ..., "value": ...}`. The client
  acknowledges each, so a slow client makes its own pipeline wait, back to the rigs, and nobody else's;
* `done` at the end: `{"admitted": ..., "delivered": ..., "dropped": ..., "failed": ...}`;
* or `refused`, with all that is wrong: `{"problems": [...]}`.

A client that leaves takes its pipeline with it. How much one client may ask for stands in the limits below.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import msgspec
import socketio  # type: ignore[import-untyped]
from aiohttp import web

from furcula.compat.pipelines import Plumber
from furcula.errors import ConfigurationError, FurculaError

#: What one client may ask for, and how many may at once.
MAX_MESSAGE = 100_000  # bytes
MAX_NODES = 32
MAX_NAME = 64  # characters
MAX_ITEMS = 1_000  # from one rig
MAX_VALUE = 2_000  # characters of one item
MAX_TIME_S = 60.0
MAX_ACKNOWLEDGE_S = 10.0
MAX_PIPELINES = 100

# ------------------------------------------------------------------ what a graph may be made of

Text = Annotated[str, msgspec.Meta(max_length=MAX_MESSAGE)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """No arguments."""


class Words(msgspec.Struct, forbid_unknown_fields=True):
    text: Text = "one two three"


class Numbers(msgspec.Struct, forbid_unknown_fields=True):
    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_ITEMS)] = 10


class Join(msgspec.Struct, forbid_unknown_fields=True):
    separator: Name = " "


async def words(self: Any, output_q: Any, text: str) -> None:
    for word in text.split(maxsplit=MAX_ITEMS)[:MAX_ITEMS]:
        await output_q.put(word[:MAX_VALUE])


async def numbers(self: Any, output_q: Any, count: int) -> None:
    for number in range(count):
        await output_q.put(number)


async def reverse(self: Any, elt: tuple[Any, ...]) -> str:
    await asyncio.sleep(0.01)  # as if it asked somebody
    return str(elt[0])[::-1]


async def upper(self: Any, elt: tuple[Any, ...]) -> str:
    await asyncio.sleep(0.01)
    return str(elt[0]).upper()


async def join(self: Any, elt: tuple[Any, ...], separator: str) -> str:
    return separator.join(map(str, elt))


async def append_reverse(self: Any, elt: tuple[Any, ...]) -> str:
    text = "".join(map(str, elt))
    return text + text[::-1]


Coro = Callable[..., Coroutine[Any, Any, Any]]

#: The only names that mean something: coroutines that begin a pipeline, and coroutines inside one, each with what
#: arguments it takes.
RIGS: dict[str, tuple[Coro, type[msgspec.Struct]]] = {"words": (words, Words), "numbers": (numbers, Numbers)}
PROCESSORS: dict[str, tuple[Coro, type[msgspec.Struct]]] = {
    "reverse": (reverse, Nothing),
    "upper": (upper, Nothing),
    "join": (join, Join),
    "append_reverse": (append_reverse, Nothing),
}


# ------------------------------------------------------------------ what a client sends


class Properties(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Of all the properties that a Plumber knows, the one that a client may give.

    The others say how much of the machine a node takes, and `retry` may name classes to import.
    """

    aggregate_inputs: bool = True


class Node(msgspec.Struct, forbid_unknown_fields=True):
    coro: Name
    args: dict[Name, Any] = {}
    properties: Properties = Properties()


class Graph(msgspec.Struct, forbid_unknown_fields=True):
    nodes: Annotated[dict[Name, Node], msgspec.Meta(min_length=1, max_length=MAX_NODES)]
    graph: Annotated[
        dict[Name, Annotated[list[Name], msgspec.Meta(max_length=MAX_NODES)] | None],
        msgspec.Meta(max_length=MAX_NODES),
    ]


class Refused(Exception):
    """A graph that is not run. `problems` is all that is wrong with it."""

    def __init__(self, *problems: str):
        super().__init__(*problems)
        self.problems = [problem[:300] for problem in problems[:20]]


#: Sends what a node has returned to the client, and waits until the client has it.
Send = Callable[[str, Any], Coroutine[Any, Any, Any]]


def plumber_for(message: Any, send: Send) -> Plumber:
    """The pipeline that a client asks for. What its last nodes return is sent.

    Raises:
        Refused: It is no graph, or not one that is run here.
    """
    try:
        asked = msgspec.convert(message, Graph)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Refused(str(error)) from None
    fed = {after for successors in asked.graph.values() for after in successors or ()}
    wrong: list[str] = []
    nodes: dict[str, Any] = {}
    for name, node in asked.nodes.items():
        try:
            coro, args = looked_up(node, PROCESSORS if name in fed else RIGS)
        except (LookupError, msgspec.ValidationError) as error:
            wrong.append(f"{name}: {error.args[0]}")
            continue
        if name in fed:
            coro = processor(coro, None if asked.graph.get(name) else functools.partial(send, name))
        properties = {"aggregate_inputs": node.properties.aggregate_inputs}
        nodes[name] = {"coro": coro, "args": args, "properties": properties}
    if wrong:
        raise Refused(*wrong)
    try:
        return Plumber({"nodes": nodes, "graph": asked.graph})
    except ConfigurationError as error:
        raise Refused(*(str(problem) for problem in error.problems)) from None


def looked_up(node: Node, known: dict[str, tuple[Coro, type[msgspec.Struct]]]) -> tuple[Coro, dict[str, Any]]:
    """The coroutine that a node names, and its arguments, checked."""
    if node.coro not in known:
        place = "after other nodes" if known is PROCESSORS else "at the beginning"
        raise LookupError(f"there is no coroutine {node.coro!r} to stand {place}; there are {', '.join(known)}")
    coro, arguments = known[node.coro]
    return coro, msgspec.to_builtins(msgspec.convert(node.args, arguments))


def processor(coro: Coro, send: Callable[[Any], Coroutine[Any, Any, Any]] | None) -> Coro:
    """The coroutine with an eye on what it returns; at the end of a pipeline that goes to the client."""

    async def bounded(self: Any, elt: Any, **args: Any) -> Any:
        value = await coro(self, elt, **args)
        if len(value) > MAX_VALUE:  # thirty nodes that each double a text make a billion of it
            raise ValueError(f"a value of {len(value)} characters; the limit is {MAX_VALUE}")
        return value if send is None else await send(value)

    return bounded


# ------------------------------------------------------------------ the server


class Demo:
    """Clients and their pipelines."""

    def __init__(self) -> None:
        # Another origin than ours is refused by default, so that no page of a stranger's talks to this server.
        self.sio = socketio.AsyncServer(async_mode="aiohttp", max_http_buffer_size=MAX_MESSAGE)
        self.sio.on("run", self.run)
        self.sio.on("disconnect", self.left)
        self.pipelines: dict[str, asyncio.Task[None]] = {}

    async def run(self, client: str, *messages: Any) -> None:
        """A client asks for a pipeline."""
        try:
            if client in self.pipelines:
                raise Refused("your last pipeline still runs")
            if len(self.pipelines) >= MAX_PIPELINES:
                raise Refused("there are too many pipelines now; try again later")
            if len(messages) != 1:
                raise Refused("send one graph")
            plumber = plumber_for(messages[0], functools.partial(self.send, client))
        except Refused as refused:
            await self.sio.emit("refused", {"problems": refused.problems}, to=client)
            return
        task = asyncio.create_task(self.carry_out(client, plumber))
        self.pipelines[client] = task
        task.add_done_callback(lambda _: self.pipelines.pop(client, None))

    async def carry_out(self, client: str, plumber: Plumber) -> None:
        try:
            async with asyncio.timeout(MAX_TIME_S):
                await plumber.wait()
        except TimeoutError:
            await self.sio.emit("refused", {"problems": [f"it took more than {MAX_TIME_S:g} s"]}, to=client)
        except FurculaError as error:
            await self.sio.emit("refused", {"problems": [str(error)[:300]]}, to=client)
        else:
            figures = plumber.statistics()
            said = {name: getattr(figures, name) for name in ("admitted", "delivered", "dropped", "failed")}
            await self.sio.emit("done", said, to=client)
        finally:  # also when the client has left, or the server stops
            await plumber.cancel()
            figures = plumber.statistics()
            print(f"a pipeline has ended: {figures.admitted} admitted, {figures.open} open", flush=True)

    async def send(self, client: str, node: str, value: Any) -> None:
        try:
            await self.sio.call("result", {"node": node, "value": value}, to=client, timeout=MAX_ACKNOWLEDGE_S)
        except socketio.exceptions.TimeoutError:
            self.stop(client)

    async def left(self, client: str, *reason: Any) -> None:
        """A client has gone."""
        self.stop(client)

    def stop(self, client: str) -> None:
        task = self.pipelines.get(client)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Stop all pipelines, and wait until they have ended."""
        tasks = list(self.pipelines.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.sio.shutdown()


async def main(port: int) -> None:
    demo = Demo()
    app = web.Application()
    demo.sio.attach(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    host, port = runner.addresses[0][:2]
    print(f"listening on http://{host}:{port}", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await demo.close()
    await runner.cleanup()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Run pipelines for clients.")
    arguments.add_argument("--port", type=int, default=8080)
    asyncio.run(main(arguments.parse_args().port))
