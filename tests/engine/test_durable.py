"""A queue in a file: delivered once stored, handed out until settled, and nothing is lost between two runs."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from furcula import Director, Event, Flow, Options
from furcula.codecs import decode_events, encode_each
from furcula.errors import ConfigurationError, DeliveryError, StartFailed
from furcula.store import Store, StoreFile
from furcula.testing.settled import assert_settled


def letters(path: Path) -> list[Any]:
    file = StoreFile(path, owns=False)
    try:
        return file.letters()
    finally:
        file.close()


def left(path: Path, channel: str) -> int:
    file = StoreFile(path, owns=False)
    try:
        return int(file.transaction(lambda: file.count(channel)))
    finally:
        file.close()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


def numbers(flow: Flow, count: int) -> Any:
    return flow.source(lambda: range(count), "numbers")


async def test_every_event_comes_out_once_in_order_with_its_id(store: Path) -> None:
    flow = Flow("orders")
    before: list[str] = []
    after: list[tuple[int, str]] = []

    def note(event: Event[int]) -> Event[int]:
        before.append(event.id)
        return event

    def keep(event: Event[int]) -> None:
        after.append((event.data, event.id))

    sink = flow.module(keep, "keep", options=Options.of(queue={"durable": str(store)}))
    numbers(flow, 3000) >> flow.module(note) >> sink
    statistics = await flow.run_async()
    assert_settled(statistics)
    assert after == list(zip(range(3000), before, strict=True))
    assert statistics.origins["numbers"].delivered == 3000
    assert statistics.origins["queue(keep)"].delivered == 3000
    assert statistics.modules["keep.queue"].received == statistics.modules["keep.queue"].sent == 3000
    assert left(store, "orders/keep") == 0


async def test_what_is_stored_when_a_flow_is_stopped_is_handled_by_the_next_run(store: Path) -> None:
    seen: list[int] = []
    entered = asyncio.Event()

    def build(block: bool) -> Flow:
        flow = Flow("orders")

        async def work(event: Event[int]) -> None:
            entered.set()
            if block:
                await asyncio.Event().wait()
            seen.append(event.data)

        inlet = flow.use("inlet", "inlet")
        inlet >> flow.module(work, "work", options=Options.of(queue={"durable": str(store)}))
        return flow

    director = Director(build(True))
    async with director:
        for number in range(10):
            slot = await director.put("inlet", number, settled=True)
            assert slot.fate == "delivered"
        await entered.wait()
        statistics = await director.stop("50ms")
    assert_settled(statistics)
    assert statistics.origins["queue(work)"].failed == statistics.origins["queue(work)"].admitted > 0
    assert left(store, "orders/work") == 10

    director = Director(build(False))
    async with director:
        while len(seen) < 10:
            await asyncio.sleep(0)
        assert_settled(await director.stop())
    assert seen == list(range(10))
    assert left(store, "orders/work") == 0


async def test_what_was_taken_far_ahead_when_a_flow_is_stopped_is_neither_lost_nor_charged(store: Path) -> None:
    seen: list[int] = []
    blocked = asyncio.Event()

    def build(source: range, most: int) -> Flow:
        flow = Flow("orders")

        async def work(event: Event[int]) -> None:
            if len(seen) >= most:
                blocked.set()
                await asyncio.Event().wait()
            seen.append(event.data)

        options = Options.of(queue={"durable": str(store), "max_deliveries": 1})
        flow.source(lambda: source, "numbers") >> flow.module(work, "work", options=options)
        return flow

    async with Director(build(range(12_000), 3000)) as director:
        await blocked.wait()
        while director.statistics().origins["numbers"].delivered < 12_000:
            await asyncio.sleep(0)
        assert_settled(await director.stop("50ms"))
    assert left(store, "orders/work") == 9000
    assert seen == list(range(3000))
    assert_settled(await build(range(0), 1_000_000).run_async())
    assert seen == list(range(12_000))
    assert left(store, "orders/work") == 0
    assert letters(store) == []


class Busy(DeliveryError):
    """Worth another try."""


async def test_what_is_worth_another_try_is_handed_out_again_and_the_rest_becomes_a_letter(store: Path) -> None:
    tried: list[int] = []

    async def work(event: Event[int]) -> None:
        tried.append(event.data)
        if event.data == 1 and tried.count(1) < 3:
            raise Busy("not now")
        if event.data == 2:
            raise Busy("never")
        if event.data == 3:
            raise ValueError("no such thing")

    flow = Flow("orders")
    options = Options.of(queue={"durable": str(store), "max_deliveries": 4, "delay": "1ms"})
    numbers(flow, 5) >> flow.module(work, "work", options=options)
    statistics = await flow.run_async()
    assert_settled(statistics)
    assert [tried.count(number) for number in range(5)] == [1, 3, 4, 1, 1]
    found = {one.error: one for one in letters(store)}
    assert found["Busy"].attempts == 4
    assert found["ValueError"].attempts == 1
    assert found["ValueError"].message == "no such thing"
    assert found["ValueError"].path == ("queue(work)", "work")
    assert found["ValueError"].queue == "orders/work"
    assert left(store, "orders/work") == 0


async def test_a_failure_in_a_module_far_behind_the_queue_is_its_failure_too(store: Path) -> None:
    tried: list[int] = []
    flow = Flow("orders")

    async def far(event: Event[int]) -> None:
        tried.append(event.data)
        if tried.count(event.data) == 1:
            raise Busy("once")

    options = Options.of(queue={"durable": str(store), "delay": "1ms"})
    same = flow.module(lambda event: event, "same", options=options)
    numbers(flow, 50) >> same >> flow.module(far)
    assert_settled(await flow.run_async())
    assert sorted(tried) == sorted([*range(50)] * 2)
    assert letters(store) == []


async def test_what_cannot_be_stored_fails_at_the_module(store: Path) -> None:
    failed: list[Any] = []
    flow = Flow("orders")
    work = flow.module(lambda event: None, "work", options=Options.of(queue={"durable": str(store)}))
    flow.source(lambda: [1, object(), 3], "source") >> work
    work["failed"] >> flow.module(lambda event: failed.append(event), "dead")
    statistics = await flow.run_async()
    assert_settled(statistics)
    assert [event.failures[0].type for event in failed] == ["InputError"]
    assert statistics.origins["queue(work)"].admitted == 2


@pytest.mark.parametrize(("overflow", "fate"), [("drop-newest", "dropped"), ("fail", "failed")])
async def test_a_full_durable_queue_does_what_overflow_says(store: Path, overflow: str, fate: str) -> None:
    flow = Flow("orders")
    gate = asyncio.Event()

    async def work(event: Event[int]) -> None:
        await gate.wait()

    inlet = flow.use("inlet", "inlet")
    options = Options.of(queue={"durable": str(store), "size": 5}, overflow=overflow)
    inlet >> flow.module(work, "work", options=options)
    async with Director(flow) as director:
        slots = [await director.put("inlet", number, settled=True) for number in range(8)]
        gate.set()
        assert [slot.fate for slot in slots] == ["delivered"] * 5 + [fate] * 3
        assert_settled(await director.drain())


async def test_a_full_durable_queue_makes_its_sender_wait_and_loses_nothing(store: Path) -> None:
    seen: list[int] = []
    flow = Flow("orders")

    async def work(event: Event[int]) -> None:
        await asyncio.sleep(0)
        seen.append(event.data)

    options = Options.of(queue={"durable": str(store), "size": 7})
    numbers(flow, 500) >> flow.module(work, "work", options=options)
    statistics = await flow.run_async()
    assert_settled(statistics)
    assert seen == list(range(500))


async def test_two_modules_in_one_store_have_queues_of_their_own(store: Path) -> None:
    flow = Flow("orders")
    one: list[int] = []
    two: list[int] = []
    options = Options.of(queue={"durable": str(store)})
    first = flow.module(lambda event: (one.append(event.data), event)[1], "one", options=options)
    second = flow.module(lambda event: two.append(event.data), "two", options=options)
    numbers(flow, 1000) >> first >> second
    assert_settled(await flow.run_async())
    assert one == two == list(range(1000))


async def test_a_store_that_cannot_be_used_keeps_the_flow_from_starting(store: Path) -> None:
    store.write_text("this is no store")
    flow = Flow("orders")
    options = Options.of(queue={"durable": str(store)})
    numbers(flow, 3) >> flow.module(lambda event: None, "work", options=options)
    with pytest.raises(StartFailed, match=r"work could not start.*no store of furcula"):
        await flow.run_async()


def test_where_no_durable_queue_can_stand_is_said(store: Path) -> None:
    flow = Flow("orders")
    options = Options.of(queue={"durable": str(store)})
    work = flow.module(lambda event: event, "work", options=options)
    more = flow.module(lambda event: event, "more")
    numbers(flow, 3) >> work >> more
    flow.connect(more, work, ttl=3)
    with pytest.raises(ConfigurationError, match="work stands in a cycle"):
        flow.check()


async def test_senders_that_wait_for_a_full_store_go_on_when_another_process_has_read_it(store: Path) -> None:
    flow = Flow("orders")
    inlet = flow.use("inlet", "inlet")
    work = flow.module(lambda event: None, "work", options=Options.of(queue={"durable": str(store), "size": 5}))
    inlet >> work
    async with Director(flow) as director:
        director.pause("work")
        putting = asyncio.ensure_future(_put_all(director, 20))
        other = Store(store)  # stands for another process: it shares nothing with the Director but the file
        await other.open()
        found: list[int] = []
        async with asyncio.timeout(30):
            while len(found) < 20:
                taken = await other.take("orders/work", 5)
                found += [decode_events(one.body)[0].data for one in taken]
                await other.done("orders/work", [one.id for one in taken])
            await putting
        await other.close()
    assert found == list(range(20))


async def _put_all(director: Director, count: int) -> None:
    for number in range(count):
        await director.put("inlet", number, settled=True)


KILLER = """
import os, signal, sys
from furcula import Flow
handled = os.open(sys.argv[2], os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def work(event):
    if event.data == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    os.write(handled, b"%d\\n" % event.data)

flow = Flow("orders")
source = flow.source(lambda: range(100) if sys.argv[3] == "fill" else [], "numbers")
source >> flow.module(work, "work", queue={"durable": sys.argv[1], "max_deliveries": 3})
flow.run()
"""


def test_an_event_that_kills_its_process_is_a_letter_in_the_end_and_no_other_is(store: Path, tmp_path: Path) -> None:
    handled = tmp_path / "handled"
    runs = 0
    arguments = [sys.executable, "-c", KILLER, str(store), str(handled)]
    while runs < 10:
        # What is not stored yet when it dies was not acknowledged either: fill again until all is there.
        filling = "fill" if not store.exists() or (len(stored_numbers(store)) < 100 and not runs) else "go on"
        runs += 1
        if subprocess.run([*arguments, filling], check=False, timeout=60, stderr=subprocess.DEVNULL).returncode == 0:
            break
    (letter,) = letters(store)
    assert decode_events(letter.event)[0].data == 30
    assert (letter.error, letter.attempts) == ("Lost", 3)
    assert runs == 4
    done = {int(line) for line in handled.read_text().split()}
    assert 30 not in done
    assert done >= set(range(30))
    assert left(store, "orders/work") == 0


def stored_numbers(store: Path) -> set[int]:
    file = StoreFile(store, owns=False)
    try:
        return {decode_events(body)[0].data for body in file.peek("orders/work")}
    finally:
        file.close()


async def test_what_is_stored_as_text_is_what_it_was_where_the_module_says_its_type(store: Path) -> None:
    seen: list[Any] = []
    flow = Flow("orders")

    def note(when: datetime) -> None:
        seen.append(when)

    when = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
    flow.source(lambda: [when], "times") >> flow.module(note, "note", queue={"durable": str(store)})
    assert_settled(await flow.run_async())
    assert seen == [when]


async def test_while_a_module_is_paused_others_get_what_comes(store: Path) -> None:
    flow, seen = Flow("orders"), []  # type: ignore[var-annotated]
    work = flow.module(lambda event: seen.append(event.data), "work", options=Options.of(queue={"durable": str(store)}))
    flow.use("inlet", "in") >> work
    async with Director(flow) as director:
        await director.put("in", "first", settled=True)
        while not seen:
            await asyncio.sleep(0.001)
        queue = director._durable[0]
        while not any(not take.done() for take in queue._takes):  # it waits for the next ones
            await asyncio.sleep(0.001)
        director.pause("work")
        while not all(take.done() for take in queue._takes):
            await asyncio.sleep(0.001)
        file = StoreFile(store)
        file.transaction(lambda: file.put("orders/work", encode_each([Event(number) for number in range(100)])))
        assert len(file.transaction(lambda: file.take("orders/work", 1000))) == 100
        file.close()  # which gives them back
        director.resume("work")
        while len(seen) < 101:
            await asyncio.sleep(0.001)
    assert seen == ["first", *range(100)]


async def test_a_queue_never_holds_more_than_its_size(store: Path) -> None:
    flow, draw, most = Flow("orders"), random.Random(1), 0

    def source(name: str) -> Any:
        async def numbers() -> Any:
            for number in range(4000):
                yield number
                if draw.random() < 0.02:
                    await asyncio.sleep(draw.choice((0, 0.001, 0.003)))

        return flow.source(numbers, name)

    async def work(event: Event) -> None:
        if draw.random() < 0.05:
            await asyncio.sleep(draw.choice((0, 0.001, 0.002)))

    options = Options.of(concurrency=50, order="none", queue={"durable": str(store), "size": 100})
    work_ = flow.module(work, options=options)
    source("one") >> work_
    source("two") >> work_
    async with Director(flow) as director:
        look = sqlite3.connect(store)
        ended = asyncio.create_task(director.wait())
        while not ended.done():
            most = max(most, look.execute("SELECT count(*) FROM queue_1").fetchone()[0])
            await asyncio.sleep(0.001)
        look.close()
    assert 0 < most <= 100


async def test_events_that_come_one_by_one_are_stored_many_at_a_time_and_make_nobody_wait(store: Path) -> None:
    flow, seen = Flow("orders"), []  # type: ignore[var-annotated]
    flow.use("inlet", "in") >> flow.module(
        lambda event: seen.append(event.data), "work", options=Options.of(queue={"durable": str(store)})
    )
    async with Director(flow) as director:
        context = director.modules["in"].entrance
        assert context is not None
        waits = [context.admit([number]) for number in range(500)]  # as requests that come in one turn of the loop
        assert waits == [None] * 500
        while len(seen) < 500:
            await asyncio.sleep(0.001)
    assert seen == list(range(500))
