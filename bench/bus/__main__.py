"""Print how the bus and the transports compare, in pairs: the subject and its reference in turn.

python -m bench.bus                all rows
python -m bench.bus --rows jet     those whose name has this word
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services import free_port
from tests.transports.nats_server import NatsServer

from bench.bus import queues, streams
from bench.measure import rates
from furcula.bus import Bus

__all__ = ["main"]


def _address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


def _ratio(subject: Callable[[], float], reference: Callable[[], float], repeats: int) -> str:
    return str(rates(subject, reference, repeats))


def _in_memory(count: int) -> float:
    async def run() -> float:
        async with Bus("memory://bench") as bus:
            subscriptions = [await bus.subscribe("news") for _ in range(4)]

            async def read(number: int) -> None:
                left = count
                async for _ in subscriptions[number]:
                    left -= 1
                    if not left:
                        return

            began = time.perf_counter()
            readers = [asyncio.ensure_future(read(number)) for number in range(4)]
            for _ in range(count):
                await bus.publish("news", streams.MESSAGE)
            await asyncio.gather(*readers)
            return 4 * count / (time.perf_counter() - began)

    return asyncio.run(run())


@contextmanager
def _nats() -> Iterator[NatsServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = NatsServer(Path(folder))
        try:
            yield server
        finally:
            server.kill()


def _jetstream(count: int, repeats: int) -> str:
    with _nats() as server:
        return _ratio(
            lambda: queues.jetstream(server.url, count), lambda: queues.nats_py(server.url, count // 10), repeats
        )


def _latency(count: int) -> str:
    found = streams.latencies_ms(_address(), count)
    return f"p50 {found[len(found) // 2]:.2f} ms, p99 {found[len(found) * 99 // 100]:.2f} ms"


def _idle(seconds: float) -> str:
    holder, subscriber = streams.idle_percent(_address(), seconds)
    return f"holder {holder:.2f} %, subscriber {subscriber:.2f} %"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.bus", description=__doc__)
    parser.add_argument("--rows", default="", help="only rows whose name has this word")
    parser.add_argument("--count", type=int, default=400_000, help="messages (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs (default: %(default)s)")
    given = parser.parse_args(arguments)
    count, repeats = given.count, given.repeats
    rows: list[tuple[str, str, Callable[[], str]]] = [
        (
            "bus over tcp, 100-byte messages, against bare PUB/SUB one by one",
            ">= 0.5 x",
            lambda: _ratio(lambda: streams.bus(_address(), count), lambda: streams.bare(_address(), count), repeats),
        ),
        (
            "bus over tcp, 100-byte messages, against zmq.asyncio",
            ">= 5 x",
            lambda: _ratio(
                lambda: streams.bus(_address(), count), lambda: streams.zmq_asyncio(_address(), count // 10), repeats
            ),
        ),
        ("bus over tcp, one message", "p50 <= 0.5 ms", lambda: _latency(min(2000, count // 100))),
        ("bus over tcp, idle processor", "< 0.5 %", lambda: _idle(5 if count >= 100_000 else 0.5)),
        ("bus in memory, four subscribers", ">= 500,000/s", lambda: f"{_in_memory(count // 2):,.0f} deliveries/s"),
        (
            "work queue over tcp by 256, against multiprocessing.Queue one by one",
            ">= 5 x",
            lambda: _ratio(
                lambda: queues.work_queue(_address(), count),
                lambda: queues.multiprocessing_queue(count // 10),
                repeats,
            ),
        ),
        (
            "jetstream by 256, against nats-py one by one, pipelined",
            ">= 8 x",
            lambda: _jetstream(count // 2, repeats),
        ),
    ]
    for name, wanted, measure in rows:
        if given.rows.lower() in name:
            print(f"{name}: {measure()} (wanted {wanted})", flush=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(str(error)) from None
