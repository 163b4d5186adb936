"""Connections that are kept private. NATS has its test in test_nats.

Kafka's mock cluster has no TLS: of Kafka it is shown that we look at certificates, and not that events go and come.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from tests.certificates import Authority
from tests.services import Redis, Server, running

from furcula.modules.amqp.client import Declare
from furcula.modules.amqp.consume import Consume as AmqpConsume
from furcula.modules.amqp.publish import Publish as AmqpPublish
from furcula.modules.endpoint import Tls
from furcula.modules.kafka.consume import Consume as KafkaConsume
from furcula.modules.kafka.produce import Produce
from furcula.modules.mqtt.publish import Publish as MqttPublish
from furcula.modules.mqtt.subscribe import Subscribe as MqttSubscribe
from furcula.modules.postgres.listen import Listen
from furcula.modules.postgres.notify import Notify
from furcula.modules.redis.streams import Append, Consume
from furcula.options import Duration

from .conftest import PASSWORD, WHO, numbers, settle, started, until, until_ready

_number = itertools.count()


class Kind(msgspec.Struct):
    """A server, and what takes from it and gives to it.

    Attributes:
        schemes: As they stand in a URL, for a connection that is private, or need not be.
        source, sink: Made of the name of a queue, a topic or the like, and further arguments.
    """

    fixture: str
    schemes: tuple[str, str]
    path: str
    source: Callable[..., Any]
    sink: Callable[..., Any]


KINDS = {
    "redis": Kind(
        "redis_server",
        ("rediss", "redis"),
        "/0",
        lambda name, **more: Consume(stream=name, group="g", password=PASSWORD, **more),
        lambda name, **more: Append(stream=name, password=PASSWORD, **more),
    ),
    "amqp": Kind(
        "rabbit",
        ("amqps", "amqp"),
        "/",
        lambda name, **more: AmqpConsume(queue=name, declare=Declare(), **WHO, **more),
        lambda name, **more: AmqpPublish(routing_key=name, queue=name, declare=Declare(), **WHO, **more),
    ),
    "mqtt": Kind(
        "mosquitto",
        ("mqtts", "mqtt"),
        "",
        lambda name, **more: MqttSubscribe(topic=name, client_id=f"{name}-in", **WHO, **more),
        lambda name, **more: MqttPublish(topic=name, **WHO, **more),
    ),
    "postgres": Kind(
        "postgres",
        ("postgres", "postgres"),
        "/postgres",
        lambda name, **more: Listen(channel=name, **WHO, **more),
        lambda name, **more: Notify(channel=name, **WHO, **more),
    ),
}


class Private:
    """A server that talks TLS, and how it is reached."""

    def __init__(self, kind: Kind, server: Server):
        self.kind = kind
        self.name = f"private{next(_number)}"
        self.server = server

    def url(self, *, host: str = "127.0.0.1", says_so: bool = True) -> str:
        scheme = self.kind.schemes[0 if says_so else 1]
        return f"{scheme}://{host}:{self.server.private_port}{self.kind.path}"

    def source(self, url: str, **more: Any) -> Any:
        return self.kind.source(self.name, url=url, **more)

    def sink(self, url: str, **more: Any) -> Any:
        return self.kind.sink(self.name, url=url, **more)


@pytest.fixture(params=list(KINDS))
def private(request: pytest.FixtureRequest) -> Private:
    kind = KINDS[request.param]
    return Private(kind, request.getfixturevalue(kind.fixture))


@pytest.mark.parametrize("says_so", [True, False])
async def test_an_event_goes_and_comes_over_a_connection_that_our_authority_vouches_for(
    bench: Any, private: Private, authority: Authority, says_so: bool
) -> None:
    """The URL's scheme asks for TLS, and so does `tls` by itself."""
    where, tls = private.url(says_so=says_so), Tls(ca_file=str(authority.ca))
    async with (
        started(private.source(where, tls=tls), bench),
        started(private.sink(where, tls=tls), bench) as sink,
    ):
        await sink.process_batch(numbers(1))
        assert await bench.until(1) == [{"n": 0}]
        if private.kind.fixture == "postgres":  # it talks both at one port; the others do not
            assert await _is_private(private.server, bench.admitted["outbox"][0].headers["process"])
        settle(bench)


