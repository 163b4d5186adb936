"""syslog.listen: what messages say, how they are told apart on a stream, and both sockets."""

from __future__ import annotations

import asyncio
import datetime
import logging
import logging.handlers
import shutil
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furcula.codecs import BadFrame
from furcula.errors import FurculaError, InputError
from furcula.modules.syslog import SyslogFramer, SyslogListen
from furcula.modules.syslog_message import FACILITIES, SEVERITIES, parse

from .conftest import turns, until

TODAY = datetime.date(2026, 3, 1)
NOTHING = {
    "facility": "user", "severity": "notice", "priority": 13, "timestamp": None, "host": None, "app": None,
    "pid": None, "msgid": None, "structured": {}, "message": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            '<34>1 2003-10-11T22:14:15.003Z host.example.com su - ID47 - \ufeff"su root" failed',
            {
                "facility": "auth", "severity": "crit", "priority": 34, "timestamp": "2003-10-11T22:14:15.003Z",
                "host": "host.example.com", "app": "su", "msgid": "ID47", "message": '"su root" failed',
            },
        ),
        (
            '<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It\'s time',
            {
                "facility": "local4", "priority": 165, "timestamp": "2003-08-24T05:14:15.000003-07:00",
                "host": "192.0.2.1", "app": "myproc", "pid": "8710", "message": "%% It's time",
            },
        ),
        (
            '<13>1 - - - - - [a@1 x="1" y="q\\"b\\\\s\\]e\\n"][b] text [c]',
            {"structured": {"a@1": {"x": "1", "y": 'q"b\\s]e\\n'}, "b": {}}, "message": "text [c]"},
        ),
        ('<13>1 - - - - - [o ip="1" ip="2" ip="3"]', {"structured": {"o": {"ip": ["1", "2", "3"]}}}),
        ("<13>1 - - - - - -", {}),
        ("<13>1 - - - - - - ", {}),
        ("<13>1 file copied", {"message": "1 file copied"}),
        (
            "<13>Feb 28 22:14:15 mymachine su: 'su root' failed",
            {"timestamp": "2026-02-28T22:14:15", "host": "mymachine", "app": "su", "message": "'su root' failed"},
        ),
        (
            "<13>Feb  1 02:04:05.25 web-1 nginx[4711]: GET / [200]: fine",
            {
                "timestamp": "2026-02-01T02:04:05.250000", "host": "web-1", "app": "nginx", "pid": "4711",
                "message": "GET / [200]: fine",
            },
        ),
        (
            "<13>Dec 31 23:59:59 h app: last year",
            {"timestamp": "2025-12-31T23:59:59", "host": "h", "app": "app", "message": "last year"},
        ),
        (
            "<13>Mar  2 2020 10:00:00 h app: with a year",
            {"timestamp": "2020-03-02T10:00:00", "host": "h", "app": "app", "message": "with a year"},
        ),
        (
            "<13>Feb 28 22:14:15 cron[7]: without a host",
            {"timestamp": "2026-02-28T22:14:15", "app": "cron", "pid": "7", "message": "without a host"},
        ),
        (
            "<13>2026-02-28T22:14:15.123456+01:00 h app[1]: rsyslog",
            {
                "timestamp": "2026-02-28T22:14:15.123456+01:00", "host": "h", "app": "app", "pid": "1",
                "message": "rsyslog",
            },
        ),
        (
            "<13>Feb 28 22:14:15 fe80::1 no tag here",
            {"timestamp": "2026-02-28T22:14:15", "host": "fe80::1", "message": "no tag here"},
        ),
        ("<13>Feb 30 22:14:15 h app: no such day", {"message": "Feb 30 22:14:15 h app: no such day"}),
        ("<13>just a text\x00", {"message": "just a text"}),
        ("<13>app[3]: without a time", {"app": "app", "pid": "3", "message": "without a time"}),
        ("<13>http://example.org: a word is no tag", {"message": "http://example.org: a word is no tag"}),
        ("<13>grüße\r\n", {"message": "grüße"}),
        ("<13>two\nlines", {"message": "two\nlines"}),
        ("<13>", {}),
        ("<0>x", {"facility": "kern", "severity": "emerg", "priority": 0, "message": "x"}),
        ("<191>x", {"facility": "local7", "severity": "debug", "priority": 191, "message": "x"}),
    ],
)  # fmt: skip
def test_what_a_message_says(raw: str, said: dict[str, Any]) -> None:
    assert parse(raw.encode(), TODAY) == NOTHING | said


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no priority"),
        (b"hello", "no priority"),
        (b"<>x", "no priority"),
        (b"<1234>x", "no priority"),
        (b"<013>x", "no priority"),
        (b"<192>x", "above <191>"),
        (b"<13>\xff", "byte 4 is not UTF-8"),
        (b'<13>1 - - - - - [a x="1] text', "structured data is malformed"),
        (b"<13>1 - - - - - [a", "structured data is malformed"),
        (b"<13>1 - - - - - [a]text", "structured data is malformed"),
        (b"<13>1 2003-13-11T22:14:15Z - - - - - x", "is no date"),
    ],
)
def test_what_is_no_message_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse(raw)


