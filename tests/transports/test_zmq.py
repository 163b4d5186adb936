"""The transport over 0mq passes the suite on tcp, ipc and inproc."""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from pathlib import Path

import pytest
import zmq
from tests.services import free_port

from furcula.options import Size
from furcula.testing.transports import TransportSuite
from furcula.transport import Promises, Transport
from furcula.transports.zmq import ZmqTransport
from furcula.transports.zmq.frames import Hello, Publish, encode

PROMISES = Promises(order=True, replay=True, reports=True, loss=("block", "drop"))


class ZmqSuite(TransportSuite):
    promises = PROMISES
    fills_at = 4
    address: str

    def make(self) -> Transport:
        return ZmqTransport(self.address, size=4)

    def refusals(self, transport: Transport) -> int:
        return sum(transport.refused.values())

    async def injure(self, transport: Transport, raw: bytes) -> None:
        def send() -> None:
            with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
                stranger.linger = 2000
                stranger.connect(self.address)
                stranger.send(raw)

        await asyncio.to_thread(send)


async def test_a_hub_that_is_pelted_with_garbage_serves_its_clients() -> None:
    port, dice = free_port(), random.Random(7)
    transport = ZmqTransport(f"tcp://127.0.0.1:{port}", max_body=Size(10_000))
    await transport.open()
    subscription = await transport.subscribe("news")

    def pelt() -> None:
        for _ in range(20):  # what is no 0mq at all
            with socket.create_connection(("127.0.0.1", port)) as line:
                line.sendall(dice.randbytes(dice.randrange(200)))
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 5000
            stranger.connect(f"tcp://127.0.0.1:{port}")
            good = [encode(Hello(bytes(12), False)), encode(Publish(1, "other", b"x"))]
            for _ in range(1000):
                raw = bytearray(dice.choice([dice.randbytes(30), *good]))
                raw[dice.randrange(len(raw))] = dice.randrange(256)
                stranger.send_multipart([bytes(raw)] * dice.choice([1, 1, 1, 2, 3]))
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.connect(f"tcp://127.0.0.1:{port}")
            stranger.send(bytes(1_000_000))  # beyond every limit: libzmq hangs up

    await asyncio.to_thread(pelt)
    async with asyncio.timeout(20):
        while {"parts", "version", "malformed"} - transport.refused.keys():
            await asyncio.sleep(0.005)
        await transport.publish("news", b"x")
        assert await anext(subscription.__aiter__()) == ("news", b"x")
    await transport.close()


class TestTcp(ZmqSuite):
    @pytest.fixture(autouse=True)
    def _address(self) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"


class TestIpc(ZmqSuite):
    @pytest.fixture(autouse=True)
    def _address(self, tmp_path: Path) -> None:
        self.address = f"ipc://{tmp_path}/hub"


class TestInproc(ZmqSuite):
    names = itertools.count()
    injure = TransportSuite.injure

    @pytest.fixture(autouse=True)
    def _address(self) -> None:
        self.address = f"inproc://hub-{next(self.names)}"
