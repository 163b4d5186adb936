"""The transport in memory passes the suite that every transport passes, and is shared by name between threads."""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest

from furcula.testing.transports import TransportSuite
from furcula.transport import Promises, Transport
from furcula.transports.memory import MemoryTransport


class TestMemory(TransportSuite):
    promises = Promises(order=True, replay=True, reports=True, loss=("block", "drop"))
    fills_at = 4
    limit_s = 5
    names = itertools.count()

    @pytest.fixture(autouse=True)
    def _name(self) -> None:
        self.name = f"suite-{next(self.names)}"

    def make(self) -> Transport:
        return MemoryTransport(size=4, name=self.name)


async def test_transports_of_one_name_share_their_channels_and_others_do_not() -> None:
    one, other, stranger = MemoryTransport(name="one"), MemoryTransport(name="one"), MemoryTransport(name="two")
    await one.put("work", b"x")
    taking = asyncio.ensure_future(stranger.take("work"))
    message = await asyncio.wait_for(other.take("work"), 5)
    assert message.body == b"x"
    assert not taking.done()
    taking.cancel()


async def test_what_a_closing_transport_had_in_hand_goes_to_the_next_in_order() -> None:
    one, other = MemoryTransport(name="hand"), MemoryTransport(name="hand")
    for body in (b"1", b"2", b"3"):
        await one.put("work", body)
    assert [(await one.take("work")).body, (await one.take("work")).body] == [b"1", b"2"]
    await one.close()
    assert [((await other.take("work")).body) for _ in range(3)] == [b"1", b"2", b"3"]


async def test_closing_one_of_a_name_leaves_the_others_subscribed() -> None:
    one, other = MemoryTransport(name="stays"), MemoryTransport(name="stays")
    subscription = await other.subscribe("news")
    await one.close()
    await other.publish("news", b"x")
    assert await anext(subscription.__aiter__()) == ("news", b"x")


async def test_a_name_is_forgotten_with_its_last_transport() -> None:
    one = MemoryTransport(name="forgotten")
    await one.publish("news", b"x")
    await one.close()
    del one
    late = await MemoryTransport(name="forgotten").subscribe("news", replay=1)
    await late.close()
    assert [item async for item in late] == []


@pytest.mark.parametrize("policy", ["block", "drop"])
async def test_threads_with_loops_of_their_own_share_a_room(policy: str) -> None:
    count = 2000
    reader, told = MemoryTransport(size=8, name=f"threads-{policy}"), []
    subscription = await reader.subscribe("news", when_slow=policy)  # type: ignore[arg-type]

    async def publish() -> None:
        writer = MemoryTransport(name=f"threads-{policy}")
        for number in range(count):
            await writer.publish("news", b"%d" % number)
            await writer.put("work", b"%d" % number, lambda good, report: told.append((good, threading.get_ident())))
        await writer.publish("news", b"end")
        while len(told) < count:
            await asyncio.sleep(0.001)

    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(publish(), 20)))
    thread.start()

    async def work() -> None:
        for _ in range(count):
            await (await reader.take("work")).ack()

    working = asyncio.ensure_future(work())
    found = []
    async with asyncio.timeout(20):
        async for _, body in subscription:
            if body == b"end":
                break
            found.append(int(body))
        await working
    await asyncio.to_thread(thread.join, 20)
    assert found == sorted(set(found))
    assert len(found) + subscription.lost == count
    assert policy == "drop" or subscription.lost == 0
    assert told == [(True, thread.ident)] * count
    await reader.close()


async def test_queues_that_nobody_uses_are_forgotten_and_what_comes_back_is_not() -> None:
    transport = MemoryTransport()
    for number in range(100):
        await transport.put(f"reply-{number}", b"x")
        await (await transport.take(f"reply-{number}")).ack()
    assert len(transport._room.queues) == 0
    await transport.put("work", b"x")
    message = await transport.take("work")
    waiting = asyncio.ensure_future(transport.take("work"))
    await asyncio.sleep(0)
    await message.again()
    del message
    again = await asyncio.wait_for(waiting, 5)
    assert (again.body, again.attempts) == (b"x", 2)
    await again.release()
    del again
    assert (await asyncio.wait_for(transport.take("work"), 5)).attempts == 2
    await transport.close()
