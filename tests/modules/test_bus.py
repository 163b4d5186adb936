"""`bus.publish` and `bus.subscribe` join the bus to flows."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.modules.conftest import Bench, until
from tests.transports.peers import peer

from furcula import Director, Flow
from furcula.bus import Bus
from furcula.errors import ConfigurationError, DeliveryError
from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.bus import BusPublish, BusSubscribe
from furcula.transports.memory import MemoryTransport

names = itertools.count()


@pytest.fixture
def url() -> str:
    return f"memory://flows-{next(names)}"


async def test_what_one_flow_publishes_another_receives(url: str) -> None:
    there = Flow("there")
    seen: list[Any] = []
    there.use("bus.subscribe", "in", url=url, channels=["a", "b"]) >> there.module(seen.append, "seen")
    here = Flow("here")
    here.source([{"n": n} for n in range(100)], "numbers") >> here.use("bus.publish", "out", url=url, channel="b")
    async with Director(there) as receiving:
        await here.run_async()
        await until(lambda: len(seen) == 100)
        statistics = receiving.statistics()
    assert [event.data["n"] for event in seen] == list(range(100))
    assert {event.get("headers.channel") for event in seen} == {"b"}
    assert statistics.admitted == 100


async def test_a_batch_is_delivered_when_the_transport_has_accepted_it(url: str, bench: Bench) -> None:
    narrow = MemoryTransport(size=1, name=url.partition("://")[2])
    slow = await narrow.subscribe("news", when_slow="block")
    module = BusPublish(url=url, channel="news")
    await module.start(bench)
    assert len(await module.process_batch([Event(1), Event(2)])) == 2
    waiting = asyncio.ensure_future(module.process_batch([Event(3)]))
    assert not (await asyncio.wait([waiting], timeout=0.05))[0]
    await anext(slow.__aiter__())
    await asyncio.wait_for(waiting, 5)
    await slow.close()
    await module.stop()
    await narrow.close()


async def test_the_channel_may_come_from_the_event(url: str, bench: Bench) -> None:
    async with Bus(url) as bus:
        subscription = await bus.subscribe("", envelope=True)
        module = BusPublish(url=url, channel_from="data.rooms", sender="me")
        await module.start(bench)
        events = [Event({"rooms": rooms}) for rooms in ("one", ["two", "three"], 4, [], "")]
        with pytest.raises(BatchFailed) as failed:
            await module.process_batch([*events, Event({})])
        assert sorted(failed.value.errors) == [2, 3, 4, 5]
        found = [await subscription.get(5) for _ in range(3)]
        assert [(one.channel, one.sender) for one in found] == [("one", "me"), ("two", "me"), ("three", "me")]
        await module.stop()


async def test_what_json_cannot_say_fails_alone(url: str, bench: Bench) -> None:
    async with Bus(url) as bus:
        subscription = await bus.subscribe("news")
        module = BusPublish(url=url, channel="news")
        await module.start(bench)
        with pytest.raises(BatchFailed) as failed:
            await module.process_batch([Event(1), Event({1, 2}), Event(3)])
        assert list(failed.value.errors) == [1]
        assert [await subscription.get(5), await subscription.get(5)] == [1, 3]
        await module.stop()


async def test_what_is_too_large_fails_alone(bench: Bench, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/hub"
    module = BusPublish(url=f"{address}?max_body=20000", channel="news")
    await module.start(bench)
    async with Bus(address) as bus:
        subscription = await bus.subscribe("news")
        with pytest.raises(BatchFailed) as failed:
            await module.process_batch([Event({1, 2}), Event(1), Event("y" * 20_000), Event(3)])
        assert sorted(failed.value.errors) == [0, 2]
        assert [await subscription.get(5), await subscription.get(5)] == [1, 3]
    await module.stop()


async def test_a_subscriber_that_does_not_read_does_not_hold_up_the_stop_for_ever(
    url: str, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("furcula.modules.bus.STOP_S", 0.05)
    narrow = MemoryTransport(size=1, name=url.partition("://")[2])
    await narrow.subscribe("news", when_slow="block")
    module = BusPublish(url=url, channel="news")
    await module.start(bench)
    await module.process_batch([Event(1)])
    stuck = asyncio.ensure_future(module.process_batch([Event(2)]))
    assert not (await asyncio.wait([stuck], timeout=0.05))[0]
    stuck.cancel()
    await asyncio.wait_for(module.stop(), 5)
    assert "what waited to be published is dropped" in caplog.text
    await narrow.close()


async def test_a_source_is_subscribed_when_it_has_started_and_stops_reading_without_room(
    url: str, bench: Bench
) -> None:
    source = BusSubscribe(url=url, channels="news", options={"size": 2})
    assert source.unready() == "not started"
    await source.start(bench)
    assert source.unready() is None
    bench.room.clear()
    async with Bus(url) as bus:
        for number in range(8):
            await bus.publish("news", number)
            sending = asyncio.ensure_future(bus.flush())
            await asyncio.wait([sending], timeout=0.05)
        assert not sending.done()
        assert len(bench.admitted["outbox"]) == 1
        bench.room.set()
        assert await bench.until(8) == list(range(8))
        await asyncio.wait_for(sending, 5)
    await source.cease()
    await source.stop()
    assert source.lost == 0


async def test_a_source_may_begin_with_the_last_value(url: str, bench: Bench) -> None:
    async with Bus(url) as bus:
        for number in range(3):
            await bus.publish("news", number)
        await bus.flush()
        source = BusSubscribe(url=url, channels="", replay=1)
        await source.start(bench)
        assert await bench.until(1) == [2]
        await source.stop()


async def test_while_the_transport_is_away_events_fail_and_the_source_is_unready_and_both_come_back(
    bench: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    url = f"ipc://{folder}/hub?connect_timeout=200ms"
    async with peer("hold", url) as holder:
        assert await holder.says() is True
        module, source = BusPublish(url=url, channel="news"), BusSubscribe(url=url, channels="news")
        await module.start(bench)
        await source.start(bench)
        await module.process_batch([Event(1)])
        assert await bench.until(1) == [1]
        shutil.rmtree(folder)  # nobody can hold the next hub
        holder.kill()
        with pytest.raises(DeliveryError, match="no hub answers"):
            await module.process_batch([Event(2)])
        await until(lambda: source.unready() is not None)
        assert "no hub answers" in str(module.unready())
        folder.mkdir()
        await until(lambda: source.unready() is None)
        await module.process_batch([Event(3)])
        assert await bench.until(2) == [1, 3]
    await module.stop()
    await source.stop()
    assert (module.unready(), source.unready()) == ("stopped", "stopped")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": "memory://x"}, "channel_from"),
        ({"url": "memory://x", "channel": "a", "channel_from": "data"}, "not both"),
        ({"url": "memory://x", "channel": ""}, "name"),
        ({"url": "memry://x", "channel": "a"}, "memory"),
        ({"url": "memory://x?sise=3", "channel": "a"}, "size"),
    ],
)
def test_wrong_arguments_are_found_when_the_flow_is_checked(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, ConfigurationError), match=said):
        BusPublish(**arguments)
