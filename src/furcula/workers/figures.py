"""What a run of several workers shows of itself: their sum, and a line for each."""

from __future__ import annotations

import msgspec

from furcula.engine.statistics import Statistics

__all__ = ["Lost", "RunFigures", "WorkerFigures"]


class Lost(msgspec.Struct, frozen=True):
    """What a worker had when it ended without its last words. It is part of the sum, as it was last known.

    Attributes:
        worker: Its name.
        pid: The process.
        reason: How it ended: `killed by SIGKILL`.
        open: Events that were not settled when it was last heard of: their sources tell what becomes of them.
        held: Where they were, by module.
        age_s: How old the figures were, in seconds. What was admitted meanwhile nobody knows.
    """

    worker: str
    pid: int
    reason: str
    open: int = 0
    held: dict[str, int] = {}
    age_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.worker} (process {self.pid}) {self.reason}: {self.had}"

    @property
    def had(self) -> str:
        """`last known 0.4 s before, 3 open (3 in price)`: when it was last heard of, and what it had then."""
        places = ", ".join(f"{count} in {name}" for name, count in self.held.items())
        return f"last known {self.age_s:.1f} s before, {self.open} open" + (f" ({places})" if places else "")


class WorkerFigures(msgspec.Struct, frozen=True):
    """One worker, over all its processes.

    Attributes:
        name: `main/0`
        pid: Of its process; 0: there is none now.
        state: `starting`, `running`, `draining`, `waiting` (to be restarted), `ended`.
        restarts: How often it died and was started again.
        statistics: The sum over its processes; None: nothing is known yet.
        incomplete: One of its processes ended without its last words: what it had admitted since it was last heard of
            is not in the sum.
    """

    name: str
    pid: int
    state: str
    restarts: int
    statistics: Statistics | None = None
    incomplete: bool = False


class RunFigures(msgspec.Struct, frozen=True):
    """The figures of a run, at one moment.

    Attributes:
        statistics: The sum over all processes there were.
        workers: A line for each.
        lost: What ended without its last words.
    """

    statistics: Statistics
    workers: list[WorkerFigures]
    lost: list[Lost] = []