async def _is_private(server: Server, process: int) -> bool:
    connection = await asyncpg.connect(port=server.port, host="127.0.0.1", user="tester", password="pass/word",
                                       database="postgres", ssl="disable")  # fmt: skip
    try:
        return bool(await connection.fetchval("select ssl from pg_stat_ssl where pid = $1", process))
    finally:
        await connection.close()


@pytest.mark.parametrize("trusted", ["the system's", "another"])
async def test_a_certificate_that_nobody_vouches_for_is_told_and_tried_again_while_the_flow_stays_up(
    bench: Any, private: Private, authority: Authority, warnings: Any, tmp_path: Path, trusted: str
) -> None:
    tls = Tls(ca_file=str(Authority(tmp_path, "another").ca)) if trusted == "another" else Tls()
    where = private.url()
    source, sink = private.source(where, tls=tls), private.sink(where, tls=tls)
    async with started(source, bench, ready=False), started(sink, bench, ready=False):
        for module in (source, sink):
            await until(lambda module=module: module._line.errors >= 2)
            assert "certificate verify failed" in module.unready()
            assert module.unready().startswith(f"not connected to {where} for ")
        assert all("certificate verify failed" in warning for warning in warnings())
        assert len(warnings()) == 2, "each says it once"
        assert not bench.ended.is_set()
    async with started(private.sink(where, tls=Tls(ca_file=str(authority.ca))), bench) as sink:
        await until_ready(sink)  # the server is none the worse


async def test_a_certificate_for_another_name_is_refused_unless_nobody_is_to_look(
    bench: Any, private: Private, authority: Authority, warnings: Any
) -> None:
    where = private.url(host="localhost")
    async with started(private.sink(where, tls=Tls(ca_file=str(authority.ca))), bench, ready=False) as sink:
        await until(warnings)
        assert "certificate" in warnings()[0]
        assert "localhost" in warnings()[0]
        assert sink.unready()
    async with started(private.sink(where, tls=Tls(verify=False)), bench) as sink:
        await sink.process_batch(numbers(1))


async def test_a_server_that_wants_to_know_us_is_shown_our_certificate(bench: Any, authority: Authority) -> None:
    ca, cert, key = (str(file) for file in (authority.ca, authority.cert, authority.key))
    with running(Redis, started=False, authority=authority) as server:
        server.is_choosy = True
        await server.aside(server.start)
        where = {"url": f"rediss://127.0.0.1:{server.private_port}", "stream": "s", "password": PASSWORD}
        async with started(Append(**where, tls=Tls(ca_file=ca)), bench, ready=False) as sink:
            await until(lambda: sink._line.errors >= 2)
            assert sink.unready()
        async with started(Append(**where, tls=Tls(ca_file=ca, cert_file=cert, key_file=key)), bench) as sink:
            await sink.process_batch(numbers(1))


@pytest.mark.parametrize(
    "kind", [Produce, lambda topic, **more: KafkaConsume(topics=[topic], group="g", **more)], ids=["produce", "consume"]
)
async def test_kafka_looks_at_the_certificate_too(
    bench: Any, authority: Authority, tmp_path: Path, warnings: Any, kind: Any
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.cert, authority.key)
    greeted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: greeted.append(writer), "127.0.0.1", 0, ssl=context)
    where, soon = f"kafkas://127.0.0.1:{server.sockets[0].getsockname()[1]}", Duration(3)
    stranger = Tls(ca_file=str(Authority(tmp_path, "another").ca))
    try:
        async with started(kind(topic="x", url=where, tls=stranger, timeout=soon), bench, ready=False) as module:
            await until(lambda: "certificate verify failed" in module.unready())
            assert not greeted
            assert "certificate verify failed" in warnings()[0]
            assert not bench.ended.is_set()
        ours = Tls(ca_file=str(authority.ca))
        async with started(kind(topic="x", url=where, tls=ours, timeout=soon), bench, ready=False):
            await until(lambda: greeted)
    finally:
        for writer in greeted:
            writer.transport.abort()
        server.close()
        await server.wait_closed()
