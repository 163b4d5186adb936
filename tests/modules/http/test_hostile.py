"""http.listen and clients that mean harm or know no better: each gets a status or a close, others stay served."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.modules.http.serving import Served, answers, exchange, serving

from furcula import Event

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


def status(raw: bytes) -> int:
    """The status of the first answer; 0: the connection was closed without one."""
    found = STATUS.match(raw)
    assert found or raw == b"", raw[:200]
    return int(found[1]) if found else 0


async def still_served(served: Served) -> None:
    # On a connection of its own: one that rested may be closed just as it is used again, which harms nobody's request
    # that was accepted.
    fresh = {"Connection": "close"}
    assert await served.json("POST", "/", json={"still": "here"}, headers=fresh) == (200, {"still": "here"})


CLOSE = b"Host: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"\x00\x01\x02\x03\r\n\r\n", {400}),
        (b"GET\r\n\r\n", {400}),
        (b"GET / HTTP/9.9\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n" + b"no colon\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded: y\r\nConnection: close\r\n\r\n", {200, 204, 400}),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n" + CLOSE + b"X: a\x00b\r\n\r\n", {400}),
        (b"GET /\xff\xfe HTTP/1.1\r\n" + CLOSE + b"\r\n", {204, 400}),
        (b"GET /%ff%00 HTTP/1.1\r\n" + CLOSE + b"\r\n", {204}),
        (b"G\xcbT / HTTP/1.1\r\n" + CLOSE + b"\r\n", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 405}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: -1\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 1e3\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 99999999999999999999999\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", {400}),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Type: application/json\r\nContent-Length: 3\r\n\r\n{]}", {400}),
        (b"CONNECT x:443 HTTP/1.1\r\n" + CLOSE + b"\r\n", {400, 404, 405}),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n", {204}),
        (b"GET http://other.example/path HTTP/1.1\r\n" + CLOSE + b"\r\n", {204}),
        (b"GET //evil.example/%2e%2e/x HTTP/1.1\r\n" + CLOSE + b"\r\n", {204}),
    ],
)
async def test_a_malformed_request_gets_a_status_and_the_others_stay_served(
    request_: bytes, statuses: set[int]
) -> None:
    async with serving(answers()) as served:
        raw = await served.raw(request_)
        assert status(raw) in statuses, raw
        await still_served(served)


async def test_what_is_smuggled_behind_a_request_is_not_taken_for_another() -> None:
    seen: list[str] = []

    def handle(event: Event) -> Event:
        seen.append(event.headers["path"])
        return event

    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(answers(handle)) as served:
        for head in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
            b"Content-Length: 0\r\nContent-Length: 38\r\n\r\n",
            b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ):
            await served.raw(b"POST /first HTTP/1.1\r\nHost: x\r\n" + head + smuggled, limit_s=1)
        await still_served(served)
    assert "/smuggled" not in seen


async def test_requests_in_a_row_on_one_connection_are_answered_in_their_order() -> None:
    async def handle(event: Event) -> Event:
        await asyncio.sleep(0)
        return Event(event.headers["path"])

    async with serving(answers(handle)) as served:
        first = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % n for n in range(50))
        raw = await served.raw(first + b"GET /last HTTP/1.1\r\n" + CLOSE + b"\r\n")
    found = re.findall(rb"\r\n\r\n(/\d+|/last)", raw)
    assert found == [b"/%d" % n for n in range(50)] + [b"/last"]


# ------------------------------------------------------------------ oversize everything


@pytest.mark.parametrize("cut", [1, 200, 10_000, 1 << 20])
async def test_a_head_beyond_its_limit_is_a_431_however_it_arrives(cut: int) -> None:
    async with serving(answers(max_header="8KB")) as served:
        request = b"GET / HTTP/1.1\r\n" + CLOSE + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 90) for n in range(200))
        request += b"\r\n"
        reader, writer = await asyncio.open_connection(*served.address)
        with contextlib.suppress(ConnectionError):
            for position in range(0, len(request) if cut > 1 else 9000, cut):
                writer.write(request[position : position + cut])
                if cut < 200 and position % 1000 == 0:
                    await writer.drain()
        raw = b""
        with contextlib.suppress(ConnectionError):
            raw = await reader.read()
        writer.close()
        assert status(raw) == 431, raw[:100]
        await still_served(served)


async def test_a_target_beyond_its_limit_is_a_414_and_one_within_it_is_served() -> None:
    async with serving(answers(max_header="8KB")) as served:
        assert status(await served.raw(b"GET /%s HTTP/1.1\r\n%s\r\n" % (b"a" * 9000, CLOSE))) in (414, 431)
        assert status(await served.raw(b"GET /%s HTTP/1.1\r\n%s\r\n" % (b"a" * 7000, CLOSE))) == 204


async def test_eight_megabytes_of_head_are_not_served() -> None:
    async with serving(answers()) as served:
        head = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 8000) for n in range(1000))
        assert status(await served.raw(b"GET / HTTP/1.1\r\n" + CLOSE + head + b"\r\n")) in (431, 0)
        await still_served(served)


async def test_a_body_beyond_its_limit_is_a_413_announced_or_not_and_the_client_can_read_why() -> None:
    async with serving(answers(max_body="100KB")) as served:
        for _ in range(3):
            status_, body = await served.json("POST", "/", data=io.BytesIO(b"x" * 3_000_000))
            assert (status_, body["detail"]) == (413, "the body may have 100000 bytes here")

        async def pieces() -> Any:
            for _ in range(30):
                yield b"x" * 100_000

        assert (await served.json("POST", "/", data=pieces()))[0] == 413
        await still_served(served)


async def test_a_client_that_waits_for_leave_is_refused_before_it_sends() -> None:
    async with serving(answers(max_body="1KB")) as served:
        request = b"POST / HTTP/1.1\r\n" + CLOSE + b"Expect: 100-continue\r\nContent-Length: 5000000\r\n\r\n"
        raw = await served.raw(request)
        assert status(raw) == 413
        request = b"POST / HTTP/1.1\r\n" + CLOSE + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        reader, writer = await asyncio.open_connection(*served.address)
        writer.write(request)
        assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
        writer.write(b"ok")
        assert b" 200 OK" in await reader.read()
        writer.close()


async def test_a_form_beyond_its_limit_is_a_413_and_leaves_no_file(tmp_path: Any) -> None:
    async with serving(answers(max_body="1MB", upload_memory="10KB", upload_folder=str(tmp_path))) as served:
        part = b'--B\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + b"x" * 2_000_000
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        assert (await served.json("POST", "/", data=io.BytesIO(part + b"\r\n--B--\r\n"), headers=headers))[0] == 413

        async def pieces() -> Any:
            yield part[:500_000]
            yield part[500_000:]

        assert (await served.json("POST", "/", data=pieces(), headers=headers))[0] == 413
        reader, writer = await asyncio.open_connection(*served.address)
        writer.write(
            b"POST / HTTP/1.1\r\n%sContent-Type: multipart/form-data; boundary=B\r\nContent-Length: 900000\r\n\r\n%s"
            % (CLOSE, part[:400_000])
        )
        await writer.drain()
        writer.close()  # in the middle
        await still_served(served)
        del reader
        async with asyncio.timeout(10):
            while served.listen.site.active:
                await asyncio.sleep(0.01)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ slow senders


async def test_a_head_that_drips_is_a_408() -> None:
    async with serving(answers(slow="200ms")) as served:
        reader, writer = await asyncio.open_connection(*served.address)
        answer = asyncio.create_task(reader.readline())
        for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 2000:
            writer.write(bytes([byte]))
            await asyncio.wait([answer], timeout=0.01)
            if answer.done():
                break
        assert status(answer.result()) == 408
        writer.close()
        await still_served(served)


async def test_a_body_that_stops_coming_is_a_408_and_a_silent_connection_is_closed() -> None:
    async with serving(answers(slow="200ms")) as served:
        raw = await served.raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this")
        assert status(raw) == 408
        assert status(await served.raw(b"")) in (0, 408)
        await still_served(served)
    assert served.statistics.admitted == 1


async def test_an_idle_connection_is_closed_after_its_time_and_not_before() -> None:
    async with serving(answers(keep_alive="300ms", slow="100ms")) as served:
        reader, writer = await asyncio.open_connection(*served.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_slow_flow_does_not_make_a_slow_client() -> None:
    async def slow(event: Event) -> Event:
        await asyncio.sleep(1.2)
        return event

    async with serving(answers(slow, slow="100ms")) as served:
        assert await served.json("POST", "/", json=1) == (200, 1)


# ------------------------------------------------------------------ generated


_METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"get", b"", b"G T", b"\xff", b"DELETE"])
_TARGETS = st.one_of(
    st.sampled_from([b"/", b"*", b"", b"//", b"/%", b"/%zz", b"http://", b"/?a=%ff", b"/#x", b"/;a", b"../.."]),
    st.binary(max_size=40),
)
_VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2", b"http/1.1", b"", b"HTTP/1.1 x"])
_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])
_FIELDS = st.one_of(
    st.sampled_from(
        [
            b"Host: x",
            b"Host: x",
            b"Host: y",
            b"Content-Length: 5",
            b"Content-Length: 0",
            b"Content-Length: +5",
            b"Content-Length: 5, 5",
            b"Content-Length: 0x5",
            b"Content-Length : 5",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: Chunked",
            b"Transfer-Encoding: chunked, chunked",
            b"Transfer-Encoding:\tchunked",
            b"Transfer-Encoding: identity",
            b"TE: trailers",
            b"Expect: 100-continue",
            b"Expect: nonsense",
            b"Connection: close",
            b"Connection: keep-alive, upgrade",
            b"Upgrade: websocket",
            b"Sec-WebSocket-Key: x",
            b"Content-Type: application/json",
            b"Content-Type: application/x-www-form-urlencoded",
            b"Content-Type: multipart/form-data; boundary=--",
            b"Content-Type: multipart/form-data",
            b"Content-Type: text/plain; charset=nonsense",
            b"Content-Type: ;;;",
            b"Content-Encoding: gzip",
            b"Accept: */*;q=x",
            b"Accept: ,,;;",
            b"Accept-Encoding: gzip;q=1",
            b"Cookie: =;;a=b;;",
            b"Range: bytes=0-",
            b"X-Request-ID: " + b"a" * 300,
            b"Traceparent: 00-0-0-00",
            b"Origin: null",
            b": no name",
            b" folded",
        ]
    ),
    st.binary(max_size=30),
)
_CHUNKS = st.sampled_from(
    [b"5\r\nhello\r\n", b"0\r\n\r\n", b"5;ext=1\r\nhello\r\n", b"-1\r\n", b"g\r\n", b"5\r\nhel", b"fffffffff\r\n"]
)
_BODIES = st.one_of(
    st.sampled_from([b"", b"hello", b"{}", b"----\r\n", b"a=b&c"]),
    st.lists(_CHUNKS, max_size=4).map(b"".join),
    st.binary(max_size=60),
)


@st.composite
def bad_requests(draw: st.DrawFn) -> bytes:
    end = draw(_ENDS)
    line = b" ".join((draw(_METHODS), draw(_TARGETS), draw(_VERSIONS)))
    fields = draw(st.lists(_FIELDS, max_size=6))
    return line + end + b"".join(field + end for field in fields) + end + draw(_BODIES)


def test_whatever_is_sent_gets_a_status_or_a_close_and_others_stay_served() -> None:
    """Hundreds of generated requests against one server, whose flow settles every one that enters it."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with serving(answers(slow="300ms", keep_alive="300ms", timeout="2s", max_body="1KB")) as served:
            tries = 0

            async def attack(request: bytes, half_close: bool) -> None:
                raw = await exchange(served.address, request, limit_s=5, half_close=half_close)
                # Every answer begins with a status line of ours, and none of them says that something broke.
                first = status(raw)
                assert first < 500 or first in (501, 503, 504), (request, raw)

            @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(st.lists(bad_requests(), min_size=1, max_size=6), st.booleans())
            def attacks(requests: list[bytes], half_close: bool) -> None:
                nonlocal tries
                tries += len(requests)

                async def at_once() -> None:
                    await asyncio.gather(*(attack(request, half_close) for request in requests))
                    await still_served(served)

                asyncio.run_coroutine_threadsafe(at_once(), loop).result(60)

            await asyncio.to_thread(attacks)
            assert tries > 150
            assert served.listen.site.active == 0 or await _quiet(served)

    asyncio.run(work())


