"""The chaos run: numbered events with keys flow through three stages while everything breaks, as a seed has it.

What must hold at the end, of all numbers:

* each is at the sink that knows its id, once: none is lost;
* at the plain sink, which keeps what it is given, those that come twice are no more than what the workers that were
  killed, frozen or cut off can have had in hand; and each of them was in hand, as far as the server knew, when
  something broke or its part was taken over: none comes again that was done with long before (`Chaos._outside`);
* of each key, the first time of each number comes in their order; with repeats removed the sequence grows;
* nothing waits, and there are no dead letters.
"""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import nats
from tests.cluster.harness import Proxy, Servers, Small, Worker, wait_for
from tests.cluster.worker_chaos import BATCH, WINDOW, flow_of

from furcula.cluster.client import Access
from furcula.cluster.operating import operating
from furcula.engine.parts import share_of

__all__ = ["Figures", "run"]

#: What can happen, and how often of a hundred.
DEEDS = {
    "kill a worker": 30,
    "freeze a worker": 12,
    "cut off a worker": 12,
    "kill a leader": 12,
    "cut off a server": 10,
    "cut off a server silently": 6,
    "slow a worker's link": 10,
    "fill a disk": 8,
}
PARTITIONS, PREFETCH = 12, 256
#: Events of a message, at most: the source gives so many at once.
MESSAGE = 256
#: What a worker says when something of its is another's.
PASSED = ("is another worker's now", "has passed to another")
WORKERS = {"main": 2, "middle": 3, "sink": 2}


class Figures(msgspec.Struct):
    """What a run has shown."""

    seed: int
    events: int
    deeds: dict[str, int] = {}
    handled: int = 0
    lost: int = 0
    duplicates: int = 0
    most_duplicates: int = 0
    #: Of the duplicates, those that cannot have been in hand when they came again.
    outside: int = 0
    twice_at_once: int = 0
    out_of_order: int = 0
    takeovers: int = 0
    dead_letters: int = 0
    lag: int = 0
    seconds: float = 0.0
    longest_stall_s: float = 0.0
    versions: dict[int, int] = {}
    skipped: list[str] = []

    def __str__(self) -> str:
        deeds = ", ".join(f"{what}: {count}" for what, count in sorted(self.deeds.items()))
        return (
            f"seed {self.seed}: {self.events} events in {self.seconds:.0f} s, "
            f"longest stall {self.longest_stall_s:.1f} s\n"
            f"  {deeds}\n"
            f"  take-overs {self.takeovers}, lost {self.lost}, out of order {self.out_of_order}, "
            f"twice at the sink that knows ids {self.twice_at_once}\n"
            f"  duplicates at the plain sink {self.duplicates} (at most {self.most_duplicates}; "
            f"{self.outside} that were not in hand), "
            f"dead letters {self.dead_letters}, lag {self.lag}, by version {self.versions}"
            + "".join(f"\n  skipped: {reason}" for reason in self.skipped)
        )


