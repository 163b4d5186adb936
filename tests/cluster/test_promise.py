"""What stages on many machines promise, each by itself: take-over, poison, long work, twice is once, back-pressure."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.harness import Link, Proxy, Worker
from tests.cluster.worker_promise import flow_of
from tests.transports.nats_server import NatsServer

from furcula import Event, Flow
from furcula.cluster.client import Access, Client
from furcula.cluster.layout import Layout
from furcula.cluster.operating import operating
from furcula.cluster.sending import Leaving
from furcula.cluster.worker import StageDirector
from furcula.receipt import Origin, Tracked

QUICK = {"lease": 0.6, "ack_wait": 0.6, "delay": 0.05, "partitions": 4}


class Busy(Exception):
    """Worth another try."""

    retryable = True


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("furcula")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


async def until(claim: Callable[[], Any], what: str, within_s: float = 45.0) -> None:
    try:
        async with asyncio.timeout(within_s):
            while not claim():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {within_s:g} s") from None


@asynccontextmanager
async def running(flow: Flow, url: str, *stages: str) -> AsyncIterator[list[StageDirector]]:
    """Workers of these stages, in this process."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(StageDirector(flow, stage, Access(url))) for stage in stages]


@pytest.fixture
def start(tmp_path: Path, flow_name: str, nats: NatsServer) -> Iterator[Callable[..., Worker]]:
    """Start a worker in a process of its own."""
    workers: list[Worker] = []

    def started(stage: str, **settings: Any) -> Worker:
        told = {"flow": flow_name, "folder": str(tmp_path), "cluster": QUICK, "url": nats.url, **settings}
        workers.append(Worker(tmp_path, f"{stage}-{len(workers)}", "worker_promise.py", {**told, "stage": stage}))
        return workers[-1]

    yield started
    for worker in workers:
        worker.kill()


def here(tmp_path: Path, flow_name: str, ends: list[Any], **settings: Any) -> Flow:
    """The same flow, in this process."""
    told = {"flow": flow_name, "folder": str(tmp_path), "cluster": QUICK, "name": "here", "ends": ends, **settings}
    return flow_of(told)


def noted(tmp_path: Path, what: str) -> Counter[str]:
    path = tmp_path / "noted"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line.split()[1] for line in lines if line.split()[0] == what)


def by_key(ends: list[Any]) -> dict[str, list[int]]:
    """Of each key the numbers in the order of their first coming."""
    found: dict[str, list[int]] = {}
    for key, number, *_ in ends:
        numbers = found.setdefault(key, [])
        if number not in numbers:
            numbers.append(number)
    return found


# ------------------------------------------------------------------ take-over


async def test_a_frozen_worker_that_wakes_up_changes_nothing_any_more(
    tmp_path: Path, flow_name: str, nats: NatsServer, start: Callable[..., Worker]
) -> None:
    ends: list[Any] = []
    flow = here(tmp_path, flow_name, ends)
    async with running(flow, nats.url, "main", "end") as (main, _):
        zombie = start("work")
        await until(lambda: zombie.ready, "the worker runs")

        async def put(numbers: range) -> None:
            for n in numbers:
                await main.put("inlet", {"n": n, "key": f"k{n % 8}", "do": "wait", "s": 0.005})

        await put(range(400))
        await until(lambda: len(ends) > 40, "the first events come through")
        zombie.freeze()
        heir = start("work")
        await until(lambda: {n for _, n, _ in ends} == set(range(400)), "the other worker does what is left")
        zombie.thaw()
        await until(lambda: "has passed to another worker" in zombie.said, "it sees that it has lost its place")
        await put(range(400, 600))
        await until(lambda: {n for _, n, _ in ends} >= set(range(600)), "all come through")
        assert heir.process.poll() is None
    assert all(numbers == sorted(numbers) for numbers in by_key(ends).values()), ends


