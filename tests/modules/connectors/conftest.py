"""Servers for the tests of connectors, and the claim that all make: killed in the middle, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import Authority
from tests.modules.conftest import LIMIT_S, Bench
from tests.services import Mosquitto, Nats, Postgres, Rabbit, Redis, Server, running

from furcula.engine.director import Director
from furcula.event import Event, Failure
from furcula.module import BatchFailed
from furcula.options import Options, Retry, Secret
from furcula.run import Flow
from furcula.testing import assert_settled

PASSWORD = Secret("pass/word")
#: Who we are at every server of `tests.services`.
WHO: dict[str, Any] = {"user": "tester", "password": PASSWORD}
#: Waits out a restart.
PATIENT = Options.of(retry=Retry(attempts=100, delay=0.2, factor=1.0))
RETRYABLE = Failure("later", "TimeoutError", "not now", retryable=True)
FINAL = Failure("out", "ValueError", "never")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Vouches for the servers."""
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def nats_server() -> Iterator[Nats]:
    with running(Nats) as server:
        yield server


@pytest.fixture(scope="session")
def redis_server(authority: Authority) -> Iterator[Redis]:
    with running(Redis, authority=authority) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit(authority: Authority) -> Iterator[Rabbit]:
    with running(Rabbit, authority=authority) as server:
        yield server


@pytest.fixture(scope="session")
def mosquitto(authority: Authority) -> Iterator[Mosquitto]:
    with running(Mosquitto, authority=authority) as server:
        yield server


@pytest.fixture(scope="session")
def postgres(authority: Authority) -> Iterator[Postgres]:
    with running(Postgres, authority=authority) as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="furcula-") as name:
        yield Path(name)


@contextmanager
def fails(kind: type[BaseException], match: str = "") -> Iterator[None]:
    """Each event of a batch that fails, fails so."""
    with pytest.raises(BatchFailed) as caught:
        yield
    for error in caught.value.errors.values():
        assert isinstance(error, kind)
        assert re.search(match, str(error))


@asynccontextmanager
async def started(module: Any, bench: Any, *, ready: bool = True) -> AsyncIterator[Any]:
    """A source or a sink, started; it is ended as the engine would."""
    await module.start(bench)
    try:
        if ready:
            await until_ready(module)
        yield module
    finally:
        if hasattr(module, "cease"):
            await module.cease()
            bench.stopped = True
        await module.stop()
        bench.stopped = False


async def until(holds: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    """Wait for what can only be looked at."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.005)


async def until_ready(module: Any, limit_s: float = LIMIT_S) -> None:
    await until(lambda: module.unready() is None, limit_s)


def numbers(count: int, begin: int = 0) -> list[Event[Any]]:
    return [Event({"n": number}) for number in range(begin, begin + count)]


def settle(bench: Bench, fate: Any = "delivered", *, count: int = 1, reason: str = "", failure: Any = None) -> None:
    """Settle the first open slots."""
    now, bench.slots = bench.slots[:count], bench.slots[count:]
    for slot in now:
        slot.settle(fate, 1, reason, failure)


async def first_refusal(bench: Bench, fate: Any = "failed", **why: Any) -> Event[Any]:
    """Wait for an event, settle it so, and wait for its next coming."""
    await bench.until(1)
    settle(bench, fate, **why)
    await bench.until(2)
    return bench.admitted["outbox"][1]


async def survives(
    source: tuple[str, dict[str, Any]],
    sink: tuple[str, dict[str, Any]],
    server: Server,
    *,
    end: Callable[[], None] | None = None,
    count: int = 10_000,
    before: Callable[[], Awaitable[None]] | None = None,
    all_arrive: bool = True,
) -> Counter[int]:
    """Send `count` events through a server that is ended in the middle and started again, and compare.

    Returns:
        How often each number arrived.
    """
    arrived: Counter[int] = Counter()
    middle = asyncio.Event()
    sending, taking = Flow("sending"), Flow("taking")

    @sending.source
    async def feed() -> AsyncIterator[dict[str, int]]:
        for number in range(count):
            if number == count // 2:
                middle.set()
            if number % 100 == 0:
                await asyncio.sleep(0)
            yield {"n": number}

    feed >> sending.use(sink[0], "out", options=PATIENT, **sink[1])

    @taking.module
    def keep(event: Event[Any]) -> None:
        arrived[event.data["n"]] += 1

    taking.use(source[0], "in", **source[1]) >> keep

    taker, sender = Director(taking, deadline="20s"), Director(sending, deadline="60s")
    async with asyncio.timeout(100):
        async with taker:
            await until_ready(taker.modules["in"].instance)
            if before is not None:
                await before()
            sent = asyncio.ensure_future(sender.run())
            await middle.wait()
            await server.aside(end or server.kill)
            await server.aside(server.start)
            statistics = await sent
            assert_settled(statistics)
            assert statistics.total.delivered == count, statistics.total
            if all_arrive:
                await until(lambda: len(arrived) == count, 40)
            else:
                await until_ready(taker.modules["in"].instance)
        assert_settled(taker.statistics())
    return arrived


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What modules have logged as a warning or worse."""
    caplog.set_level(logging.INFO, "furcula.module")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("furcula.module") and record.levelno > 20
    ]
