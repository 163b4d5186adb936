"""What operators tell a cluster, and what becomes of it where something is in the way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cluster.harness import wait_for
from tests.transports.nats_server import NatsServer

from furcula import Event, Flow, Options
from furcula.cluster import asking
from furcula.cluster.claims import Claims, Row
from furcula.cluster.client import Access
from furcula.cluster.embedded import Embedded
from furcula.cluster.layout import Layout
from furcula.cluster.members import Beat
from furcula.cluster.operating import Operator, operating
from furcula.cluster.worker import StageDirector
from furcula.codecs import encode_events
from furcula.engine.crossed import Parcel
from furcula.errors import ConfigurationError, FurculaError
from furcula.store import Letter

LEASE_S = 2
#: Of each stream. A server sets so much of its disk aside, and serves all tests of a session.
ROOM = "10MB"


async def until(claim: Any, what: str, within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not claim():
            await asyncio.sleep(0.02)
    assert claim(), what


def chain(name: str, stage: str | None = "work", partitions: int = 4, data: Iterable[Any] = (), **cluster: Any) -> Flow:
    flow = Flow(name, cluster={"lease": LEASE_S, "partitions": partitions, "max_bytes": ROOM, **cluster})

    def numbers() -> Iterable[Any]:
        yield from data

    def price(event: Event) -> None:
        pass

    key = Options(key="data.k", stage=stage) if stage else Options(key="data.k")
    flow.source(numbers) >> flow.use(price, "price", options=key)
    return flow


async def put(operator: Operator, partition: int, count: int) -> None:
    """Events that wait for `price`, without a worker that could take them."""
    layout = operator.layout
    subject = layout.to(layout.entries["price"], partition)
    body = msgspec.msgpack.encode(Parcel(layout.cuts[0].name, encode_events([Event({"k": 1})])))
    for _ in range(count):
        await operator._client.js.publish(subject, body)


# ------------------------------------------------------------------ set-up


@pytest.mark.parametrize(
    "change", [{"stage": "other"}, {"stage": None}, {"partitions": 2}], ids=["renamed", "removed", "fewer-parts"]
)
async def test_events_that_wait_the_old_way_are_not_stranded(
    nats: NatsServer, flow_name: str, change: dict[str, Any]
) -> None:
    access = Access(nats.url)
    async with operating(chain(flow_name), access) as operator:
        await operator.apply()
        await put(operator, 3, 5)
        old, js = operator.layout.stream("work"), operator._client.js
        async with operating(chain(flow_name, **change), access) as new:
            assert await new.changes()
            with pytest.raises(FurculaError, match="furcula cluster drain"):
                await new.apply()
            assert await new.drain(0.1) == 5
            found = {stage.name: stage.lag for stage in (await new.status()).stages}
            assert found["work"] == {"price": 5}
            await js.purge_stream(old)
            await new.apply()
            assert await new.changes() == []
        names = [info.config.name for info in await js.streams_info()]
        assert (old in names) == ("stage" not in change)


@pytest.mark.parametrize(
    "change", [{"stage": "other"}, {"stage": None}, {"partitions": 2}], ids=["renamed", "removed", "fewer-parts"]
)
async def test_nothing_is_taken_from_under_workers_that_are_at_work(
    nats: NatsServer, flow_name: str, change: dict[str, Any]
) -> None:
    access = Access(nats.url)
    old = chain(flow_name)
    async with operating(chain(flow_name, **change), access) as operator:
        async with StageDirector(old, "work", access) as work:
            await until(lambda: work.cluster.members._listening_since < time.monotonic(), "it says that it lives")
            before = await operator.changes()
            assert not any("must be handled first" in line for line in before)  # for nothing waits
            with pytest.raises(FurculaError, match="at work as it was") as caught:
                await operator.apply()
            assert f"{work.cluster.id} (" in str(caught.value)
            assert str(caught.value).endswith("Stop them, then `furcula cluster apply`")
            assert await operator.changes() == before
        await operator.apply()
        assert await operator.changes() == []


async def test_whoever_sends_to_a_stream_that_is_gone_says_so_once(
    nats: NatsServer, flow_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    access, flow = Access(nats.url), chain(flow_name, data=[{"k": n} for n in range(200)])
    async with operating(flow, access) as operator:
        js, stream = operator._client.js, operator.layout.stream("work")
        await operator.apply()
        async with StageDirector(flow, "main", access) as main:
            await until(lambda: main.cluster.settled() and main.statistics().admitted == 200, "all are stored")
            await js.delete_stream(stream)
            sending = [asyncio.ensure_future(main.put("numbers", {"k": n})) for n in range(20)]
            await until(lambda: any("is gone" in record.getMessage() for record in caplog.records), "it is told")
            await operator.apply()  # the stream is there again
            await asyncio.gather(*sending)
            await until(main.cluster.settled, "what waited is stored")
        told = [record.getMessage() for record in caplog.records if "is gone" in record.getMessage()]
        assert told == [f"the stream {stream} is gone, and what is sent to price waits: see `furcula cluster plan`"]


async def test_a_dead_letter_whose_stream_is_gone_is_not_waited_for(nats: NatsServer, flow_name: str) -> None:
    async with operating(chain(flow_name), Access(nats.url)) as operator:
        await operator.apply()
        layout, js = operator.layout, operator._client.js
        raw = encode_events([Event({"k": 1})])
        letter = Letter(time.time(), flow_name, "price", ("price",), "E", "m", "", 1, raw, layout.cuts[0].name)
        await js.publish(layout.subject("dead", "work", "price"), msgspec.msgpack.encode(letter))
        await js.delete_stream(layout.stream("work"))
        asked = 0
        publish = js.publish

        async def counted(*arguments: Any, **settings: Any) -> Any:
            nonlocal asked
            asked += 1
            return await publish(*arguments, **settings)

        js.publish = counted  # type: ignore[method-assign]
        with pytest.raises(
            FurculaError, match=r"dead letter 1 goes to price, .* is not set up: see `furcula cluster plan"
        ):
            await operator.replay(1)
        assert not asked
        assert [one.number async for one in operator.letters()] == [1]


async def test_events_of_a_module_that_the_flow_has_no_more_are_counted_under_its_name(
    nats: NatsServer, flow_name: str
) -> None:
    async with operating(chain(flow_name), Access(nats.url)) as operator:
        await operator.apply()
        await operator._client.js.publish(operator.layout.subject("to", "work", "gone", 0), b"")
        assert await operator.layout.lags(operator._client, "work") == {"price": 0, "gone": 1}


def keyed_twice(name: str, n: int, got: list[int]) -> Flow:
    flow = Flow(name, cluster={"lease": LEASE_S, "partitions": 8, "max_messages": 20, "max_bytes": ROOM})

    def numbers() -> Iterable[Any]:
        for number in range(n):
            yield {"n": number, "m": number * 7 % 401}

    async def same(event: Event) -> Event:
        return event

    def out(event: Event) -> None:
        got.append(event.data["n"])

    source, first = flow.source(numbers), flow.use(same, "same", options=Options(stage="work", key="data.n"))
    source >> first >> flow.use(out, "out", options=Options(stage="store", key="data.m"))
    return flow


async def test_fences_take_no_room_from_events(nats: NatsServer, flow_name: str) -> None:
    got: list[int] = []
    flow = keyed_twice(flow_name, 400, got)
    layout = Layout(flow)
    assert (layout.fences("work"), layout.fences("store")) == (8, 64)
    async with AsyncExitStack() as stack:
        for stage in ("store", "work", "main"):
            await stack.enter_async_context(StageDirector(flow, stage, Access(nats.url)))
        await until(lambda: len(got) >= 400, "all come")
    assert sorted({*got}) == list(range(400))


async def test_replicas_that_were_guessed_are_not_lowered(nats: NatsServer, flow_name: str) -> None:
    guessed, said = Layout(chain(flow_name)), Layout(chain(flow_name, replicas=1))
    there = guessed.wanted(3)[0]
    assert guessed._differences(there, guessed.wanted(1)[0]) == []
    assert [one.what for one in said._differences(there, said.wanted(1)[0])] == [
        f"{there.name}: num_replicas from 3 to 1"
    ]


async def test_what_the_server_cannot_store_is_told_soon_and_by_the_name_of_the_option(
    tmp_path: Path, nats: NatsServer, flow_name: str
) -> None:
    async with operating(chain(flow_name, replicas=3), Access(nats.url)) as operator:
        async with asyncio.timeout(10):
            with pytest.raises(
                FurculaError, match=r"is one server by itself: leave out cluster.replicas, or make it 1"
            ):
                await operator.apply()
    async with operating(chain(flow_name, max_bytes=10**15), Access(nats.url)) as operator:
        with pytest.raises(FurculaError, match=r"cluster.max_bytes"):
            await operator.apply()


async def test_another_storage_is_said_to_be_impossible(nats: NatsServer, flow_name: str) -> None:
    async with operating(chain(flow_name), Access(nats.url)) as operator:
        assert all("in file" in change for change in await operator.changes())
        await operator.apply()
    async with operating(chain(flow_name, storage="memory"), Access(nats.url)) as operator:
        assert "storage from file to memory, which is not possible" in (await operator.changes())[0]
        with pytest.raises(FurculaError, match="which is not possible"):
            await operator.apply()


async def test_no_two_flows_have_the_same_stream(nats: NatsServer, flow_name: str) -> None:
    flows = [chain(flow_name, "a_to_b"), chain(f"{flow_name}_to_a", "b"), chain(f"{flow_name}-5Fto-5Fa", "b")]
    for flow in flows:
        async with operating(flow, Access(nats.url)) as operator:
            assert len(await operator.apply()) == 2
    layouts = [Layout(flow) for flow in flows]
    assert len({one.bucket for one in layouts}) == len({one.dead for one in layouts}) == 3


def test_a_name_too_long_for_the_server_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="too long for the server"):
        Layout(chain("x" * 300))


def test_an_address_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        Access("nats://[::1").options()


# ------------------------------------------------------------------ orders


async def test_a_stage_is_resumed_alone_after_all_were_paused(nats: NatsServer, flow_name: str) -> None:
    async with operating(chain(flow_name), Access(nats.url)) as operator:
        await operator.pause()
        await operator.resume("work")
        status = await operator.status()
        assert {stage.name: stage.paused for stage in status.stages} == {"main": True, "work": False}


async def test_two_operators_at_once_both_have_their_way(nats: NatsServer, flow_name: str) -> None:
    async with (
        operating(chain(flow_name), Access(nats.url)) as one,
        operating(one.layout.flow, Access(nats.url)) as two,
    ):
        await asyncio.gather(one.pause("work"), two.pause("main"), one.drain(0.1))
        ordered, _ = await one._order()
        assert (ordered.paused, ordered.draining) == (["main", "work"], True)


async def test_a_flow_is_drained_when_no_worker_has_anything_open(nats: NatsServer, flow_name: str) -> None:
    flow = Flow(flow_name, cluster={"lease": LEASE_S, "max_bytes": ROOM})
    go_on, got = asyncio.Event(), list[int]()

    def numbers() -> Iterable[Any]:
        yield from range(20)

    async def slow(event: Event) -> Event:
        await go_on.wait()
        return event

    def out(event: Event) -> None:
        got.append(event.data)

    slowly = flow.use(slow, "slow", options=Options(concurrency=20))
    flow.source(numbers) >> slowly >> flow.use(out, "out", options=Options(stage="store", order="none"))
    access = Access(nats.url)
    async with StageDirector(flow, "store", access), StageDirector(flow, "main", access) as main:
        await until(lambda: main.statistics().total.open == 20, "all are in hand")
        async with operating(flow, access) as operator:
            await until(lambda: main.cluster.members.beat.open == 20, "and the worker says so")
            assert await operator.drain(4) >= 20
            go_on.set()
            assert await operator.drain(50) == 0
        assert sorted(got) == list(range(20))


async def test_a_worker_says_once_that_its_connection_is_lost_and_once_that_it_is_back(
    tmp_path: Path, flow_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "furcula.cluster")
    server = NatsServer(tmp_path / "nats")
    try:
        async with StageDirector(chain(flow_name), "work", Access(server.url)) as work:
            client, members = work.cluster.client, work.cluster.members
            await until(lambda: members._connected, "both connections are there")
            await asyncio.to_thread(server.kill)
            await until(lambda: not client.connected and not members._connected, "both are lost")
            await asyncio.to_thread(server.start)
            await until(lambda: client.connected and members._connected, "both are back")
        said = [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"]
        assert said.count(f"the connection to {server.url} is lost; connecting again") == 1
        assert said.count(f"connected to {server.url} again") == 1
    finally:
        server.terminate()


# ------------------------------------------------------------------ requests


def web(name: str, work: Any) -> Flow:
    flow = Flow(name, cluster={"lease": LEASE_S, "max_bytes": ROOM})
    http = flow.use("http.listen", "http", port=0, routes=["POST /x"])
    http >> flow.use(work, "work", options=Options(stage="work", order="none", concurrency=8)) >> http
    return flow


async def answer(event: Event) -> Event:
    if event.data.get("big"):
        event.data["blob"] = "y" * 2_000_000
    return event


async def test_requests_and_answers_that_no_message_can_hold_fail_at_once(nats: NatsServer, flow_name: str) -> None:
    flow, access = web(flow_name, answer), Access(nats.url)
    async with StageDirector(flow, "work", access), StageDirector(flow, "main", access) as main:
        await main.ask("http", {}, timeout="30s")
        for data in ({"blob": "x" * 2_000_000}, {"big": 1}):
            with pytest.raises(FurculaError, match=r"the server takes \d+ in a message"):
                await main.ask("http", data, timeout="30s")
        assert main.statistics().total.open == 0


async def test_a_paused_stage_takes_no_requests(
    nats: NatsServer, flow_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "NOBODY_S", 0.5)
    flow, access = web(flow_name, answer), Access(nats.url)
    async with StageDirector(flow, "work", access) as work, StageDirector(flow, "main", access) as main:
        await main.ask("http", {}, timeout="30s")
        async with operating(flow, access) as operator:
            await operator.pause("work")
            await until(lambda: work.cluster._paused and not work.cluster._asking._shared, "it is paused")
            with pytest.raises(FurculaError, match="no worker takes it"):
                await main.ask("http", {}, timeout="30s")
            await operator.resume("work")
            await until(lambda: work.cluster._asking._shared, "it is resumed")
            await main.ask("http", {}, timeout="30s")


async def get(port: int) -> tuple[int, str]:
    """The status of an answer, and its head."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST /x HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\n\r\n{}")  # fmt: skip
        async with asyncio.timeout(60):
            head = (await reader.read()).decode("latin-1")
    finally:
        writer.close()
    return int(head.split()[1]), head.lower()


