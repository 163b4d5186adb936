"""A worker of the chaos run: one stage of a flow of three, until SIGTERM.

`python worker_chaos.py '{"stage": ..., "url": ..., "flow": ..., "folder": ..., "events": ..., ...}'`
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from furcula import Event, Flow, Retry, Source
from furcula.cluster.client import Access
from furcula.cluster.worker import StageDirector

#: Numbers that the source gives before the first of them is settled.
WINDOW = 4000
BATCH = 256


class Busy(Exception):
    """Worth another try."""

    retryable = True


class Numbers(Source):
    """Gives the numbers in their order, each with its key, and passes only what is settled.

    A new one begins behind the longest beginning that is settled, with the same ids.
    """

    acknowledges = "position"

    def __init__(
        self, folder: str, events: int, keys: int, window: int, batch: int, pace_s: float, gates: dict[str, int]
    ):
        self.path = Path(folder) / "position"
        self.numbers = events
        self.keys = keys
        self.window = window
        self.batch = batch
        self.pace_s = pace_s
        #: Files that must be there before it gives the number.
        self.gates = gates

    def start(self, context: Any) -> None:
        self.context = context
        self.life = 0
        self.room = asyncio.Event()
        self.file = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self.begin()

    def begin(self) -> None:
        self.life += 1
        # Each line is the beginning that one life of the source has seen settled; none is wrong.
        self.done = self.at = max(map(int, self.path.read_text().split()), default=0)
        self.settled: set[int] = set()
        self.task = asyncio.get_running_loop().create_task(self.give(self.life))

    async def give(self, life: int) -> None:
        while self.at < self.numbers:
            if any(self.at >= at and not (self.path.parent / name).exists() for name, at in self.gates.items()):
                await asyncio.sleep(0.01)
                continue
            if self.at - self.done >= self.window:
                self.room.clear()
                await self.room.wait()
                continue
            to = min(self.at + self.batch, self.numbers, self.done + self.window)
            batch = range(self.at, to)
            self.at = to
            for number in batch:
                wait = self.context.admit(
                    [event_of(number, self.keys)],
                    settled=lambda slot, number=number: self.is_settled(life, number, slot),
                )
                if wait is not None:
                    await wait
            await asyncio.sleep(self.pace_s)

    def is_settled(self, life: int, number: int, slot: Any) -> None:
        if life != self.life:
            return
        if slot.fate == "failed":  # it was not stored: all from there once more
            self.task.cancel()
            self.begin()
            return
        self.settled.add(number)
        done = self.done
        while done in self.settled:
            self.settled.discard(done)
            done += 1
        if done // 100 > self.done // 100 or done == self.numbers:
            os.write(self.file, b"%d\n" % done)
        self.done = done
        self.room.set()

    def cease(self) -> None:
        self.task.cancel()

    def stop(self) -> None:
        self.life += 1
        os.close(self.file)


def event_of(number: int, keys: int) -> Event[Any]:
    event: Event[Any] = Event({"n": number, "key": f"k{number % keys}"})
    event._id = f"n{number}"
    return event


def flow_of(settings: dict[str, Any]) -> Flow:
    folder = settings["folder"]
    flow = Flow(settings["flow"], cluster=settings["cluster"])
    draw = random.Random(os.getpid())
    version = settings.get("version", 1)
    counted = {name: settings[name] for name in ("events", "keys", "window", "batch", "pace_s", "gates")}
    numbers = flow.use(Numbers, "numbers", folder=folder, **counted)

    @flow.module(stage="middle", key="data.key", concurrency=16, retry=Retry(attempts=2, delay=0.01, errors=(OSError,)))
    async def work(event: Event[Any]) -> Event[Any]:
        chance = draw.random()
        if chance < 0.05:
            await asyncio.sleep(0.002 * draw.random())
        if chance < 0.001:
            raise OSError("try again here")
        if chance > 0.9998:
            raise Busy("try again later")
        event.data["version"] = version
        return event

    log = os.open(Path(folder) / "plain", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    name = settings["name"]
    tables: list[sqlite3.Connection] = []

    @flow.module(stage="sink", key="data.key")
    def store(event: Event[Any]) -> None:
        if not tables:
            tables.append(opened(Path(folder) / "once.db"))
        data = event.data
        # One file for all: what is appended stands in the order in which it happened.
        said = (data["n"], data["key"].encode(), data["version"], name.encode(), time.time())
        os.write(log, b"%d %s %d %s %.3f\n" % said)
        tables[0].execute("insert or ignore into once values (?, ?)", (event.id, data["n"]))

    numbers >> work >> store
    return flow


def opened(path: Path) -> sqlite3.Connection:
    """A sink for which twice is once."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=60)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=off")  # processes are killed here, not machines
    connection.execute("create table if not exists once (id text primary key, n integer) without rowid")
    return connection


async def main(settings: dict[str, Any]) -> None:
    director = StageDirector(
        flow_of(settings),
        settings["stage"],
        Access(settings["url"]),
        version=str(settings.get("version", 1)),
        deadline=settings.get("deadline", "20s"),
    )
    running = asyncio.ensure_future(director.run(signals=True))
    while not running.done() and (director.phase != "running" or director.unready()):
        await asyncio.sleep(0.05)
    print("worker runs", os.getpid())
    statistics = await running
    print("worker ended", statistics.total, statistics.abandoned)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    asyncio.run(main(json.loads(sys.argv[1])))