async def _quiet(served: Served) -> bool:
    async with asyncio.timeout(10):
        while served.listen.site.active:
            await asyncio.sleep(0.01)
    return True


def test_pythons_own_client_with_malformed_requests_is_answered() -> None:
    """`http.client` reads the answers as strictly as a client of the wild would."""

    async def work() -> None:
        async with serving(answers()) as served:

            def client() -> list[int]:
                found = []
                for line, value in (
                    ("Content-Length", "abc"),
                    ("Transfer-Encoding", "bogus"),
                    ("Host", "a b\tc"),
                    ("X", "\x7f"),
                ):
                    connection = http.client.HTTPConnection(*served.address, timeout=10)
                    connection.putrequest("POST", "/", skip_host=line == "Host")
                    connection._buffer.append(f"{line}: {value}".encode("latin-1"))  # type: ignore[attr-defined]
                    connection.endheaders()
                    found.append(connection.getresponse().status)
                    connection.close()
                return found

            assert set(await asyncio.to_thread(client)) <= {204, 400}
            await still_served(served)

    asyncio.run(work())


# ------------------------------------------------------------------ several requests on one connection


async def talk(served: Served, *pieces: bytes, limit_s: float = 10) -> bytes:
    """Send pieces, and read until the connection is closed."""
    reader, writer = await asyncio.open_connection(*served.address)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(limit_s):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_trailers_are_no_header_fields_and_are_limited_like_them() -> None:
    seen: list[dict[str, str]] = []

    def handle(event: Event) -> Event:
        seen.append(event.headers["request"])
        return event

    chunked = b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"
    async with serving(answers(handle, max_header="8KB")) as served:
        assert status(await talk(served, chunked + b"X-Admin: yes\r\nCookie: a=b\r\n\r\n")) == 200
        flood = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 100) for n in range(200))
        assert status(await served.raw(chunked + flood + b"\r\n")) in (431, 0)
    assert "x-admin" not in seen[0]
    assert "cookie" not in seen[0]