class Chaos:
    """One run.

    Args:
        folder: Its own.
        events: How many.
        seed: Of what happens and when.
        deeds: How many things happen.
        size: Servers of the cluster.
        must: What happens in any case; the rest is drawn.
        deploy: Also replace the workers of the middle stage by those of the next version.
        lease: Of the workers, in seconds.
        window: Numbers that the source gives before the first of them is settled.
        batch: Numbers that it gives at once.
        pace_s: So long it waits after each.
    """

    def __init__(
        self, folder: Path, *, events: int, seed: int, deeds: int, size: int = 3, must: Sequence[str] = (),
        deploy: bool = True, lease: float = 2.0, window: int = WINDOW, batch: int = BATCH, pace_s: float = 0,
    ):  # fmt: skip
        self.folder = folder
        self.events = events
        self.figures = Figures(seed, events)
        self._draw = random.Random(seed)
        self._lease = lease
        self._window = window
        # Events are left for the next version of the middle stage, and to flow while the last things break.
        gates = {"go": 0, "over": int(0.9 * events), **({"deployed": int(0.7 * events)} if deploy else {})}
        self._supply = {"window": window, "batch": batch, "pace_s": pace_s, "gates": gates}
        self._size = size
        self._deploys = deploy
        self._proxy = Proxy()
        self._small: Small | None = None
        if size > 1 and ("fill a disk" in must or not must):
            self._small = Small(folder / "small", 256)
            if self._small.reason:
                self.figures.skipped.append(f"filling a disk: {self._small.reason}")
        full = self._small is not None and not self._small.reason
        self._servers = Servers(folder, self._proxy, size, self._small.folder / "js" if full and self._small else None)
        self._cluster = {
            "replicas": size,
            "partitions": PARTITIONS,
            "prefetch": PREFETCH,
            "lease": lease,
            "ack_wait": 3,
            "delay": 0.05,
            "max_deliveries": 20,
            "max_messages": 500,
            "max_bytes": "40MB",
        }
        self._workers: list[Worker] = []
        self._gone: list[Worker] = []
        self._count = 0
        self._arrived = threading.Event()
        self._version = 1
        #: From when to when something was broken, by the clock on the wall.
        self._broken: list[tuple[float, float]] = []
        possible = [deed for deed in DEEDS if self._may(deed)]
        chosen = self._draw.choices(possible, [DEEDS[deed] for deed in possible], k=max(0, deeds - len(must)))
        self._plan = [*(deed for deed in must if self._may(deed)), *chosen]
        self._draw.shuffle(self._plan)

    def _may(self, deed: str) -> bool:
        if deed == "fill a disk":
            return self._small is not None and not self._small.reason
        return self._size > 1 or "server" not in deed

    # ------------------------------------------------------------------ workers

    def _start(self, stage: str) -> Worker:
        self._count += 1
        worker = Worker(
            self.folder,
            f"{stage}-{self._count}",
            "worker_chaos.py",
            {
                "stage": stage,
                "flow": "chaos",
                "folder": str(self.folder),
                "events": self.events,
                "keys": min(500, self.events // 20),
                **self._supply,
                "cluster": self._cluster,
                "version": self._version if stage == "middle" else 1,
            },
            self._servers.clients(),
        )
        self._workers.append(worker)
        return worker

    def _one(self, stage: str | None = None) -> Worker:
        return self._draw.choice([one for one in self._workers if stage is None or one.stage == stage])

    def _leave(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._gone.append(worker)

    # ------------------------------------------------------------------ deeds

    def _do(self, deed: str) -> None:
        self.figures.deeds[deed] = self.figures.deeds.get(deed, 0) + 1
        interrupted, began = self.figures.most_duplicates, time.time()
        self._break(deed)
        if self.figures.most_duplicates > interrupted:
            self._broken.append((began, time.time()))

    def _break(self, deed: str) -> None:
        if deed == "kill a worker":
            worker = self._one()
            worker.kill()
            self._leave(worker)
            self._interrupted(worker.stage)
            self._start(worker.stage)
        elif deed == "freeze a worker":
            worker = self._one()
            worker.freeze()
            self._interrupted(worker.stage)
            time.sleep(1.8 * self._lease)
            worker.thaw()
        elif deed == "cut off a worker":
            worker = self._one()
            self._proxy.cut(*worker.links, silently=self._draw.random() < 0.5)
            self._interrupted(worker.stage)
            time.sleep(self._draw.uniform(0.3, 2.0) * self._lease)
            self._proxy.heal(*worker.links)
        elif deed == "slow a worker's link":
            worker = self._one()
            for link in worker.links:
                link.delay_s = 0.03
            time.sleep(3)
            for link in worker.links:
                link.delay_s = 0.0
        elif deed == "kill a leader":
            number = self._leader(self._draw.choice(["middle", "sink"]))
            self._servers.nodes[number].kill()
            self._all_interrupted()
            time.sleep(self._draw.uniform(0.5, 3.0))
            self._restart(number)
        elif deed.startswith("cut off a server"):
            number = self._draw.randrange(self._size)
            links = self._servers.links_of(number)
            self._proxy.cut(*links, silently=deed.endswith("silently"))
            self._all_interrupted()
            time.sleep(self._draw.uniform(2.0, 6.0))
            self._proxy.heal(*links)
            self._healthy()
        elif deed == "fill a disk":
            assert self._small is not None
            self._small.fill()
            self._all_interrupted()
            time.sleep(4)
            self._small.free()
            # A server that could not write has ended its JetStream: it is started again, as its operator would.
            self._servers.nodes[-1].kill()
            self._restart(self._size - 1)

    def _restart(self, number: int) -> None:
        self._servers.nodes[number].start()
        self._healthy()

    def _healthy(self) -> None:
        """The next server is not broken before the last one is whole again: two of three would be too many."""

        def whole() -> bool:
            for node in self._servers.nodes:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{node.monitor}/healthz", timeout=5) as answer:
                        if json.load(answer).get("status") != "ok":
                            return False
                except (OSError, ValueError):
                    return False
            return True

        wait_for(whole, "the servers are whole again", 120)

    def _interrupted(self, stage: str) -> None:
        # What a worker has in hand: of a source, its window; of each partition, `prefetch` events and one message more.
        most = self._window if stage == "main" else PARTITIONS * (PREFETCH + MESSAGE)
        self.figures.most_duplicates += most

    def _all_interrupted(self) -> None:
        """Who is connected to a server that ends may lose its place, or take anew what it has in hand."""
        for stage in WORKERS:
            self._interrupted(stage)

    def _leader(self, stage: str) -> int:
        async def ask() -> str:
            connection = await nats.connect(servers=self._servers.direct().split(","))
            try:
                info = await connection.jetstream().stream_info(f"furcula_chaos_to_{stage}")
                return str(info.cluster.leader if info.cluster is not None else "n0")
            finally:
                await connection.close()

        try:
            leader = asyncio.run(ask())
        except Exception:  # none is chosen at this moment
            leader = "n0"
        return int(leader[1:] or 0)

    # ------------------------------------------------------------------ the run

    def run(self, limit_s: float) -> Figures:
        try:
            self._healthy()
            for stage, count in WORKERS.items():
                for _ in range(count):
                    self._start(stage)
            wait_for(lambda: all(worker.ready for worker in self._workers), "the workers run", 120)
            (self.folder / "go").touch()
            self._run(limit_s)
            for worker in self._workers:
                worker.process.terminate()
            for worker in self._workers:
                worker.terminate()
            self._count_up()
            return self.figures
        finally:
            for worker in self._workers:
                worker.kill()
            self._servers.close()
            self._proxy.close()
            if self._small is not None:
                self._small.close()

    def _run(self, limit_s: float) -> None:
        began = time.monotonic()
        watching = threading.Thread(target=self._watch, name="watches for stalls", daemon=True)
        watching.start()
        done = 0
        plan = list(self._plan)
        step = 0.85 * self.events / (len(plan) + 1)
        deploy_at = self.events * 0.4 if self._deploys else float("inf")
        next_at = step
        while done < self.events or plan:
            done = self._stored()
            if done >= deploy_at:
                deploy_at = float("inf")
                self._deploy()
                (self.folder / "deployed").touch()
            if plan and done >= next_at:
                next_at += step
                self._do(plan.pop(0))
            if not plan:
                (self.folder / "over").touch()
            for worker in self._workers:
                assert worker.process.poll() is None, f"{worker.name} ended:\n{worker.said[-3000:]}"
            assert time.monotonic() - began < limit_s, (
                f"only {done} of {self.events} after {limit_s:g} s\n{self.figures}"
            )
            time.sleep(0.05)
        self.figures.seconds = time.monotonic() - began
        self._arrived.set()
        watching.join()

    def _watch(self) -> None:
        """Keep the longest time in which nothing came to the sink."""
        plain, last, at = self.folder / "plain", 0, time.monotonic()
        while not self._arrived.wait(0.02):
            size, now = plain.stat().st_size if plain.exists() else 0, time.monotonic()
            if size != last:
                self.figures.longest_stall_s = max(self.figures.longest_stall_s, now - at)
                last, at = size, now

    def _stored(self) -> int:
        path = self.folder / "once.db"
        if not path.exists():
            return 0
        try:
            connection = sqlite3.connect(path, timeout=60)
            try:
                return int(connection.execute("select count(*) from once").fetchone()[0])
            finally:
                connection.close()
        except sqlite3.OperationalError:  # the table is being made
            return 0

    def _deploy(self) -> None:
        """Workers of the next version take the place of those of this one, one by one, under load."""
        self.figures.deeds["deploy the middle stage"] = self.figures.deeds.get("deploy the middle stage", 0) + 1
        self._version += 1
        for worker in [worker for worker in self._workers if worker.stage == "middle"]:
            new = self._start("middle")
            wait_for(lambda new=new: new.ready, "the new worker runs")  # type: ignore[misc]
            worker.terminate()
            self._leave(worker)

    def _count_up(self) -> None:
        figures = self.figures
        connection = sqlite3.connect(self.folder / "once.db")
        rows = [row[0] for row in connection.execute("select n from once")]
        connection.close()
        figures.twice_at_once = len(rows) - len(set(rows))
        lines = [line.split() for line in (self.folder / "plain").read_text().splitlines()]
        numbers = [int(line[0]) for line in lines]
        figures.handled = len(numbers)
        figures.lost = len(set(range(self.events)) - set(rows))
        figures.duplicates = len(numbers) - len(set(numbers))
        figures.versions = dict(Counter(int(line[2]) for line in lines))
        figures.outside = self._outside(lines)
        last: dict[str, int] = {}
        seen: set[int] = set()
        for number, line in zip(numbers, lines, strict=True):
            if number in seen:
                continue
            seen.add(number)
            if number < last.get(line[1], -1):
                figures.out_of_order += 1
            last[line[1]] = number
        for worker in [*self._workers, *self._gone]:
            figures.takeovers += sum(worker.said.count(words) for words in PASSED)
        figures.lag, figures.dead_letters = asyncio.run(self._left())

    def _outside(self, lines: Sequence[Sequence[str]]) -> int:
        """How many came again that were not in hand: done with long before, or with nothing broken.

        What a worker has in hand of a part is `prefetch` events and one message more; what the server has not heard to
        be done it gives again after `ack_wait`, or a lease later when the worker has lost its part. So an event that
        comes again is one of the last of its part, or came first not long ago; and meanwhile, or shortly before that,
        something was broken or passed to another worker.
        """
        soon_s = 2 * (self._cluster["ack_wait"] + self._lease)
        broken = [*self._broken, *((at, at) for at in self._passed())]
        came = [0] * PARTITIONS
        first: dict[int, tuple[int, float]] = {}
        outside = 0
        for number, key, _, _, said in lines:
            part, at = share_of(key, PARTITIONS), float(said)
            if int(number) not in first:
                came[part] += 1
                first[int(number)] = (came[part], at)
                continue
            place, first_at = first[int(number)]
            in_hand = came[part] - place <= PREFETCH + MESSAGE or at - first_at <= soon_s
            outside += not (in_hand and any(began <= at and first_at <= ended + soon_s for began, ended in broken))
        return outside

    def _passed(self) -> list[float]:
        """When a worker has said that something of its was taken over by another, by the clock on the wall."""
        said = [line for worker in [*self._workers, *self._gone] for line in worker.said.splitlines()]
        passed = [line for line in said if any(words in line for words in PASSED)]
        return [time.mktime(time.strptime(line[:19], "%Y-%m-%d %H:%M:%S")) for line in passed]

    async def _left(self) -> tuple[int, int]:
        settings: dict[str, Any] = {
            "folder": str(self.folder), "flow": "chaos", "cluster": self._cluster, "events": 0, "keys": 1, "name": "-",
            **self._supply,
        }  # fmt: skip
        async with operating(flow_of(settings), Access(self._servers.direct())) as operator:
            status = await operator.status()
            return sum(sum(stage.lag.values()) for stage in status.stages), status.dead_letters


def run(folder: Path, *, limit_s: float, **settings: Any) -> Figures:
    """One run; see `Chaos`. Prints what it has shown."""
    figures = Chaos(folder, **settings).run(limit_s)
    print(figures)
    return figures


def check(figures: Figures) -> None:
    """Does the promise hold?"""
    assert figures.lost == 0, figures
    assert figures.twice_at_once == 0, figures
    assert figures.out_of_order == 0, figures
    assert figures.duplicates <= figures.most_duplicates, figures
    assert figures.outside == 0, figures
    assert figures.dead_letters == 0, figures
    assert figures.lag == 0, figures


if __name__ == "__main__":
    # `python -m tests.cluster.chaos FOLDER '{"events": 10000, "seed": 1, "deeds": 10, "limit_s": 300}'`
    place = Path(sys.argv[1])
    place.mkdir(parents=True)
    check(run(place, **json.loads(sys.argv[2])))