@pytest.mark.parametrize(("together", "twice"), [("100ms", 2000), ("30s", 0)])
async def test_a_killed_worker_loses_nothing_and_its_keys_keep_their_order(
    tmp_path: Path, flow_name: str, nats: NatsServer, start: Callable[..., Worker], together: str, twice: int
) -> None:
    ends: list[Any] = []
    cluster = {**QUICK, "together": together}
    flow = here(tmp_path, flow_name, ends, cluster=cluster)
    async with running(flow, nats.url, "main", "end") as (main, _):
        victim, other = start("work", cluster=cluster), start("work", cluster=cluster)
        await until(lambda: victim.ready and other.ready, "the workers run")
        for n in range(400):
            await main.put("inlet", {"n": n, "key": f"k{n % 8}", "do": "wait", "s": 0.005})
        await until(lambda: len(ends) > 40, "the first events come through")
        victim.kill()
        await until(lambda: {n for _, n, _ in ends} == set(range(400)), "the other worker does what is left")
    assert all(numbers == sorted(numbers) for numbers in by_key(ends).values()), ends
    # The ids of what is published again are the same, so only what left in parts can come twice.
    assert len(ends) <= 400 + twice


async def test_a_worker_that_is_stopped_ends_what_has_begun_and_leaves_the_rest_to_others(
    tmp_path: Path, flow_name: str, nats: NatsServer, start: Callable[..., Worker]
) -> None:
    ends: list[Any] = []
    flow = here(tmp_path, flow_name, ends)
    async with running(flow, nats.url, "main", "end") as (main, _):
        for n in range(100):  # each in a message of its own
            await main.put("inlet", {"n": n, "key": f"k{n % 8}", "do": "gate", "s": 0.02}, settled=True)
        leaves = start("work")
        await until(lambda: noted(tmp_path, "begins"), "the first events begin")
        leaves.process.terminate()
        await until(lambda: "SIGTERM" in leaves.said, "it has heard of its end")
        (tmp_path / "gate").touch()
        await until(lambda: leaves.process.poll() is not None, "it ends")
        assert leaves.process.returncode == 0, leaves.said
        begun = noted(tmp_path, "begins")
        assert len(begun) < 100
        start("work")
        await until(lambda: len(ends) >= 100, "another does the rest")
    assert noted(tmp_path, "begins") == Counter(map(str, range(100)))
    assert all(numbers == sorted(numbers) for numbers in by_key(ends).values())
    assert len(ends) == 100


# The library leaves a connection open where the server hangs up while it greets.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_what_was_lost_on_its_way_to_a_worker_is_pulled_anew_and_in_order(
    tmp_path: Path, flow_name: str, nats: NatsServer
) -> None:
    ends: list[Any] = []
    flow = here(tmp_path, flow_name, ends, cluster={**QUICK, "lease": 3})
    proxy = Proxy()
    link: Link = proxy.link(nats.port)
    try:
        async with (
            running(flow, nats.url, "main", "end") as (main, _),
            running(flow, f"nats://127.0.0.1:{link.port}", "work"),
        ):
            for round_ in range(3):
                for n in range(200 * round_, 200 * round_ + 200):
                    await main.put("inlet", {"n": n, "key": f"k{n % 8}"})
                wanted = 200 * round_ + 20
                await until(lambda wanted=wanted: len(ends) > wanted, "events come through")  # type: ignore[misc]
                proxy.cut(link)
                proxy.heal(link)
            await until(lambda: {n for _, n, _ in ends} == set(range(600)), "all come through")
            async with operating(flow, Access(nats.url)) as operator:
                await until_lag_is_0(operator)
    finally:
        proxy.close()
        gc.collect()
    assert all(numbers == sorted(numbers) for numbers in by_key(ends).values()), ends


async def until_lag_is_0(operator: Any) -> None:
    async with asyncio.timeout(30):
        while sum(sum(stage.lag.values()) for stage in (await operator.status()).stages):
            await asyncio.sleep(0.05)


async def test_what_is_stored_in_the_name_of_an_epoch_that_has_passed_is_refused(
    flow_name: str, nats: NatsServer
) -> None:
    async with leaving_of(flow_name, nats.url) as (leaving, client, layout):
        first, second = Epoch(1), Epoch(2)
        await stored(leaving, [of(1)], first)
        await stored(leaving, [of(2)], second)
        lost = sent(leaving, [of(3)], first)
        await until(lambda: first.is_lost, "it hears that it is too late")
        leaving.forget(first)  # type: ignore[arg-type]
        assert [slot.fate for slot in lost] == ["failed"]
        await stored(leaving, [of(4)], second)
        assert not second.is_lost
        lags = await layout.lags(client, "b")
        assert lags == {"sink": 3}


