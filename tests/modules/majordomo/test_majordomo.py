"""Majordomo: clients find workers by the service's name, and neither notices when one of several goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.modules.zmq.peers import Peers, is_free
from tests.services import free_port

from furcula import Director, Event, Flow
from furcula.errors import InputError
from furcula.modules.majordomo.protocol import from_router, from_worker
from furcula.testing import assert_settled

BEAT = "50ms"


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


@pytest.fixture
def peers() -> Iterator[Peers]:
    found = Peers()
    yield found
    found.close()


def routing(**settings: Any) -> Flow:
    flow = Flow("route")
    flow.use("majordomo.route", "route", **{"address": "tcp://127.0.0.1:0", "interval": BEAT, **settings})
    return flow


def serving(address: str, work: Callable[[Event[Any]], Any], workers: int = 1, **options: Any) -> Flow:
    flow = Flow("serve")
    serve = flow.use("majordomo.serve", "serve", address=address, service="double", workers=workers, interval=BEAT)
    serve >> flow.module(work, "work", **options) >> serve
    return flow


def asking(address: str, count: int, got: list[Any], concurrency: int = 8, **settings: Any) -> Flow:
    flow = Flow("ask")
    options = {"concurrency": concurrency, "retry": {"attempts": 50, "delay": "10ms"}}
    ask = flow.use(
        "majordomo.request",
        "ask",
        options=options,
        **{"address": address, "service": "double", "timeout": "5s", **settings},
    )
    flow.source(lambda: range(count), "numbers") >> ask >> flow.module(lambda event: got.append(event.data), "keep")
    return flow


def double(event: Event[Any]) -> Event[Any]:
    event.data *= 2
    return event


def instance(director: Director, name: str) -> Any:
    return director.modules[name].instance


async def test_requests_reach_workers_and_answers_their_clients() -> None:
    got: list[Any] = []
    async with AsyncExitStack() as stack:
        router = await stack.enter_async_context(Director(routing()))
        address = instance(router, "route").address
        workers = [await stack.enter_async_context(Director(serving(address, double, workers=3))) for _ in range(2)]
        assert_settled(await asking(address, 300, got).run_async())
        shares = [director.statistics().modules["work"].received for director in workers]
        for director in (*workers, router):
            assert_settled(await director.stop())
    assert got == [2 * number for number in range(300)]
    assert all(shares)
    assert sum(shares) == 300


async def test_a_request_waits_for_a_worker_that_comes_later() -> None:
    got: list[Any] = []
    async with Director(routing()) as router:
        address = instance(router, "route").address
        asked = asyncio.ensure_future(asking(address, 1, got).run_async())
        await until(lambda: instance(router, "route").figures().get("double", {}).get("waiting"))
        async with Director(serving(address, double)):
            async with asyncio.timeout(30):
                assert_settled(await asked)
    assert got == [0]


async def test_what_a_worker_had_in_hand_when_it_went_silent_goes_to_the_next(peers: Peers) -> None:
    got: list[Any] = []
    async with Director(routing()) as router:
        address = instance(router, "route").address
        dead = peers.socket(zmq.DEALER)  # takes a request, and is never heard of again
        dead.connect(address)
        await dead.send_multipart([b"", b"MDPW01", b"\x01", b"double"])
        asked = asyncio.ensure_future(asking(address, 1, got, timeout="30s").run_async())
        async with asyncio.timeout(30):
            while (await dead.recv_multipart())[2] != b"\x02":
                pass
            async with Director(serving(address, double)):
                assert_settled(await asked)
    assert got == [0]


async def test_a_router_that_begins_anew_is_found_by_its_workers_and_clients() -> None:
    got: list[Any] = []
    router = Director(routing())
    await router.start()
    address = instance(router, "route").address
    async with Director(serving(address, double, workers=2)):
        assert_settled(await asking(address, 20, got).run_async())
        await router.stop()
        await until(lambda: is_free(address))
        asked = asyncio.ensure_future(asking(address, 50, got, timeout="0.5s").run_async())
        async with Director(routing(address=address)):
            async with asyncio.timeout(60):
                assert_settled(await asked)
    assert got == [2 * number for number in [*range(20), *range(50)]]


async def test_a_worker_that_is_stopped_answers_what_it_is_at() -> None:
    got: list[Any] = []
    at_it, gate = asyncio.Event(), asyncio.Event()

    async def slow(event: Event[Any]) -> Event[Any]:
        at_it.set()
        await gate.wait()
        return double(event)

    async with Director(routing()) as router:
        address = instance(router, "route").address
        worker = Director(serving(address, slow))
        await worker.start()
        asked = asyncio.ensure_future(asking(address, 1, got).run_async())
        await at_it.wait()
        stopping = asyncio.ensure_future(worker.stop())
        gate.set()
        assert_settled(await stopping)
        async with asyncio.timeout(30):
            await asked
        await until(lambda: not instance(router, "route").figures().get("double", {}).get("workers"))
    assert got == [0]


async def test_a_worker_is_at_one_request_until_all_of_it_is_settled_and_a_stop_answers_what_it_is_at() -> None:
    got: list[Any] = []
    under_way: list[int] = []
    logged, second, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work(event: Event[Any]) -> Event[Any]:
        under_way.append(event.data)
        if len(under_way) == 2:
            second.set()
            await gate.wait()
        return double(event)

    async def log(event: Event[Any]) -> None:
        assert len(under_way) == 1 or second.is_set()
        await logged.wait()

    async with Director(routing()) as router:
        address = instance(router, "route").address
        flow = Flow("serve")
        serve = flow.use("majordomo.serve", "serve", address=address, service="double", interval=BEAT)
        serve >> flow.module(work, "work") >> (serve, flow.module(log, "log"))
        worker = Director(flow)
        await worker.start()
        asked = asyncio.ensure_future(asking(address, 2, got).run_async())
        figures = instance(router, "route").figures
        await until(lambda: figures().get("double", {}).get("waiting") == 1)
        await until(lambda: worker.statistics().modules["log"].received == 1)
        assert (len(under_way), got) == (1, [])
        logged.set()
        await second.wait()  # the first is settled, the second under way
        stopping = asyncio.ensure_future(worker.stop())
        gate.set()
        assert_settled(await stopping)
        async with asyncio.timeout(30):
            await asked
    assert sorted(got) == [0, 2]
    assert sorted(under_way) == [0, 1]


async def test_an_answer_waits_no_longer_than_its_time_for_the_rest_of_its_request() -> None:
    got: list[Any] = []
    gate = asyncio.Event()

    async def log(event: Event[Any]) -> None:
        await gate.wait()

    async with Director(routing()) as router:
        flow = Flow("serve")
        serve = flow.use(
            "majordomo.serve", "serve",
            address=instance(router, "route").address, service="double", interval=BEAT, timeout="50ms",
        )  # fmt: skip
        serve >> flow.module(double, "work") >> (serve, flow.module(log, "log"))
        async with Director(flow):
            async with asyncio.timeout(30):
                await asking(instance(router, "route").address, 3, got).run_async()
            gate.set()
    assert got == [0, 2, 4]


async def test_a_flow_of_router_worker_and_client_answers_what_is_under_way_when_it_stops() -> None:
    at_it, gate = asyncio.Event(), asyncio.Event()
    got: list[Any] = []

    async def slow(event: Event[Any]) -> Event[Any]:
        at_it.set()
        await gate.wait()
        return double(event)

    address = f"tcp://127.0.0.1:{free_port()}"
    flow = Flow("all")
    flow.use("majordomo.route", "route", address=address, interval=BEAT)
    serve = flow.use("majordomo.serve", "serve", address=address, service="double", interval=BEAT)
    serve >> flow.module(slow, "work") >> serve
    inlet = flow.use("inlet", "inlet")
    ask = flow.use("majordomo.request", "ask", address=address, service="double", timeout="20s")
    inlet >> ask >> flow.module(lambda event: got.append(event.data), "keep")
    director = Director(flow)
    await director.start()
    await director.put("inlet", 21)
    await at_it.wait()
    stopping = asyncio.ensure_future(director.stop())
    await until(lambda: instance(director, "route")._ceased)
    gate.set()
    assert_settled(await stopping)
    assert got == [42]


async def test_a_router_that_stops_refuses_what_waits_and_what_is_in_hand(peers: Peers) -> None:
    router = Director(routing())
    await router.start()
    route = instance(router, "route")
    worker, client = peers.socket(zmq.DEALER), peers.socket(zmq.DEALER)
    worker.connect(route.address)
    client.connect(route.address)
    await worker.send_multipart([b"", b"MDPW01", b"\x01", b"double"])
    await until(lambda: route.figures().get("double", {}).get("idle"))
    for number in (b"1", b"2"):
        await client.send_multipart([b"", b"MDPC01", b"double", number])
    await until(lambda: route.figures()["double"]["waiting"] == 1)
    await router.stop()
    async with asyncio.timeout(30):
        for _ in range(2):
            assert b'"status":503' in (await client.recv_multipart())[3]


async def test_a_service_nobody_serves_is_refused_when_its_time_is_over() -> None:
    failed: list[Any] = []
    async with Director(routing(expire="20ms")) as router:
        flow = Flow("ask")
        address = instance(router, "route").address
        ask = flow.use("majordomo.request", "ask", address=address, service="nobody", timeout="20s")
        flow.source(lambda: [1], "numbers") >> ask
        ask["failed"] >> flow.module(lambda event: failed.append(event.failures[-1]), "dead")
        assert_settled(await flow.run_async())
    assert "answered 503" in failed[0].message
    assert failed[0].retryable


async def test_a_full_queue_refuses_and_mmi_tells_who_is_there(peers: Peers) -> None:
    async with Director(routing(queue=1)) as router:
        client = peers.socket(zmq.DEALER)
        client.connect(instance(router, "route").address)
        await client.send_multipart([b"", b"MDPC01", b"double", b"1"])
        await client.send_multipart([b"", b"MDPC01", b"double", b"2"])
        await client.send_multipart([b"", b"MDPC01", b"mmi.service", b"double"])
        await client.send_multipart([b"", b"MDPC01", b"mmi.other", b"x"])
        async with asyncio.timeout(30):
            refused = await client.recv_multipart()
            assert refused[:3] == [b"", b"MDPC01", b"double"]
            assert b'"status":503' in refused[3]
            assert (await client.recv_multipart())[3] == b"404"
            assert (await client.recv_multipart())[3] == b"501"


async def test_what_is_not_understood_is_counted_and_harms_nobody(peers: Peers) -> None:
    got: list[Any] = []
    async with Director(routing()) as router:
        route = instance(router, "route")
        stranger = peers.socket(zmq.DEALER)
        stranger.connect(route.address)
        for frames in (
            [b"x"], [b"", b"MDPC99", b"a", b"b"], [b"", b"MDPC01", b"a"], [b"", b"MDPW01", b"\x09", b""],
            [b"", b"MDPW01", b"\x01", b"a", b"b"], [b"", b"MDPW01", b"\x03", b"client"], [b"", b"", b"", b""],
        ):  # fmt: skip
            await stranger.send_multipart(frames)
        await until(lambda: route.malformed == 7)
        async with Director(serving(route.address, double)):
            assert_settled(await asking(route.address, 3, got).run_async())
    assert got == [0, 2, 4]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=8), st.sampled_from([b"", b"MDPW01", *map(bytes, zip(range(7)))])), max_size=7
    )
)
def test_whatever_the_frames_are_they_are_read_or_refused(frames: list[bytes]) -> None:
    for read in (from_router, from_worker):
        try:
            read(frames)
        except InputError:
            pass
