"""The transport over NATS passes the suite, survives its server, and keeps its secrets."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.certificates import Authority
from tests.transports.nats_server import NatsServer

from furcula.bus import Bus
from furcula.cluster import client as cluster
from furcula.errors import ConfigurationError, FurculaError
from furcula.options import Duration, Secret, Size
from furcula.testing.transports import TransportSuite
from furcula.transport import Promises, Transport
from furcula.transports import transport_for
from furcula.transports.nats import NatsTransport, _channel, flushed, token

prefixes = (f"t{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path_factory.mktemp("nats"))
    yield made
    made.kill()


class TestNats(TransportSuite):
    promises = Promises(order=True, durable=True, loss=("drop",), max_body=500_000)
    fills_at = 4

    @pytest.fixture(autouse=True)
    def _server(self, server: NatsServer) -> None:
        self.url, self.prefix = server.url, next(prefixes)

    def make(self) -> Transport:
        return NatsTransport(self.url, size=4, prefix=self.prefix, max_body=Size(500_000))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_a_channel_is_one_token_and_can_be_read_back(channel: str) -> None:
    made = token(channel)
    assert made
    assert not set(made) & set(". *>\t\r\n\x00")
    assert made.isascii()
    assert _channel(made) == channel


@given(st.text(max_size=20))
def test_a_token_of_somebody_else_is_no_error(found: str) -> None:
    assert _channel(found) is None or isinstance(_channel(found), str)


async def test_a_server_that_is_killed_and_comes_back_has_lost_nothing_that_was_put(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    try:
        transport = NatsTransport(server.url)
        await transport.open()
        for number in range(5):
            await transport.put("work", b"%d" % number)
        waiting = asyncio.ensure_future(transport.take("other"))
        server.kill()
        putting = asyncio.ensure_future(transport.put("work", b"5"))
        assert not (await asyncio.wait([putting], timeout=0.1))[0]
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(putting, 20)
        for number in range(6):
            message = await asyncio.wait_for(transport.take("work"), 20)
            assert message.body == b"%d" % number
            await message.ack()
        await transport.put("other", b"x")
        assert (await asyncio.wait_for(waiting, 20)).body == b"x"
        await transport.close()
    finally:
        server.kill()


async def test_a_publish_that_is_cancelled_or_late_harms_nobody(server: NatsServer) -> None:
    transport = NatsTransport(server.url, prefix=next(prefixes))
    await transport.open()
    subscription = await transport.subscribe("news")
    client = transport._client
    assert client is not None
    for turns in range(1, 8):
        publishing = asyncio.ensure_future(transport.publish("other", b"x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing])
    server.freeze()
    try:
        with pytest.raises(nats.errors.TimeoutError):
            await flushed(client, 0.05)
    finally:
        server.thaw()
    for number in range(20):
        await asyncio.wait_for(transport.publish("news", b"%d" % number), 20)
    reader = subscription.__aiter__()
    found = [(await asyncio.wait_for(anext(reader), 20))[1] for _ in range(20)]
    assert found == [b"%d" % number for number in range(20)]
    assert client.stats["reconnects"] == 0
    await transport.close()


async def test_a_connection_that_nobody_reads_is_an_error_and_then_made_anew(server: NatsServer) -> None:
    transport = NatsTransport(server.url, prefix=next(prefixes))
    await transport.open()
    subscription = await transport.subscribe("news")
    client = transport._client
    assert client is not None
    assert client._reading_task is not None
    client._reading_task.cancel()  # as when an error in the library has ended it
    await asyncio.wait([client._reading_task])
    with pytest.raises(FurculaError, match="tale"):
        await transport.publish("news", b"not known what became of it")
    await asyncio.wait_for(transport.publish("news", b"x"), 20)
    async with asyncio.timeout(20):
        async for _, body in subscription:
            if body == b"x":
                break
    await transport.close()


async def test_who_lives_keeps_what_it_has_in_hand_and_who_is_dead_does_not(server: NatsServer) -> None:
    options = {"prefix": next(prefixes), "ack_wait": Duration(0.6)}
    holder, other = NatsTransport(server.url, **options), NatsTransport(server.url, **options)
    await holder.open()
    await other.open()
    await holder.put("work", b"x")
    message = await asyncio.wait_for(holder.take("work"), 20)
    taking = asyncio.ensure_future(other.take("work"))
    assert not (await asyncio.wait([taking], timeout=1.5))[0]  # well beyond ack_wait
    assert holder._renewing is not None
    holder._renewing.cancel()  # as if it had died
    again = await asyncio.wait_for(taking, 20)
    assert (again.body, again.attempts) == (b"x", 2)
    await again.ack()
    await message.ack()
    await holder.close()
    await other.close()


async def test_a_queue_whose_takers_the_server_has_forgotten_is_taken_from_again(server: NatsServer) -> None:
    transport = NatsTransport(server.url, prefix=next(prefixes))
    await transport.open()
    await transport.put("work", b"1")
    await (await asyncio.wait_for(transport.take("work"), 20)).ack()
    assert transport._client is not None
    jetstream = transport._client.jetstream()
    (consumer,) = await jetstream.consumers_info(transport._prefix)
    assert consumer.config.inactive_threshold == 24 * 3600
    await jetstream.delete_consumer(transport._prefix, consumer.name)  # as the server does when it is time
    await transport.put("work", b"2")
    assert (await asyncio.wait_for(transport.take("work"), 20)).body == b"2"
    await transport.close()


async def test_a_bus_over_nats(server: NatsServer) -> None:
    url = f"{server.url}?prefix={next(prefixes)}"
    async with Bus(url) as one, Bus(url) as other:
        subscription = await other.subscribe(["会議 🎉", "a.b *"])
        for number in range(5000):
            await one.publish("会議 🎉", number)
        await one.publish("a.b *", "last")
        found = [await subscription.get(20) for _ in range(5001)]
        assert found == [*range(5000), "last"]
        with pytest.raises(FurculaError, match="replay"):
            await other.subscribe("x", replay=1)


async def test_without_jetstream_publishing_works_and_putting_says_what_is_missing(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, jetstream=False)
    try:
        transport = NatsTransport(server.url)
        await transport.open()
        subscription = await transport.subscribe("news")
        await transport.publish("news", b"x")
        assert await asyncio.wait_for(anext(subscription.__aiter__()), 20) == ("news", b"x")
        with pytest.raises(FurculaError, match="-js"):
            await transport.put("work", b"x")
        with pytest.raises(FurculaError, match="-js"):
            await transport.take("work")
        await transport.close()
    finally:
        server.kill()


async def test_credentials_are_shown_to_the_server_and_to_nobody_else(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, "authorization { user: tester, password: hush }")
    try:
        good = transport_for(f"nats://tester:hush@127.0.0.1:{server.port}")
        await good.open()
        await good.publish("news", b"x")
        await good.close()
        bad = NatsTransport(server.url, user="tester", password=Secret("wrong-secret"), connect_timeout=Duration(20))
        with pytest.raises(FurculaError) as caught:
            await bad.open()
        assert "127.0.0.1" in str(caught.value)
        assert "uthorization" in str(caught.value)
        assert "wrong-secret" not in repr(caught.value)
        await bad.close()
    finally:
        server.kill()


async def test_a_refusal_is_the_reason_also_where_the_connection_is_reset_behind_it() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload": 1048576, "auth_required": true}\r\n')
        await reader.readline()
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = NatsTransport(url, connect_timeout=Duration(20))
        with pytest.raises(FurculaError, match="Authorization"):
            await transport.open()
        await transport.close()
        client = cluster.Client(cluster.Access(url), "test")
        with pytest.raises(FurculaError, match="Authorization"):
            await client.open()
        await client.close()


async def test_who_gives_up_connecting_leaves_nobody_behind_who_goes_on() -> None:
    transport = NatsTransport("nats://127.0.0.1:1")
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(transport.open(), 0.2)
    assert asyncio.all_tasks() == before
    await transport.close()


async def test_a_server_that_is_not_there_is_an_error_that_names_it() -> None:
    transport = transport_for("nats://127.0.0.1:1?connect_timeout=300ms")
    with pytest.raises(FurculaError, match=r"nats://127\.0\.0\.1:1"):
        await transport.open()
    await transport.close()


async def test_tls_is_used_and_the_certificate_looked_at(tmp_path: Path) -> None:
    ours = Authority(tmp_path)
    server = NatsServer(tmp_path / "server", f'tls {{ cert_file: "{ours.cert}", key_file: "{ours.key}" }}')
    try:
        transport = transport_for(f"tls://127.0.0.1:{server.port}?tls_ca={ours.ca}")
        await transport.open()
        await transport.put("work", b"x")
        assert (await asyncio.wait_for(transport.take("work"), 20)).body == b"x"
        await transport.close()
        stranger = transport_for(f"tls://127.0.0.1:{server.port}?connect_timeout=2s")
        with pytest.raises(FurculaError, match="certificate"):
            await stranger.open()
        await stranger.close()
    finally:
        server.kill()


def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.pem"):
        NatsTransport("tls://127.0.0.1:4222", tls_ca=str(tmp_path / "missing.pem"))
