"""The way of each event through sender, server and worker, played through by a clock of its own.

A process does one thing at a time. With `cores`, processes share that many processors, first come first served. Keys
are divided among partitions as furcula does it, so shares are as uneven as they really are. What is left out: events of
one key that wait for each other (see `hottest` in `bounds.py`), redelivery, and all that other programs do meanwhile.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable

import msgspec

from bench.model.bounds import AHEAD, Costs, Setting
from furcula.engine.parts import share_of

__all__ = ["Played", "play"]

#: Events that a source gives at once.
GIVEN = 64


class Played(msgspec.Struct):
    """What came of it.

    Attributes:
        rate: Events a second, from the first given to the last handled.
        latencies_s: Sorted; from being given to the end of the handling.
        batch: Events in a message, on average.
    """

    rate: float
    latencies_s: list[float]
    batch: float

    def quantile_s(self, part: float) -> float:
        return self.latencies_s[min(len(self.latencies_s) - 1, int(len(self.latencies_s) * part))]


class _Clock:
    """Calls things when their time has come."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(time, self.now), next(self._numbers), what))

    def run(self) -> None:
        while self._due:
            self.now, _, what = heapq.heappop(self._due)
            what()


class _Process:
    """Does one thing at a time, when it has one of the processors that it shares with others."""

    def __init__(self, clock: _Clock, cores: _Cores):
        self._clock = clock
        self._cores = cores
        self._to_do: deque[tuple[float, Callable[[], None]]] = deque()
        self._wants = False

    def work(self, seconds: float, then: Callable[[], None]) -> None:
        self._to_do.append((seconds, then))
        if not self._wants:
            self._wants = True
            self._cores.want(self)

    def run(self) -> None:
        """A processor is ours, for one thing."""
        seconds, then = self._to_do.popleft()

        def over() -> None:
            self._cores.give_back()
            self._wants = bool(self._to_do)
            if self._wants:
                self._cores.want(self)
            then()

        self._clock.at(self._clock.now + seconds, over)


class _Cores:
    """Processors, each for whoever has waited longest.

    Args:
        count: How many; 0: enough for all.
    """

    def __init__(self, count: int):
        self._free: float = count or math.inf
        self._waiting: deque[_Process] = deque()

    def want(self, process: _Process) -> None:
        self._waiting.append(process)
        self._next()

    def give_back(self) -> None:
        self._free += 1
        self._next()

    def _next(self) -> None:
        while self._waiting and self._free > 0:
            self._free -= 1
            self._waiting.popleft().run()


class _Worker:
    def __init__(self, run: _Run, process: _Process):
        self._run = run
        self._process = process
        self._waiting: deque[float] = deque()
        self._handling = 0

    @property
    def load(self) -> int:
        return self._handling + len(self._waiting)

    def take(self, given: list[float]) -> None:
        def decoded() -> None:
            self._waiting += given
            self._handle()

        self._process.work(self._run.costs.far_message, decoded)

    def _handle(self) -> None:
        run = self._run
        while self._waiting and self._handling < run.setting.concurrency:
            self._handling += 1
            given = self._waiting.popleft()
            held = run.setting.wait_s + run.costs.timer_s if run.setting.wait_s else 0.0
            run.clock.at(run.clock.now + held, lambda given=given: self._waited(given))  # type: ignore[misc]

    def _waited(self, given: float) -> None:
        def done() -> None:
            self._handling -= 1
            self._run.done(given)
            self._handle()

        self._process.work(self._run.costs.far_event, done)


class _Run:
    def __init__(self, costs: Costs, setting: Setting, events: int, offered: float, keys: int):
        self.costs = costs
        self.setting = setting
        self.clock = _Clock()
        self.latencies: list[float] = []
        cores = _Cores(setting.cores)
        self._near, self._server = _Process(self.clock, cores), _Process(self.clock, cores)
        self._workers = [_Worker(self, _Process(self.clock, cores)) for _ in range(setting.workers)]
        self._lanes = max(1, setting.partitions)
        self._partition = [share_of(key, self._lanes) if setting.partitions else 0 for key in range(keys)]
        self._gathered: list[list[float]] = [[] for _ in range(self._lanes)]
        self._under = [0] * self._lanes
        self._events, self._offered = events, offered
        self._given = self._stored = self.messages = 0
        self._giving = False

    def run(self) -> None:
        if self._offered:
            for number in range(self._events):
                self.clock.at(number / self._offered, self._give_one)
        else:
            self._give()
        self.clock.run()

    # ------------------------------------------------------------------ the sender

    def _give_one(self) -> None:
        given = self.clock.now
        self._given += 1
        self._to_lane(self._given, given)

    def _give(self) -> None:
        """As many as there is room for."""
        count = min(GIVEN, self._events - self._given, AHEAD - (self._given - self._stored))
        if count <= 0 or self._giving:
            return
        self._giving = True
        first = self._given
        self._given += count

        def gave() -> None:
            self._giving = False
            for number in range(first, first + count):
                self._to_lane(number, self.clock.now)
            self._give()

        self._near.work(0.0, gave)

    def _to_lane(self, number: int, given: float) -> None:
        lane = self._partition[number % len(self._partition)]
        self._gathered[lane].append(given)
        # What comes within the same moment goes together.
        self.clock.at(self.clock.now, lambda: self._send(lane))

    def _send(self, lane: int) -> None:
        waiting = self._gathered[lane]
        if not waiting or self._under[lane] >= self.setting.lanes:
            return
        batch, self._gathered[lane] = waiting[: self.setting.batch], waiting[self.setting.batch :]
        self._under[lane] += 1
        self.messages += 1
        costs, clock, count = self.costs, self.clock, len(batch)

        def sent() -> None:
            clock.at(clock.now + costs.hop_s, came)

        def came() -> None:
            self._server.work(costs.server_message + count * costs.server_event, stored)

        def stored() -> None:
            clock.at(clock.now + costs.hop_s, told)
            clock.at(clock.now + costs.hop_s, lambda: self._worker(lane).take(batch))

        def told() -> None:
            self._under[lane] -= 1
            self._stored += count
            self._send(lane)
            if not self._offered:
                self._give()

        self._near.work(costs.near_message + count * costs.near_event, sent)

    # ------------------------------------------------------------------ the workers

    def _worker(self, lane: int) -> _Worker:
        if self.setting.partitions:
            return self._workers[lane % len(self._workers)]
        return min(self._workers, key=lambda worker: worker.load)

    def done(self, given: float) -> None:
        self.latencies.append(self.clock.now - given)


def play(costs: Costs, setting: Setting, events: int, offered: float = 0.0, keys: int = 10_000) -> Played:
    """Play it through.

    Args:
        offered: Events a second that are given, evenly; 0: as many as there is room for.
        keys: They are given in turn.
    """
    run = _Run(costs, setting, events, offered, keys)
    run.run()
    assert len(run.latencies) == events
    rate = events / run.clock.now if run.clock.now else math.inf
    return Played(rate, sorted(run.latencies), events / run.messages)
