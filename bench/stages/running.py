"""Starts the processes of a run, waits until all is settled, and ends them, each by its own process id."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from tests.transports.nats_server import NatsServer

from bench.stages import plain
from bench.stages.flow import Work
from bench.stages.process import Found, Told, Way

__all__ = ["Outcome", "Process", "nats_server", "run"]

ROOT = Path(__file__).parent.parent.parent
#: So long one answer of a process is waited for.
LIMIT_S = 300
#: Between two looks whether the server has anything left.
LOOK_S = 0.02


class Outcome(msgspec.Struct):
    """What a run came to.

    Attributes:
        seconds: From the first event to the last acknowledgement.
        rate: Events a second.
        latencies_s: Sorted; of the events that said when they were given.
        near_cpu_s, far_cpu_s, server_cpu_s: Processor time of the producer, of all workers together, of the server.
        messages: In which they came, over JetStream.
    """

    events: int
    seconds: float
    rate: float
    latencies_s: list[float]
    near_cpu_s: float
    far_cpu_s: float
    server_cpu_s: float
    messages: int = 0

    def quantile_s(self, part: float) -> float:
        return self.latencies_s[min(len(self.latencies_s) - 1, int(len(self.latencies_s) * part))]


class Process:
    """One process."""

    def __init__(self, told: Told):
        command = [sys.executable, "-m", "bench.stages.process", msgspec.json.encode(told).decode()]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()

    def heard(self) -> Found:
        """Its next word. Raises an AssertionError when there is none within a time."""
        assert self._process.stdout is not None
        # A read cannot be given up, so whoever takes too long is ended, which ends the read.
        limit = threading.Timer(LIMIT_S, self._process.kill)
        limit.start()
        try:
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
        assert line, f"process {self._process.pid} ended, or said nothing for {LIMIT_S} s"
        return msgspec.json.decode(line, type=Found)

    def end(self) -> None:
        process = self._process
        try:
            if process.poll() is None:
                self.tell("end")
            process.wait(15)
        except (subprocess.TimeoutExpired, OSError):
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class _Server(NatsServer):
    @property
    def cpu_s(self) -> float:
        """Seconds of processor time that it has used; 0 where the system does not say."""
        stat = Path(f"/proc/{self._process.pid if self._process is not None else 0}/stat")
        if not stat.exists():
            return 0.0
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def nats_server() -> Iterator[_Server]:
    """A server of our own, with data of its own."""
    with tempfile.TemporaryDirectory() as folder:
        server = _Server(Path(folder))
        try:
            yield server
        finally:
            server.kill()


def run(way: Way, work: Work, workers: int = 1) -> Outcome:
    """One run, with processes and data of its own."""
    with ExitStack() as stack:
        at, server = "", None
        if way == "ipc":
            at = stack.enter_context(tempfile.TemporaryDirectory(prefix="furcula"))
        elif way in ("jetstream", "plain"):
            server = stack.enter_context(nats_server())
            at = server.url
        counts = {"near": 1, "far": workers}

        def start(stage: str, index: int) -> Process:
            told = Told(way, stage, work, at, index, counts)  # type: ignore[arg-type]
            process = Process(told)
            stack.callback(process.end)
            return process

        if way == "plain":  # whoever publishes makes the stream
            near = start("near", 0)
            near.heard()
        far = [start("far", index) for index in range(workers)] if way != "queue" else []
        if way != "plain":
            near = start("near", 0)
            near.heard()
        for one in far:
            one.heard()
        if way == "jetstream" and work.order == "key":
            _wait_for_partitions(at, work, workers)
        for one in far:
            one.tell("go")
            one.heard()
        used = server.cpu_s if server is not None else 0.0
        near.tell("go")
        found = near.heard()
        ended, messages = found.ended, 0
        if way in ("jetstream", "plain"):
            empty, messages = _emptied(at, "furcula_bench_to_far" if way == "jetstream" else plain.STREAM)
            ended = max(ended, empty)
        used = server.cpu_s - used if server is not None else 0.0
        said = []
        for one in far or [near]:
            one.tell("found")
            said.append(one.heard())
        if way != "plain":
            handled = sum(one.handled for one in said)
            assert handled >= work.events, f"{handled} of {work.events} events were handled"
        seconds = ended - found.began
        latencies = sorted(value for one in said for value in one.latencies_s)
        far_cpu_s = sum(one.cpu_s for one in said) if far else 0.0
        return Outcome(work.events, seconds, work.events / seconds, latencies, found.cpu_s, far_cpu_s, used, messages)


def _emptied(url: str, stream: str) -> tuple[float, int]:
    """When nothing was left in a stream, and how many messages there have been in it."""

    async def look() -> tuple[float, int]:
        async with plain.connected(url) as js:
            until = time.monotonic() + LIMIT_S
            while time.monotonic() < until:
                info = await js.stream_info(stream)
                if not info.state.messages:
                    return time.monotonic(), info.state.last_seq
                await asyncio.sleep(LOOK_S)
            raise AssertionError(f"{info.state.messages} messages are left in {stream}")

    return asyncio.run(look())


def _wait_for_partitions(url: str, work: Work, workers: int) -> None:
    """Until each worker has its part."""

    async def look() -> None:
        async with plain.connected(url) as js:
            bucket = await js.key_value("furcula_bench")
            until = time.monotonic() + 60
            while time.monotonic() < until:
                owners = [row[0] for row in json.loads((await bucket.get("table.far.sink")).value or b"{}").values()]
                shares = [owners.count(owner) for owner in set(owners) - {""}]
                if len(shares) == min(workers, work.partitions) and max(shares) - min(shares) <= 1 and "" not in owners:
                    return
                await asyncio.sleep(0.1)
            raise AssertionError(f"the partitions were not shared out: {owners}")

    asyncio.run(look())
