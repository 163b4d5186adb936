"""shellbot's bus on real sockets, with publishers that are processes, by fork and by spawn."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import textwrap
import threading
from typing import Any

import pytest
from tests.compat.shellbot.context import Settings

from furcula.compat.shellbot import Bus, Publisher, Subscriber
from furcula.compat.shellbot.bus import DEFAULT_ADDRESS
from furcula.errors import Stopped

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def some(subscriber: Subscriber, count: int) -> list[Any]:
    nothing = object()
    found = [subscriber.get(timeout=30, default=nothing) for _ in range(count)]
    assert nothing not in found
    return found


@pytest.fixture(params=["fork", "spawn"])
def method(request: pytest.FixtureRequest) -> Any:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def test_check_writes_the_address_only_where_there_is_none() -> None:
    context = Settings({})
    Bus(context).check()
    assert context.values == {"bus.address": "tcp://127.0.0.1:5555"}
    assert DEFAULT_ADDRESS == Bus.DEFAULT_ADDRESS == "tcp://127.0.0.1:5555"
    context = Settings({"bus.address": "tcp://127.0.0.1:1"})
    Bus(context).check()
    assert context.values == {"bus.address": "tcp://127.0.0.1:1"}


def test_a_subscriber_gets_what_a_publishing_process_sends(context: Settings, method: str) -> None:
    bus = Bus(context)
    with bus.subscribe("room 1") as one, bus.subscribe(["room 1", "räum/2 ☃"]) as both, bus.subscribe("") as everything:
        publisher = bus.publish()
        publisher.put("room 1", {"before": "start"})
        publisher.start()
        publisher.put(["room 1", "räum/2 ☃"], {"n": 1})
        publisher.put("room 12", "not for room 1")
        publisher.put("räum/2 ☃", 0)
        publisher.close()
        assert some(one, 2) == [{"before": "start"}, {"n": 1}]
        assert some(both, 4) == [{"before": "start"}, {"n": 1}, {"n": 1}, 0]
        assert some(everything, 5) == [{"before": "start"}, {"n": 1}, {"n": 1}, "not for room 1", 0]
        assert one.get() is None


@pytest.mark.parametrize("message", [0, {}, False, None, "", [], 1.5, "ünïcode", {"deep": [{"er": None}]}])
def test_any_json_value_is_a_message(context: Settings, message: Any) -> None:
    bus = Bus(context)
    with bus.subscribe("c") as subscriber:
        publisher = bus.publish()
        publisher.put("c", message)
        publisher.fan.put(None)
        publisher.run()  # in this process
        envelope = subscriber.get(timeout=30, envelope=True)
    assert (envelope.channel, envelope.message) == ("c", message)


def test_all_that_was_put_is_sent_at_the_poison_pill(context: Settings, method: str) -> None:
    bus = Bus(context)
    with bus.subscribe("c") as subscriber:
        publisher = bus.publish()
        publisher.start()
        for number in range(2000):
            publisher.put("c", number)
        publisher.fan.put(None)
        assert some(subscriber, 2000) == list(range(2000))
        publisher.join(30)
        assert publisher.exitcode == 0


def test_all_that_was_put_is_sent_when_the_switch_is_off(context: Settings, address: str, method: str) -> None:
    with Subscriber(address, "c") as subscriber:  # it has no switch of its own: it reads on
        publisher = Bus(context).publish()
        publisher.start()
        for number in range(2000):
            publisher.put("c", number)
        context.set("general.switch", "off")
        assert some(subscriber, 2000) == list(range(2000))
        publisher.join(30)
        assert publisher.exitcode == 0


@pytest.mark.parametrize("end", ["close", "pill", "kill"])
def test_what_is_put_when_the_publisher_has_ended_raises(context: Settings, end: str) -> None:
    bus = Bus(context)
    with bus.subscribe("c") as subscriber:
        publisher = bus.publish()
        publisher.start()
        publisher.put("c", 1)
        assert some(subscriber, 1) == [1]
        if end == "close":
            publisher.close()
        elif end == "pill":
            publisher.fan.put(None)
            publisher.join(30)
        else:
            publisher.kill()
            publisher.join(30)
        with pytest.raises(Stopped, match="has ended; make another one"):
            publisher.put("c", 2)
        publisher.close()
        publisher.fan.cancel_join_thread()


def test_an_item_that_is_none_is_passed_over(context: Settings) -> None:
    bus = Bus(context)
    with bus.subscribe("c") as subscriber:
        publisher = bus.publish()
        publisher.start()
        for nonsense in ("not json", "[1]", 7, '[5, "a channel has a name"]', '["", 1]', object):
            publisher.fan.put(nonsense)
        publisher.put("c", 1)
        assert some(subscriber, 1) == [1]
        publisher.close()
        assert publisher.exitcode == 0


def test_one_that_was_never_started_sends_what_was_put_when_it_is_closed(context: Settings) -> None:
    bus = Bus(context)
    with bus.subscribe("c") as subscriber:
        publisher = bus.publish()
        for number in range(3):
            publisher.put("c", number)
        publisher.close()
        assert some(subscriber, 3) == [0, 1, 2]
        publisher.close()
    unused = bus.publish()
    unused.close()
    assert unused.pid is None
    with pytest.raises(Stopped):
        unused.put("c", 1)


def test_many_publishers_share_one_address(context: Settings, method: str) -> None:
    bus = Bus(context)
    with bus.subscribe("c") as subscriber:
        publishers = [bus.publish() for _ in range(3)]
        for number, publisher in enumerate(publishers):
            publisher.start()
            for index in range(100):
                publisher.put("c", [number, index])
        found = some(subscriber, 300)
        for publisher in publishers:
            publisher.close()
    for number in range(3):
        assert [index for who, index in found if who == number] == list(range(100))


def test_a_message_that_json_cannot_say_raises_where_it_is_put(context: Settings) -> None:
    publisher = Bus(context).publish()
    for message in (object(), {1, 2}, float("nan")):
        with pytest.raises((TypeError, ValueError)):
            publisher.put("c", message)
    with pytest.raises(ValueError, match="channel"):
        publisher.put([], 1)
    publisher.fan.cancel_join_thread()


@pytest.mark.parametrize("channels", [None, [], ()])
def test_no_channel_at_all_is_refused(context: Settings, channels: Any) -> None:
    with pytest.raises(ValueError, match="name a channel"):
        Bus(context).subscribe(channels)


def test_get_returns_at_once_or_waits_or_waits_for_a_while(context: Settings) -> None:
    with Bus(context).subscribe("c") as subscriber:
        assert subscriber.get() is None
        assert subscriber.get(timeout=0.01) is None
        assert subscriber.get(timeout=0.01, default="nothing") == "nothing"


@pytest.mark.parametrize("end", ["switch", "close"])
def test_a_subscriber_that_waits_ends_with_the_switch_and_when_it_is_closed(context: Settings, end: str) -> None:
    with Bus(context).subscribe("c") as subscriber:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.extend(subscriber))
        thread.start()
        if end == "switch":
            context.set("general.switch", "off")
        else:
            subscriber.close()
        thread.join(30)
        assert not thread.is_alive()
        assert found == []


async def test_messages_come_by_async_for(context: Settings) -> None:
    bus = Bus(context)
    subscriber = await asyncio.to_thread(bus.subscribe, "c")
    publisher = bus.publish()
    publisher.put("c", 1)
    publisher.put("c", 2)
    publisher.fan.put(None)
    await asyncio.to_thread(publisher.run)
    found = []
    async for message in subscriber:
        found.append(message)
        if len(found) == 2:
            await asyncio.to_thread(subscriber.close)
    assert found == [1, 2]


def test_a_late_subscriber_may_ask_for_the_last_value(address: str) -> None:
    with Subscriber(address, "c"):  # holds the address
        publisher = Publisher(address)
        for number in range(5):
            publisher.put("c", number)
        publisher.fan.put(None)
        publisher.run()
        with Subscriber(address, "c", replay=2) as late:
            assert some(late, 2) == [3, 4]


def test_a_script_that_just_ends_has_sent_what_it_put(address: str) -> None:
    script = f"""
        from furcula.compat.shellbot import Publisher
        if __name__ == "__main__":
            publisher = Publisher({address!r})
            publisher.start()
            for number in range(500):
                publisher.put("c", number)
    """
    with Subscriber(address, "c") as subscriber:
        ran = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], timeout=60, capture_output=True, text=True
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        assert some(subscriber, 500) == list(range(500))


def test_a_publisher_ends_when_the_process_that_started_it_was_killed(address: str) -> None:
    script = f"""
        import os, signal
        from furcula.compat.shellbot import Publisher
        if __name__ == "__main__":
            publisher = Publisher({address!r})
            publisher.start()
            publisher.put("c", "hello")
            print(publisher.pid, flush=True)
            signal.pause()
    """
    with Subscriber(address, "c") as subscriber:
        parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        parent.stdout.readline()
        assert some(subscriber, 1) == ["hello"]
        parent.kill()
        parent.wait(30)
        assert parent.stdout.read() == ""  # which ends when the publisher has closed its end too
        parent.stdout.close()
