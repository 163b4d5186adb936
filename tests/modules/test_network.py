"""tcp.listen, tcp.send, udp.listen, udp.send, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import pytest
from tests.services import free_port

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.address import Address
from furcula.modules.tcp import TcpListen, TcpSend
from furcula.modules.udp import UdpListen, UdpSend
from furcula.options import Duration, Size

from .conftest import turns, until

# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("spec", "host", "port", "shown"),
    [
        ("example.org:80", "example.org", 80, "example.org:80"),
        ("514", "127.0.0.1", 514, "127.0.0.1:514"),
        (0, "127.0.0.1", 0, "127.0.0.1:0"),
        ("[::1]:514", "::1", 514, "[::1]:514"),
    ],
)
def test_what_an_address_is(spec: Any, host: str, port: int, shown: str) -> None:
    address = Address.of(spec)
    assert (address.host, address.port, str(address)) == (host, port, shown)


@pytest.mark.parametrize("spec", ["", "host", "host:http", "host:70000", "::1:514", ":514", "host:-1", None, True])
def test_what_is_no_address(spec: Any) -> None:
    with pytest.raises(ValueError, match=r"address|host|port"):
        Address.of(spec)


# ------------------------------------------------------------------ listening on TCP


async def listening(bench: Any, **arguments: Any) -> tuple[TcpListen, tuple[str, int]]:
    listen = TcpListen(address=0, **arguments)
    await listen.start(bench)
    return listen, listen.addresses[0]


async def test_each_value_of_a_connection_becomes_an_event(bench: Any) -> None:
    listen, address = await listening(bench)
    with socket.create_connection(address) as one, socket.create_connection(address) as other:
        one.sendall(b'{"a": 1}\n{"a"')
        other.sendall(b"[2]\nnonsense\n")
        await bench.until(2)
        one.sendall(b": 3}\n4")
        peer = "{}:{}".format(*one.getsockname())
    data = await bench.until(4)
    assert sorted(map(str, data)) == ["4", "[2]", "{'a': 1}", "{'a': 3}"]
    assert [event.headers for event in bench.admitted["outbox"] if event.data == 4] == [{"peer": peer}]
    (bad,) = bench.admitted["invalid"]
    assert bad.data == "nonsense"
    assert bad.headers["reason"] == "not JSON: invalid character (byte 4)"
    await listen.stop()


@pytest.mark.parametrize(
    ("arguments", "raw", "data"),
    [
        ({"codec": "text", "framing": {"delimiter": ";"}}, b"a;b;c", ["a", "b", "c"]),
        ({"codec": "msgpack", "framing": {"length-prefix": 2}}, b"\0\1\x07\0\2\xa1a", [7, "a"]),
        ({"codec": "binary", "framing": "none"}, b"\xff\nall of it", [b"\xff\nall of it"]),
        ({"codec": "text", "charset": "latin-1"}, b"gr\xfc\xdfe\r\n", ["grüße"]),
    ],
)
async def test_framings_codecs_and_charsets(bench: Any, arguments: Any, raw: bytes, data: list[Any]) -> None:
    listen, address = await listening(bench, **arguments)
    with socket.create_connection(address) as one:
        one.sendall(raw)
    assert await bench.until(len(data)) == data
    await listen.stop()


async def test_a_flow_without_room_makes_the_sender_wait_and_loses_nothing(bench: Any) -> None:
    listen, address = await listening(bench, codec="text")
    bench.room.clear()
    _, writer = await asyncio.open_connection(*address)
    writer.write(b"0\n")
    await bench.until(1)
    line = b"x" * 999 + b"\n"
    for _ in range(20_000):
        writer.write(line)
    draining = asyncio.ensure_future(writer.drain())
    await turns(200)
    assert len(bench.datas()) == 1
    assert not draining.done()
    bench.room.set()
    await bench.until(20_001)
    await draining
    writer.close()
    await writer.wait_closed()
    await listen.stop()


async def test_half_a_value_left_by_a_connection_that_broke_is_invalid(bench: Any) -> None:
    listen, address = await listening(bench, codec="text")
    broken = socket.create_connection(address)
    broken.sendall(b"whole\nhalf")
    await bench.until(1)
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    broken.close()  # with a reset
    await bench.until(1, "invalid")
    (bad,) = bench.admitted["invalid"]
    assert bad.data == "half"
    assert bad.headers["reason"].startswith("the connection broke inside it")
    assert bench.datas() == ["whole"]
    await listen.stop()


async def test_a_value_above_the_limit_is_invalid_once_and_the_connection_goes_on(bench: Any) -> None:
    listen, address = await listening(bench, codec="text", max_frame=Size(10))
    with socket.create_connection(address) as one:
        one.sendall(b"x" * 100_000 + b"\nshort\n")
        assert await bench.until(1) == ["short"]
    assert bench.admitted["invalid"][0].headers["reason"] == "longer than 10 bytes"
    assert len(bench.admitted["invalid"]) == 1
    assert len(bench.datas("invalid")[0]) <= 1000
    await listen.stop()


async def test_what_was_read_before_the_flow_ceased_is_admitted_when_there_is_room(bench: Any) -> None:
    listen, address = await listening(bench, codec="text")
    bench.room.clear()
    with socket.create_connection(address) as one:
        one.sendall(b"a\n")
        await bench.until(1)
        ceasing = asyncio.ensure_future(listen.cease())
        await turns()
        assert not ceasing.done()
        bench.room.set()
        await ceasing
        one.sendall(b"late\n")
        await turns(20)
    assert bench.datas() == ["a"]
    await listen.stop()


async def test_a_port_in_use_is_named(bench: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FurculaError, match=r"bench cannot listen on 127\.0\.0\.1:\d+: it is in use"):
            await TcpListen(address=taken.getsockname()[1]).start(bench)


def test_wrong_arguments_are_refused_when_the_module_is_made() -> None:
    with pytest.raises(ValueError, match="did you mean 'json'"):
        TcpListen(address=0, codec="jsn")
    with pytest.raises(ValueError, match="no framing"):
        TcpSend(address=1, framing="boxes")
    with pytest.raises(ValueError, match="is not an address"):
        UdpSend(address="nowhere")


# ------------------------------------------------------------------ sending over TCP


class Peer:
    """A server that keeps what it is sent."""

    def __init__(self) -> None:
        self.received = b""
        self.writers: list[asyncio.StreamWriter] = []
        self.reading = asyncio.Event()
        self.reading.set()

    async def __aenter__(self) -> Peer:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        while True:
            await self.reading.wait()
            chunk = await reader.read(65536)
            if not chunk:
                break
            self.received += chunk
        writer.close()

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()
        await self.server.wait_closed()
        await turns(20)


async def test_events_are_sent_framed_and_connections_are_kept(bench: Any) -> None:
    async with Peer() as peer:
        send = TcpSend(address=peer.port)
        events = [Event({"a": 1}), Event("b")]
        assert await send.process_batch(events) == events
        await send.process_batch([Event(3)])
        await until(lambda: peer.received == b'{"a":1}\n"b"\n3\n')
        assert len(peer.writers) == 1
        await send.stop()


async def test_what_cannot_be_encoded_fails_alone() -> None:
    async with Peer() as peer:
        send = TcpSend(address=peer.port, codec="text")
        with pytest.raises(BatchFailed) as caught:
            await send.process_batch([Event("a"), Event(5), Event("two\nlines"), Event("b")])
        assert {index: str(error)[:20] for index, error in caught.value.errors.items()} == {
            1: "the codec 'text' tak",
            2: "it has the delimiter",
        }
        await until(lambda: peer.received == b"a\nb\n")
        await send.stop()


async def test_a_batch_goes_over_a_new_connection_when_the_peer_has_closed_the_old_one() -> None:
    async with Peer() as peer:
        send = TcpSend(address=peer.port, codec="text")
        await send.process_batch([Event("a")])
        await until(lambda: peer.received == b"a\n")
        peer.writers[0].close()
        await peer.writers[0].wait_closed()
        await turns(20)
        await send.process_batch([Event("b")])
        await until(lambda: peer.received == b"a\nb\n")
        assert len(peer.writers) == 2
        await send.stop()


async def test_nobody_there_fails_the_whole_batch_and_says_who() -> None:
    port = free_port()
    send = TcpSend(address=port)
    with pytest.raises(BatchFailed) as caught:
        await send.process_batch([Event(1), Event(2)])
    assert set(caught.value.errors) == {0, 1}
    assert isinstance(caught.value.errors[0], ConnectionError)
    assert f"127.0.0.1:{port}" in str(caught.value.errors[0])
    await send.stop()


async def test_a_peer_that_does_not_read_makes_the_batch_fail_in_time() -> None:
    async with Peer() as peer:
        peer.reading.clear()
        send = TcpSend(address=peer.port, codec="binary", framing="none", timeout=Duration(0.2))
        with pytest.raises(BatchFailed) as caught:
            await send.process_batch([Event(b"x" * 30_000_000)])
        assert "no answer within 0.2 s" in str(caught.value.errors[0])
        await send.stop()
        peer.reading.set()


async def test_two_batches_at_once_are_not_mixed() -> None:
    async with Peer() as peer:
        send = TcpSend(address=peer.port, codec="binary", framing="none")
        big, small = b"x" * 5_000_000, b"y" * 100
        await asyncio.gather(send.process_batch([Event(big)]), send.process_batch([Event(small)]))
        await until(lambda: len(peer.received) == len(big) + len(small))
        assert peer.received in (big + small, small + big)
        await send.stop()


# ------------------------------------------------------------------ UDP


async def test_datagrams_go_from_sender_to_listener(bench: Any) -> None:
    listen = UdpListen(address="127.0.0.1:0")
    await listen.start(bench)
    send = UdpSend(address="{}:{}".format(*listen.addresses[0]))
    await send.start(bench)
    events = [Event({"n": number}) for number in range(100)]
    assert await send.process_batch(events) == events
    assert await bench.until(100) == [{"n": number} for number in range(100)]
    assert listen.dropped == 0
    await listen.cease()
    await listen.stop()
    send.stop()


async def test_a_datagram_that_is_too_large_or_unreadable_is_invalid(bench: Any) -> None:
    listen = UdpListen(address=0, max_frame=Size(10))
    await listen.start(bench)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x" * 11, listen.addresses[0])
        sender.sendto(b"{", listen.addresses[0])
        await bench.until(2, "invalid")
    reasons = [event.headers["reason"] for event in bench.admitted["invalid"]]
    assert reasons == ["longer than 10 bytes", "not JSON: input data was truncated"]
    await listen.stop()


async def test_an_event_too_large_for_a_datagram_fails_alone(bench: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        send = UdpSend(address=receiver.getsockname()[1], codec="binary")
        await send.start(bench)
        with pytest.raises(BatchFailed) as caught:
            await send.process_batch([Event(b"a"), Event(b"x" * 70_000), Event("text"), Event(b"b")])
        assert set(caught.value.errors) == {1, 2}
        assert "70000 bytes are too many for a datagram" in str(caught.value.errors[1])
        assert [receiver.recv(10), receiver.recv(10)] == [b"a", b"b"]
        send.stop()


async def test_a_host_that_does_not_exist_is_named_at_the_start(bench: Any) -> None:
    with pytest.raises(FurculaError, match=r"bench cannot send to nowhere\.invalid:9"):
        await UdpSend(address="nowhere.invalid:9").start(bench)