async def test_a_slow_request_behind_a_whole_one_is_timed_too() -> None:
    async with serving(answers(slow="200ms")) as served:
        whole = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for slow in (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b"GET / HTTP/1.1\r\nHo"):
            raw = await talk(served, whole + slow)
            assert STATUS.findall(raw) == [b"204", b"408"]


async def test_a_broken_request_behind_others_does_not_take_their_answers() -> None:
    go_on = asyncio.Event()

    async def slow(event: Event) -> Event:
        await go_on.wait()
        return Event(event.headers["path"])

    broken = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    two = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(answers(slow)) as served:
        talking = asyncio.create_task(talk(served, two, broken))
        while served.director.statistics().admitted < 1:
            await asyncio.sleep(0)
        go_on.set()
        raw = await talking
        assert STATUS.findall(raw) == [b"200", b"200"]
        assert raw.endswith(b"/b")


async def test_of_requests_in_a_row_those_of_a_client_that_left_are_cancelled() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def stuck(event: Event) -> Event:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return event

    async with serving(answers(stuck)) as served:
        _, writer = await asyncio.open_connection(*served.address)
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n")
        await started.wait()
        writer.close()
        async with asyncio.timeout(10):
            await cancelled.wait()


async def test_a_client_that_says_close_can_read_why_its_body_was_refused() -> None:
    async with serving(answers(max_body="1KB")) as served:
        head = b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 3000000\r\n\r\n"
        for _ in range(3):
            assert status(await served.raw(head + b"x" * 3_000_000)) == 413