async def test_a_second_publish_of_the_same_message_is_stored_once(flow_name: str, nats: NatsServer) -> None:
    async with leaving_of(flow_name, nats.url) as (leaving, client, layout):
        await stored(leaving, [of(1), of(2)], Epoch(1))
        # Handled again by whoever has taken its place.
        await stored(leaving, [of(1), of(2)], Epoch(2))
        assert await layout.lags(client, "b") == {"sink": 1}
        await stored(leaving, [of(1), of(3)], Epoch(2))
        assert await layout.lags(client, "b") == {"sink": 2}
        # The same event once more, but by another way: two branches that meet, or another turn of a cycle.
        await stored(leaving, [of(1), of(2)], Epoch(2), "message 2")
        assert await layout.lags(client, "b") == {"sink": 3}


class Epoch:
    module, partition = "source", 0

    def __init__(self, number: int):
        self.number = number
        self.is_lost = False

    def lost(self) -> None:
        self.is_lost = True


def of(number: int) -> Event[Any]:
    event: Event[Any] = Event({"n": number, "key": "k"})
    event._id = f"event-{number}"
    return event


@asynccontextmanager
async def leaving_of(flow_name: str, url: str) -> AsyncIterator[tuple[Leaving, Client, Layout]]:
    flow = Flow(flow_name, cluster=QUICK)
    flow.source(lambda: iter(()), "source") >> flow.module(lambda event: None, "sink", stage="b", key="data.key")
    layout = Layout(flow)
    client = Client(Access(url), "test")
    await client.open()
    try:
        await layout.apply(client)
        cut = layout.cuts[0]
        yield (
            Leaving(
                cut, layout.entries["sink"], layout, client, lambda refused: None, lambda carrier: None,
                lambda *asked: None, lambda carrier: False, {},
            ),
            client,
            layout,
        )  # fmt: skip
    finally:
        await client.close()


def sent(leaving: Leaving, events: list[Event[Any]], epoch: Any, came: str = "message 1") -> list[Tracked]:
    slots = [Tracked((), 1) for _ in events]
    origin = Origin("test")
    for slot in slots:
        slot.origin = origin
    leaving.waiting += len(events)
    partition = leaving._layout.partition(leaving.cut, events[0])
    leaving.send(partition, [(event, event.id, slot) for event, slot in zip(events, slots, strict=True)], epoch, came)
    return slots


async def stored(leaving: Leaving, events: list[Event[Any]], epoch: Any, came: str = "message 1") -> None:
    slots = sent(leaving, events, epoch, came)
    await until(lambda: all(slot.fate == "delivered" for slot in slots), "it is stored")


# ------------------------------------------------------------------ poison, and what takes long


async def test_an_event_that_kills_its_workers_is_a_dead_letter_and_all_others_are_delivered(
    tmp_path: Path, flow_name: str, nats: NatsServer, start: Callable[..., Worker]
) -> None:
    ends: list[Any] = []
    cluster = {**QUICK, "max_deliveries": 3}
    flow = here(tmp_path, flow_name, ends, cluster=cluster)
    async with running(flow, nats.url, "main", "end") as (main, _):
        for n in range(20):
            await main.put("inlet", {"n": n, "key": f"k{n % 4}", **({"do": "exit"} if n == 7 else {})})
        workers = [start("work", cluster=cluster)]
        async with operating(flow, Access(nats.url)) as operator:
            letters: list[Any] = []
            async with asyncio.timeout(90):
                while not letters:
                    if workers[-1].process.poll() is not None:
                        workers.append(start("work", cluster=cluster))  # as a supervisor does
                    letters = [letter async for letter in operator.letters()]
                    await asyncio.sleep(0.02)
            await until(lambda: {n for _, n, _ in ends} == {*range(20)} - {7}, "all others are delivered")
            await until_lag_is_0(operator)
    assert len(letters) == 1
    letter = letters[0].letter
    assert (letter.module, letter.error, letter.attempts) == ("work", "WorkerDied", 3)
    assert letter.queue == "inlet -> work"
    assert noted(tmp_path, "begins")["7"] == 3
    assert all(numbers == sorted(numbers) for numbers in by_key(ends).values())