fragments = st.sampled_from(
    ("<13>", "<", ">", "1 ", "- ", "-", "[", "]", '"', "\\", "=", ":", "a", "x=", 'x="1"', " ", "\0", "\ufeff",
     "2003-10-11T22:14:15Z ", "Feb 29 22:14:15 ", "Oct 11 22:14:15 ", "h ", "app[1]: ", "ü", "\ud800", "\n")
)  # fmt: skip


@given(
    st.binary(max_size=100)
    | st.lists(fragments, max_size=20).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
    | st.lists(fragments, max_size=20).map(lambda parts: ("<13>" + "".join(parts)).encode("utf-8", "surrogatepass"))
)
def test_whatever_comes_is_a_complete_dict_or_an_input_error(raw: bytes) -> None:
    try:
        data = parse(raw)
    except InputError:
        return
    assert data.keys() == NOTHING.keys()
    assert data["facility"] in FACILITIES
    assert data["severity"] in SEVERITIES
    assert isinstance(data["message"], str)
    if data["timestamp"] is not None:
        datetime.datetime.fromisoformat(data["timestamp"])


def test_a_message_made_to_be_slow_is_not_slow() -> None:
    for raw in (
        b"<13>1 - - - - - [a" + b" " * 60_000,
        b"<13>1 - - - - - [a" + b' x="' * 15_000,
        b"<13>" + b"[" * 60_000,
    ):
        try:
            parse(raw)
        except InputError:
            pass


# ------------------------------------------------------------------ framing


def framed(chunks: list[bytes], most: int = 1000) -> list[Any]:
    framer = SyslogFramer(most)
    return [frame for chunk in chunks for frame in framer.feed(chunk)] + framer.end()


STREAM = b"9 <13>a\nb c<13>line\n6 <13>xy\n<13>crlf\r\n\r\n<14>python\x00<15>last"
FRAMES = [b"<13>a\nb c", b"<13>line", b"<13>xy", b"<13>crlf\r", b"<14>python", b"<15>last"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_counted_and_ended_messages_may_be_mixed_however_the_stream_is_cut(places: list[int]) -> None:
    marks = [0, *sorted(places), len(STREAM)]
    assert framed([STREAM[a:b] for a, b in zip(marks, marks[1:], strict=False)]) == FRAMES  # noqa: RUF007


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_no_bytes_break_the_framing(raw: bytes, places: list[int]) -> None:
    marks = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    framed([raw[a:b] for a, b in zip(marks, marks[1:], strict=False)], 10)  # noqa: RUF007


def test_a_message_above_the_limit_is_reported_once_and_the_next_one_is_read() -> None:
    for raw in (b"5000 <13>" + b"x" * 4996, b"<13>" + b"x" * 4996 + b"\n"):
        chunks = [raw[at : at + 100] for at in range(0, len(raw), 100)]
        found = framed([*chunks, b"<13>next\n"])
        assert [type(frame) for frame in found] == [BadFrame, bytes]
        assert found[1] == b"<13>next"
        assert found[0].reason.startswith("longer than 1000 bytes")


def test_a_line_that_begins_with_a_number_is_not_taken_for_a_length() -> None:
    assert framed([b"5 apples\n<13>x\n"]) == [b"5 apples", b"<13>x"]


def test_a_stream_that_ends_inside_a_message_says_so() -> None:
    (found,) = framed([b"20 <13>abc"])
    assert found == BadFrame("the stream ended inside a message: 7 of 20 bytes", b"20 <13>abc")


# ------------------------------------------------------------------ listening


async def listening(bench: Any, **arguments: Any) -> tuple[SyslogListen, list[tuple[str, int]]]:
    listen = SyslogListen(**arguments)
    await listen.start(bench)
    return listen, listen.addresses


async def test_it_listens_on_udp_and_tcp_on_loopback_and_says_where(bench: Any) -> None:
    listen, (udp, tcp) = await listening(bench, udp=0, tcp="127.0.0.1:0")
    assert udp[0] == tcp[0] == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"<13>over udp", udp)
        peer = sender.getsockname()[1]
    await bench.until(1)
    with socket.create_connection(tcp) as connection:
        connection.sendall(b"<13>over tcp\n13 <13>and again\xff")
    data = await bench.until(3)
    assert [one["message"] for one in data[:2]] == ["over udp", "over tcp"]
    assert bench.admitted["outbox"][0].headers["peer"].startswith("127.0.0.1:")
    assert peer
    await listen.cease()
    await listen.stop()


