"""kafka.consume and kafka.produce, against the cluster that librdkafka carries for tests.

That cluster lives in this process, so it cannot be killed: its brokers are taken away and come back, and who consumes
is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from tests.mock_kafka import mock_kafka
from tests.services import free_port

from furcula.engine.director import Director
from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.kafka.client import Caller
from furcula.modules.kafka.consume import Consume, Progress, _Member
from furcula.modules.kafka.produce import Produce, _Sender
from furcula.modules.sending import Refused, Unavailable
from furcula.options import Duration
from furcula.run import Flow
from furcula.testing import assert_settled

from .conftest import (
    FINAL,
    PATIENT,
    RETRYABLE,
    fails,
    first_refusal,
    numbers,
    settle,
    started,
    until,
    until_ready,
)

_number = itertools.count()
SOON = Duration(0.05)
COUNT = 10_000
PREFETCH = 500


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The URL of a cluster of two brokers; its topics have four partitions."""
    with mock_kafka() as cluster:
        yield cluster.url


class Names:
    """A topic and a group of its own for a test, and the arguments that go with them."""

    def __init__(self, url: str):
        self.topic = f"topic{next(_number)}"
        self.url = url
        self.source: dict[str, Any] = {
            "url": url, "topics": [self.topic], "group": self.topic, "session": Duration(6),
            "settings": {"topic.metadata.refresh.interval.ms": 200},
        }  # fmt: skip
        self.sink: dict[str, Any] = {"url": url, "topic": self.topic}

    def committed(self) -> dict[int, int]:
        """The group's positions, asked for by another client."""
        asker = Consumer({"bootstrap.servers": self.url.removeprefix("kafka://"), "group.id": self.topic})
        try:
            found = asker.committed([TopicPartition(self.topic, number) for number in range(4)], timeout=10)
            return {one.partition: one.offset for one in found if one.offset >= 0}
        finally:
            asker.close()


@pytest.fixture
def names(cluster: str) -> Names:
    return Names(cluster)


def test_a_position_passes_settled_prefixes_only() -> None:
    progress = Progress()
    for offset in (5, 6, 9):  # what a transaction or a compaction left out is no gap
        progress.taken(offset)
    progress.settled(6)
    assert progress.position is None
    progress.settled(5)
    assert progress.position == 7
    progress.settled(9)
    assert progress.position == 10


async def test_records_carry_key_headers_id_and_place(bench: Any, names: Names) -> None:
    async with started(Produce(topic_from="headers.to", **names.sink), bench) as sink:
        event = Event({"n": 1}, {"colour": "red", "tree": {}}, key="customer-7")
        await sink.process_batch([event, Event(2, key="customer-7"), Event(3, {"to": f"{names.topic}-other"})])
        async with started(Consume(**names.source), bench):
            assert await bench.until(2) == [{"n": 1}, 2]
            first, second = bench.admitted["outbox"]
            assert (first.key, second.key) == ("customer-7", "customer-7")
            assert first.headers == {
                "colour": "red", "furcula-id": event.id, "topic": names.topic, "offset": 0,
                "partition": second.headers["partition"], "timestamp": first.headers["timestamp"],
            }  # fmt: skip
            assert second.headers["offset"] == 1
            settle(bench, count=2)


async def test_only_the_settled_prefix_is_committed_and_the_rest_comes_again(bench: Any, names: Names) -> None:
    async with started(Produce(partition=1, **names.sink), bench) as sink:
        await sink.process_batch(numbers(5))
        async with started(Consume(**names.source), bench) as source:
            await bench.until(5)
            slots, bench.slots = bench.slots, []
            for index in (0, 1, 3):
                slots[index].settle("delivered")
            await until(lambda: len(source._taken.open) == 2)
        assert await asyncio.to_thread(names.committed) == {1: 2}
        async with started(Consume(**names.source), bench):
            assert [data["n"] for data in (await bench.until(8))[5:]] == [2, 3, 4]
            settle(bench, count=3)
        for slot in (slots[2], slots[4]):
            slot.settle("delivered")


