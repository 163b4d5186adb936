"""Plain integers that the loop adds to, and the two clocks that keep it fair."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import perf_counter

from furcula.engine.statistics import ModuleStatistics

__all__ = ["BATCH_LIMIT", "HELD_LOOP_S", "Counters", "Pace", "TimeSlice"]

#: The most events that move together.
BATCH_LIMIT = 512
#: A module whose own code keeps the loop longer than this is named in a warning.
HELD_LOOP_S = 0.1
#: What all sources together may use of one turn of the loop before they let others run.
TURN_S = 0.001


class Counters:
    """What one module did. Each figure is counted where it happens, never derived from the others."""

    __slots__ = (
        "born",
        "busy_s",
        "delivered",
        "depth",
        "dropped",
        "failed",
        "held",
        "histogram",
        "joined",
        "reasons",
        "received",
        "retried",
        "sent",
        "warned",
    )

    def __init__(self) -> None:
        self.received = 0
        self.born = 0
        self.sent = 0
        self.delivered = 0
        self.dropped = 0
        self.failed = 0
        self.joined = 0
        self.held = 0
        self.depth = 0
        self.retried = 0
        self.busy_s = 0.0
        #: Handlings by the power of two of their nanoseconds.
        self.histogram = [0] * 48
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.warned = False

    def handled(self, count: int, seconds: float) -> None:
        """`count` events were handled one after the other in `seconds` of the loop's time."""
        self.busy_s += seconds
        self.histogram[min(int(seconds * 1e9 / count).bit_length(), 47)] += count

    def waited(self, seconds: float) -> None:
        """One event was handled in `seconds`, most of which it waited."""
        self.histogram[min(int(seconds * 1e9).bit_length(), 47)] += 1

    def quantile_us(self, share: float) -> float:
        total = sum(self.histogram)
        if not total:
            return 0.0
        wanted, seen = share * total, 0
        for power, count in enumerate(self.histogram):
            seen += count
            if seen >= wanted:
                return 2.0**power * 0.75 / 1000  # the middle of the bucket [2^(power-1), 2^power)
        return 0.0

    def statistics(self, paused: bool) -> ModuleStatistics:
        return ModuleStatistics(
            received=self.received,
            born=self.born,
            sent=self.sent,
            delivered=self.delivered,
            dropped=self.dropped,
            failed=self.failed,
            joined=self.joined,
            held=self.held,
            depth=self.depth,
            retried=self.retried,
            busy_s=self.busy_s,
            p50_us=self.quantile_us(0.5),
            p99_us=self.quantile_us(0.99),
            paused=paused,
            reasons={" ".join(reason): count for reason, count in self.reasons.items()},
        )


class Pace:
    """How many events to take at once: as many as are handled in about a millisecond, 1 to `BATCH_LIMIT`.

    So a module that needs a millisecond for each event is given them one by one, and everything else in the loop gets
    its turn between two of them.
    """

    __slots__ = ("limit", "most")

    def __init__(self, most: int = BATCH_LIMIT) -> None:
        self.most = most
        self.limit = min(16, most)

    def measured(self, count: int, seconds: float) -> None:
        if seconds > 2 * TURN_S:
            self.limit = max(1, min(self.limit, count) // 2)
        elif seconds < TURN_S / 2 and count >= self.limit < self.most:
            self.limit = min(self.most, self.limit * 2)


class TimeSlice:
    """One budget a turn of the loop for everything that could run without ever waiting."""

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        self._ends = 0.0

    def over(self) -> bool:
        return perf_counter() >= self._ends

    async def let_others_run(self) -> None:
        await asyncio.sleep(0)
        now = perf_counter()
        if now >= self._ends:  # the first one to come back in this turn opens the next budget
            self._ends = now + TURN_S
