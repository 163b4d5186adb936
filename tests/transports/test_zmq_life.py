"""Who holds the hub, and what is left when a hub, a taker or a putter dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from tests.services import free_port
from tests.transports.peers import peer

from furcula.bus import Bus
from furcula.errors import ConfigurationError, FurculaError, InputError
from furcula.options import Size
from furcula.transports import transport_for
from furcula.transports.zmq import ZmqTransport


@pytest.fixture(params=["tcp", "ipc"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"tcp://127.0.0.1:{free_port()}" if request.param == "tcp" else f"ipc://{tmp_path}/hub"


async def test_one_of_many_that_come_at_once_holds_the_hub_and_all_are_heard(url: str) -> None:
    async with peer("hold", url) as one, peer("hold", url) as two, peer("hold", url) as three:
        assert sorted([await one.says(), await two.says(), await three.says()]) == [False, False, True]
        transport = ZmqTransport(url)
        await transport.open()
        assert not transport.holds_the_hub
        async with peer("collect", url, "news", 1) as reader:
            assert await reader.says() == "subscribed"
            async with peer("publish", url, "news", 1, "me") as writer:
                assert await writer.says() == "open"
                assert await writer.says() == "done"
            assert await reader.says() == [[["me", 0]], 0]
        await transport.close()


async def test_transports_of_one_process_share_its_hub_and_the_last_lets_it_go(url: str) -> None:
    first, second = ZmqTransport(url), ZmqTransport(url)
    await first.open()
    await second.open()
    subscription = await second.subscribe("news")
    await first.close()
    await second.publish("news", b"x")
    assert await asyncio.wait_for(anext(subscription.__aiter__()), 10) == ("news", b"x")
    await second.close()
    async with peer("hold", url) as other:
        assert await other.says() is True


async def test_the_death_of_the_holder_in_mid_stream_loses_nothing_and_repeats_nothing(url: str) -> None:
    count = 3000
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        async with peer("collect", url, "news", 2 * count) as reader:
            assert await reader.says() == "subscribed"
            async with (
                peer("publish", url, "news", count, "a", 0.0005) as one,
                peer("publish", url, "news", count, "b", 0.0005) as two,
            ):
                assert [await one.says(), await two.says()] == ["open", "open"]
                transport = ZmqTransport(url)
                await transport.open()
                subscription = await transport.subscribe("news")
                progress = subscription.__aiter__()
                for _ in range(100):  # the stream runs
                    await asyncio.wait_for(anext(progress), 10)
                await subscription.close()
                holder.kill()
                found, lost = await reader.says()
                assert [await one.says(), await two.says()] == ["done", "done"]
            for name in ("a", "b"):
                assert [number for sender, number in found if sender == name] == list(range(count))
            assert lost == 0
        await transport.close()


async def test_what_was_put_is_not_lost_with_the_hub_nor_dealt_twice(url: str) -> None:
    told: list[tuple[bool, bytes]] = []
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        putter, taker = ZmqTransport(url), ZmqTransport(url)
        await putter.open()
        await taker.open()
        for number in range(10):
            await putter.put("work", b"%d" % number, lambda good, report: told.append((good, report)))
        hand = [await asyncio.wait_for(taker.take("work"), 10) for _ in range(3)]
        await hand[0].ack(b"early")
        holder.kill()
        await holder.process.wait()
        await hand[1].ack(b"while there is no hub")
        rest = [await asyncio.wait_for(taker.take("work"), 10) for _ in range(7)]
        assert [message.body for message in rest] == [b"%d" % number for number in range(3, 10)]
        for message in (hand[2], *rest):
            await message.ack(b"late")
        waiting = asyncio.ensure_future(taker.take("work"))
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        waiting.cancel()
        await taker.close()
        await putter.publish("x", b"")  # a turn to the hub and back: the reports are there
        assert sorted(told) == sorted([(True, b"early"), (True, b"while there is no hub")] + [(True, b"late")] * 8)
        await putter.close()


async def test_what_a_taker_had_in_hand_when_it_died_goes_to_the_next_as_a_second_attempt(url: str) -> None:
    transport = ZmqTransport(url)
    await transport.open()
    async with peer("take", url, "work") as taker:
        await transport.put("work", b"x")
        assert await taker.says() == ["x", 1]
        taker.kill()
        message = await asyncio.wait_for(transport.take("work"), 10)
        assert (message.body, message.attempts) == (b"x", 2)
        await message.ack()
    await transport.close()


async def test_publishers_go_on_when_a_subscriber_that_blocked_them_has_died(url: str) -> None:
    transport = ZmqTransport(url)
    await transport.open()
    async with peer("collect", url, "news", 10**9) as reader:
        assert await reader.says() == "subscribed"
        os.kill(reader.process.pid, signal.SIGSTOP)

        async def flood() -> None:
            for _ in range(200):
                await transport.publish("news", b"not for a bus")

        flooding = asyncio.ensure_future(flood())
        assert not (await asyncio.wait([flooding], timeout=0.3))[0]
        os.kill(reader.process.pid, signal.SIGKILL)
        await asyncio.wait_for(flooding, 10)
    await transport.close()


async def test_the_limits_of_the_hub_hold_for_all(url: str) -> None:
    holder, other = ZmqTransport(url, max_body=Size(1000)), ZmqTransport(url)
    await holder.open()
    await other.open()
    assert other.promises.max_body == 1000
    for work in (other.publish("news", bytes(1001)), other.put("work", bytes(1001))):
        with pytest.raises(InputError, match="1000"):
            await work
    await other.publish("news", bytes(1000))
    await other.close()
    await holder.close()


async def test_a_body_that_the_next_hub_does_not_take_fails_who_waits_with_it(url: str) -> None:
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        transport = ZmqTransport(url)
        await transport.open()
        slow = await transport.subscribe("news", when_slow="block")
        publishing = [asyncio.ensure_future(transport.publish("news", bytes(2000))) for _ in range(65)]
        await asyncio.wait(publishing[:64], timeout=10)
        transport._max_body = 1000  # as if whoever holds the next hub allowed so much
        holder.kill()
        with pytest.raises(InputError, match="1000"):
            await asyncio.wait_for(publishing[64], 20)
        await slow.close()
        await transport.publish("news", b"small")
        await transport.close()


async def test_messages_that_end_with_the_hub_are_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    holder, putter = ZmqTransport(url), ZmqTransport(url)
    await holder.open()
    await putter.open()
    await putter.put("work", b"x")
    await putter.close()
    await holder.close()
    assert "ends with 1 messages" in caplog.text


async def test_an_address_where_nobody_answers_and_that_cannot_be_held_is_an_error_that_names_it() -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # something else listens there, and says nothing
    port = silent.getsockname()[1]
    with silent:
        transport = transport_for(f"tcp://127.0.0.1:{port}?connect_timeout=300ms")
        with pytest.raises(FurculaError, match=f"tcp://127.0.0.1:{port}"):
            await asyncio.wait_for(transport.open(), 10)
        await transport.close()


async def test_an_address_on_another_host_is_waited_for_never_held_and_then_an_error() -> None:
    transport = ZmqTransport("tcp://192.0.2.1:5555", connect_timeout=0.3)  # TEST-NET-1: there is no such host
    with pytest.raises(FurculaError, match=r"tcp://192\.0\.2\.1:5555 within 0\.3 s"):
        await asyncio.wait_for(transport.open(), 10)
    assert not transport.holds_the_hub
    await transport.close()


async def test_a_hub_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "hub.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # somebody is about to hold it
    transport = ZmqTransport(f"ipc://{tmp_path}/hub")
    opening = asyncio.ensure_future(transport.open())
    assert not (await asyncio.wait([opening], timeout=0.1))[0]
    os.close(lock)
    await asyncio.wait_for(opening, 10)
    await transport.close()


async def test_a_path_where_no_hub_can_be_is_refused_at_once_with_the_reason(tmp_path: Path) -> None:
    transport = ZmqTransport(f"ipc://{tmp_path}/missing/hub", connect_timeout=3600)
    with pytest.raises(FurculaError, match=r"no folder .*missing"):
        await asyncio.wait_for(transport.open(), 10)
    await transport.close()
    with pytest.raises(ConfigurationError, match="bytes"):
        ZmqTransport(f"ipc:///tmp/{'x' * 120}")


async def test_a_hub_leaves_no_files_behind(tmp_path: Path) -> None:
    for _ in range(2):
        transport = ZmqTransport(f"ipc://{tmp_path}/hub")
        await transport.open()
        assert (tmp_path / "hub").exists()
        await transport.close()
        assert list(tmp_path.iterdir()) == []


async def test_a_subscriber_that_was_busy_when_the_holder_died_misses_nothing(url: str) -> None:
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        async with peer("publish", url, "news", 300, "a", 0.005) as writer:
            transport = ZmqTransport(url)
            await transport.open()
            async with Bus(transport) as bus:
                subscription = await bus.subscribe("news")
                assert await writer.says() == "open"
                found = [await subscription.get(20)]
                holder.kill()
                time.sleep(0.8)  # noqa: ASYNC251 -- longer than the next hub waits; the loop does not turn, on purpose
                while found[-1] != ["a", 299]:
                    found.append(await subscription.get(20))
                first = found[0][1]
                assert [number for _, number in found] == list(range(first, 300))
                assert subscription.lost == 0
            await transport.close()


async def test_what_was_accepted_and_is_over_the_limit_of_the_next_hub_is_logged_and_not_sent_for_ever(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        transport = ZmqTransport(url)
        await transport.open()
        await transport.publish("news", bytes(200_000))
        transport._max_body = 1000  # as if whoever holds the next hub allowed so much
        holder.kill()
        await holder.process.wait()
        await asyncio.wait_for(transport.publish("news", b"small"), 20)
        assert "1 larger ones" in caplog.text
        await transport.close()


async def test_a_body_over_what_a_subscriber_takes_is_lost_to_it_and_does_not_cost_it_its_connection(url: str) -> None:
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        small, large = ZmqTransport(url, max_body=Size(10_000)), ZmqTransport(url)
        await small.open()
        await large.open()
        subscription = await small.subscribe("news")
        for body in (b"1", bytes(200_000), b"2"):
            await large.publish("news", body)
        reader = subscription.__aiter__()
        assert [(await asyncio.wait_for(anext(reader), 10))[1] for _ in range(2)] == [b"1", b"2"]
        assert subscription.lost == 1
        await small.close()
        await large.close()


async def test_an_open_that_is_cancelled_leaves_no_hub(tmp_path: Path) -> None:
    for turns in range(1, 6):
        address = f"tcp://127.0.0.1:{free_port()}"
        transport = ZmqTransport(address)
        opening = asyncio.ensure_future(transport.open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        await transport.close()
        assert not [one.name for one in threading.enumerate() if address in one.name]


async def test_a_subscription_that_no_hub_would_take_is_refused_at_once(url: str) -> None:
    transport = ZmqTransport(url, max_body=Size(10_000))
    await transport.open()
    for channels in ([f"c{number}" for number in range(70_000)], ["n" * 1000] * 500):
        with pytest.raises(InputError, match="too many for one subscription"):
            await asyncio.wait_for(transport.subscribe(*channels), 10)
    await transport.close()


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of its own on Linux only")
async def test_a_forked_child_keeps_its_own_sockets_of_another_address_and_the_same_port() -> None:
    port = free_port()
    transport = ZmqTransport(f"tcp://127.0.0.1:{port}")
    await transport.open()
    with socket.create_server(("127.0.0.2", port)) as server, socket.create_connection(("127.0.0.2", port)) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads: that is the point
            child = os.fork()
        if child == 0:
            try:
                server.getsockname()
                client.getpeername()
                os._exit(0)
            except OSError:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
        accepted, _ = server.accept()
        accepted.close()
    await transport.close()


async def test_a_hub_on_every_interface_of_both_families_is_heard_on_both() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    port = free_port()
    holder = ZmqTransport(f"tcp://[::]:{port}")
    await holder.open()
    subscription = await holder.subscribe("news")
    reader = subscription.__aiter__()
    for host in ("[::1]", "127.0.0.1"):
        other = ZmqTransport(f"tcp://{host}:{port}")
        await other.open()
        await other.publish("news", host.encode())
        assert await asyncio.wait_for(anext(reader), 10) == ("news", host.encode())
        await other.close()
    await holder.close()


async def test_when_no_next_hub_is_found_all_who_wait_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    async with peer("hold", f"ipc://{folder}/hub") as holder:
        assert await holder.says() is True
        transport = ZmqTransport(f"ipc://{folder}/hub", connect_timeout=0.5)
        await transport.open()
        reading = asyncio.ensure_future(anext((await transport.subscribe("news")).__aiter__()))
        taking = asyncio.ensure_future(transport.take("work"))
        await transport.publish("other", b"x")
        shutil.rmtree(folder)  # so nobody can hold the next one
        holder.kill()
        assert len((await asyncio.wait([taking, reading], timeout=10))[0]) == 2
        for task in (taking, reading):
            assert "no hub answers" in str(task.exception())
        with pytest.raises(FurculaError, match="no hub answers"):
            await transport.publish("news", b"x")
        await transport.close()
