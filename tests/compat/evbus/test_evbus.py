"""evbus' interface: its documented examples as they stand, and what its users could not rely on."""

from __future__ import annotations

import asyncio
import textwrap
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from furcula.compat.evbus import Hub, attach
from furcula.errors import InputError, Stopped

#: The examples of its documentation, unchanged.
EXAMPLES = """
async def my_func(hub):
    await hub.evbus.broker.put(
        routing_key="channel", body={"message": "event content"}, profile="default"
    )

def my_other_func(hub):
    hub.evbus.broker.put_nowait(
        routing_key="channel", body={"message": "event content"}, profile="default"
    )
"""


def plugin(source: str, name: str = "mine") -> ModuleType:
    module = ModuleType(name)
    exec(textwrap.dedent(source), module.__dict__)
    return module


KEEPS = """
    ACCT = ["mine"]
    got = []

    async def publish(hub, ctx, routing_key, body):
        got.append((hub, ctx.acct, ctx.profile, ctx.provider, routing_key, body))
"""


async def test_the_documented_examples_run_unchanged() -> None:
    examples: dict[str, Any] = {}
    exec(EXAMPLES, examples)
    keeps = plugin(KEEPS)
    hub = Hub([keeps])
    examples["my_other_func"](hub)
    await hub.evbus.init.start({"mine": {"default": {"data": 1}, "other": {}}})
    await examples["my_func"](hub)
    await asyncio.to_thread(examples["my_other_func"], hub)
    await hub.evbus.init.join()
    await hub.evbus.init.stop()
    body = '{"message":"event content"}'
    assert keeps.got == [(hub, {"data": 1}, "default", "mine", "channel", body)] * 3


async def test_start_may_be_a_task_and_join_waits_for_it() -> None:
    keeps = plugin(KEEPS)
    hub = Hub([keeps])
    starting = asyncio.ensure_future(hub.evbus.init.start({"mine": {"default": {}}}))
    hub.evbus.broker.put_nowait("k", 1)
    await hub.evbus.init.join()
    await starting
    assert len(keeps.got) == 1
    await hub.evbus.init.stop()


async def test_a_hub_that_is_there_already_gets_the_bus_and_a_yaml_file_has_the_profiles(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text("mine:\n  default:\n    data: 1\n")
    keeps = plugin(KEEPS)
    hub = SimpleNamespace(mine="own")
    assert attach(hub, [keeps]) is hub
    async with asyncio.timeout(30):
        await hub.evbus.init.start(path)  # type: ignore[attr-defined]
        await hub.evbus.broker.put("k", 1)  # type: ignore[attr-defined]
        await hub.evbus.init.stop()  # type: ignore[attr-defined]
    assert keeps.got == [(hub, {"data": 1}, "default", "mine", "k", "1")]


async def test_a_plugin_may_do_without_the_hub_and_may_be_plain() -> None:
    plain = plugin("got = []\ndef publish(ctx, routing_key, body): got.append(body)", "plain")
    hub = Hub()
    hub.ingress.add(plain)
    await hub.evbus.init.start({"plain": {"default": {}}})
    await hub.evbus.broker.put(routing_key="k", body=1)
    await hub.evbus.init.stop()
    assert plain.got == ["1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json", '{"a":1}'),
        ("msgpack", b"\x81\xa1a\x01"),
        ("str", "{'a': 1}"),
        (SimpleNamespace(apply=repr), "{'a': 1}"),
    ],
)
async def test_the_serialize_plugin_is_applied_when_the_event_is_put(name: Any, expected: Any) -> None:
    keeps = plugin(KEEPS)
    hub = Hub([keeps])
    hub.serialize.PLUGIN = name
    body = {"a": 1}
    hub.evbus.broker.put_nowait("k", body)
    body["a"] = 2
    hub.serialize.PLUGIN = "json"
    await hub.evbus.init.start({"mine": {"default": {}}})
    await hub.evbus.init.stop()
    assert [one[-1] for one in keeps.got] == [expected]


def test_what_cannot_be_serialised_reaches_the_caller() -> None:
    with pytest.raises(InputError):
        Hub().evbus.broker.put_nowait("k", object())


async def test_the_internal_ingress_is_read_by_routing_key() -> None:
    hub = Hub()
    await hub.evbus.init.start({"internal": {"default": {}}})
    reading = asyncio.ensure_future(hub.ingress.internal.get("channel"))
    await hub.evbus.broker.put("channel", [1, 2])
    async with asyncio.timeout(30):
        assert await reading == "[1,2]"
    await hub.evbus.init.stop()


async def test_a_put_from_a_thread_wakes_the_loop() -> None:
    hub = Hub()
    await hub.evbus.init.start({"internal": {"default": {}}})
    reading = asyncio.ensure_future(hub.ingress.internal.get("k"))
    thread = threading.Thread(target=hub.evbus.broker.put_nowait, args=("k", 1))
    thread.start()
    async with asyncio.timeout(30):
        assert await reading == "1"
    thread.join()
    await hub.evbus.init.stop()


async def test_stop_delivers_everything_may_be_repeated_and_nothing_is_taken_after_it() -> None:
    keeps = plugin(KEEPS)
    hub = Hub([keeps])
    await hub.evbus.init.start({"mine": {"default": {}}})
    for number in range(100):
        hub.evbus.broker.put_nowait("k", number)
    await asyncio.gather(hub.evbus.init.stop(), hub.evbus.init.stop())
    await hub.evbus.init.stop()
    assert len(keeps.got) == 100
    with pytest.raises(Stopped):
        await hub.evbus.broker.put("k", 1)
    with pytest.raises(Stopped):
        hub.evbus.broker.put_nowait("k", 1)


async def test_one_bad_plugin_is_disabled_and_the_others_work() -> None:
    keeps = plugin(KEEPS)
    hub = Hub([keeps, plugin("ACCT = ['bad']\ndef publish(): ...", "bad")])
    await hub.evbus.init.start({"mine": {"default": {}}, "bad": {"default": {}}})
    await hub.evbus.broker.put("k", 1)
    statistics = await hub.evbus.init.stop()
    assert len(keeps.got) == 1
    assert "cannot be called as publish" in statistics.disabled["bad/default"]