@pytest.mark.parametrize("order", ["drain", "pause"])
async def test_while_sources_admit_nothing_requests_are_refused_at_once_and_those_under_way_answered(
    nats: NatsServer, flow_name: str, order: str
) -> None:
    go_on, came = asyncio.Event(), asyncio.Event()

    async def waits(event: Event) -> Event:
        came.set()
        await go_on.wait()
        return event

    flow, access = web(flow_name, waits), Access(nats.url)
    async with StageDirector(flow, "work", access), StageDirector(flow, "main", access) as main:
        port = main.modules["http"].instance.addresses[0][1]
        async with operating(flow, access) as operator, asyncio.TaskGroup() as tasks:
            before = tasks.create_task(get(port))
            await came.wait()
            if order == "drain":
                drained = tasks.create_task(operator.drain(60))
            else:
                await operator.pause("main")
            await until(lambda: main.cluster.members.beat.held, "the sources are held")
            for _ in range(3):
                status, head = await get(port)
                assert status == 503
                assert "\r\nretry-after: 1\r\n" in head
            assert main.statistics().admitted == 1
            go_on.set()
            assert (await before)[0] == 200
            if order == "drain":
                assert await drained == 0
                assert main.statistics().total.open == 0
            await operator.resume()
            await until(lambda: not main.cluster.members.beat.held, "they go on")
            assert (await get(port))[0] == 200
            await operator.pause("main")
            await until(lambda: main.cluster.members.beat.held, "the sources are held again")
            async with StageDirector(flow, "main", access) as late:  # one that comes while they are held
                port = late.modules["http"].instance.addresses[0][1]
                assert (await get(port))[0] == 503
                assert late.statistics().admitted == 0


