"""Who holds the hub, and what is left when a hub, a taker or a putter dies."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from tests.transports.peers import peer
from tests.transports.test_zmq import free_port

from furcula.errors import FurculaError, InputError
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
    url = f"ipc://{tmp_path}/later/hub"  # cannot be held while there is no such folder
    transport = ZmqTransport(url)
    opening = asyncio.ensure_future(transport.open())
    assert not (await asyncio.wait([opening], timeout=0.1))[0]
    (tmp_path / "later").mkdir()
    await asyncio.wait_for(opening, 10)
    await transport.close()


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
