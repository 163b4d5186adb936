"""A worker of test_promise: one stage of a small flow, until SIGTERM.

What an event's data says is done: `{"do": "exit"}` ends the process, `{"do": "hold", "s": 2}` holds its loop,
`{"do": "gate"}` waits for a file of that name.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from furcula import Event, Flow
from furcula.cluster.client import Access
from furcula.cluster.worker import StageDirector


def note(settings: dict[str, Any], text: str) -> None:
    file = os.open(Path(settings["folder"]) / "noted", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, f"{text} {settings['name']}\n".encode())
    os.close(file)


def flow_of(settings: dict[str, Any]) -> Flow:
    """`inlet` → `work` (stage `work`) → `end` (stage `end`); with `ticks`, also two sources that run once."""
    flow = Flow(settings["flow"], cluster=settings["cluster"])
    inlet = flow.use("inlet", "inlet")
    keyed = {"key": "data.key"} if settings.get("keyed", True) else {"order": "none", "concurrency": 4}

    async def work(event: Event[Any]) -> Event[Any]:
        data = event.data
        note(settings, f"begins {data['n']}")
        do = data.get("do")
        if do == "exit":
            os._exit(9)
        if do == "hold":
            time.sleep(data["s"])  # noqa: ASYNC251 -- as a careless module does
        elif do in ("wait", "gate"):
            while do == "gate" and not (Path(settings["folder"]) / "gate").exists():
                await asyncio.sleep(0.01)
            await asyncio.sleep(data["s"])
        data["by"] = settings["name"]
        return event

    def end(event: Event[Any]) -> None:
        note(settings, f"ends {event.data['n']}")
        ends = settings.get("ends")
        if ends is not None:
            ends.append((event.data["key"], event.data["n"], event.data["by"]))

    done = flow.module(end, stage="end", key="data.key")
    inlet >> flow.module(work, stage="work", **keyed) >> done
    if settings.get("ticks"):
        for name in ("first", "second"):
            flow.source(ticks(settings, name), name) >> flow.module(drop, f"drop-{name}")
    return flow


def ticks(settings: dict[str, Any], name: str) -> Any:
    async def tick() -> AsyncIterator[int]:
        number = 0
        while True:
            note(settings, f"ticks {name}")
            yield number
            number += 1
            await asyncio.sleep(0.02)

    return tick


def drop(event: Event[Any]) -> None:
    return None


async def main(settings: dict[str, Any]) -> None:
    director = StageDirector(flow_of(settings), settings["stage"], Access(settings["url"]))
    running = asyncio.ensure_future(director.run(signals=True))
    while not running.done() and (director.phase != "running" or director.unready()):
        await asyncio.sleep(0.02)
    print("worker runs", os.getpid())
    await running


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    asyncio.run(main(json.loads(sys.argv[1])))