async def test_a_worker_with_its_hands_full_takes_no_more_requests_until_it_has_less(
    nats: NatsServer, flow_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "NOBODY_S", 0.5)
    monkeypatch.setattr(asking, "MOST", 2)
    go_on = asyncio.Event()

    async def waits(event: Event) -> Event:
        await go_on.wait()
        return event

    flow, access = web(flow_name, waits), Access(nats.url)
    async with StageDirector(flow, "work", access) as work, StageDirector(flow, "main", access) as main:
        first = [asyncio.create_task(main.ask("http", {}, timeout="30s")) for _ in range(2)]
        await until(lambda: work.cluster._asking._full and not work.cluster._asking._shared, "it is full")
        with pytest.raises(FurculaError, match="no worker takes it"):
            await main.ask("http", {}, timeout="30s")
        go_on.set()
        await asyncio.gather(*first)
        await until(lambda: work.cluster._asking._shared, "it takes requests again")
        await main.ask("http", {}, timeout="30s")


async def test_what_became_of_a_request_is_heard_though_the_word_of_it_was_lost(
    nats: NatsServer, flow_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(event: Event) -> Event:
        raise ValueError("no")

    flow, access = web(flow_name, fails), Access(nats.url)
    lost: list[bytes] = []
    async with StageDirector(flow, "work", access) as work, StageDirector(flow, "main", access) as main:
        say = work.cluster.client.say

        async def says(subject: str, body: bytes = b"", reply: str = "") -> None:
            if body[:1] == b"=" and not lost:
                lost.append(body)
            else:
                await say(subject, body, reply)

        monkeypatch.setattr(work.cluster.client, "say", says)
        with pytest.raises(FurculaError, match="no"):
            await main.ask("http", {}, timeout="30s")
        assert len(lost) == 1
        assert main.statistics().total.open == 0


# ------------------------------------------------------------------ dead letters


async def test_one_letter_that_cannot_be_sent_again_does_not_keep_the_others(
    tmp_path: Path, nats: NatsServer, flow_name: str
) -> None:
    (tmp_path / "flow.yaml").write_text(
        f"flow: {flow_name}\ncluster: {{max_bytes: {ROOM}}}\nmodules:\n  numbers: {{use: generate}}\n"
        "  price: {use: log, stage: work, order: none}\n"
    )
    from furcula.config import load

    flow = load(tmp_path / "flow.yaml")
    async with operating(flow, Access(nats.url)) as operator:
        await operator.apply()
        layout = operator.layout
        for raw in (b"junk", *(encode_events([Event({"n": n})]) for n in range(3))):
            letter = Letter(time.time(), flow_name, "price", ("price",), "E", "m", "", 1, raw, layout.cuts[0].name)
            body = msgspec.msgpack.encode(letter)
            await operator._client.js.publish(layout.subject("dead", "work", "price"), body)

        def furcula(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "furcula", "cluster", *arguments, "--cluster", nats.url]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

        ran = await asyncio.to_thread(furcula, "dlq", "replay", "flow.yaml", "--all")
        assert ran.returncode == 1, ran.stderr
        assert "dead letter 1 holds no event" in ran.stderr
        assert "3 sent again" in ran.stderr
        assert [one.number async for one in operator.letters()] == [1]
        ran = await asyncio.to_thread(furcula, "dlq", "show", "flow.yaml", "0")
        assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, "there is no dead letter 0")
        ran = await asyncio.to_thread(furcula, "drain", "flow.yaml", "--within", "banana")
        assert ran.returncode == 2
        assert "--within: " in ran.stderr
        assert "Traceback" not in ran.stderr


