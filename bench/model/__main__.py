"""Measure the inputs, predict, run, compare; then predict what this machine is too small for.

python -m bench.model                 1, 2, 4 and 8 workers
python -m bench.model --workers 1 2   those only
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence

import msgspec

from bench.model.bounds import Costs, Setting, filled, rate
from bench.model.costs import measured, processors
from bench.model.simulation import play
from bench.stages.flow import Work
from bench.stages.running import run

__all__ = ["main"]

#: The part of what is possible at which latencies are looked at.
LOAD = 0.3


def _print_costs(costs: Costs) -> None:
    print("inputs, in microseconds")
    for field in msgspec.structs.fields(costs):
        print(f"  {field.name.removesuffix('_s'):15} {getattr(costs, field.name) * 1e6:9.2f}")


def _off(predicted: float, found: float) -> str:
    return f"{(predicted - found) / found:+.0%}"


def _check(costs: Costs, setting: Setting, seconds: float, repeats: int) -> None:
    """Run it, predict it for what the machine had to give meanwhile, and print a line."""
    events = max(200, int(rate(costs, filled(setting))[0] * seconds))
    work = Work(
        events,
        wait_s=setting.wait_s,
        concurrency=setting.concurrency,
        order="key" if setting.partitions else "none",
        partitions=setting.partitions or 1,
    )
    there, rates = [processors()], []
    for _ in range(repeats):
        rates.append(run("jetstream", work, setting.workers).rate)
        there.append(processors())
    found, had = statistics.median(rates), statistics.median(there)
    theirs = costs.stretched(setting.cores / had)
    limit, name = rate(theirs, filled(setting))
    played = play(theirs, setting, events)
    cells = [f"{setting.workers}", f"{had:.1f}", f"{limit:,.0f} ({name})", f"{played.rate:,.0f}", f"{found:,.0f}"]
    cells += [f"{min(rates):,.0f} to {max(rates):,.0f}", _off(played.rate, found)]
    offered = LOAD * played.rate
    paced = msgspec.structs.replace(work, events=max(200, int(offered * seconds)), rate=offered)
    had = processors()
    seen = run("jetstream", paced, setting.workers)
    had = (had + processors()) / 2
    expected = play(costs.stretched(setting.cores / had), setting, paced.events, offered)
    for part in (0.5, 0.99):
        one, other = expected.quantile_s(part) * 1e3, seen.quantile_s(part) * 1e3
        cells += [f"{one:.1f}", f"{other:.1f}", _off(one, other)]
    print("| " + " | ".join(cells) + " |", flush=True)


def _beyond(costs: Costs, setting: Setting, partitions: Sequence[int]) -> None:
    print("\nbeyond this machine: each process with a processor of its own; events/s, and what limits them")
    print("| workers | " + " | ".join(f"{count} partitions" for count in partitions) + " | order: none |")
    print("|" + " --- |" * (len(partitions) + 2))
    for workers in (16, 64, 256):
        cells = [str(workers)]
        for count in (*partitions, 0):
            apart = msgspec.structs.replace(
                setting, workers=workers, partitions=count, cores=0, lanes=1 if count else 32
            )
            limit, name = rate(costs, filled(apart))
            cells.append(f"{limit:,.0f} ({name})")
        print("| " + " | ".join(cells) + " |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.model", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument("--wait", type=float, default=0.005, help="seconds that a handler waits (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="handlers at once (default: %(default)s)")
    parser.add_argument("--partitions", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run, about (default: %(default)s)")
    parser.add_argument("--events", type=int, default=200_000, help="for measuring the inputs (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each run, of which the median counts")
    given = parser.parse_args(arguments)
    costs = measured(given.wait, given.concurrency, given.events, min(3.0, given.seconds))
    _print_costs(costs)
    cores = os.cpu_count() or 1
    print(f"\n{cores} processors for all, handlers that wait {given.wait * 1e3:g} ms, {given.concurrency} at once,")
    print(f"{given.partitions} partitions; latencies in ms at {LOAD:.0%} of what is simulated\n")
    head = ["workers", "processors", "limit", "simulated/s", "run/s", "range", "off"]
    for name in ("p50", "p99"):
        head += [f"{name} simulated", "run", "off"]
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    setting = Setting(
        wait_s=given.wait, concurrency=given.concurrency, partitions=given.partitions, cores=cores, batch=512
    )
    for workers in given.workers:
        _check(costs, msgspec.structs.replace(setting, workers=workers), given.seconds, given.repeats)
    _beyond(costs, setting, (16, 64, 256))


if __name__ == "__main__":
    main()