@pytest.mark.parametrize("keyed", [True, False])
async def test_long_work_is_not_handed_to_another_also_where_it_holds_the_loop(
    tmp_path: Path, flow_name: str, nats: NatsServer, start: Callable[..., Worker], keyed: bool
) -> None:
    ends: list[Any] = []
    flow = here(tmp_path, flow_name, ends, keyed=keyed)
    async with running(flow, nats.url, "main", "end") as (main, _):
        workers = [start("work", keyed=keyed) for _ in range(2)]
        await until(lambda: all(worker.ready for worker in workers), "the workers run")
        for n, do in enumerate(("wait", "hold", "wait", "hold")):
            await main.put("inlet", {"n": n, "key": f"k{n}", "do": do, "s": 2.0})
        await until(lambda: len(ends) >= 4, "all is done")
        async with operating(flow, Access(nats.url)) as operator:
            await until_lag_is_0(operator)
    assert noted(tmp_path, "begins") == Counter(map(str, range(4)))
    assert sorted(n for _, n, _ in ends) == [0, 1, 2, 3]


# ------------------------------------------------------------------ trying again, and waiting


async def test_an_event_that_is_tried_again_holds_up_its_own_key_only(flow_name: str, nats: NatsServer) -> None:
    flow, got, tries = Flow(flow_name, cluster=QUICK), [], Counter()  # type: ignore[var-annotated]

    def source() -> Iterator[dict[str, Any]]:
        for n in range(40):
            yield {"n": n, "key": f"k{n % 4}"}

    def work(event: Event[Any]) -> None:
        n = event.data["n"]
        tries[n] += 1
        if n == 5 and (tries[n] < 3 or len(got) < 20):  # until the other keys have passed it
            raise Busy("later")
        got.append((event.data["key"], n))

    flow.source(source) >> flow.module(work, stage="b", key="data.key")
    async with running(flow, nats.url, "b", "main"):
        await until(lambda: len(got) == 40, "all come through")
    assert by_key(got) == {f"k{key}": list(range(key, 40, 4)) for key in range(4)}
    assert tries[5] >= 3
    assert all(count == 1 for n, count in tries.items() if n != 5)


async def test_a_full_stream_makes_the_first_source_wait_and_nothing_is_lost(flow_name: str, nats: NatsServer) -> None:
    flow = Flow(flow_name, cluster={**QUICK, "max_messages": 6, "prefetch": 10})
    total, given, got = 30_000, 0, []
    gate = asyncio.Event()

    def source() -> Iterator[dict[str, Any]]:
        nonlocal given
        for n in range(total):
            given = n + 1
            yield {"n": n, "key": n % 4}

    async def work(event: Event[Any]) -> Event[Any]:
        await gate.wait()
        return event

    def end(event: Event[Any]) -> None:
        got.append((event.data["key"], event.data["n"]))

    middle = flow.module(work, stage="b", key="data.key")
    flow.source(source) >> middle >> flow.module(end, stage="c", key="data.key")
    async with running(flow, nats.url, "main", "b", "c") as (main, *_):
        leaving = main.cluster._leavings[0]
        await until(lambda: leaving._room is not None and leaving.waiting >= 4096, "the source waits")
        at = given
        async with operating(flow, Access(nats.url)) as operator:
            lag = (await operator.status()).stages
        # There is room for as many fences as there may be; where there are none yet, messages may have it.
        most = [6 + main.layout.fences(stage.name) for stage in lag]
        assert all(sum(stage.lag.values()) <= limit for stage, limit in zip(lag, most, strict=True))
        assert given == at < total
        gate.set()
        await until(lambda: len(got) >= total, "all come through", 90)
    assert len(got) == total
    assert by_key_quickly(got)


def by_key_quickly(got: list[tuple[int, int]]) -> bool:
    last: dict[int, int] = {}
    for key, n in got:
        if n <= last.get(key, -1):
            return False
        last[key] = n
    return True


# ------------------------------------------------------------------ sources that run once