# ------------------------------------------------------------------ shares


class _Members:
    """Who is there, as the test says."""

    def __init__(self, id: str, ids: list[str]):
        self.id, self._ids = id, ids

    def alive(self, stage: str) -> list[Beat]:
        return [Beat(id, stage) for id in self._ids]


def shared_out(rows: int, table: dict[str, Row], ids: list[str]) -> list[int]:
    """Let all look in turn until nothing changes; how many rows each has."""
    names = [str(number) for number in range(rows)]

    async def nothing(*_: Any) -> None:
        pass

    for _ in range(4 * rows):
        before = msgspec.json.encode(table)
        for id in ids:
            members: Any = _Members(id, ids)
            anything: Any = None
            claims = Claims(anything, anything, "table", names, members, "work", nothing, nothing)
            claims.mine = {name: row.epoch for name, row in table.items() if row.owner == id}
            room, surplus = claims._share(table)
            free = [name for name in names if name not in table or not table[name].owner]
            for name in free[:room]:
                table[name] = Row(id, table.get(name, Row()).epoch + 1)
            for name in [*claims.mine][len(claims.mine) - surplus :]:
                table[name] = Row("", table[name].epoch)
        if msgspec.json.encode(table) == before:
            return sorted(sum(row.owner == id for row in table.values()) for id in ids)
    raise AssertionError(f"they never agree: {table}")


