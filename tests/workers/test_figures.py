"""The figures of several processes are added up, and the line between them carries what it was given."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import msgspec
import pytest

from furcula.engine.statistics import FlowStatistics, ModuleStatistics, OriginStatistics, Statistics, summed
from furcula.sockets import Wanted
from furcula.workers.line import DOWN, UP, Frames, Line, LineBroken
from furcula.workers.worker import Answer, Ask, Beat, Drain, Finished, Ready, Worker


def figures(admitted: int, delivered: int, **more: Any) -> Statistics:
    origin = {"admitted": admitted, "delivered": delivered, "open": admitted - delivered}
    module = {"received": admitted, "delivered": delivered, "held": admitted - delivered, **more}
    return Statistics(
        "shop",
        FlowStatistics(**origin),
        {"in": OriginStatistics(**origin, reasons={"dropped filtered": 1})},
        {"out": ModuleStatistics(**module)},
        routes={"in -> out": admitted},
        abandoned={"out": 1},
        seconds=float(admitted),
    )


def test_counts_are_added_up_and_the_sums_still_hold() -> None:
    parts = [figures(10, 7, p50_us=3.0, p99_us=9.0), figures(5, 5, p50_us=4.0, p99_us=8.0, paused=True)]
    total = summed(parts)
    assert (total.admitted, total.delivered, total.open) == (15, 12, 3)
    assert total.balanced
    assert isinstance(total.total, FlowStatistics)
    assert total.origins["in"].reasons == {"dropped filtered": 2}
    assert total.routes == {"in -> out": 15}
    assert total.abandoned == {"out": 2}
    assert total.seconds == 10.0
    module = total.modules["out"]
    assert (module.received, module.delivered, module.held) == (15, 12, 3)
    assert (module.p50_us, module.p99_us, module.paused) == (4.0, 9.0, True)


def test_what_crossed_from_part_to_part_is_counted_where_it_was_admitted_first() -> None:
    near = figures(10, 10)
    far = Statistics(
        "shop", FlowStatistics(9, 6, 0, 3), {"cut(a -> b)": OriginStatistics(9, 6, 0, 3, crossed=True)}, {}
    )
    assert (summed([far, far]).admitted, summed([near, far]).admitted) == (18, 19)
    total = summed([near, far, far], once=True)
    assert (total.admitted, total.delivered, total.failed) == (10, 10, 0)
    assert total.origins["cut(a -> b)"] == OriginStatistics(18, 12, 0, 6, crossed=True)
    assert total.balanced


def test_parts_may_know_different_modules() -> None:
    other = Statistics("shop", FlowStatistics(), {"cron": OriginStatistics()}, {"cron": ModuleStatistics(received=1)})
    total = summed([figures(1, 1), other])
    assert (set(total.origins), set(total.modules)) == ({"in", "cron"}, {"out", "cron"})
    assert total.modules["cron"].received == 1


def test_of_one_part_nothing_is_changed_and_of_none_all_is_zero() -> None:
    assert summed([figures(3, 2)]) == figures(3, 2)
    assert summed([], "shop") == Statistics("shop", FlowStatistics(), {}, {})


def test_every_count_is_added_up() -> None:
    ones = ModuleStatistics(**{name: 1 for name in ModuleStatistics.__struct_fields__ if name not in ("reasons",)})
    part = Statistics("shop", FlowStatistics(), {}, {"m": ones})
    total = msgspec.structs.asdict(summed([part, part]).modules["m"])
    assert {name for name, value in total.items() if value == 1} == {"p50_us", "p99_us", "paused"}
    assert {value for name, value in total.items() if name not in ("p50_us", "p99_us", "paused", "reasons")} == {2}


# ------------------------------------------------------------------ the line


async def test_messages_come_whole_and_in_order_also_when_the_other_side_is_slow() -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    got: list[Any] = []
    done, gone = asyncio.Event(), asyncio.Event()
    sent = [Beat(figures(number, 0)) for number in range(2000)] + [Finished(3, figures(1, 1), "x" * 100_000)]

    def take(message: Any, sockets: list[socket.socket]) -> None:
        got.append(message)
        if isinstance(message, Finished):
            done.set()

    sender = Line(ours, Frames(DOWN), take, lambda: None)
    receiver = Line(theirs, Frames(UP), take, gone.set)
    sender.open()
    for message in sent:
        sender.send(message)
    assert sender.busy
    receiver.open()
    async with asyncio.timeout(30):
        await done.wait()
        assert got == sent
        assert not sender.busy
        sender.close()
        await gone.wait()
    receiver.close()


async def test_sockets_are_handed_over_with_their_message() -> None:
    ours, theirs = socket.socketpair()
    got: list[tuple[Any, list[socket.socket]]] = []
    two = asyncio.Event()

    def take(message: Any, sockets: list[socket.socket]) -> None:
        got.append((message, sockets))
        if len(got) == 3:
            two.set()

    sender = Line(ours, Frames(UP), take, lambda: None)
    receiver = Line(theirs, Frames(DOWN), take, lambda: None)
    sender.open()
    receiver.open()
    made = [socket.socket() for _ in range(3)]
    for one in made:
        one.bind(("127.0.0.1", 0))
    names = [one.getsockname() for one in made]
    sender.send(Answer(1, 2), made[:2])
    sender.send(Drain(1.0))
    sender.send(Answer(2, 1), made[2:])
    async with asyncio.timeout(30):
        await two.wait()
    assert [message for message, _ in got] == [Answer(1, 2), Drain(1.0), Answer(2, 1)]
    assert [[one.getsockname() for one in given] for _, given in got] == [names[:2], [], names[2:]]
    for one in [*made, *(one for _, given in got for one in given)]:
        one.close()
    sender.close()
    receiver.close()


@pytest.mark.parametrize("bad", [b"\xff" * 5, b"\0\0\0\1\0\xc1", b"\0\0\0\1\0\x01"])
def test_what_is_no_message_is_refused(bad: bytes) -> None:
    with pytest.raises(LineBroken):
        Frames(UP).feed(bad)


def test_what_workers_say_survives_the_way() -> None:
    said = [Ready(True), Beat(figures(2, 1)), Ask(4, Wanted("in", "tcp", "::1", 80)), Finished(1, None, "no", True)]
    assert [UP.decode(msgspec.msgpack.encode(one)) for one in said] == said
    assert Worker("enrich", 2, 3).name == "enrich/2"
    assert Worker().name == "main/0"


def test_a_line_that_is_closed_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    line = Line(ours, Frames(UP), lambda *_: None, lambda: None)
    made = socket.socket()
    while not line.busy:
        line.send(Answer(1, 1), [made])
    line.close()
    line.close()
    line.send(Ready())
    theirs.close()
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before