async def test_what_failed_for_now_is_admitted_again_and_then_passed(bench: Any, names: Names, warnings: Any) -> None:
    source = Consume(max_deliveries=2, again_after=SOON, **names.source)
    async with started(source, bench), started(Produce(partition=0, **names.sink), bench) as sink:
        await sink.process_batch(numbers(1))
        assert (await first_refusal(bench, failure=RETRYABLE)).data == {"n": 0}
        settle(bench, "failed", failure=RETRYABLE)
        await until(lambda: not source._taken.open)
        assert "rejected after 2 deliveries" in warnings()[-1]
    assert await asyncio.to_thread(names.committed) == {0: 1}


async def test_on_refused_hold_keeps_the_position_before_what_failed(bench: Any, names: Names) -> None:
    source = Consume(on_refused="hold", **names.source)
    async with started(source, bench), started(Produce(partition=0, **names.sink), bench) as sink:
        await sink.process_batch(numbers(3))
        await bench.until(3)
        settle(bench)
        settle(bench, "failed", failure=FINAL)
        settle(bench)
        await until(lambda: not source._taken.open)
    assert await asyncio.to_thread(names.committed) == {0: 1}


async def test_on_refused_hold_reads_the_partition_no_further(bench: Any, names: Names) -> None:
    source = Consume(on_refused="hold", prefetch=5, **names.source)
    async with started(Produce(**names.sink), bench) as sink, started(source, bench):
        await sink.process_batch([Event(number, key="same") for number in range(200)])
        await bench.until(1)
        line: Any = source._line
        settle(bench, "failed", failure=FINAL)
        await until(lambda: line.client.held)
        (progress,) = line.client.partitions.values()
        came = len(bench.admitted["outbox"])
        settle(bench, count=len(bench.slots))
        for _ in range(3):  # reads that find nothing
            polled = line.client.polled_at
            await until(lambda polled=polled: line.client.polled_at > polled)
        assert len(bench.admitted["outbox"]) == came
        assert came < 200
        assert len(progress._open) <= came
        settle(bench, count=len(bench.slots))


class Revoking:
    """A consumer whose partition goes within a read, and may come back within it."""

    def __init__(self, revoke: Callable[[list[TopicPartition]], None], back: bool):
        self.revoke = revoke
        self.sought: list[int] = []
        self._back = back

    def consume(self, count: int, timeout_s: float) -> list[Any]:
        self.revoke([TopicPartition("t", 0)])
        return [Record("t", 0, 5), Record("t", 1, 7), Record("t", 0, 6)]

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("t", number) for number in ((0, 1) if self._back else (1,))]

    def seek(self, place: TopicPartition) -> None:
        self.sought.append(place.offset)


class Record:
    def __init__(self, topic: str, partition: int, offset: int):
        self.topic, self.partition, self.offset = (lambda: topic), (lambda: partition), (lambda: offset)

    def error(self) -> None:
        return None


@pytest.mark.parametrize("back", [True, False])
async def test_records_of_a_partition_that_is_revoked_while_they_are_read_are_anothers(bench: Any, back: bool) -> None:
    source = Consume(url="kafka://nowhere", topics=["t"], group="g")
    loop = asyncio.get_running_loop()
    consumer: Any = Revoking(lambda partitions: source._gone(member, partitions, loop), back)
    member = _Member(consumer, None)  # type: ignore[arg-type]
    member.teller.end()
    read = source._read(member, 10)
    assert [(record.partition(), record.offset()) for record, _ in read] == [(1, 7)]
    assert list(member.partitions) == [("t", 1)]
    assert consumer.sought == ([5] if back else [])


async def test_a_record_without_a_value_is_none_and_an_unreadable_one_is_invalid(bench: Any, names: Names) -> None:
    raw = Producer({"bootstrap.servers": names.url.removeprefix("kafka://")})
    raw.produce(names.topic, None, b"\xff")
    raw.produce(names.topic, b"{")
    await asyncio.to_thread(raw.flush, 10)
    async with started(Consume(**names.source), bench) as source:
        assert await bench.until(1) == [None]
        assert bench.admitted["outbox"][0].key == b"\xff"
        await bench.until(1, "invalid")
        settle(bench, "failed", count=2, failure=FINAL)
        await until(lambda: not source._taken.open)