async def test_what_is_no_message_leaves_by_invalid_with_its_reason_and_peer(bench: Any) -> None:
    listen, (udp, tcp) = await listening(bench, udp=0, tcp=0, max_message=20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        sender.sendto(b"nothing \xff", udp)
        sender.sendto(b"<13>" + b"x" * 50, udp)
        await bench.until(2, "invalid")
        first, second = bench.admitted["invalid"]
        assert first.data == "nothing \\xff"
        assert first.headers == {"reason": "byte 8 is not UTF-8", "peer": f"127.0.0.1:{sender.getsockname()[1]}"}
        assert second.headers["reason"] == "longer than 20 bytes"
    with socket.create_connection(tcp) as connection:
        connection.sendall(b"no priority\n<13>good\n")
    await bench.until(3, "invalid")
    assert [data["message"] for data in await bench.until(1)] == ["good"]
    await listen.stop()


@pytest.mark.parametrize("kind", ["udp", "tcp"])
async def test_python_s_own_syslog_handler_is_understood(bench: Any, kind: str) -> None:
    listen, (address,) = await listening(bench, **{kind: 0})
    loop = asyncio.get_running_loop()

    def say() -> None:
        sort = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
        handler = logging.handlers.SysLogHandler(tuple(address), facility="local1", socktype=sort)
        try:
            for text in ("it broke", "again"):
                handler.emit(logging.LogRecord("x", logging.ERROR, "f", 1, text, None, None))
        finally:
            handler.close()

    await loop.run_in_executor(None, say)
    data = await bench.until(2)
    assert [(one["message"], one["facility"], one["severity"]) for one in data] == [
        ("it broke", "local1", "err"),
        ("again", "local1", "err"),
    ]
    await listen.stop()


@pytest.mark.skipif(shutil.which("logger") is None, reason="needs the program `logger` (util-linux)")
@pytest.mark.parametrize("form", ["--rfc3164", "--rfc5424"])
@pytest.mark.parametrize("kind", ["udp", "tcp"])
async def test_the_logger_program_is_understood(bench: Any, kind: str, form: str) -> None:
    listen, ((host, port),) = await listening(bench, **{kind: 0})
    command = [
        "logger",
        f"--{kind}",
        "-n",
        host,
        "-P",
        str(port),
        form,
        "-t",
        "shop",
        "-p",
        "local0.warning",
        "hello you",
    ]
    process = await asyncio.create_subprocess_exec(*command)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    (data,) = await bench.until(1)
    assert (data["app"], data["facility"], data["severity"], data["message"]) == (
        "shop", "local0", "warning", "hello you",
    )  # fmt: skip
    assert data["host"]
    assert data["timestamp"]
    if form == "--rfc5424":
        assert "timeQuality" in data["structured"]
    await listen.stop()


async def test_a_port_in_use_is_named_with_the_next_step(bench: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FurculaError, match=rf"bench cannot listen on 127\.0\.0\.1:{port}: it is in use; .*another"):
            await SyslogListen(udp=0, tcp=port).start(bench)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(FurculaError, match="it is in use"):
            await SyslogListen(udp=other.getsockname()[1]).start(bench)


def test_an_address_is_needed_and_must_be_one() -> None:
    with pytest.raises(ValueError, match="udp, tcp, or both"):
        SyslogListen()
    with pytest.raises(ValueError, match="has no host"):
        SyslogListen(udp=":514")


async def test_udp_keeps_what_comes_while_the_flow_has_no_room_and_drops_beyond_that(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listen, (udp,) = await listening(bench, udp=0)
    listener: Any = listen._listeners[0]
    listener._most = 5
    bench.room.clear()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"<13>0", udp)
        await bench.until(1)
        for number in range(1, 9):
            sender.sendto(b"<13>%d" % number, udp)
        await until(lambda: listen.dropped == 3)
    assert len(bench.datas()) == 1
    assert "the flow has no room: " in caplog.text
    bench.room.set()
    data = await bench.until(6)
    assert [one["message"] for one in data] == ["0", "1", "2", "3", "4", "5"]
    await listen.stop()


async def test_what_had_arrived_when_the_flow_ceases_is_admitted_and_nothing_after(bench: Any) -> None:
    listen, (udp, tcp) = await listening(bench, udp=0, tcp=0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, socket.create_connection(tcp) as connection:
        await turns()
        for number in range(500):
            sender.sendto(b"<13>%d" % number, udp)
        await listen.cease()
        assert len(bench.datas()) == 500
        sender.sendto(b"<13>late", udp)
        connection.sendall(b"<13>late\n")
        await turns(20)
        assert len(bench.datas()) == 500
        with pytest.raises(OSError):
            socket.create_connection(tcp, timeout=1)
        await listen.stop()
        await listen.stop()


async def test_a_flow_that_has_stopped_makes_the_listener_count_what_it_drops(bench: Any) -> None:
    listen, (udp, tcp) = await listening(bench, udp=0, tcp=0)
    bench.stopped = True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, socket.create_connection(tcp) as connection:
        sender.sendto(b"<13>x", udp)
        connection.sendall(b"<13>x\n")
        await until(lambda: listen.dropped == 2)
    await listen.stop()
