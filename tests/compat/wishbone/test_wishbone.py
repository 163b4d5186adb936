"""Wishbone's interface over our engine: registration, wiring, messages, and what becomes of every one."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import sys
import threading
import time
from typing import Any

import pytest
from tests.compat.running import Program

from furcula.compat.wishbone.main import Wishbone
from furcula.compat.wishbone.module import STDOUT, IOModule, Module, UDPServer
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, SourceFailed, Stopped
from furcula.testing import assert_settled

LIMIT_S = 20
STOCK = "furcula.compat.wishbone.module"


class Feed(IOModule):
    """Sends what it is given, in a thread of its own."""

    def __init__(self, messages: list[Any]):
        self.messages = messages

    def run(self) -> None:
        for message in self.messages:
            self.sendData(message)


class AsyncFeed(Feed):
    async def run(self) -> None:  # type: ignore[override]
        for message in self.messages:
            await self.sendData(message)


class Keep(Module):
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.ended = False

    def consume(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def shutdown(self) -> None:
        self.ended = True

    @property
    def datas(self) -> list[Any]:
        return [message["data"] for message in self.messages]


class Repeat(Module):
    """Sends each message so many times."""

    def consume(self, message: dict[str, Any]) -> None:
        for number in range(message["data"]):
            message["headers"]["number"] = number
            self.sendData(message)


class Refuse(Module):
    def consume(self, message: dict[str, Any]) -> None:
        raise ValueError("no")


class Sorter(Module):
    inboxes = ("inbox", "side")
    outboxes = ("outbox", "odd")

    def consume(self, message: dict[str, Any]) -> None:
        self.sendData(message, queue="odd" if message["data"] % 2 else "outbox")

    def consume_side(self, message: dict[str, Any]) -> None:
        self.sendData({"data": f"side {message['data']}"})


class Malformed(Module):
    def consume(self, message: dict[str, Any]) -> None:
        self.sendData(message["data"])


class Queued(Module):
    def __init__(self, name: str, extra: str = "extra"):
        self.given_name = name
        self.createQueue(extra)

    def consume(self, message: dict[str, Any]) -> None:
        self.sendData(message, "extra")


def messages(*datas: Any) -> list[dict[str, Any]]:
    return [{"headers": {}, "data": data} for data in datas]


def wishbone(*modules: tuple[type[Module], str], feed: list[Any] | None = None) -> Wishbone:
    """A Wishbone with these modules, one behind the other, behind a feed."""
    wb = Wishbone()
    chain = [(Feed, "feed"), *modules]
    for kind, name in chain:
        arguments = {"messages": feed} if kind is Feed else {}
        wb.registerModule((__name__, kind.__name__, name), **arguments)
    for (_, before), (_, after) in itertools.pairwise(chain):
        wb.connect(getattr(wb, before).outbox, getattr(wb, after).inbox)
    return wb


def run(wb: Wishbone, **expected: int) -> Statistics:
    statistics = wb.start()
    assert_settled(statistics)
    for name, value in expected.items():
        assert getattr(statistics, name) == value
    return statistics


# ---------------------------------------------------------------------- registration and wiring


def test_modules_are_registered_by_name_and_wired_by_attribute() -> None:
    wb = wishbone((Keep, "keep"), feed=messages("a", "b"))
    run(wb, admitted=2, delivered=2)
    assert wb.keep.instance.messages == messages("a", "b")
    assert wb.keep.datas == ["a", "b"]
    assert wb.keep.ended


def test_wiring_may_be_said_in_text() -> None:
    wb = wishbone(feed=messages(1))
    wb.registerModule((__name__, "Keep", "keep"))
    wb.connect("feed.outbox", "keep.inbox")
    run(wb, delivered=1)


def test_a_queue_may_be_connected_with_several_and_each_gets_a_copy() -> None:
    wb = wishbone((Keep, "one"), feed=messages({"seen": []}))
    wb.registerModule((__name__, "Keep", "two"))
    wb.connect(wb.feed.outbox, wb.two.inbox)
    run(wb, admitted=1, delivered=1)
    assert wb.one.datas == wb.two.datas
    assert wb.one.datas[0] is not wb.two.datas[0]


def test_a_module_may_have_more_queues() -> None:
    wb = wishbone((Sorter, "sorter"), (Keep, "even"), feed=messages(1, 2, 3))
    wb.registerModule((__name__, "Feed", "aside"), messages=messages("x"))
    wb.registerModule((__name__, "Keep", "odd"))
    wb.connect(wb.sorter.odd, wb.odd.inbox)
    wb.connect(wb.aside.outbox, wb.sorter.side)
    run(wb, delivered=4)
    assert wb.odd.datas == [1, 3]
    assert sorted(wb.even.datas, key=str) == [2, "side x"]


def test_create_queue_makes_one_that_can_be_wired() -> None:
    wb = wishbone((Queued, "queued"), feed=messages(1))
    wb.registerModule((__name__, "Keep", "keep"))
    wb.connect(wb.queued.extra, wb.keep.inbox)
    run(wb, delivered=1)
    assert wb.queued.given_name == "queued"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (("no.such.package", "Thing", "t"), "no.such.package cannot be imported"),
        ((STOCK, "UPDServer", "t"), r"has no 'UPDServer', did you mean 'UDPServer'\?"),
        ((STOCK, "Outgoing", "t"), "is no module: derive it from Module or IOModule"),
        ((STOCK, "STDOUT", "start"), "a module cannot be called 'start'"),
        ((__name__, "Feed", "t"), "t: Feed cannot be made: .*messages"),
    ],
)
def test_what_cannot_be_registered_is_said(module: tuple[str, str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Wishbone().registerModule(module)


def test_an_unknown_module_or_queue_is_named_with_the_nearest() -> None:
    wb = wishbone((Keep, "keep"), feed=[])
    with pytest.raises(AttributeError, match=r"no module 'kep', did you mean 'keep'\?"):
        _ = wb.kep
    with pytest.raises(AttributeError, match=r"keep has no queue 'outbx', did you mean 'outbox'\?"):
        _ = wb.keep.outbx
    with pytest.raises(ConfigurationError, match="is not a queue"):
        wb.connect("feed", "keep.inbox")


# ---------------------------------------------------------------------- what becomes of a message


@pytest.mark.parametrize("feed", [Feed, AsyncFeed])
def test_none_one_or_many_sent_are_a_drop_a_continuation_or_a_split(feed: type[Feed]) -> None:
    wb = Wishbone()
    wb.registerModule((__name__, feed.__name__, "feed"), messages=messages(0, 1, 3))
    wb.registerModule((__name__, "Repeat", "repeat"))
    wb.registerModule((__name__, "Keep", "keep"))
    wb.connect(wb.feed.outbox, wb.repeat.inbox)
    wb.connect(wb.repeat.outbox, wb.keep.inbox)
    statistics = run(wb, admitted=3, delivered=2, dropped=1)
    assert [message["headers"]["number"] for message in wb.keep.messages] == [0, 0, 1, 2]
    assert statistics.modules["repeat"].reasons == {"dropped filtered": 1}


def test_a_consume_that_raises_fails_its_message_only() -> None:
    wb = wishbone((Refuse, "refuse"), (Keep, "good"), feed=messages(1, 2))
    wb.registerModule((__name__, "Keep", "bad"))
    wb.connect(wb.refuse.failed, wb.bad.inbox)
    run(wb)
    assert (wb.good.datas, wb.bad.datas) == ([], [1, 2])


@pytest.mark.parametrize(
    ("malformed", "reason"),
    [
        ("text", "must be a dict with 'headers' and 'data', not str"),
        ({"headers": {}}, "has no 'data'"),
        ({"data": 1, "headers": []}, "'headers' must be a dict"),
        ({"data": 1, "body": 2}, "unknown part 'body'"),
    ],
)
def test_a_malformed_message_goes_to_invalid_with_its_reason(malformed: Any, reason: str) -> None:
    wb = wishbone((Malformed, "malformed"), (Keep, "good"), feed=messages(malformed))
    wb.registerModule((__name__, "Keep", "inspect"))
    wb.connect(wb.malformed.invalid, wb.inspect.inbox)
    run(wb, delivered=1)
    assert wb.good.messages == []
    assert wb.inspect.datas == [malformed]
    assert reason in wb.inspect.messages[0]["headers"]["reason"]


def test_a_malformed_message_from_outside_is_counted_and_logged_when_nobody_looks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wb = wishbone((Keep, "keep"), feed=["text", {"header": {"a": 1}, "data": "good"}])
    run(wb, failed=1, delivered=1)
    assert wb.keep.messages == [{"headers": {"a": 1}, "data": "good"}]
    assert "sent a malformed message" in caplog.text


class Threaded(Module):
    options = {"thread": True, "concurrency": 2}

    def consume(self, message: dict[str, Any]) -> None:
        message["data"] = threading.current_thread().name
        self.sendData(message)


class Coroutine(Module):
    async def consume(self, message: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        self.sendData(message)


def test_a_consume_that_blocks_runs_in_a_thread_and_a_coroutine_is_awaited() -> None:
    wb = wishbone((Threaded, "threaded"), (Coroutine, "coroutine"), (Keep, "keep"), feed=messages(1, 2, 3))
    run(wb, delivered=3)
    assert all(name.startswith("furcula threaded") for name in wb.keep.datas)


class Both(IOModule):
    """Receives from outside, and submits to outside."""

    def run(self) -> None:
        self.sendData({"data": "received"})

    def consume(self, message: dict[str, Any]) -> None:
        self.sendData({"data": f"submitted {message['data']}"})


def test_an_io_module_may_receive_and_submit() -> None:
    wb = wishbone((Both, "both"), (Keep, "keep"), feed=messages("x"))
    statistics = run(wb, admitted=2, delivered=2)
    assert sorted(wb.keep.datas) == ["received", "submitted x"]
    assert statistics.origins["both/run"].delivered == 1


def test_sending_when_nothing_runs_is_refused() -> None:
    with pytest.raises(Stopped):
        Keep().sendData({"data": 1})


# ---------------------------------------------------------------------- running


class Endless(IOModule):
    def run(self) -> None:
        while self.loop():
            self.sendData({"data": 1})


class Slow(Keep):
    async def consume(self, message: dict[str, Any]) -> None:  # type: ignore[override]
        await asyncio.sleep(0.0002)
        self.messages.append(message)


def test_stop_drains_calls_shutdown_and_may_be_repeated() -> None:
    wb = Wishbone()
    wb.registerModule((__name__, "Endless", "endless"))
    wb.registerModule((__name__, "Slow", "slow"))
    wb.connect(wb.endless.outbox, wb.slow.inbox)
    answers: list[Statistics] = []
    thread = threading.Thread(target=lambda: answers.append(wb.start()))
    thread.start()
    limit = time.monotonic() + LIMIT_S
    while not wb.slow.messages and time.monotonic() < limit:
        time.sleep(0.001)
    wb.stop()
    wb.stop()
    thread.join(LIMIT_S)
    (statistics,) = answers
    assert_settled(statistics)
    assert statistics.delivered == statistics.admitted == len(wb.slow.messages)
    assert wb.slow.ended


class Blocked(IOModule):
    """Waits for outside until `shutdown` closes what it waits on."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()

    def run(self) -> None:
        while self.loop():
            data = self.near.recv(100)
            if data:
                self.sendData({"data": data})

    def shutdown(self) -> None:
        self.near.shutdown(socket.SHUT_RDWR)
        self.near.close()
        self.far.close()