async def test_no_more_than_prefetch_are_unsettled(bench: Any, names: Names) -> None:
    async with started(Produce(**names.sink), bench) as sink:
        await sink.process_batch(numbers(35))
        async with started(Consume(prefetch=10, **names.source), bench):
            for taken in (10, 20, 30, 35):
                await bench.until(taken)
                assert len(bench.datas()) == taken
                settle(bench, count=10)


async def test_what_kafka_does_not_take_is_refused_alone(bench: Any, names: Names) -> None:
    async with started(Produce(codec="text", **names.sink), bench) as sink:
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch([Event("a"), Event("x" * 2_000_000), Event("b", key=("no", "key"))])
        errors = caught.value.errors
        assert sorted(errors) == [1, 2]
        assert all(isinstance(error, Refused) for error in errors.values())
        assert "too large" in str(errors[1]).lower()
        assert "the key of a record must be text, bytes or a number" in str(errors[2])


async def test_brokers_that_are_away_are_told_and_fail_a_batch_so_that_it_may_be_tried_again(
    bench: Any, warnings: Any
) -> None:
    url = f"kafka://127.0.0.1:{free_port()}"
    sink = Produce(url=url, topic="x", timeout=Duration(1))
    async with (
        started(sink, bench, ready=False),
        started(Consume(url=url, topics=["x"], group="g", timeout=Duration(1)), bench, ready=False) as source,
    ):
        with fails(Unavailable, match=f"not connected to {url}"):
            await sink.process_batch(numbers(1))
        await until(lambda: "refused" in (source.unready() or "").lower())
        await until(lambda: len(warnings()) >= 2)


@pytest.mark.skipif("FURCULA_LONG" not in os.environ, reason="takes a quarter of a minute; set FURCULA_LONG")
async def test_a_flow_without_room_keeps_its_partitions(bench: Any, names: Names, warnings: Any) -> None:
    settings = {**names.source["settings"], "max.poll.interval.ms": 6000}
    source = Consume(**{**names.source, "settings": settings}, prefetch=5)
    async with started(Produce(**names.sink), bench) as sink:
        await sink.process_batch(numbers(20))
        async with started(source, bench):
            await bench.until(5)
            await asyncio.sleep(10)  # longer than a member may be silent; that nothing happens can only be watched for
            settle(bench, count=5)
            for taken in (10, 15, 20):
                await bench.until(taken)
                settle(bench, count=5)
            await until(lambda: not source._taken.open)
            assert sorted(data["n"] for data in bench.datas()) == list(range(20))
            assert warnings() == []


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"write kafka://host:9092 or kafkas://host:9093"):
        Produce(url="127.0.0.1:9092", topic="x")
    with pytest.raises(ValueError, match="topics must name one"):
        Consume(url="kafka://host", topics=[], group="g")


# ------------------------------------------------------------------ brokers that go and come back


async def test_a_source_without_room_that_loses_its_connection_goes_on_with_the_next(bench: Any, names: Names) -> None:
    source = Consume(prefetch=5, **names.source)
    async with started(Produce(partition=0, **names.sink), bench) as sink, started(source, bench):
        await sink.process_batch(numbers(10))
        await bench.until(5)
        line: Any = source._line
        line.lost(line.client, "as if")
        await bench.until(10)
        settle(bench, count=10)
        assert [data["n"] for data in await bench.until(15)] == [*range(5), *range(5), *range(5, 10)]
        settle(bench, count=5)
        assert not bench.ended.is_set()