async def test_a_source_that_runs_once_moves_when_its_worker_is_killed(
    tmp_path: Path, flow_name: str, start: Callable[..., Worker]
) -> None:
    def runners(of: str) -> list[str]:
        path = tmp_path / "noted"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [line[2] for line in lines if line[1] == of]

    def blocks(of: str) -> list[str]:
        """Who ran it, one after the other: a name that stands there twice ran it beside another."""
        return [name for name, _ in itertools.groupby(runners(of))]

    workers = {worker.name: worker for worker in (start("main", ticks=True) for _ in range(2))}
    await until(lambda: all(len(runners(of)) > 60 for of in ("first", "second")), "both sources run")
    for of in ("first", "second"):
        assert len(blocks(of)) == len(set(runners(of))), blocks(of)
    victim = runners("first")[-1]
    workers.pop(victim).kill()
    (other,) = workers
    for of in ("first", "second"):
        await until(lambda of=of: runners(of)[-1] == other, "the other runs it")  # type: ignore[misc]
        assert len(blocks(of)) == len(set(runners(of))), blocks(of)


# ------------------------------------------------------------------ operators


async def test_operators_pause_resume_and_drain(flow_name: str, nats: NatsServer) -> None:
    flow, got, given = Flow(flow_name, cluster=QUICK), [], []  # type: ignore[var-annotated]

    async def source() -> AsyncIterator[dict[str, Any]]:
        n = 0
        while True:
            given.append(n)
            yield {"n": n, "key": n % 4}
            n += 1
            await asyncio.sleep(0.002)

    flow.source(source) >> flow.module(lambda event: got.append(event.data["n"]), "sink", stage="b", key="data.key")
    async with running(flow, nats.url, "b", "main") as (worker, _), operating(flow, Access(nats.url)) as operator:
        await until(lambda: len(got) > 50, "events come through")
        await operator.pause("b")
        await until(lambda: worker.cluster._paused and worker.cluster.settled(), "the worker has heard of it")
        await until(lambda: len(given) > len(got) + 100, "events wait")
        status = {stage.name: stage for stage in (await operator.status()).stages}
        assert status["b"].paused
        assert not status["main"].paused
        assert status["b"].lag["sink"] > 0
        assert [beat.state for beat in status["b"].workers] == ["paused"]
        at = len(got)
        await until(lambda: len(given) > len(got) + 200, "more events wait")
        assert len(got) == at
        await operator.resume("b")
        await until(lambda: len(got) > at, "it goes on")
        assert await operator.drain(within_s=60) == 0
        assert (await operator.status()).draining
        assert sorted(got) == list(range(len(got)))
        assert len(given) - len(got) <= 256  # a paused source may have one batch in hand
        await operator.resume()
        at = len(given)
        await until(lambda: len(given) > at, "the source goes on")


async def test_dead_letters_are_listed_replayed_and_dropped(flow_name: str, nats: NatsServer) -> None:
    flow, got, broken = Flow(flow_name, cluster=QUICK), [], True  # type: ignore[var-annotated]

    def source() -> Iterator[dict[str, Any]]:
        for n in range(10):
            yield {"n": n, "key": n % 4}

    def sink(event: Event[Any]) -> None:
        if broken and event.data["n"] in (3, 6):
            raise ValueError(f"{event.data['n']} is not to my liking")
        got.append(event.data["n"])

    flow.source(source) >> flow.module(sink, stage="b", key="data.key")
    async with running(flow, nats.url, "b", "main"), operating(flow, Access(nats.url)) as operator:
        await until(lambda: len(got) == 8, "the others are delivered")
        async with asyncio.timeout(30):
            while len(letters := [letter async for letter in operator.letters()]) < 2:
                await asyncio.sleep(0.02)
        texts = sorted(one.letter.message for one in letters)
        assert texts == ["3 is not to my liking", "6 is not to my liking"]
        assert {(one.letter.module, one.letter.error, one.letter.attempts) for one in letters} == {
            ("sink", "ValueError", 1)
        }
        assert all("not to my liking" in one.letter.traceback for one in letters)
        broken = False
        mended = next(one for one in letters if one.letter.message.startswith("3"))
        other = next(one for one in letters if one.letter.message.startswith("6"))
        await operator.replay(mended.number)
        await until(lambda: 3 in got, "it is delivered after all")
        await operator.drop(other.number)
        assert [letter async for letter in operator.letters()] == []
        assert (await operator.status()).dead_letters == 0
    assert 6 not in got
