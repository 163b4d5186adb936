"""A function that computes for about a tenth of a millisecond, in two processes; and one for which that does not pay.

The executor starts fresh Pythons, as furcula does (`spawn`), and is given batches as large as those that furcula comes
to by itself. Both begin with no process and end with none.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from furcula import Flow

__all__ = ["in_executor", "in_processes", "tiny_in_loop", "tiny_in_processes"]

PROCESSES = 2
CHUNK = 100


def compute(number: int) -> int:
    total = number
    for step in range(1500):
        total += step * step % 7
    return total


def tiny(number: int) -> int:
    return number + 1


def in_processes(events: int) -> None:
    _flow(events, compute, processes=PROCESSES)


def in_executor(events: int) -> None:
    seen: list[int] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as executor:
        seen.extend(executor.map(compute, range(events), chunksize=CHUNK))
    assert len(seen) == events


def tiny_in_processes(events: int) -> None:
    _flow(events, tiny, processes=PROCESSES)


def tiny_in_loop(events: int) -> None:
    _flow(events, tiny)


def _flow(events: int, function: Callable[[int], int], **options: Any) -> None:
    flow, seen = Flow("computing"), []
    flow.source(range(events), "source") >> flow.map(function, "module", **options) >> flow.map(seen.append, "sink")
    flow.run()
    assert len(seen) == events
