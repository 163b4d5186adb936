"""Timing in pairs: the subject and its reference in turn, and the median of the ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Pairs", "Rates", "Run", "pairs", "rates"]

#: Does the work on so many events. Whatever it sets up is part of what is timed.
Run = Callable[[int], object]


class Pairs(NamedTuple):
    """What several paired runs took, in seconds."""

    subject_s: list[float]
    reference_s: list[float]

    @property
    def ratio(self) -> float:
        """How many times as fast as its reference the subject is."""
        return statistics.median(self._ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio that was seen."""
        return min(self._ratios), max(self._ratios)

    @property
    def _ratios(self) -> list[float]:
        return [reference / subject for subject, reference in zip(self.subject_s, self.reference_s, strict=True)]


class Rates(NamedTuple):
    """What several paired runs found, in events (messages, deliveries) a second."""

    subject: list[float]
    reference: list[float]

    @property
    def ratio(self) -> float:
        """How many times as fast as its reference the subject is."""
        return statistics.median(self._ratios)

    @property
    def _ratios(self) -> list[float]:
        return [subject / reference for subject, reference in zip(self.subject, self.reference, strict=True)]

    def __str__(self) -> str:
        ours, theirs = statistics.median(self.subject), statistics.median(self.reference)
        low, high = min(self._ratios), max(self._ratios)
        return f"{self.ratio:.2f} x ({low:.2f} to {high:.2f}; {ours:,.0f}/s to {theirs:,.0f}/s)"


def rates(subject: Callable[[], float], reference: Callable[[], float], repeats: int) -> Rates:
    """Run both `repeats` times in turn. Each says its own rate: what it sets up is not part of it."""
    found = [(subject(), reference()) for _ in range(repeats)]
    return Rates([one for one, _ in found], [other for _, other in found])


def pairs(subject: Run, reference: Run, events: int, repeats: int) -> Pairs:
    """Time both `repeats` times in turn, after one run of each, a tenth as long, that does not count."""
    for run in (subject, reference):
        run(max(1, events // 10))
    found = Pairs([], [])
    for _ in range(repeats):
        found.subject_s.append(_seconds(subject, events))
        found.reference_s.append(_seconds(reference, events))
    return found


def _seconds(run: Run, events: int) -> float:
    gc.collect()
    began = time.perf_counter()
    run(events)
    return time.perf_counter() - began
