"""CURVE: who has no key, or one that is not allowed, is not heard."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
import zmq
import zmq.auth
from tests.services import free_port

from furcula.bus import Bus
from furcula.errors import ConfigurationError, FurculaError
from furcula.options import Duration, Secret
from furcula.transports import transport_for
from furcula.transports.zmq import Keys, ZmqTransport


def pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


SERVER, CLIENT, STRANGER = pair(), pair(), pair()


def keys(own: tuple[str, str], *, holds: bool = False, allowed: tuple[str, ...] | None = None) -> Keys:
    return Keys(SERVER[0], own[0], Secret(own[1]), Secret(SERVER[1]) if holds else None, allowed)


@pytest.fixture(params=["tcp", "ipc"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"tcp://127.0.0.1:{free_port()}" if request.param == "tcp" else f"ipc://{tmp_path}/hub"


async def test_those_whose_keys_are_allowed_talk_and_others_are_told_why_not(url: str) -> None:
    hub = ZmqTransport(url, keys=keys(CLIENT, holds=True, allowed=(CLIENT[0],)))
    await hub.open()
    assert hub.holds_the_hub
    subscription = await hub.subscribe("news")
    friend = ZmqTransport(url, keys=keys(CLIENT))
    await friend.open()
    await friend.publish("news", b"x")
    assert await asyncio.wait_for(anext(subscription.__aiter__()), 20) == ("news", b"x")
    stranger = ZmqTransport(url, keys=keys(STRANGER), connect_timeout=Duration(1))
    with pytest.raises(FurculaError, match="CURVE"):
        await stranger.open()
    bare = ZmqTransport(url, connect_timeout=Duration(0.5))
    with pytest.raises(FurculaError, match=r"no hub answers|CURVE"):
        await bare.open()
    assert hub.refused["not allowed"] >= 1
    for transport in (friend, stranger, bare, hub):
        await transport.close()


async def test_who_has_no_secret_key_of_the_hub_waits_for_one_who_has(url: str) -> None:
    client = ZmqTransport(url, keys=keys(CLIENT))
    opening = asyncio.ensure_future(client.open())
    assert not (await asyncio.wait([opening], timeout=0.1))[0]
    hub = ZmqTransport(url, keys=keys(STRANGER, holds=True))  # without a list, whoever knows the hub's key
    await hub.open()
    await asyncio.wait_for(opening, 20)
    await client.close()
    await hub.close()


async def test_keys_may_lie_in_a_folder_that_the_url_names(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    (folder / "clients").mkdir(parents=True)
    for name in ("server", "client"):
        zmq.auth.create_certificates(folder, name)
    (folder / "clients" / "one.key").write_text((folder / "client.key").read_text())
    url = f"tcp://127.0.0.1:{free_port()}?curve={folder}"
    async with Bus(url) as one, Bus(url) as other:
        subscription = await one.subscribe("news")
        await other.publish("news", 1)
        assert await subscription.get(20) == 1
    (folder / "server.key").unlink()
    with pytest.raises(ConfigurationError, match=r"server\.key"):
        transport_for(url)


@pytest.mark.parametrize("name", ["server_key", "public_key", "secret_key", "server_secret"])
def test_a_key_that_is_none_is_named_and_never_shown(name: str) -> None:
    given = {"server_key": SERVER[0], "public_key": CLIENT[0], "secret_key": CLIENT[1], "server_secret": SERVER[1]}
    with pytest.raises(ConfigurationError, match=name) as caught:
        transport_for("tcp://127.0.0.1:5555", **(given | {name: "hush-hush"}))
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="belong"):
        transport_for("tcp://127.0.0.1:5555", **(given | {name: STRANGER[0]}))


async def test_a_public_address_without_keys_is_warned_of_and_loopback_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("*", True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "furcula.transports.zmq"):
            transport = ZmqTransport(f"tcp://{host}:{free_port()}")
            await transport.open()
            assert transport.holds_the_hub
            await transport.publish("news", b"x")
            await transport.close()
        assert bool([one for one in caplog.records if "CURVE" in one.message]) is warned
