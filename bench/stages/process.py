"""One process of a run: `python -m bench.stages.process '{...}'`. It says what it finds in lines of JSON.

It begins to count at the word `go` on its input, and ends at `end`, or when its input is closed: whoever started it may
have died.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Literal

import msgspec

from bench.stages import plain
from bench.stages.flow import Far, Work, flow_of
from furcula.engine.director import Director
from furcula.engine.loop import run_in_new_loop

__all__ = ["Found", "Told", "main"]

#: What an event's way may be: one process, with a queue between; two, over 0mq; two, over JetStream; nats-py alone.
Way = Literal["queue", "ipc", "jetstream", "plain"]


class Told(msgspec.Struct):
    """What a process is told.

    Attributes:
        at: The folder of the sockets, or the address of the server.
        counts: How many processes each stage has.
    """

    way: Way
    stage: Literal["near", "far"]
    work: Work
    at: str = ""
    index: int = 0
    counts: dict[str, int] = {}


class Found(msgspec.Struct, omit_defaults=True):
    """What a process says.

    Attributes:
        began: When its source gave the first event, by the clock that all processes share.
        ended: When all that it had sent, or in one process all, was settled.
        handled: Events that the far module has seen.
        latencies_s: Of some of them.
        cpu_s: Seconds of processor time since `go`.
    """

    began: float = 0.0
    ended: float = 0.0
    handled: int = 0
    latencies_s: list[float] = []
    cpu_s: float = 0.0


def main(told: Told) -> None:
    run_in_new_loop(_plain(told) if told.way == "plain" else _flow(told))


def _director(told: Told, far: Far) -> Director:
    if told.way == "queue":
        return Director(flow_of(told.work, far, queue=1000), held=["source"])
    flow = flow_of(told.work, far)
    if told.way == "ipc":
        from furcula.workers.lines import Lines

        joints = Lines(Path(told.at), told.stage, told.index, told.counts)
        return Director(flow, stage=told.stage, joints=joints, held=["source"])
    from furcula.cluster.client import Access
    from furcula.cluster.worker import StageDirector

    # The source begins when we say so, and not when its turn to run in one worker only has come.
    flow.places["source"].options = msgspec.structs.replace(flow.places["source"].options, single=False)
    return StageDirector(flow, told.stage, Access(told.at), held=["source"])


async def _flow(told: Told) -> None:
    far, found, words = Far(), Found(), await _words()
    async with asyncio.timeout(_LIMIT_S), _director(told, far) as director:
        while director.unready():  # noqa: ASYNC110 -- many things make it ready
            await asyncio.sleep(0.01)
        _say(Found())
        while True:
            word = await words.get()
            if word == "go":
                found, used = Found(began=time.monotonic()), time.process_time()
                if told.stage == "near":
                    await director.begin("source")
                    while not director.sources_ended or director.statistics().total.open:  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                    found.ended = time.monotonic()
                    found.cpu_s = time.process_time() - used
            elif word == "found":
                found.handled = far.handled
                found.latencies_s = list(far.latencies_s)
                if not found.ended:
                    found.cpu_s = time.process_time() - used
            else:
                return
            _say(found)


async def _plain(told: Told) -> None:
    words = await _words()
    async with asyncio.timeout(_LIMIT_S), plain.connected(told.at) as js:
        if told.stage == "near":
            await plain.set_up(js)
        taking = asyncio.ensure_future(plain.take(js)) if told.stage == "far" else None
        _say(Found())
        found, used = Found(), 0.0
        while True:
            word = await words.get()
            if word == "go":
                found, used = Found(began=time.monotonic()), time.process_time()
                if told.stage == "near":
                    await plain.publish(js, told.work.events)
                    found.ended = time.monotonic()
                    found.cpu_s = time.process_time() - used
            elif word == "found":
                found.cpu_s = found.cpu_s or time.process_time() - used
            else:
                break
            _say(found)
        if taking is not None:
            taking.cancel()
            await asyncio.wait([taking])


_LIMIT_S = 600


async def _words() -> asyncio.Queue[str]:
    """What comes on our input, line by line; `end` when it is closed."""
    loop, words = asyncio.get_running_loop(), asyncio.Queue[str]()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def read() -> None:
        while True:
            line = await reader.readline()
            words.put_nowait(line.decode().strip() or "end")
            if not line:
                return

    _reading.append(loop.create_task(read()))
    return words


_reading: list[Any] = []


def _say(found: Found) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Told))
