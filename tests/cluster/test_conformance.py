"""One flow, three ways to run it, one promise: the same deliveries, the same failures, the same order."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.ways import WAYS, Running, run_this_way
from tests.transports.nats_server import NatsServer

from furcula import BatchFailed, Event, Flow, Retry
from furcula.cluster.client import Access
from furcula.cluster.operating import operating
from furcula.errors import QueueFull, Unanswered

pytestmark = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("furcula")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def numbers(flow: Flow, count: int, keys: int = 7) -> Any:
    def source() -> Iterator[dict[str, int]]:
        for n in range(count):
            yield {"n": n, "k": n % keys}

    return flow.source(source, "source")


def collector(flow: Flow, got: list[Any], name: str = "sink", **options: Any) -> Any:
    def collect(event: Event) -> None:
        got.append((event.data["k"], event.data["n"]))

    return flow.module(collect, name, **options)


def in_order_by_key(got: list[tuple[int, int]]) -> bool:
    by_key: dict[int, list[int]] = defaultdict(list)
    for key, number in got:
        by_key[key].append(number)
    return all(found == sorted(found) for found in by_key.values())


async def test_a_chain_of_stages_delivers_everything_once_and_in_order(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    flow, got = Flow(flow_name), []  # type: ignore[var-annotated]

    def double(event: Event) -> Event:
        event.data["twice"] = 2 * event.data["n"]
        return event

    double_ = flow.module(double, stage="b")
    numbers(flow, 5000) >> double_ >> collector(flow, got, stage="c")
    statistics = await run_this_way(way, flow, nats)
    assert [n for _, n in got] == list(range(5000))
    assert (statistics.modules["double"].received, statistics.modules["sink"].delivered) == (5000, 5000)
    assert (statistics.total.failed, statistics.open) == (0, 0)
    if way != "jetstream":  # there each stage admits what the stream before it has
        assert (statistics.admitted, statistics.delivered) == (5000, 5000)


async def test_keys_keep_their_order_however_many_workers_share_them(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    flow, got = Flow(flow_name, cluster={"partitions": 6}), []  # type: ignore[var-annotated]

    async def wait_a_little(event: Event) -> Event:
        if event.data["n"] % 5 == 0:
            await asyncio.sleep(0.001 * (event.data["n"] % 3))
        return event

    waits = flow.module(wait_a_little, key="data.k", concurrency=32, stage="b")
    numbers(flow, 2000, keys=40) >> waits >> collector(flow, got, key="data.k", stage="c")
    statistics = await run_this_way(way, flow, nats, {"b": 3, "c": 2})
    assert Counter(n for _, n in got) == Counter(range(2000))
    assert in_order_by_key(got)
    assert (statistics.total.failed, statistics.open) == (0, 0)


async def test_without_order_the_work_is_shared(way: str, nats: NatsServer, flow_name: str) -> None:
    flow, got = Flow(flow_name), []  # type: ignore[var-annotated]

    async def work(event: Event) -> Event:
        await asyncio.sleep(0)
        return event

    work_ = flow.module(work, order="none", concurrency=16, stage="b")
    numbers(flow, 2000) >> work_ >> collector(flow, got, order="none")
    statistics = await run_this_way(way, flow, nats, {"b": 3})
    assert Counter(n for _, n in got) == Counter(range(2000))
    assert statistics.modules["work"].received == 2000


async def test_failures_go_where_their_route_leads_with_what_they_were(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    flow, good, bad = Flow(flow_name), [], []  # type: ignore[var-annotated]

    def check(event: Event) -> Event:
        if event.data["n"] % 10 == 3:
            raise ValueError(f"not {event.data['n']}")
        return event

    def note(event: Event) -> None:
        bad.append((event.data["n"], event.failures[-1].module, event.failures[-1].message))

    check_ = flow.module(check, stage="b")
    numbers(flow, 200) >> check_ >> collector(flow, good, stage="c")
    check_.failed >> flow.module(note, stage="d")
    statistics = await run_this_way(way, flow, nats)
    assert [n for _, n in good] == [n for n in range(200) if n % 10 != 3]
    assert sorted(bad) == [(n, "check", f"not {n}") for n in range(3, 200, 10)]
    assert (statistics.modules["check"].failed, statistics.total.failed) == (20, 0)


async def test_what_nothing_catches_goes_to_the_dead_letter_module_of_another_stage(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    flow, good, bad = Flow(flow_name, dead_letter="dead"), [], []  # type: ignore[var-annotated]

    def check(event: Event) -> Event:
        if event.data["n"] % 10 == 3:
            raise ValueError(f"not {event.data['n']}")
        return event

    def dead(event: Event) -> None:
        bad.append(event.data["n"])

    numbers(flow, 100) >> flow.module(check, stage="b") >> collector(flow, good, stage="c")
    flow.module(dead, stage="d")
    await run_this_way(way, flow, nats)
    assert [n for _, n in good] == [n for n in range(100) if n % 10 != 3]
    assert bad == list(range(3, 100, 10))


async def test_splits_and_copies_meet_again_behind_the_cuts(way: str, nats: NatsServer, flow_name: str) -> None:
    flow, got, other = Flow(flow_name), [], []  # type: ignore[var-annotated]

    def halves(event: Event) -> Iterator[Event]:
        for part in "ab":
            yield Event({**event.data, "part": part})

    def parts(event: Event) -> None:
        got.append((event.data["n"], event.data["part"]))

    split = flow.module(halves, stage="b")
    collect = flow.module(parts, "parts", stage="c")
    source = numbers(flow, 300)
    source >> split >> flow.module(lambda event: event, "even", stage="d") >> collect
    source >> collector(flow, other, stage="e")
    statistics = await run_this_way(way, flow, nats)
    assert got == [(n, part) for n in range(300) for part in "ab"]
    assert [n for _, n in other] == list(range(300))
    assert statistics.modules["halves"].born == 300


async def test_siblings_from_two_stages_are_joined(way: str, nats: NatsServer, flow_name: str) -> None:
    flow, got = Flow(flow_name), []  # type: ignore[var-annotated]

    def together(event: Event) -> None:
        got.append((event.data["left"]["n"], event.data["right"]["n"]))

    left = flow.module(lambda event: event, "left", stage="b")
    right = flow.module(lambda event: event, "right", stage="c")
    both = flow.module(together, inboxes=("left", "right"), join=True, stage="d")
    source = numbers(flow, 100)
    source >> (left, right)
    left >> both["left"]
    right >> both["right"]
    await run_this_way(way, flow, nats)
    assert sorted(got) == [(n, n) for n in range(100)]


async def test_what_is_tried_again_keeps_its_place_among_its_key(way: str, nats: NatsServer, flow_name: str) -> None:
    flow, got, tries = Flow(flow_name), [], Counter()  # type: ignore[var-annotated]

    async def flaky(event: Event) -> Event:
        tries[event.data["n"]] += 1
        if event.data["n"] % 9 == 4 and tries[event.data["n"]] < 3:
            raise TimeoutError
        return event

    retry = Retry(attempts=5, delay=0.01, errors=(TimeoutError,))  # type: ignore[arg-type]
    flaky_ = flow.module(flaky, key="data.k", concurrency=8, retry=retry, stage="b")
    numbers(flow, 300) >> flaky_ >> collector(flow, got, key="data.k", stage="c")
    await run_this_way(way, flow, nats)
    assert Counter(n for _, n in got) == Counter(range(300))
    assert in_order_by_key(got)


async def test_requests_cross_the_stages_and_come_back_to_who_asked(way: str, nats: NatsServer, flow_name: str) -> None:
    flow = Flow(flow_name)
    inlet = flow.use("inlet", "ask")

    def price(event: Event) -> Event | None:
        if event.data == "nothing":
            return None
        if event.data == "wrong":
            raise ValueError("no such thing")
        event.data = {"price": event.data}
        return event

    price_ = flow.module(price, order="none", stage="b")
    taxed = flow.module(lambda event: event, "taxed", order="none", stage="c")
    inlet >> price_ >> taxed >> inlet

    async def ask(running: Running) -> None:
        for director in running["main"]:
            replies = await asyncio.gather(*(director.ask("ask", n) for n in range(30)))
            assert [reply.data for reply in replies] == [{"price": n} for n in range(30)]
            with pytest.raises(Unanswered) as dropped:
                await director.ask("ask", "nothing")
            assert (dropped.value.fate, dropped.value.reason) == ("dropped", "filtered")
            with pytest.raises(Unanswered) as failed:
                await director.ask("ask", "wrong")
            assert (failed.value.fate, failed.value.reason) == ("failed", "ValueError")

    counts = {"main": 2, "b": 2} if way != "one" else None
    statistics = await run_this_way(way, flow, nats, counts, ask)
    assert statistics.open == 0


async def test_a_module_of_whole_batches_fails_single_ones(way: str, nats: NatsServer, flow_name: str) -> None:
    flow, got = Flow(flow_name), []  # type: ignore[var-annotated]

    def batch(events: list[Event]) -> list[Event]:
        wrong = {index: ValueError("odd") for index, event in enumerate(events) if event.data["n"] % 20 == 1}
        if wrong:
            raise BatchFailed(wrong)
        return events

    numbers(flow, 100) >> flow.module(batch, stage="b") >> collector(flow, got, stage="c")
    statistics = await run_this_way(way, flow, nats)
    assert [n for _, n in got] == [n for n in range(100) if n % 20 != 1]
    assert (statistics.modules["batch"].failed, statistics.open) == (5, 0)


async def test_copies_of_one_event_that_meet_again_before_a_cut_all_cross_it(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    flow, got = Flow(flow_name), []  # type: ignore[var-annotated]
    left = flow.module(lambda event: event, "left", stage="b")
    right = flow.module(lambda event: event, "right", stage="b")
    both = flow.module(lambda event: event, "both", stage="b")
    source = numbers(flow, 100)
    source >> (left, right)
    (left, right) >> both >> collector(flow, got, stage="c")
    statistics = await run_this_way(way, flow, nats)
    assert Counter(n for _, n in got) == Counter([*range(100), *range(100)])
    assert statistics.modules["sink"].delivered == 200


async def test_an_event_goes_round_through_two_stages_until_it_may_leave(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    flow, got = Flow(flow_name, ttl=20), []  # type: ignore[var-annotated]

    def work(event: Event) -> Event:
        event.data["turns"] = event.data.get("turns", 0) + 1
        return event if event.data["turns"] < 4 else event.to("done")

    work_ = flow.module(work, stage="b", outboxes=("outbox", "done"))
    turn = flow.module(lambda event: event, "turn", stage="c")
    numbers(flow, 50) >> work_ >> turn >> work_
    work_["done"] >> collector(flow, got, stage="d")
    statistics = await run_this_way(way, flow, nats)
    assert Counter(n for _, n in got) == Counter(range(50))
    assert statistics.modules["turn"].received == 150


async def test_a_branch_that_has_to_be_tried_again_holds_up_its_key_and_sends_nothing_twice(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    if way != "jetstream":
        pytest.skip("elsewhere the source is told, and this one does not try again")
    flow, here, there, failed = Flow(flow_name, cluster={"delay": 0.01}), [], [], set()  # type: ignore[var-annotated]

    def pass_on(event: Event) -> Event:
        return event

    def once(event: Event) -> None:
        if event.data["n"] % 10 == 3 and event.data["n"] not in failed:
            failed.add(event.data["n"])
            raise QueueFull("not now")
        here.append((event.data["k"], event.data["n"]))

    entry = flow.module(pass_on, key="data.k", stage="b")
    numbers(flow, 100, keys=3) >> entry
    entry >> flow.module(once, stage="b")
    entry >> collector(flow, there, key="data.k", stage="c")
    await run_this_way(way, flow, nats)
    assert Counter(n for _, n in here) == Counter(range(100))
    assert Counter(n for _, n in there) == Counter(range(100))
    assert in_order_by_key(here)
    assert in_order_by_key(there)


async def test_dead_letters_of_two_stages_do_not_take_each_others_place(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    if way != "jetstream":
        pytest.skip("dead letters without a module for them are the cluster's")
    flow = Flow(flow_name)

    def refuse(event: Event) -> None:
        raise ValueError("never")

    source = numbers(flow, 20)
    source >> (flow.module(refuse, "a", stage="b"), flow.module(refuse, "z", stage="c"))
    await run_this_way(way, flow, nats)
    async with operating(flow, Access(nats.url)) as operator:
        modules = Counter([one.letter.module async for one in operator.letters()])
    assert modules == {"a": 20, "z": 20}


async def test_an_event_that_cannot_be_read_again_is_a_dead_letter_alone(
    way: str, nats: NatsServer, flow_name: str
) -> None:
    if way != "jetstream":
        pytest.skip("elsewhere it fails where it came from")
    flow, got = Flow(flow_name), []  # type: ignore[var-annotated]

    @dataclasses.dataclass(frozen=True)
    class Key:
        name: str

    def source() -> Iterator[Any]:
        for number in range(30):
            yield {Key("a"): number} if number == 7 else {"n": number}

    flow.source(source) >> flow.module(lambda event: got.append(event.data["n"]), "sink", stage="b")
    await run_this_way(way, flow, nats)
    assert got == [number for number in range(30) if number != 7]
    async with operating(flow, Access(nats.url)) as operator:
        (letter,) = [one.letter async for one in operator.letters()]
    assert (letter.error, letter.queue) == ("InputError", "source -> sink")