async def test_a_commit_that_is_not_answered_is_a_lost_connection_and_the_source_goes_on_with_the_next(
    bench: Any, warnings: Any
) -> None:
    """The brokers may have taken it or not: what it said comes again, or does not."""
    with mock_kafka() as cluster:
        names = Names(cluster.url)
        source = Consume(**{**names.source, "timeout": Duration(1), "session": Duration(2)})
        async with started(source, bench):
            async with started(Produce(**names.sink), bench) as sink:
                await sink.process_batch(numbers(3))
            await bench.until(3)
            cluster.delay(30)
            settle(bench, count=3)
            await until(source.unready)
            assert "a commit was not answered within 1 s" in " ".join(warnings())
            cluster.delay(0)
            async with started(Produce(**names.sink), bench) as sink:
                await sink.process_batch(numbers(1, begin=3))
            await until(lambda: {"n": 3} in bench.datas())
            settle(bench, count=len(bench.slots))
            await until(lambda: not source._taken.open)


class Places:
    """What was stored where, and what came a second time.

    Attributes:
        numbers: The number that each place, of a partition and an offset, holds.
        back: The furthest that the source ever went back in a partition, in records.
    """

    def __init__(self) -> None:
        self.numbers: dict[tuple[int, int], int] = {}
        self.back = 0
        self._next: dict[int, int] = {}

    def came(self, event: Event[Any]) -> None:
        partition, offset = event.headers["partition"], event.headers["offset"]
        self.numbers[partition, offset] = event.data["n"]
        expected = self._next.get(partition, 0)
        self.back = max(self.back, expected - offset)
        self._next[partition] = max(expected, offset + 1)

    def stored_twice(self) -> list[int]:
        return [number for number, times in Counter(self.numbers.values()).items() if times > 1]


