"""The built-in modules in running flows: what they promise together with the engine."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from furcula import Director, Event, Flow, Module, Source
from furcula.module import parameters
from furcula.registry import BUILT_IN, resolve

from .conftest import LIMIT_S, until


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_kind_describes_itself_and_each_of_its_arguments(kind: str) -> None:
    found = resolve(kind)
    assert issubclass(found, Source if found.inboxes == () or kind == "inlet" else Module)
    first = inspect.getdoc(found).splitlines()[0]  # type: ignore[union-attr]
    assert first.endswith(".")
    assert [parameter.name for parameter in parameters(found) if not parameter.doc] == []
    assert set(found.optional) <= set(found.outboxes)


def test_events_go_through_files_and_what_failed_can_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "orders.ndjson").write_text('{"n": 1, "eu": true}\n{"n": 2}\nnonsense\n{"n": 3, "eu": true}\n')
    flow = Flow("orders", folder=tmp_path)
    read = flow.use("file.read", path="orders.ndjson", codec="json", positions="state.json")
    keep = flow.use("match", where="data.eu", eq=True)
    change = flow.use("modify", set={"data.seen": True})

    @flow.map
    def price(data: Any) -> Any:
        return {**data, "price": 6 // (3 - data["n"])}

    read >> keep >> change >> price >> flow.use("file.write", "out", path="out.ndjson")
    keep["nomatch"] >> flow.use("count")
    read.invalid >> flow.use("file.write", "bad", path="bad.ndjson")
    price.failed >> flow.use("file.write", "dead", path="dead.ndjson")
    statistics = flow.run()
    assert statistics.balanced
    assert (statistics.admitted, statistics.delivered, statistics.open) == (4, 4, 0)
    assert (tmp_path / "out.ndjson").read_text() == '{"n":1,"eu":true,"seen":true,"price":3}\n'
    assert (tmp_path / "bad.ndjson").read_text() == '"nonsense"\n'
    dead = Event.from_wire(json.loads((tmp_path / "dead.ndjson").read_text()))
    assert dead.failures[0].type == "ZeroDivisionError"
    assert dead.headers["offset"] == 39
    (kept,) = json.loads((tmp_path / "state.json").read_text()).values()
    assert kept["offset"] == (tmp_path / "orders.ndjson").stat().st_size


def test_a_source_s_failed_events_do_not_hold_its_position_up(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("1\nx\n2\n")
    flow = Flow("numbers", folder=tmp_path)
    seen: list[int] = []
    number = flow.map(lambda text: int(text), "number")
    flow.use("file.read", path="in", positions="state") >> number >> flow.map(seen.append, "see")
    statistics = flow.run()
    assert statistics.failed == 1
    assert seen == [1, 2]
    (kept,) = json.loads((tmp_path / "state").read_text()).values()
    assert kept["offset"] == 6


async def test_syslog_is_listened_to_filtered_and_written_until_the_flow_is_stopped(tmp_path: Path) -> None:
    flow = Flow("syslog", folder=tmp_path)
    listen = flow.use("syslog.listen", udp=0, tcp=0)
    keep = flow.use("match", **{"where": "data.severity", "in": ["err", "crit"]})
    listen >> keep >> flow.use("file.write", "out", path="errors.ndjson")
    async with Director(flow) as director:
        udp, tcp = director.modules["listen"].instance.addresses
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(200):
                sender.sendto(b"<%d>number %d" % (11 if number % 2 else 14, number), udp)
        with socket.create_connection(tcp) as connection:
            connection.sendall(b"<11>over tcp\n")
        await until(lambda: director.statistics().admitted == 201)
    statistics = director.statistics()
    assert statistics.balanced
    assert (statistics.delivered, statistics.dropped) == (101, 100)
    written = [json.loads(line)["message"] for line in (tmp_path / "errors.ndjson").read_text().splitlines()]
    assert sorted(written) == sorted([f"number {number}" for number in range(1, 200, 2)] + ["over tcp"])


async def test_a_slow_module_makes_a_tcp_sender_wait_and_every_event_is_settled(tmp_path: Path) -> None:
    flow = Flow("slow")
    listen = flow.use("tcp.listen", address=0, codec="text")
    seen: list[str] = []

    @flow.module(queue=10)
    async def slow(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event.data)

    listen >> slow
    async with Director(flow) as director:
        ((host, port),) = director.modules["listen"].instance.addresses
        _, writer = await asyncio.open_connection(host, port)
        writer.write(b"".join(b"%d\n" % number for number in range(5000)))
        writer.write_eof()
        await until(lambda: len(seen) == 5000)
        writer.close()
        await writer.wait_closed()
    assert seen == [str(number) for number in range(5000)]
    assert director.statistics().balanced


async def test_events_go_from_one_flow_to_another_over_tcp_and_udp(tmp_path: Path) -> None:
    receiving = Flow("receiving")
    seen: list[Any] = []
    tcp = receiving.use("tcp.listen", "tcp", address=0, codec="msgpack", framing="length-prefix")
    udp = receiving.use("udp.listen", "udp", address=0)
    (tcp, udp) >> receiving.map(seen.append, "see")
    async with Director(receiving) as receiver:
        sending = Flow("sending")
        source = sending.use("generate", items=[{"n": number} for number in range(300)])
        to = {name: "{}:{}".format(*receiver.modules[name].instance.addresses[0]) for name in ("tcp", "udp")}
        source >> (
            sending.use("tcp.send", "tcp", address=to["tcp"], codec="msgpack", framing="length-prefix"),
            sending.use("udp.send", "udp", address=to["udp"]),
        )
        statistics = await asyncio.wait_for(sending.run_async(), LIMIT_S)
        assert (statistics.admitted, statistics.delivered) == (300, 300)
        await until(lambda: len(seen) == 600)
    assert receiver.statistics().balanced


async def test_what_is_asked_of_an_inlet_comes_back_to_it() -> None:
    flow = Flow("answers")
    inlet = flow.use("inlet")
    inlet >> flow.use("template", template="Hello {{ data }}!") >> inlet
    async with Director(flow) as director:
        answer = await director.ask("inlet", "Ada", timeout="5s")
    assert answer.data == "Hello Ada!"


def test_sources_that_go_by_the_clock_end_with_their_count() -> None:
    flow = Flow("ticks")
    seen: list[Any] = []
    see = flow.map(seen.append, "see")
    (flow.use("interval", every="1ms", count=3), flow.use("generate", data="g", rate=1000, count=2)) >> see
    assert flow.run().delivered == 5
    assert sorted(str(data.get("tick")) if isinstance(data, dict) else data for data in seen) == [
        "1",
        "2",
        "3",
        "g",
        "g",
    ]


async def test_a_flow_with_a_cron_and_a_followed_file_stops_when_told(tmp_path: Path) -> None:
    flow = Flow("endless", folder=tmp_path)
    sources = (
        flow.use("cron", schedule="0 0 1 1 *"),
        flow.use("file.read", path="in.log", follow=True, positions="state"),
        flow.use("tcp.listen", address=0),
        flow.use("udp.listen", "udp", address=0),
    )
    sources >> flow.use("null")  # type: ignore[operator]
    async with Director(flow) as director:
        (tmp_path / "in.log").write_text("a\n")
        await until(lambda: director.statistics().delivered == 1)
        await asyncio.wait_for(director.stop(), LIMIT_S)
    assert json.loads((tmp_path / "state").read_text())[str(tmp_path / "in.log")]["offset"] == 2


def test_a_port_in_use_stops_the_start_and_names_the_module(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flow = Flow("busy")
        flow.use("tcp.listen", address=taken.getsockname()[1]) >> flow.use("null")
        with pytest.raises(Exception, match=r"listen cannot listen on 127\.0\.0\.1:\d+: it is in use"):
            flow.run()