@pytest.mark.parametrize(("rows", "workers"), [(16, 5), (16, 9), (16, 3), (4, 4), (3, 5), (1, 2), (17, 1), (64, 7)])
def test_no_worker_has_two_more_than_another_however_they_come(rows: int, workers: int) -> None:
    low, more = divmod(rows, workers)
    fair = [low] * (workers - more) + [low + 1] * more
    ids = [f"w{number}" for number in range(workers)]
    assert shared_out(rows, {}, ids) == fair
    table: dict[str, Row] = {}
    for count in range(1, workers + 1):  # one after the other
        shared_out(rows, table, ids[:count])
    assert shared_out(rows, table, ids) == fair


def test_what_one_worker_has_does_not_pass_because_another_comes_that_could_have_it_too() -> None:
    table = {"0": Row("w1", 1)}
    assert shared_out(1, table, ["w0", "w1", "w2"]) == [0, 0, 1]
    assert table == {"0": Row("w1", 1)}


# ------------------------------------------------------------------ an embedded server


def test_an_embedded_server_that_is_killed_is_started_again_with_its_data(tmp_path: Path) -> None:
    server = Embedded(tmp_path / "data")
    server.start()
    try:
        first, access = server._process, server.access
        flow = chain("kept")

        async def applied() -> list[str]:
            async with operating(flow, access) as operator:
                return await operator.apply()

        assert len(asyncio.run(applied())) == 2
        assert first is not None
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: server._process is not first and server._takes_connections(), "it is started again")
        assert server.access == access
        assert asyncio.run(applied()) == []
    finally:
        server.stop()
    assert not server._takes_connections()


@pytest.mark.parametrize(("name", "text"), [("port", ""), ("port", "banana"), ("password", "")])
def test_what_is_wrong_with_an_embedded_servers_files_is_told(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FurculaError, match=f"{name} (is empty|should hold)"):
        Embedded(tmp_path).start()


def test_a_file_is_no_folder_for_an_embedded_server(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    for work in (Embedded(tmp_path / "data").start, Embedded(tmp_path / "data").running):
        with pytest.raises(FurculaError, match="is a file; an embedded cluster needs a folder"):
            work()
