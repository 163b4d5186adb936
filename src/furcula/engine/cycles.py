"""Cycles that cannot deadlock: what enters is limited, and what turns is never made to wait.

A cycle in which every queue makes its sender wait stands still as soon as each of its modules waits for the next; with
a module that splits, that is a question of moments. So the route that closes the cycle takes everything at once. What
bounds it: a gate at the entry lets events in only while few are inside, events that turn when there are ten times as
many inside (a split multiplies them) fail, and every turn costs one of an event's hops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from furcula.engine.counters import Counters, TimeSlice
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch
from furcula.engine.queue import QueueStep
from furcula.errors import QueueFull

__all__ = ["BackEdge", "Region"]


class Region:
    """The modules of one cycle, and how many events are among them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.members: list[Counters] = []
        self.gates: list[QueueStep] = []

    def inside(self) -> int:
        waiting = sum(len(gate.queue) for gate in self.gates)
        return sum(counters.held for counters in self.members) - waiting

    def allowed(self) -> int:
        """How many events a gate may let in now."""
        return self.limit - self.inside()

    def changed(self) -> None:
        """Events have left a module of the cycle: a gate may open."""
        if self.gates and self.inside() < self.limit:
            for gate in self.gates:
                gate.notify()


class BackEdge(QueueStep):
    """The route that closes a cycle, as a consumer. Never makes its sender wait.

    Args:
        ttl: The turns an event may make, or None where turns are not charged.
        region: The cycle.
    """

    def __init__(
        self,
        name: str,
        target: Callable[[Batch], Any],
        outcomes: Outcomes,
        time_slice: TimeSlice,
        *,
        region: Region,
        ttl: int | None,
        batch_limit: int,
    ):
        super().__init__(name, target, outcomes, time_slice, size=1 << 60, batch_limit=batch_limit)
        self._region = region
        self._ttl = ttl

    def accept(self, batch: Batch) -> None:
        counters = self.counters
        if self._ttl is not None:
            expired: Batch = []
            turning: Batch = []
            for event in batch:
                event.ttl = (self._ttl if event.ttl is None else event.ttl) - 1
                (turning if event.ttl >= 0 else expired).append(event)
            if expired:
                counters.held -= len(expired)
                # Whoever takes these has a queue of its own that may overrun by them: waiting here could be for ever.
                self.outcomes.send("expired", expired)
            batch = turning
        room = max(0, 10 * self._region.limit - self._region.inside() + len(batch))
        if len(batch) > room:
            refused, batch = batch[room:], batch[:room]
            counters.held -= len(refused)
            error = QueueFull(
                f"the cycle through {self.outcomes.name} holds ten times its limit of {self._region.limit} events"
            )
            self.outcomes.fail([(event, Failed(error, touched=False)) for event in refused])
        if batch:
            self.queue.append(batch)
            self.notify()