def test_shutdown_ends_a_run_that_waits_for_outside() -> None:
    wb = Wishbone()
    wb.registerModule((__name__, "Blocked", "blocked"))
    wb.registerModule((__name__, "Stopper", "stopper"), wb)
    wb.connect(wb.blocked.outbox, wb.stopper.inbox)
    wb.blocked.far.send(b"x")
    run(wb, delivered=1)


class Stopper(Module):
    def __init__(self, wishbone: Wishbone):
        self.wishbone = wishbone

    def consume(self, message: dict[str, Any]) -> None:
        self.wishbone.stop()


class Broken(IOModule):
    def run(self) -> None:
        self.sendData({"data": 1})
        raise OSError("the line went dead")


def test_a_run_that_raises_ends_the_flow_with_what_it_raised() -> None:
    wb = Wishbone()
    wb.registerModule((__name__, "Broken", "broken"))
    wb.registerModule((__name__, "Keep", "keep"))
    wb.connect(wb.broken.outbox, wb.keep.inbox)
    with pytest.raises(SourceFailed, match="the line went dead"):
        wb.start()
    assert wb.keep.datas == [1]


def test_a_wishbone_that_was_stopped_before_it_started_does_not_run() -> None:
    wb = wishbone((Keep, "keep"), feed=messages(1))
    wb.stop()
    run(wb, admitted=0)


