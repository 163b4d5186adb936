"""postgres.listen and postgres.notify, against a real server."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import asyncpg
import pytest
from tests.services import Postgres, running

from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.postgres.listen import Listen
from furcula.modules.postgres.notify import Notify
from furcula.modules.sending import Refused, Unavailable
from furcula.options import Duration

from .conftest import WHO, fails, numbers, settle, started, survives, until, until_ready

_number = itertools.count()


def on_a_channel(server: Postgres) -> dict[str, Any]:
    """A channel of its own for a test. Its name needs quotes."""
    return {"url": server.url, "channel": f"Orders {next(_number)}", **WHO}


async def test_what_is_notified_arrives_in_order_also_where_it_is_the_same(bench: Any, postgres: Postgres) -> None:
    where = on_a_channel(postgres)
    other = {**where, "channel": "other"}
    async with (
        started(Listen(**where), bench),
        started(Listen(**other), bench),
        started(Notify(channel_from="headers.to", **where), bench) as sink,
    ):
        same = [Event("same"), Event("same"), Event("same")]
        await sink.process_batch([*numbers(200), *same, Event("elsewhere", {"to": "other"})])
        await bench.until(204)
        first = [event.data for event in bench.admitted["outbox"] if event.headers["channel"] == where["channel"]]
        assert first == [*({"n": number} for number in range(200)), "same", "same", "same"]
        assert bench.datas().count("elsewhere") == 1
        assert isinstance(bench.admitted["outbox"][0].headers["process"], int)
        settle(bench, count=204)


async def test_what_postgresql_would_not_take_fails_alone(bench: Any, postgres: Postgres) -> None:
    where = on_a_channel(postgres)
    sink = Notify(channel_from="headers.to", codec="text", **where)
    async with started(Listen(**where, codec="text"), bench), started(sink, bench):
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch(
                [Event("x" * 7999), Event("x" * 8000), Event("a\0b"), Event("a", {"to": "c" * 64}), Event("b")]
            )
        errors = caught.value.errors
        assert sorted(errors) == [1, 2, 3]
        assert all(isinstance(error, Refused) for error in errors.values())
        assert "a notification may have 7999 bytes, and the event has 8000" in str(errors[1])
        assert "NUL" in str(errors[2])
        assert "64 bytes, and must have 1 to 63" in str(errors[3])
        assert await bench.until(2) == ["x" * 7999, "b"]
        settle(bench, count=2)


async def test_a_payload_that_is_no_data_leaves_by_invalid(bench: Any, postgres: Postgres) -> None:
    where = on_a_channel(postgres)
    async with started(Listen(**where), bench), started(Notify(codec="text", **where), bench) as sink:
        await sink.process_batch([Event("{nonsense"), Event("")])
        await bench.until(2, "invalid")
        assert [event.data for event in bench.admitted["invalid"]] == ["{nonsense", ""]
        settle(bench, count=2)


async def test_what_comes_while_there_is_no_room_is_dropped_and_counted(
    bench: Any, postgres: Postgres, warnings: Any
) -> None:
    where = on_a_channel(postgres)
    source = Listen(prefetch=10, **where)
    async with started(source, bench), started(Notify(**where), bench) as sink:
        await sink.process_batch(numbers(10))
        await bench.until(10)
        await sink.process_batch(numbers(100))
        await until(lambda: source.dropped == 90)
        assert len(warnings()) == 1
        settle(bench, count=10)
        await bench.until(20)
        settle(bench, count=10)


async def test_a_connection_that_the_server_ends_is_made_again(bench: Any, postgres: Postgres, warnings: Any) -> None:
    where = on_a_channel(postgres)
    async with started(Listen(**where), bench) as source, started(Notify(**where), bench) as sink:
        admin = await asyncpg.connect(postgres.url, user="tester", password="pass/word")
        await admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'furcula' and pid <> pg_backend_pid()"
        )
        await admin.close()
        await until(lambda: source._line.connected == 2 and sink._line.connected == 2)
        await until_ready(source)
        await sink.process_batch(numbers(1))
        await bench.until(1)
        settle(bench)
        assert len(warnings()) == 2


async def test_a_wrong_password_and_a_missing_database_are_told(bench: Any, postgres: Postgres, warnings: Any) -> None:
    wrong = postgres.url.replace("//", "//tester:wr0ng@")
    async with started(Notify(url=wrong, channel="x"), bench, ready=False) as sink:
        await until(warnings)
        assert 'password authentication failed for user "tester"' in warnings()[0]
        assert "wr0ng" not in warnings()[0] + sink.unready()
    async with started(Listen(url=postgres.url + "_not", channel="x", **WHO), bench, ready=False):
        await until(lambda: 'database "postgres_not" does not exist' in " ".join(warnings()))


async def test_a_server_that_says_nothing_fails_the_batch_in_time(bench: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgres://127.0.0.1:{silent.getsockname()[1]}/x"
        async with started(Notify(url=url, channel="x", timeout=Duration(0.3), **WHO), bench, ready=False) as sink:
            with fails(Unavailable, match="not connected to"):
                await sink.process_batch(numbers(1))


async def test_a_server_that_comes_late_and_is_killed_in_the_middle_of_10_000_events(bench: Any) -> None:
    """What is notified while the listener is not back yet is lost, as PostgreSQL says; both ends go on."""
    with running(Postgres, started=False) as server:
        where = on_a_channel(server)
        async with (
            started(Listen(**where), bench, ready=False) as source,
            started(Notify(**where), bench, ready=False) as sink,
        ):
            await until(lambda: "refused" in (source.unready() or "").lower())
            assert sink.unready().startswith(f"not connected to {server.url} for ")
            await server.aside(server.start)
            await until_ready(source)
            await sink.process_batch(numbers(1))
            await bench.until(1)
            settle(bench)
        arrived = await survives(
            ("postgres.listen", {**where, "prefetch": 20_000}), ("postgres.notify", where), server, all_arrive=False
        )
        assert len(arrived) > 2_000


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="must have 1 to 63"):
        Listen(url="postgres://host/db", channel="")
    with pytest.raises(ValueError, match=r"write postgres://host:5432 or postgresql://host:5432"):
        Notify(url="mysql://host/db", channel="x")
