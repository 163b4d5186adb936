"""The rows of the table: what is measured against what, and the figure we want to see."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

from bench import broker, computing, durable, flows, latency, memory, startup, waiting, work
from bench.measure import Run, pairs
from bench.queue_chain import queue_chain

__all__ = ["ROWS", "Row", "Size"]


class Size(NamedTuple):
    """How much to do."""

    events: int = 200_000
    repeats: int = 5


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: What is measured.
        against: What it is compared with, if it is a ratio.
        target: The figure that is wanted, printed beside the one that is found.
        measure: Finds the figure, and what else is to be said.
        long: It takes minutes, so it is measured only when asked for.
    """

    name: str
    against: str
    target: str
    measure: Callable[[Size], tuple[str, str]]
    long: bool = False


def _ratio(name: str, subject: Run, against: str, reference: Run, target: str = "", *, part: float = 1) -> Row:
    """A row that times `subject` against `reference`, on `part` of the events where either is slow."""

    def measure(size: Size) -> tuple[str, str]:
        events = max(1, int(size.events * part))
        found = pairs(subject, reference, events, size.repeats)
        low, high = found.spread
        return f"{found.ratio:.2f} x", f"{low:.2f} to {high:.2f}; {events / min(found.subject_s):,.0f} events/s"

    return Row(name, against, target, measure)


def _peer(module: str, function: str) -> Run:
    """A peer's way of doing the work. It is imported when it is first run, and may be missing."""

    def run(events: int) -> None:
        getattr(importlib.import_module(f"bench.peers.{module}"), function)(events)

    return run


def _latency(size: Size) -> tuple[str, str]:
    samples = max(10, min(2000, size.events // 100))
    found = latency.latencies_us(samples)
    return f"{found[len(found) // 2]:.0f} us", f"p99 {found[len(found) * 99 // 100]:.0f} us"


def _put_latency(size: Size) -> tuple[str, str]:
    found = broker.latencies_ms(max(10, min(2000, size.events // 100)))
    return f"{found[len(found) * 99 // 100]:.2f} ms", f"p50 {found[len(found) // 2]:.2f} ms"


def _waiting_event(size: Size) -> tuple[str, str]:
    events = size.events * 5
    return f"{memory.bytes_per_waiting_event(events):.0f} bytes", f"{events:,} events in a queue"


def _growth(size: Size) -> tuple[str, str]:
    events = size.events * 100
    return f"{memory.growth_of_memory(events):+.1%}", f"over {events:,} events"


LOOP = "the loop by hand"
BARE_LOOP = "a loop without Events"

ROWS = [
    _ratio("asyncio.Queue, a chain of three", queue_chain, LOOP, work.loop_over_events, part=0.25),
    _ratio("furcula, event functions", flows.event_functions, LOOP, work.loop_over_events, ">= 0.75 x"),
    _ratio("furcula, three coroutines", flows.coroutines, LOOP, work.loop_over_events, ">= 0.35 x"),
    _ratio("furcula, a queue before each", flows.queues, LOOP, work.loop_over_events, ">= 0.5 x"),
    _ratio("furcula, fan-out of two", flows.fan_out, f"{LOOP}, no copies", work.loop_over_orders, ">= 0.3 x"),
    _ratio("furcula, bare data", flows.bare_data, LOOP, work.loop_over_data_in_events),
    _ratio("furcula, bare data", flows.bare_data, "Bytewax by 1,000", _peer("bytewax", "in_batches"), ">= 1.3 x"),
    _ratio("Bytewax, batches of 1,000", _peer("bytewax", "in_batches"), BARE_LOOP, work.loop_over_data),
    _ratio("Bytewax, one by one", _peer("bytewax", "one_by_one"), BARE_LOOP, work.loop_over_data, part=0.1),
    _ratio("reactivex", _peer("reactivex", "run"), BARE_LOOP, work.loop_over_data, part=0.5),
    _ratio("streamz", _peer("streamz", "run"), BARE_LOOP, work.loop_over_data, part=0.05),
    _ratio(
        "furcula, 16 at once in order",
        waiting.ordered_concurrency,
        "gather in chunks of 16",
        waiting.gather_in_chunks,
        ">= 3 x",
        part=0.1,
    ),
    _ratio(
        "furcula, two processes that compute",
        computing.in_processes,
        "ProcessPoolExecutor, chunks of 100",
        computing.in_executor,
        ">= 0.9 x",
        part=0.25,
    ),
    _ratio(
        "furcula, two processes, a tiny function",
        computing.tiny_in_processes,
        "the same flow in the loop",
        computing.tiny_in_loop,
    ),
    _ratio(
        "durable queue, in batches",
        durable.durable_queue,
        "bare sqlite3, WAL, FULL",
        durable.bare_sqlite,
        ">= 0.5 x",
        part=0.3,
    ),
    _ratio("Broker, deliveries to ten sinks", broker.ten_sinks, "to one", broker.one_sink, ">= 0.8 x", part=0.1),
    Row("Broker, put_nowait from a thread", "", "p99 <= 5 ms", _put_latency),
    Row("one event, five idle modules", "", "p50 <= 60 us", _latency),
    Row("an event that waits in a queue", "", "< 600 bytes", _waiting_event),
    Row("import furcula", "", "<= 120 ms", lambda size: (f"{startup.import_ms(size.repeats):.0f} ms", "")),
    Row("furcula --help", "", "<= 200 ms", lambda size: (f"{startup.help_ms(size.repeats):.0f} ms", "")),
    Row("resident memory, growth", "", "+-5 %", _growth, long=True),
]
