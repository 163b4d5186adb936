"""Print what a route costs that leads to another process, against what could be instead, in turn.

python -m bench.stages                  all rows
python -m bench.stages --rows ipc       those whose name has this word
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Literal

from bench.measure import rates
from bench.stages.flow import Work
from bench.stages.process import Way
from bench.stages.running import run

__all__ = ["main"]

#: Events a second that are a low load.
LOW = 200.0


def _cluster(events: int, repeats: int, order: Literal["none", "key"]) -> str:
    work, plain = Work(events, order=order), Work(max(1, events // 20))
    return str(rates(lambda: run("jetstream", work).rate, lambda: run("plain", plain).rate, repeats))


def _ipc(events: int, repeats: int) -> str:
    work = Work(events)
    return str(rates(lambda: run("ipc", work).rate, lambda: run("queue", work).rate, repeats))


def _added(way: Way, samples: int, repeats: int) -> str:
    """How much later an event is at its module when a cut is before it, at the same quantile of both."""
    work = Work(samples, rate=LOW)
    cut, whole = [], []
    for _ in range(repeats):
        cut += run(way, work).latencies_s
        whole += run("queue", work).latencies_s
    cut.sort()
    whole.sort()
    told = []
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        with_it, without = (found[min(len(found) - 1, int(len(found) * part))] * 1e3 for found in (cut, whole))
        told.append(f"{name} +{with_it - without:.2f} ms ({with_it:.2f} to {without:.2f})")
    return ", ".join(told)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__)
    parser.add_argument("--rows", default="", help="only rows whose name has this word")
    parser.add_argument("--events", type=int, default=400_000, help="events in a run (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=600, help="events that are timed (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs (default: %(default)s)")
    given = parser.parse_args(arguments)
    events, samples, repeats = given.events, given.samples, given.repeats
    rows: list[tuple[str, str, Callable[[], str]]] = [
        (
            "cluster route, 100-byte events, against nats-py with a message for each",
            ">= 8 x",
            lambda: _cluster(events, repeats, "none"),
        ),
        (
            "cluster route, in order by 10,000 keys, against nats-py with a message for each",
            "",
            lambda: _cluster(events, repeats, "key"),
        ),
        (
            "ipc route, 100-byte events, against a queue in one process",
            ">= 0.25 x",
            lambda: _ipc(2 * events, repeats),
        ),
        ("cluster route, one event", "p50 <= +3 ms", lambda: _added("jetstream", samples, repeats)),
        ("ipc route, one event", "p50 <= +0.5 ms", lambda: _added("ipc", samples, repeats)),
    ]
    for name, wanted, measure in rows:
        if given.rows.lower() in name:
            print(f"{name}: {measure()}{f' (wanted {wanted})' if wanted else ''}", flush=True)


if __name__ == "__main__":
    main()