async def test_brokers_that_go_twice_in_the_middle_of_10_000_events_and_come_back_lose_none() -> None:
    """Both ends see that all brokers are gone, while events are under way to them and from them.

    What comes again is what was not settled, and no more than that.
    """
    places, ahead, acknowledged = Places(), 2000, []
    sending, taking = Flow("sending"), Flow("taking")

    @sending.source
    async def feed() -> AsyncIterator[dict[str, int]]:
        for number in range(COUNT):
            if number % 100 == 0:  # something is left to send when the brokers go
                await until(lambda number=number: number < len(places.numbers) + ahead, 60)
            yield {"n": number}

    @taking.module
    def keep(event: Event[Any]) -> None:
        places.came(event)

    with mock_kafka() as cluster:
        names = Names(cluster.url)
        feed >> sending.use("kafka.produce", "out", options=PATIENT, **names.sink)
        source = {**names.source, "session": Duration(2), "prefetch": PREFETCH, "timeout": Duration(4)}
        taking.use("kafka.consume", "in", **source) >> keep
        taker, sender = Director(taking, deadline="20s"), Director(sending, deadline="60s")
        async with asyncio.timeout(100):
            async with taker:
                taken = taker.modules["in"].instance
                await until_ready(taken)
                sent = asyncio.ensure_future(sender.run())
                for part in (1, 2):
                    await until(lambda part=part: len(places.numbers) >= part * COUNT // 3, 40)
                    sink = sender.modules["out"].instance
                    await asyncio.to_thread(cluster.down)
                    acknowledged.append(sender.statistics().total.delivered)
                    await until(lambda sink=sink: taken.unready() and sink.unready())
                    await asyncio.to_thread(cluster.up)
                statistics = await sent
                assert_settled(statistics)
                assert statistics.total.delivered == COUNT, statistics.total
                await until(lambda: len(set(places.numbers.values())) == COUNT, 60)
            assert_settled(taker.statistics())
    assert places.back <= PREFETCH
    # What had been reported to be stored when the brokers went was never sent again.
    for number in places.stored_twice():
        assert any(done <= number < done + 2 * ahead for done in acknowledged)


# ------------------------------------------------------------------ members that come and go


async def _produce(names: Names, middle: asyncio.Event, gate: asyncio.Event) -> None:
    """All 10,000 by a flow; it waits in the middle until the gate is open."""
    flow = Flow("sending")

    @flow.source
    async def feed() -> Any:
        for number in range(COUNT):
            if number == COUNT // 2:
                middle.set()
                await gate.wait()
            yield {"n": number}

    feed >> flow.use("kafka.produce", "out", options=PATIENT, **names.sink)
    statistics = await Director(flow).run()
    assert_settled(statistics)
    assert statistics.total.delivered == COUNT


async def test_a_second_member_takes_over_partitions_in_the_middle_of_10_000_events_and_none_is_lost(
    names: Names,
) -> None:
    arrived: Counter[int] = Counter()
    by: Counter[str] = Counter()

    def member(name: str) -> Director:
        flow = Flow(name)

        @flow.module
        def keep(event: Event[Any]) -> None:
            arrived[event.data["n"]] += 1
            by[name] += 1

        flow.use("kafka.consume", "in", **names.source) >> keep
        return Director(flow)

    middle, gate = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(100):
        producing = asyncio.ensure_future(_produce(names, middle, gate))
        one, two = member("one"), member("two")
        async with one:
            await middle.wait()
            await until(lambda: by["one"] > 1000, 40)
            async with two:
                source = two.modules["in"].instance
                await until(lambda: source._line.client and source._line.client.consumer.assignment(), 40)
                gate.set()
                await producing
                await until(lambda: len(arrived) == COUNT, 60)
                assert by["two"] > 0
            assert_settled(two.statistics())
        assert_settled(one.statistics())


_TAKER = """
import asyncio, sys
from furcula import Flow
from furcula.options import Duration

flow = Flow("taking")
source = flow.use("kafka.consume", url=sys.argv[1], topics=[sys.argv[2]], group=sys.argv[2], session="6s",
                  settings={"topic.metadata.refresh.interval.ms": 200})
source >> flow.use("file.write", path=sys.argv[3])
flow.run()
"""


async def _taker(names: Names, file: Path, program: str = _TAKER) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", program, names.url, names.topic, str(file))


def _taken(*files: Path) -> Counter[int]:
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return Counter(int(line.removeprefix('{"n":').removesuffix("}")) for line in lines if line.endswith("}"))


async def test_a_consumer_killed_in_the_middle_of_10_000_events_loses_none(names: Names, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    middle, gate = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(100):
        producing = asyncio.ensure_future(_produce(names, middle, gate))
        taker = await _taker(names, first)
        try:
            await until(lambda: len(_taken(first)) > 1000, 60)
            gate.set()
        finally:
            taker.kill()
            await taker.wait()
        assert 1000 < len(_taken(first)) < COUNT
        taker = await _taker(names, second)
        try:
            await producing
            await until(lambda: len(_taken(first, second)) == COUNT, 60)
        finally:
            taker.terminate()
            await taker.wait()
    assert _taken(second)


async def test_a_process_whose_brokers_answer_nothing_any_more_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """The library holds a call for as long as it likes; that is no reason to stay."""
    file = tmp_path / "taken"
    with mock_kafka() as cluster:
        names = Names(cluster.url)
        raw = Producer({"bootstrap.servers": cluster.bootstrap})
        for number in range(2000):
            raw.produce(names.topic, b'{"n":%d}' % number, partition=0)
        await asyncio.to_thread(raw.flush, 10)
        taker = await _taker(names, file, _TAKER.replace('session="6s"', 'session="45s", timeout="2s", prefetch=5'))
        try:
            await until(lambda: len(_taken(file)) > 100, 60)
            cluster.delay(300)  # there is always something to commit
            taker.terminate()
            async with asyncio.timeout(60):
                assert await taker.wait() == 0
        finally:
            if taker.returncode is None:
                taker.kill()
                await taker.wait()


async def test_a_connection_that_is_given_up_while_the_library_holds_a_call_leaves_no_thread() -> None:
    class Held:
        def purge(self) -> None:
            raise AssertionError("nobody waits for it any more")

    held = threading.Event()
    sender = _Sender(Held(), Caller("held"))
    calling = asyncio.ensure_future(sender.caller.do(held.wait, 60))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Produce._disconnect(None, sender), 0.2)  # type: ignore[arg-type]
    with pytest.raises(ConnectionError):
        await sender.caller.do(time.monotonic)
    held.set()
    await calling
    (thread,) = [one for one in threading.enumerate() if one.name == "furcula held"] or [None]
    if thread is not None:
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()