async def test_a_refused_client_that_waits_for_leave_has_its_connection_closed() -> None:
    """Whether a body or the next request comes, nobody could tell."""
    async with serving(answers(routes=["GET /"])) as served:
        request = b"POST /nope HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 40\r\n\r\n"
        raw = await talk(served, request)
        assert status(raw) == 404
        assert b"connection: close" in raw


async def test_an_upgrade_to_what_we_do_not_speak_is_answered_and_closed() -> None:
    async with serving(answers()) as served:
        raw = await talk(
            served, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        )
        assert STATUS.findall(raw) == [b"204"]
        assert b"connection: close" in raw


async def test_a_websocket_behind_an_unanswered_request_is_not_opened() -> None:
    async def slow(event: Event) -> Event:
        await asyncio.sleep(0.05)
        return Event("slow")

    upgrade = (
        b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    async with serving(answers(slow, routes=["GET /", "WS /ws"])) as served:
        raw = await talk(served, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + upgrade)
        assert STATUS.findall(raw) == [b"200"]


async def test_a_client_that_does_not_read_its_answer_is_given_up() -> None:
    async with serving(answers(lambda event: Event("x" * 20_000_000), slow="200ms", gzip=0)) as served:
        _, writer = await asyncio.open_connection(*served.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connections = served.listen._server.state.connections
        async with asyncio.timeout(20):
            while served.director.statistics().delivered < 1 or connections:
                await asyncio.sleep(0.01)
        writer.close()


async def test_a_target_without_a_path_stands_for_the_root() -> None:
    async with serving(answers(lambda event: Event(event.headers["path"]))) as served:
        assert (await talk(served, b"GET http://x HTTP/1.1\r\n" + CLOSE + b"\r\n")).endswith(b"/")