def test_an_unconnected_queue_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    wb = wishbone((Sorter, "sorter"), (Keep, "keep"), feed=messages(1, 2))
    wb.connect(wb.feed.outbox, wb.sorter.side)
    with caplog.at_level(logging.WARNING):
        run(wb)
    assert "nobody is connected to sorter.odd" in caplog.text


# ---------------------------------------------------------------------- stock modules


def test_stdout_prints_data_or_the_whole_message(capsys: pytest.CaptureFixture[str]) -> None:
    wb = wishbone((STDOUT, "out"), feed=messages("a", b"b", {"c": 1}))
    wb.registerModule((STOCK, "STDOUT", "whole"), prefix="> ", complete=True)
    wb.connect(wb.out.outbox, wb.whole.inbox)
    run(wb, delivered=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(">")] == ["a", "b", "{'c': 1}"]
    assert "> {'headers': {}, 'data': 'a'}" in lines


def test_the_udp_server_is_an_io_module_and_a_plain_module_is_not() -> None:
    assert issubclass(UDPServer, IOModule)
    assert issubclass(STDOUT, IOModule)
    assert not issubclass(Keep, IOModule)


@pytest.mark.skipif(sys.platform == "win32", reason="it is stopped by a signal")
def test_the_example_receives_datagrams_and_stops_cleanly_on_a_signal() -> None:
    program = Program("examples/compat/wishbone_udp.py")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0.05)

        def heard(lines: list[str]) -> bool:
            return "> HELLO" in lines

        limit = time.monotonic() + LIMIT_S
        while not heard(program.lines) and time.monotonic() < limit:
            sender.sendto(b"hello\n", ("127.0.0.1", 19283))  # until it listens, nobody hears
            time.sleep(0.02)
    status, errors = program.interrupt()
    assert status == 0, errors
    assert program.lines[-1] == "goodbye"
    assert set(program.lines[:-1]) == {"> HELLO"}
    assert "Traceback" not in errors
