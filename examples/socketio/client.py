"""Sends a graph to `server.py`, and prints what comes back.

    python client.py                          # the graph below
    python client.py --graph graph.json       # or one of your own
    python client.py --url http://127.0.0.1:8080

It prints a line for each result, `node: value`, and at the end the server's figures. Its exit status is 0 when the
pipeline has run to its end, 1 when the server refused it, and 2 when there is no server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import socketio  # type: ignore[import-untyped]

#: Words are turned round and put in capitals; both meet again, and are sent back with their mirror image.
GRAPH = {
    "nodes": {
        "inp": {"coro": "words", "args": {"text": "a quick brown fox"}},
        "n1": {"coro": "reverse"},
        "n2": {"coro": "upper"},
        "n3": {"coro": "join", "args": {"separator": "-"}, "properties": {"aggregate_inputs": True}},
        "n4": {"coro": "append_reverse"},
    },
    "graph": {"inp": ["n1", "n2"], "n1": ["n3"], "n2": ["n3"], "n3": ["n4"], "n4": None},
}


async def run(url: str, graph: Any) -> int:
    """Run a graph; print its results; return the exit status."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    sio = socketio.AsyncClient(reconnection=False)

    def end(status: int) -> None:
        if not ended.done():
            ended.set_result(status)

    async def result(found: dict[str, Any]) -> None:
        print(f"{found['node']}: {found['value']}", flush=True)

    async def done(figures: dict[str, int]) -> None:
        print(", ".join(f"{count} {what}" for what, count in figures.items()))
        end(0)

    async def refused(why: dict[str, list[str]]) -> None:
        print(*why["problems"], sep="\n", file=sys.stderr)
        end(1)

    async def disconnect(*reason: Any) -> None:
        end(2)

    for handler in (result, done, refused, disconnect):
        sio.on(handler.__name__, handler)
    try:
        await sio.connect(url)
    except socketio.exceptions.ConnectionError as error:
        print(f"cannot reach {url}: {error}; is server.py running?", file=sys.stderr)
        return 2
    try:
        await sio.emit("run", graph)
        return await ended
    finally:
        await sio.disconnect()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send a graph to server.py.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--graph", type=Path, help="a JSON file with 'nodes' and 'graph'")
    arguments = parser.parse_args()
    asked = json.loads(arguments.graph.read_text("utf-8")) if arguments.graph else GRAPH
    sys.exit(asyncio.run(run(arguments.url, asked)))
