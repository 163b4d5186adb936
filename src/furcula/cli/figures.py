"""The figures of a run as text: the table at its end, and the live one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from furcula.engine.statistics import ModuleStatistics, Statistics
    from furcula.workers.figures import WorkerFigures

__all__ = ["LiveTable", "report", "table", "worker_lines"]

_WORKERS = ("worker", "process", "state", "restarts", "admitted", "delivered", "dropped", "failed", "open", "")
_HEAD = ("module", "received", "sent", "delivered", "dropped", "failed", "queue", "p50", "p99")


def report(statistics: Statistics) -> str:
    """What is printed at the end of a run: the sum, the modules, and what was abandoned."""
    lines = [str(statistics), "", *table(statistics)]
    if statistics.abandoned:
        left = ", ".join(f"{name} {count}" for name, count in statistics.abandoned.items())
        lines += ["", f"abandoned at the deadline: {left}"]
    return "\n".join(lines)


def table(statistics: Statistics) -> list[str]:
    """A line for each module under a line of headings, in columns."""
    return _aligned([_HEAD, *(_row(name, module) for name, module in statistics.modules.items())])


def worker_lines(workers: Sequence[WorkerFigures]) -> list[str]:
    """A line for each worker under a line of headings, in columns."""
    return _aligned([_WORKERS, *(_worker_row(worker) for worker in workers)])


def _worker_row(worker: WorkerFigures) -> tuple[str, ...]:
    figures = worker.statistics
    counts: tuple[str, ...] = ("",) * 5
    if figures is not None:
        counts = tuple(map(str, (figures.admitted, figures.delivered, figures.dropped, figures.failed, figures.open)))
    note = "incomplete" if worker.incomplete else ""
    return (worker.name, str(worker.pid or ""), worker.state, str(worker.restarts), *counts, note)


def _row(name: str, module: ModuleStatistics) -> tuple[str, ...]:
    counts = (module.received, module.sent, module.delivered, module.dropped, module.failed, module.depth)
    return (name, *map(str, counts), duration(module.p50_us), duration(module.p99_us))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def duration(microseconds: float) -> str:
    """`850us`, `12ms`, `3.1s`; empty for none."""
    if not microseconds:
        return ""
    for limit, unit, size in ((1e3, "us", 1.0), (1e6, "ms", 1e3)):
        if microseconds < limit:
            return f"{microseconds / size:.3g}{unit}"
    return f"{microseconds / 1e6:.3g}s"


class LiveTable:
    """A table on the terminal that shows rates and queue depths. Show it with `update`, every so often."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._received: Mapping[str, int] = {}
        self._seconds = 0.0

    def __enter__(self) -> LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def update(self, statistics: Statistics, workers: Sequence[WorkerFigures] = ()) -> None:
        """Show `statistics`, with the rates since the last time, and the workers whose sum they are."""
        from rich.table import Table

        passed = max(statistics.seconds - self._seconds, 1e-9)
        shown = Table(title=str(statistics), title_justify="left", title_style="", box=None, pad_edge=False)
        shown.add_column("module")
        for heading in ("per second", "received", "failed", "queue", "p50", "p99"):
            shown.add_column(heading, justify="right")
        for name, module in statistics.modules.items():
            rate = (module.received - self._received.get(name, 0)) / passed
            cells = (f"{rate:,.0f}", f"{module.received:,}", f"{module.failed:,}", f"{module.depth:,}")
            paused = " (paused)" if module.paused else ""
            shown.add_row(name + paused, *cells, duration(module.p50_us), duration(module.p99_us))
        self._received = {name: module.received for name, module in statistics.modules.items()}
        self._seconds = statistics.seconds
        self._live.update(_below(shown, workers) if workers else shown, refresh=True)


def _below(shown: Table, workers: Sequence[WorkerFigures]) -> Group:
    from rich.console import Group
    from rich.table import Table

    lines = Table(box=None, pad_edge=False)
    for index, heading in enumerate(_WORKERS):
        lines.add_column(heading, justify="right" if index else "left")
    for worker in workers:
        lines.add_row(*_worker_row(worker))
    return Group(shown, "", lines)
