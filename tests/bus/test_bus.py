"""The Bus: what is published on named channels, and what its subscribers get of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from furcula.bus import Bus, Envelope, Subscription
from furcula.bus.bus import FRAME_MESSAGES
from furcula.errors import FurculaError, InputError, Stopped
from furcula.options import Size
from furcula.transports.memory import MemoryTransport
from furcula.transports.zmq import ZmqTransport

names = itertools.count()


@pytest.fixture(params=["memory", "inproc", "ipc"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "memory": f"memory://bus-{next(names)}",
        "inproc": f"inproc://bus-{next(names)}",
        "ipc": f"ipc://{tmp_path}/bus",
    }[request.param]


@pytest.fixture
async def bus(url: str) -> AsyncIterator[Bus]:
    async with Bus(url) as made:
        yield made


async def some(subscription: Subscription, count: int) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(20):
        async for message in subscription:
            found.append(message)
            if len(found) == count:
                break
    return found


VALUES = [
    0,
    {},
    False,
    None,
    [],
    "",
    "x",
    -1.5,
    2**80,
    -(2**70),
    {"a": [1, {"b": None}]},
    "会議 🎉\x00",
    "\ud800",
    [[]],
]


async def test_any_json_value_is_a_message(bus: Bus) -> None:
    subscription = await bus.subscribe("values")
    for value in VALUES:
        await bus.publish("values", value)
    found = await some(subscription, len(VALUES))
    assert found == VALUES
    assert [type(one) for one in found] == [type(one) for one in VALUES]


async def test_what_json_changes_is_changed_as_json_does(bus: Bus) -> None:
    subscription = await bus.subscribe("values")
    await bus.publish("values", {1: (2, 3), None: {"x": ()}})
    assert await some(subscription, 1) == [{"1": [2, 3], "null": {"x": []}}]


def circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "message",
    [b"x", {1, 2}, object(), float("nan"), float("inf"), {"a": [b""]}, {(1, 2): 3}, circle(), deep(300), deep(50_000)],
    ids=["bytes", "set", "object", "nan", "inf", "inner bytes", "tuple key", "circle", "deep", "very deep"],
)
async def test_a_message_that_json_cannot_say_raises_where_it_is_published(bus: Bus, message: Any) -> None:
    subscription = await bus.subscribe("news")
    with pytest.raises((TypeError, ValueError)):
        await bus.publish("news", message)
    await bus.publish("news", "next")
    assert await some(subscription, 1) == ["next"]


async def test_later_changes_to_a_message_are_not_seen_and_each_subscriber_has_its_own_copy(bus: Bus) -> None:
    one, two = await bus.subscribe("news"), await bus.subscribe("news")
    message = {"list": [1]}
    await bus.publish("news", message)
    message["list"].append(2)
    (first,), (second,) = await some(one, 1), await some(two, 1)
    first["list"].append(3)
    assert (message, first, second) == ({"list": [1, 2]}, {"list": [1, 3]}, {"list": [1]})


async def test_channels_match_exactly_by_default_by_prefix_on_request_and_the_empty_name_is_all(bus: Bus) -> None:
    exact = await bus.subscribe(["room1", "会議 🎉"], envelope=True)
    prefix = await bus.subscribe("room1", prefix=True, envelope=True)
    every = await bus.subscribe("", envelope=True)
    channels = ["room1", "room12", "room", "会議 🎉", "room1 ", "Room1"]
    for channel in channels:
        await bus.publish(channel, channel)
    assert [one.message for one in await some(exact, 2)] == ["room1", "会議 🎉"]
    assert [one.message for one in await some(prefix, 3)] == ["room1", "room12", "room1 "]
    assert [(one.channel, one.message) for one in await some(every, 6)] == [(name, name) for name in channels]


async def test_a_message_may_go_to_several_channels(bus: Bus) -> None:
    every = await bus.subscribe("", envelope=True)
    await bus.publish(["a", "b"], 1)
    await bus.publish("b", 2)
    assert [(one.channel, one.message) for one in await some(every, 3)] == [("a", 1), ("b", 1), ("b", 2)]


@pytest.mark.parametrize("channels", ["", [], ["a", ""], [4], "\ud800", "x" * 1025])
async def test_publishing_on_what_is_no_channel_raises(bus: Bus, channels: Any) -> None:
    with pytest.raises(InputError):
        await bus.publish(channels, 1)


@pytest.mark.parametrize("channels", [[], ["a", ""], "\ud800"])
async def test_subscribing_to_what_is_no_channel_raises(bus: Bus, channels: Any) -> None:
    with pytest.raises(InputError):
        await bus.subscribe(channels)


async def test_a_subscription_is_effective_when_the_call_returns(url: str) -> None:
    async with Bus(url) as one, Bus(url) as other:
        for number in range(20):
            subscription = await other.subscribe(f"news{number}")
            await one.publish(f"news{number}", number)
            assert await some(subscription, 1) == [number]


async def test_order_is_kept_and_what_waits_leaves_in_few_frames(url: str) -> None:
    count = 3 * FRAME_MESSAGES
    async with Bus(url, limit=100) as bus:
        subscription = await bus.subscribe("news")
        reading = asyncio.ensure_future(some(subscription, count))
        sent, publish = [], bus._transport.publish

        async def counted(channel: str, body: bytes) -> None:
            sent.append(len(body))
            await publish(channel, body)

        bus._transport.publish = counted  # type: ignore[method-assign]
        for number in range(count):
            await bus.publish("news", number)
        assert await reading == list(range(count))
        assert len(sent) <= count / 50


async def test_one_message_leaves_at_once_and_none_waits_for_a_frame_to_fill(bus: Bus) -> None:
    subscription = await bus.subscribe("news")
    for number in range(3):
        await bus.publish("news", number)
        assert await some(subscription, 1) == [number]


async def test_many_publishers_on_one_address_are_told_apart(url: str) -> None:
    async with Bus(url) as bus:
        subscription = await bus.subscribe("news", envelope=True)
        others = [await Bus(url, sender=f"s{number}").open() for number in range(5)]
        for number in range(10):
            for other in others:
                await other.publish("news", number)
        found = await some(subscription, 50)
        assert len({one.id for one in found}) == 50
        for other in others:
            assert [one.message for one in found if one.sender == other.sender] == list(range(10))
            await other.close()


async def test_an_envelope_says_channel_id_time_and_sender(bus: Bus) -> None:
    subscription = await bus.subscribe("news", envelope=True)
    await bus.publish("news", None)
    await bus.publish("news", 2)
    first, second = await some(subscription, 2)
    assert isinstance(first, Envelope)
    assert (first.channel, first.sender, first.message, second.message) == ("news", bus.sender, None, 2)
    assert first.id != second.id
    assert abs(second.time - first.time) < 60 < first.time


async def test_bare_messages_and_envelopes_may_be_asked_for_one_by_one(bus: Bus) -> None:
    subscription = await bus.subscribe("news")
    for number in range(4):
        await bus.publish("news", number)
    assert await subscription.get() == 0
    second = await subscription.get(envelope=True)
    assert second.message == 1
    found = await some(subscription, 2)
    assert found == [2, 3]
    fourth_id = int(second.id.rpartition("-")[2]) + 1
    await bus.publish("news", 4)
    assert int((await subscription.get(envelope=True)).id.rpartition("-")[2]) == fourth_id + 2


async def test_get_waits_so_long_and_tells_null_from_nothing(bus: Bus) -> None:
    subscription = await bus.subscribe("news")
    nothing = object()
    assert await subscription.get(0, default=nothing) is nothing
    assert await subscription.get(0.01) is None
    await bus.publish("news", None)
    assert await subscription.get(20, default=nothing) is None
    await bus.publish("news", "after a wait that was given up")
    assert await subscription.get(20) == "after a wait that was given up"


async def test_a_late_one_gets_the_last_value_or_the_last_n_of_each_channel(bus: Bus) -> None:
    for number in range(10):
        await bus.publish(["a", "b"], number)
        if number % 3 == 0:
            await bus.flush()
    await bus.flush()
    last = await bus.subscribe("a", replay=1)
    assert await some(last, 1) == [9]
    three = await bus.subscribe("", replay=3, envelope=True)
    await bus.publish("a", 10)
    found = await some(three, 7)
    assert [one.message for one in found if one.channel == "a"] == [7, 8, 9, 10]
    assert [one.message for one in found if one.channel == "b"] == [7, 8, 9]
    assert three.lost == 0


async def test_a_replay_counts_messages_however_they_were_packed(bus: Bus) -> None:
    for number in range(500):
        await bus.publish("a", number)  # one frame
    await bus.flush()
    late = await bus.subscribe("a", replay=3, envelope=True)
    found = await some(late, 3)
    assert [one.message for one in found] == [497, 498, 499]
    again = await bus.subscribe("a", replay=3, envelope=True)
    assert [one.id for one in await some(again, 3)] == [one.id for one in found]


async def test_a_slow_subscriber_that_blocks_makes_publish_wait_and_loses_nothing(url: str) -> None:
    async with Bus(url, limit=10, size=2) as bus:
        slow = await bus.subscribe("news", when_slow="block")
        numbers = itertools.count()

        async def publish() -> None:
            while True:
                await bus.publish("news", next(numbers))

        publishing = asyncio.ensure_future(publish())
        assert not (await asyncio.wait([publishing], timeout=0.1))[0]
        assert next(numbers) < 100
        found = await some(slow, 200)
        assert len(found) == 200
        assert found == sorted(set(found))
        assert slow.lost == 0
        publishing.cancel()
        await slow.close()
        await bus.close(drain=False)


async def test_what_a_slow_subscriber_loses_is_counted_to_the_message_and_reported_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Bus(url, size=2) as bus:
        slow, quick = await bus.subscribe("news", when_slow="drop"), await bus.subscribe("news")
        await bus.publish("news", "first")
        assert await some(slow, 1) == ["first"]
        reading = asyncio.ensure_future(some(quick, 201))
        for number in range(200):
            await bus.publish("news", number)
            if number % 5 == 4:
                await bus.flush()
        assert await reading == ["first", *range(200)]
        found = []
        with caplog.at_level(logging.WARNING, "furcula.bus"):
            while "end" not in found:
                await bus.publish("news", "end")
                message = await slow.get(0.1, default=slow)
                found += [message] if message is not slow else []
            while (message := await slow.get(0.2, default=slow)) is not slow:
                found.append(message)
        numbers = [one for one in found if one != "end"]
        ends = found.count("end")
        assert 0 < len(numbers) < 200
        assert slow.lost >= 200 - len(numbers)
        total = bus._sequences["news"]
        assert 1 + len(numbers) + ends + slow.lost == total
        assert len([one for one in caplog.records if "were lost" in one.message]) == 1
        assert quick.lost == 0


async def test_closing_flushes_what_was_published(url: str) -> None:
    async with Bus(url) as bus:
        subscription = await bus.subscribe("news")
        other = Bus(url)
        await other.open()
        for number in range(2000):
            await other.publish("news", number)
        await other.close()
        await other.close()
        assert await some(subscription, 2000) == list(range(2000))


async def test_closing_without_draining_drops_what_waits(bus: Bus, url: str) -> None:
    subscription = await bus.subscribe("news")
    other = await Bus(url).open()
    await other.publish("news", 1)
    await other.close(drain=False)
    await bus.publish("news", 2)
    assert (await some(subscription, 1))[-1] in (1, 2)


async def test_closing_ends_subscriptions_and_refuses_what_comes_after(bus: Bus) -> None:
    subscription = await bus.subscribe("news")
    reading = asyncio.ensure_future(some(subscription, 1))
    getting = asyncio.ensure_future(subscription.get(default="ended"))
    await asyncio.sleep(0)
    await bus.close()
    assert await reading == []
    assert await getting == "ended"
    for work in (bus.publish("news", 1), bus.subscribe("news"), bus.open()):
        with pytest.raises(Stopped):
            await work


async def test_a_closed_subscription_gives_what_had_come_and_then_ends(bus: Bus) -> None:
    subscription, witness = await bus.subscribe("news"), await bus.subscribe("news")
    await bus.publish("news", 1)
    await bus.publish("news", 2)
    await bus.flush()
    await some(witness, 2)
    assert await some(subscription, 1) == [1]
    await subscription.close()
    await bus.publish("news", 3)
    await bus.flush()
    assert await some(subscription, 9) == [2]


async def test_a_reader_that_is_cancelled_loses_nothing(bus: Bus) -> None:
    subscription = await bus.subscribe("news")
    for number in range(10):
        reading = asyncio.ensure_future(subscription.get())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await bus.publish("news", number)
        assert await subscription.get(20) == number


async def test_several_readers_share_a_subscription(bus: Bus) -> None:
    subscription = await bus.subscribe("news")
    readers = [asyncio.ensure_future(some(subscription, 10)) for _ in range(3)]
    for number in range(30):
        await bus.publish("news", number)
    found = [message for reader in readers for message in await reader]
    assert sorted(found) == list(range(30))


async def test_a_message_over_the_limit_raises_and_the_others_go_on(tmp_path: Path) -> None:
    async with Bus(f"ipc://{tmp_path}/bus", max_body=100_000) as bus:
        subscription = await bus.subscribe("news")
        with pytest.raises(InputError, match="over the limit"):
            await bus.publish("news", "x" * 100_000)
        for size in (98_000, 1, 60_000, 60_000):
            await bus.publish("news", "x" * size)
        assert [len(one) for one in await some(subscription, 4)] == [98_000, 1, 60_000, 60_000]


@pytest.mark.parametrize("body", [b"", b"\x00", b"\x01", b"\x01\xc0", b"\x02\x97", b"\x01\x97" + b"\x91" * 2000])
async def test_a_body_that_is_no_frame_of_a_bus_is_counted_and_harms_nobody(body: bytes) -> None:
    transport = MemoryTransport()
    bus = Bus(transport)
    subscription = await bus.subscribe("news")
    await transport.publish("news", body)
    await bus.publish("news", "good")
    assert await some(subscription, 1) == ["good"]
    assert sum(subscription.refused.values()) == 1
    await bus.close()
    await transport.close()


async def test_a_transport_that_fails_is_told_to_whoever_publishes_and_flushes() -> None:
    transport = MemoryTransport()
    bus = Bus(transport)
    await bus.publish("news", 1)
    await bus.flush()
    await transport.close()
    await bus.publish("news", 2)
    with pytest.raises(FurculaError):
        await bus.flush()
    with pytest.raises(FurculaError):
        await bus.publish("news", 3)
    with pytest.raises(FurculaError):
        await bus.close()


async def test_a_publisher_that_waits_for_room_is_woken_when_the_bus_is_closed() -> None:
    transport = MemoryTransport(size=1)
    bus = Bus(transport, limit=1)
    await bus.subscribe("news", when_slow="block")

    async def publish() -> None:
        while True:
            await bus.publish("news", 1)

    publishing = asyncio.ensure_future(publish())
    assert not (await asyncio.wait([publishing], timeout=0.05))[0]
    await bus.close(drain=False)
    with pytest.raises(Stopped):
        await asyncio.wait_for(publishing, 5)
    await transport.close()


async def test_frames_and_messages_keep_to_a_limit_that_the_transport_lowers_when_it_opens(tmp_path: Path) -> None:
    holder = ZmqTransport(f"ipc://{tmp_path}/hub", max_body=Size(20_000))
    await holder.open()
    async with Bus(f"ipc://{tmp_path}/hub") as bus:
        subscription = await bus.subscribe("news")
        publishing = asyncio.ensure_future(_publish_all(bus, ["x" * 100] * 2000))  # far more than one frame may have
        assert await some(subscription, 2000) == ["x" * 100] * 2000
        await publishing
        with pytest.raises(InputError, match="limit"):
            await bus.publish("news", "y" * 20_000)
        await bus.publish("news", "small")
        assert await some(subscription, 1) == ["small"]
    await holder.close()


async def _publish_all(bus: Bus, messages: list[Any]) -> None:
    for message in messages:
        await bus.publish("news", message)
    await bus.flush()


class Sinking(MemoryTransport):
    """Takes less from the first body on that it is given, as when the next hub allows less than the one before."""

    sunk = 3000

    async def publish(self, channel: str, body: bytes) -> None:
        self.promises = msgspec.structs.replace(self.promises, max_body=self.sunk)
        await super().publish(channel, body)


async def test_when_the_limit_sinks_only_what_is_too_large_is_refused_and_flush_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = Bus(Sinking())
    subscription = await bus.subscribe("news")
    messages = ["a" * 900, "b" * 900, "c" * 5000, "d" * 900]
    for message in messages:
        await bus.publish("news", message)
    with pytest.raises(InputError, match="limit"):
        await bus.flush()
    assert "not published on 'news'" in caplog.text
    await bus.publish("news", "later")
    await bus.flush()
    assert await some(subscription, 4) == [messages[0], messages[1], messages[3], "later"]
    assert subscription.lost == 0
    await bus.close()


async def test_flush_waits_for_what_was_in_line_when_it_was_called_and_for_no_more() -> None:
    async with Bus(MemoryTransport(size=1)) as bus:
        subscription = await bus.subscribe("news")
        await bus.publish("news", 1)
        flushing = asyncio.ensure_future(bus.flush())
        await asyncio.sleep(0)
        await bus.publish("other", 2)
        await bus.publish("news", 3)
        await bus.publish("other", 4)
        await bus.publish("news", 5)  # waits: nobody reads
        await asyncio.wait_for(flushing, 10)
        behind = asyncio.ensure_future(bus.flush())
        assert not (await asyncio.wait([behind], timeout=0.05))[0]
        assert await some(subscription, 3) == [1, 3, 5]
        await asyncio.wait_for(behind, 10)


async def test_who_waits_in_flush_when_the_bus_is_closed_without_draining_is_told() -> None:
    bus = Bus(MemoryTransport(size=1))
    await bus.subscribe("news")
    for number in range(3):
        await bus.publish("news", number)
        await asyncio.sleep(0)
    flushing = asyncio.ensure_future(bus.flush())
    await asyncio.sleep(0)
    await bus.close(drain=False)
    with pytest.raises(Stopped, match="closed"):
        await asyncio.wait_for(flushing, 10)


async def test_what_was_dropped_before_the_first_that_is_read_is_lost_too() -> None:
    async with Bus(MemoryTransport(size=4)) as bus:
        subscription = await bus.subscribe("news", when_slow="drop")
        for number in range(100):
            await bus.publish("news", number)
            await bus.flush()
        assert await some(subscription, 4) == [96, 97, 98, 99]
        assert subscription.lost == 96
