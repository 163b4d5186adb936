"""0mq modules among themselves, and with plain sockets of pyzmq."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from tests.modules.zmq.peers import Peers, is_free

from furcula import Director, Event, Flow
from furcula.errors import ConfigurationError, FurculaError
from furcula.modules.zmq.wire import Wire
from furcula.testing import assert_settled


@pytest.fixture
def peers() -> Iterator[Peers]:
    found = Peers()
    yield found
    found.close()


def module(director: Director, name: str) -> Any:
    return director.modules[name].instance


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


async def soon(work: Any) -> Any:
    async with asyncio.timeout(30):
        return await work


def keeping(flow: Flow, kept: list[Any], name: str = "keep") -> Any:
    return flow.module(lambda event: kept.append((event.data, event.headers)), name)


# ------------------------------------------------------------------ push and pull


@pytest.mark.parametrize("kind", ["tcp", "ipc"])
async def test_what_is_pushed_is_pulled_in_order(kind: str, tmp_path: Path) -> None:
    got: list[Any] = []
    pulling = Flow("pull")
    address = "tcp://127.0.0.1:0" if kind == "tcp" else f"ipc://{tmp_path}/p.ipc"
    pulling.use("zmq.pull", "pull", address=address) >> keeping(pulling, got)
    async with Director(pulling) as puller:
        pushing = Flow("push")
        source = pushing.source(lambda: range(5000), "numbers")
        source >> pushing.use("zmq.push", "push", address=module(puller, "pull").address)
        assert_settled(await pushing.run_async())
        await until(lambda: len(got) == 5000)
        assert_settled(await puller.stop())
    assert [data for data, _ in got] == list(range(5000))


async def test_a_pusher_with_nobody_to_pull_fails_what_it_cannot_push() -> None:
    flow = Flow("push")
    failed: list[Any] = []
    push = flow.use("zmq.push", "push", address="tcp://127.0.0.1:9", timeout="10ms")
    flow.source(lambda: [1, 2], "numbers") >> push
    push["failed"] >> flow.module(lambda event: failed.append(event.failures[-1]), "dead")
    assert_settled(await flow.run_async())
    assert {(failure.type, failure.retryable) for failure in failed} == {("Unavailable", True)}


async def test_a_flow_that_has_no_room_makes_who_pushes_wait(peers: Peers) -> None:
    gate = asyncio.Event()
    got: list[int] = []

    async def slow(event: Event[int]) -> None:
        await gate.wait()
        got.append(event.data)

    flow = Flow("pull")
    flow.use("zmq.pull", "pull", address="tcp://127.0.0.1:0") >> flow.module(slow, "slow", queue=10)
    async with Director(flow) as director:
        push = peers.socket(zmq.PUSH)
        push.setsockopt(zmq.SNDHWM, 10)
        push.setsockopt(zmq.SNDBUF, 4096)
        push.connect(module(director, "pull").address)

        async def push_all() -> None:
            for number in range(20_000):
                await push.send(b"%d" % number)

        pushing = asyncio.ensure_future(push_all())
        done, _ = await asyncio.wait([pushing], timeout=0.5)
        assert not done
        gate.set()
        await soon(pushing)
        await until(lambda: len(got) == 20_000)
        assert got == list(range(20_000))


@pytest.mark.parametrize("bind", [True, False])
async def test_a_stop_handles_what_was_pushed_before_it(peers: Peers, bind: bool) -> None:
    gate = asyncio.Event()
    got: list[int] = []

    async def slow(event: Event[int]) -> None:
        await gate.wait()
        got.append(event.data)

    push = peers.socket(zmq.PUSH)
    address = "tcp://127.0.0.1:0" if bind else f"tcp://127.0.0.1:{push.bind_to_random_port('tcp://127.0.0.1')}"
    flow = Flow("pull")
    flow.use("zmq.pull", "pull", address=address, bind=bind) >> flow.module(slow, "slow", queue=10)
    director = Director(flow)
    await director.start()
    if bind:
        push.connect(module(director, "pull").address)
    for number in range(1500):
        await soon(push.send(b"%d" % number))
    stopping = asyncio.ensure_future(director.stop())
    await until(lambda: module(director, "pull")._ceased)
    gate.set()
    assert_settled(await stopping)
    assert got == list(range(1500))


async def test_what_cannot_be_read_leaves_by_invalid(peers: Peers) -> None:
    bad: list[Any] = []
    good: list[Any] = []
    flow = Flow("pull")
    pull = flow.use("zmq.pull", "pull", address="tcp://127.0.0.1:0")
    pull >> keeping(flow, good)
    pull["invalid"] >> keeping(flow, bad, "bad")
    async with Director(flow) as director:
        push = peers.socket(zmq.PUSH)
        push.connect(module(director, "pull").address)
        await push.send(b"{nonsense")
        await push.send_multipart([b"1", b"2"])
        await push.send(b"3")
        await until(lambda: good)
    assert [data for data, _ in good] == [3]
    assert "has one frame, not 2" in bad[1][1]["reason"]


async def test_a_frame_that_is_too_large_costs_its_sender_the_connection(peers: Peers) -> None:
    good: list[Any] = []
    flow = Flow("pull")
    flow.use("zmq.pull", "pull", address="tcp://127.0.0.1:0", max_message=1000) >> keeping(flow, good)
    async with Director(flow) as director:
        large, small = peers.socket(zmq.PUSH), peers.socket(zmq.PUSH)
        for push in (large, small):
            push.connect(module(director, "pull").address)
        await large.send(b"9" * 2000)
        await small.send(b"1")
        await until(lambda: good)
    assert [data for data, _ in good] == [1]


# ------------------------------------------------------------------ publish and subscribe


async def test_what_is_published_reaches_who_subscribed_to_its_topic(peers: Peers) -> None:
    got: list[Any] = []
    publishing = Flow("publish")
    inlet = publishing.use("inlet", "inlet")
    inlet >> publishing.use(
        "zmq.publish", "publish", address="tcp://127.0.0.1:0", topic="other", topic_from="headers.topic"
    )
    async with Director(publishing) as publisher:
        address = module(publisher, "publish").address
        subscribing = Flow("subscribe")
        subscribe = subscribing.use("zmq.subscribe", "subscribe", address=address, topics=["räum", "sync"])
        subscribe >> keeping(subscribing, got)
        async with Director(subscribing) as subscriber:
            async with asyncio.timeout(30):
                while not got:  # 0mq has no handshake: until the first one comes, nobody knows that it is subscribed
                    await publisher.put("inlet", Event(0, {"topic": "sync"}))
                    await asyncio.sleep(0)
            await publisher.put("inlet", Event(1, {"topic": "räum/1"}))
            await publisher.put("inlet", Event(2))
            await publisher.put("inlet", Event({"n": 3}, {"topic": "räum/2"}))
            await until(lambda: got[-1][0] == {"n": 3})
            assert_settled(await subscriber.stop())
    assert [one for one in got if one[0]] == [(1, {"topic": "räum/1"}), ({"n": 3}, {"topic": "räum/2"})]


# ------------------------------------------------------------------ request and reply


def replying(work: Callable[[Event[Any]], Any], **settings: Any) -> Flow:
    flow = Flow("reply")
    reply = flow.use("zmq.reply", "reply", address="tcp://127.0.0.1:0", **settings)
    reply >> flow.module(work, "work") >> reply
    return flow


def double(event: Event[Any]) -> Event[Any] | None:
    if event.data == "drop":
        return None
    if event.data == "fail":
        raise ValueError("a secret of ours")
    event.data *= 2
    return event


async def test_a_plain_client_is_answered(peers: Peers) -> None:
    async with Director(replying(double)) as director:
        client = peers.socket(zmq.REQ)
        client.connect(module(director, "reply").address)
        for request, answer in [
            (b"21", b"42"),
            (b'"drop"', b'{"error":{"status":404,"title":"Not Found"}}'),
            (b'"fail"', b'{"error":{"status":500,"title":"Internal Server Error"}}'),
            (b"{nonsense", b'{"error":{"status":400,"title":"Bad Request"}}'),
            (b"4", b"8"),
        ]:
            await client.send(request)
            assert await soon(client.recv_multipart()) == [answer]
        dealer = peers.socket(zmq.DEALER)  # without the empty frame
        dealer.connect(module(director, "reply").address)
        await dealer.send(b"1")
        assert await soon(dealer.recv_multipart()) == [b"2"]
        assert_settled(await director.stop())


async def test_requests_of_many_clients_find_their_own_answers() -> None:
    async def work(event: Event[int]) -> Event[int]:
        await asyncio.sleep(0.001 * (event.data % 3))
        event.data = -event.data
        return event

    serving = Flow("reply")
    reply = serving.use("zmq.reply", "reply", address="tcp://127.0.0.1:0")
    reply >> serving.module(work, "work", concurrency=20, order="none") >> reply
    async with Director(serving) as server:
        got: list[Any] = []
        asking = Flow("ask")
        address = module(server, "reply").address
        ask = asking.use("zmq.request", "ask", address=address, options={"concurrency": 10})
        asking.source(lambda: range(500), "numbers") >> ask >> keeping(asking, got)
        assert_settled(await asking.run_async())
        assert [data for data, _ in got] == [-number for number in range(500)]
        assert_settled(await server.stop())


async def test_an_answer_that_does_not_come_is_a_failure_worth_another_try_and_504_there() -> None:
    async def hang(event: Event[Any]) -> Event[Any]:
        await asyncio.Event().wait()
        return event

    async with Director(replying(hang, timeout="50ms"), deadline="10ms") as server:
        address = module(server, "reply").address
        for timeout, says in (("20s", "answered 504"), ("10ms", "no answer from tcp")):
            failed: list[Any] = []
            flow = Flow("ask")
            ask = flow.use("zmq.request", "ask", address=address, timeout=timeout)
            flow.source(lambda: [1], "numbers") >> ask
            ask["failed"] >> flow.module(lambda event: failed.append(event.failures[-1]), "dead")  # noqa: B023
            assert_settled(await flow.run_async())
            assert says in failed[0].message
            assert failed[0].retryable


async def test_a_server_that_comes_back_is_asked_again() -> None:
    async with Director(replying(double)) as server:
        address = module(server, "reply").address
    flow = Flow("ask")
    got: list[Any] = []
    ask = flow.use(
        "zmq.request", "ask", address=address, timeout="0.2s", options={"retry": {"attempts": 100, "delay": "10ms"}}
    )
    inlet = flow.use("inlet", "inlet")
    inlet >> ask >> keeping(flow, got)
    async with Director(flow) as director:
        await director.put("inlet", 1)
        again = Flow("reply")
        reply = again.use("zmq.reply", "reply", address=address)
        reply >> again.module(double, "work") >> reply
        await until(lambda: is_free(address))
        async with Director(again):
            await until(lambda: got)
    assert got[0][0] == 2


# ------------------------------------------------------------------ addresses and keys


def checked(flow: Flow, address: Any) -> None:
    flow.use("zmq.pull", "pull", address=address) >> flow.use("null", "out")
    flow.check()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5", "tcp://", "tcp://host", "http://host:1", "ipc://", "tcp://h:1/x", 5]
)
def test_what_is_no_address_is_refused_when_the_flow_is_checked(address: Any) -> None:
    flow = Flow("f")
    with pytest.raises(ConfigurationError, match="address"):
        checked(flow, address)


async def test_an_address_that_is_taken_is_named() -> None:
    first = Wire("PULL", "tcp://127.0.0.1:0", bind=True)
    with pytest.raises(FurculaError, match=r"tcp://127.0.0.1:\d+ cannot be listened on: address already in use"):
        Wire("PULL", first.address, bind=True)
    first.close()


async def test_only_who_has_the_key_is_let_in(peers: Peers) -> None:
    server_public, server_secret = (key.decode() for key in zmq.curve_keypair())
    public, secret = (key.decode() for key in zmq.curve_keypair())
    got: list[Any] = []
    pulling = Flow("pull")
    pull = pulling.use("zmq.pull", "pull", address="tcp://127.0.0.1:0", curve={"secret_key": server_secret})
    pull >> keeping(pulling, got)
    async with Director(pulling) as puller:
        address = module(puller, "pull").address
        stranger = peers.socket(zmq.PUSH)
        stranger.connect(address)
        await stranger.send(b"1")
        pushing = Flow("push")
        curve = {"server_key": server_public, "public_key": public, "secret_key": secret}
        pushing.source(lambda: [2], "numbers") >> pushing.use("zmq.push", "push", address=address, curve=curve)
        assert_settled(await pushing.run_async())
        await until(lambda: got)
    assert [data for data, _ in got] == [2]


@pytest.mark.parametrize(
    ("curve", "says"),
    [
        ({"secret_key": "short"}, "40 characters"),
        ({"secret_key": "x" * 40, "public_key": "x" * 40}, "who connects gives server_key"),
    ],
)
def test_keys_that_do_not_belong_together_are_refused(curve: Any, says: str) -> None:
    flow = Flow("f")
    with pytest.raises(ConfigurationError, match=says):
        flow.use("zmq.pull", "pull", address="tcp://127.0.0.1:1", curve=curve)


def asking(address: str, got: list[Any], **settings: Any) -> Flow:
    flow = Flow("ask")
    (
        flow.use("inlet", "inlet")
        >> flow.use("zmq.request", "ask", address=address, timeout="10s", **settings)
        >> (flow.module(lambda event: got.append(event.data), "keep"))
    )
    return flow


@pytest.mark.parametrize("correlate", [True, False])
async def test_a_peer_that_answers_twice_does_not_answer_the_next_request(peers: Peers, correlate: bool) -> None:
    server = peers.socket(zmq.ROUTER)
    address = f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}"
    got: list[Any] = []

    async def answer_twice() -> None:
        before: list[bytes] = []
        while True:
            request = await server.recv_multipart()
            assert len(request) == 3 + correlate
            if before:
                await server.send_multipart(before)
            await server.send_multipart(request)
            before = request

    answering = asyncio.ensure_future(answer_twice())
    async with Director(asking(address, got, correlate=correlate)) as director:
        for number in range(5):
            await soon(director.put("inlet", number, settled=True))
    answering.cancel()
    await asyncio.wait([answering])
    assert got == [0, 1, 2, 3, 4]


async def test_a_plain_replier_brings_back_what_tells_its_answers_apart(peers: Peers) -> None:
    server = peers.socket(zmq.REP)
    address = f"tcp://127.0.0.1:{server.bind_to_random_port('tcp://127.0.0.1')}"
    got: list[Any] = []

    async def echo() -> None:
        while True:
            await server.send(await server.recv())

    answering = asyncio.ensure_future(echo())
    async with Director(asking(address, got)) as director:
        for number in range(3):
            await soon(director.put("inlet", number, settled=True))
    answering.cancel()
    await asyncio.wait([answering])
    assert got == [0, 1, 2]
