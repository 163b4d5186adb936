"""http.poll: what is new at a URL becomes events, once; what failed comes again."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from tests.modules.conftest import LIMIT_S, Bench, turns, until

from furcula import Director, Event, Flow, Secret
from furcula.module import bind_arguments
from furcula.modules.http.client import Answer, Auth
from furcula.modules.http.poll import Poll
from furcula.modules.http.upstream import UpstreamUnavailable
from furcula.options import Duration

from .upstreams import Upstream, always, serving


def poll(url: str, **arguments: Any) -> Poll:
    values, problems = bind_arguments(Poll, {"url": url, "every": "5ms", **arguments})  # as a flow does it
    assert problems == []
    return Poll(**values)


@asynccontextmanager
async def polling(bench: Bench, url: str, **arguments: Any) -> AsyncIterator[Poll]:
    module = poll(url, **arguments)
    await module.start(bench)
    try:
        yield module
    finally:
        module.cease()
        await module.stop()
        await bench.until_ended()


def telling(*versions: Any, tag: bool = True, date: bool = False) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A server that has one version after the other, and says 304 to who has the one it has now.

    It goes on to the next version when the one before was fetched.
    """
    given = 0

    async def handle(request: web.Request) -> web.Response:
        nonlocal given
        current = str(max(given, 1))
        if request.headers.get("if-none-match") == f'"{current}"' and given == len(versions):
            return web.Response(status=304)
        if request.headers.get("if-modified-since") == current and given == len(versions):
            return web.Response(status=304)
        given = min(given + 1, len(versions))
        headers = {}
        if tag:
            headers["etag"] = f'"{given}"'
        if date:
            headers["last-modified"] = str(given)
        return web.json_response(versions[given - 1], headers=headers)

    return handle


async def asked_more(server: Upstream, count: int = 3) -> None:
    """Wait until the server was asked so often from now on."""
    wanted = len(server.asked) + count
    await until(lambda: len(server.asked) >= wanted)


# ------------------------------------------------------------------ what is new


async def test_an_answer_becomes_an_event_and_the_same_version_is_not_admitted_again(bench: Bench) -> None:
    async with serving(telling({"n": 1}, {"n": 2})) as server, polling(bench, server.url + "/feed?a=b"):
        assert await bench.until(2) == [{"n": 1}, {"n": 2}]
        bench.settle(2)
        await asked_more(server)
        assert bench.datas() == [{"n": 1}, {"n": 2}]
    event = bench.admitted["outbox"][0]
    assert (event.headers["url"], event.headers["http_status"]) == (server.url + "/feed?a=b", 200)
    assert event.headers["http_headers"]["etag"] == '"1"'
    assert [request.headers.get("if-none-match") for request in server.asked[:3]] == [None, '"1"', '"2"']
    assert {(request.method, request.path) for request in server.asked} == {("GET", "/feed?a=b")}


async def test_a_date_will_do_where_there_is_no_tag(bench: Bench) -> None:
    async with serving(telling(1, tag=False, date=True)) as server, polling(bench, server.url):
        await bench.until(1)
        await asked_more(server)
    assert bench.datas() == [1]
    assert server.asked[-1].headers["if-modified-since"] == "1"


async def test_a_server_that_says_neither_gives_an_event_each_time(bench: Bench) -> None:
    async with serving(telling(1, tag=False)) as server, polling(bench, server.url):
        assert await bench.until(3) == [1, 1, 1]


async def test_while_events_are_open_the_same_version_is_not_admitted_again(bench: Bench) -> None:
    async with serving(telling(1)) as server, polling(bench, server.url):
        await bench.until(1)
        await asked_more(server)
        assert bench.datas() == [1]
        assert len(bench.slots) == 1


@pytest.mark.parametrize("fate", ["delivered", "dropped"])
async def test_what_was_delivered_or_dropped_does_not_come_again(bench: Bench, fate: str) -> None:
    async with serving(telling(1)) as server, polling(bench, server.url):
        await bench.until(1)
        bench.settle(1, fate)
        await asked_more(server)
    assert bench.datas() == [1]


async def test_what_failed_comes_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(telling([1, 2, 3])) as server, polling(bench, server.url, split=True) as module:
        await bench.until(3)
        bench.settle(1)
        bench.settle(1, "failed", "ValueError")
        assert await bench.until(6) == [1, 2, 3, 1, 2, 3]
        bench.settle(4)
        await asked_more(server)
        assert len(bench.datas()) == 6
        assert module.refused == 1
    assert any(request.headers.get("if-none-match") is None for request in server.asked[1:])
    assert f"an event of {server.url} failed: ValueError" in caplog.text


async def test_a_list_is_split_into_events_that_share_nothing(bench: Bench) -> None:
    async with serving(telling([{"n": 1}, None, 3])) as server, polling(bench, server.url, split=True):
        assert await bench.until(3) == [{"n": 1}, None, 3]
    first, second, _ = bench.admitted["outbox"]
    first.headers["http_headers"]["x"] = "1"
    assert "x" not in second.headers["http_headers"]


async def test_an_empty_list_or_body_makes_no_event(bench: Bench) -> None:
    async with serving(telling([])) as server, polling(bench, server.url, split=True):
        await asked_more(server)
    async with serving(always(204)) as server, polling(Bench(bench.folder), server.url):
        await asked_more(server)
    async with serving(always(200, b"")) as server, polling(other := Bench(bench.folder), server.url):
        await asked_more(server)
    assert bench.admitted == other.admitted == {}


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"nonsense", "not JSON"), (b'{"a": 1}', "expected a list to split, not dict"), (b"\xff", "not JSON")],
)
async def test_what_cannot_be_read_leaves_by_invalid_with_its_reason(bench: Bench, body: bytes, reason: str) -> None:
    handler = always(200, body, content_type="application/json", etag='"1"')
    async with serving(handler) as server, polling(bench, server.url, split=True):
        await bench.until(1, "invalid")
    event = bench.admitted["invalid"][0]
    assert reason in event.headers["reason"]
    assert event.headers["url"] == server.url
    assert "outbox" not in bench.admitted


async def test_header_fields_and_who_we_are_go_along(bench: Bench) -> None:
    async with (
        serving(telling(1)) as server,
        polling(bench, server.url, headers={"Accept": "application/json"}, auth={"bearer": "s3cret"}),
    ):
        await bench.until(1)
    assert server.asked[0].headers["authorization"] == "Bearer s3cret"
    assert server.asked[0].headers["accept"] == "application/json"


# ------------------------------------------------------------------ errors


async def test_errors_are_logged_once_and_counted_until_the_server_answers_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    statuses = iter([503, 404, 500, 200, 503, 200])

    async def handle(request: web.Request) -> web.Response:
        status = next(statuses, 200)
        return web.json_response(status, status=status)

    async with serving(handle) as server, polling(bench, server.url + "/x?token=s3cret", max_backoff="10ms") as module:
        await bench.until(3)
        assert module.errors == 4
    lines = [record.getMessage() for record in caplog.records if record.name == "furcula.module.bench"]
    assert lines == [
        f"GET {server.url}/x was answered 503 Service Unavailable: 503; asking again, less and less often",
        f"{server.url}/x answers again, after 3 errors",
        f"GET {server.url}/x was answered 503 Service Unavailable: 503; asking again, less and less often",
        f"{server.url}/x answers again, after 1 error",
    ]
    assert "s3cret" not in caplog.text


async def test_a_server_that_is_not_there_yet_is_waited_for(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with polling(bench, f"http://127.0.0.1:{port}/", max_backoff="10ms") as module:
            await until(lambda: module.errors >= 3)
            runner = web.AppRunner(application(telling(1)), shutdown_timeout=0.1)
            await runner.setup()
            taken.close()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            assert await bench.until(1) == [1]
    await runner.cleanup()


def application(handler: Any) -> web.Application:
    made = web.Application()
    made.router.add_get("/", handler)
    return made


async def test_a_304_that_nobody_asked_for_is_an_error(bench: Bench) -> None:
    async with serving(always(304, None)) as server, polling(bench, server.url) as module:
        await until(lambda: module.errors >= 1)
    assert bench.admitted == {}


async def test_an_answer_that_is_too_long_is_an_error(bench: Bench) -> None:
    async with serving(telling("x" * 1000)) as server, polling(bench, server.url, max_response=500) as module:
        await until(lambda: module.errors >= 1)
    assert bench.admitted == {}


# ------------------------------------------------------------------ when it asks, by a clock that is moved


class Script:
    """In the place of the client: answers by a script, and notes when it was asked."""

    def __init__(self, *answers: Any, takes_s: float = 0.0):
        self.answers = list(answers)
        self.times: list[float] = []
        self.takes_s = takes_s
        self.wanted = 0
        self.enough = asyncio.Event()

    async def open(self, context: Any) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, method: str, url: str, headers: Any) -> Answer:
        self.times.append(round(asyncio.get_running_loop().time(), 3))
        if len(self.times) == self.wanted:
            self.enough.set()
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        answer = self.answers.pop(0) if self.answers else 1
        if isinstance(answer, Exception):
            raise answer
        return Answer("GET /", 200, "OK", {"content-type": "application/json"}, json.dumps(answer).encode())


async def times(moved: Bench, script: Script, count: int, **arguments: Any) -> list[float]:
    """When the first `count` requests were sent."""
    module = poll("http://127.0.0.1/", **arguments)
    module._client = script  # type: ignore[assignment]
    script.wanted = count
    await module.start(moved)
    async with asyncio.timeout(1_000_000):
        await script.enough.wait()
    module.cease()
    await module.stop()
    return script.times[:count]


def down(retry_after_s: float | None = None) -> UpstreamUnavailable:
    return UpstreamUnavailable("down", retry_after_s=retry_after_s)


async def test_the_first_request_is_sent_at_once_and_the_others_at_even_intervals(moved: Bench) -> None:
    assert await times(moved, Script(), 4, every="10s") == [0, 10, 20, 30]


async def test_intervals_are_counted_from_request_to_request(moved: Bench) -> None:
    assert await times(moved, Script(takes_s=4), 3, every="10s") == [0, 10, 20]


async def test_a_server_that_takes_longer_than_the_interval_is_asked_one_at_a_time(moved: Bench) -> None:
    assert await times(moved, Script(takes_s=25), 3, every="10s") == [0, 25, 50]


async def test_waits_grow_twofold_with_each_error_up_to_a_limit_and_shrink_at_once(moved: Bench) -> None:
    script = Script(*[down()] * 5, 1, down())
    assert await times(moved, script, 8, every="10s", max_backoff="1m") == [0, 20, 60, 120, 180, 240, 250, 270]


async def test_a_server_may_ask_for_a_longer_wait_within_the_limit(moved: Bench) -> None:
    script = Script(down(45), down(1), down(100_000))
    assert await times(moved, script, 4, every="10s", max_backoff="2m") == [0, 45, 85, 205]


async def test_an_interval_longer_than_the_limit_stays_what_it_is(moved: Bench) -> None:
    assert await times(moved, Script(down(), down()), 3, every="1h") == [0, 3600, 7200]


def test_a_server_that_is_down_for_years_does_not_break_the_arithmetic() -> None:
    module = poll("http://127.0.0.1/", every="10s")
    assert module._backoff_s(10_000_000, None) == 300


# ------------------------------------------------------------------ room, stopping


async def test_a_flow_that_has_no_room_is_waited_for(bench: Bench) -> None:
    bench.room.clear()
    async with serving(telling(1, tag=False)) as server, polling(bench, server.url):
        await bench.until(1)
        await turns(50)
        assert (len(server.asked), bench.datas()) == (1, [1])
        bench.room.set()
        assert await bench.until(3) == [1, 1, 1]


async def test_a_long_list_is_admitted_piece_by_piece_as_there_is_room(bench: Bench) -> None:
    bench.room.clear()
    async with serving(telling(list(range(1000)))) as server, polling(bench, server.url, split=True):
        assert len(await bench.until(1)) == 256
        bench.room.set()
        assert await bench.until(1000) == list(range(1000))


async def test_a_request_that_is_under_way_is_given_up_when_the_flow_stops(bench: Bench) -> None:
    gone = asyncio.Event()
    forever = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        try:
            await forever.wait()
        finally:
            gone.set()
        return web.Response()

    async with serving(slow) as server:
        module = poll(server.url)
        await module.start(bench)
        await until(lambda: bool(server.asked))
        module.cease()
        await bench.until_ended()
        await module.stop()
        forever.set()
    assert bench.admitted == {}


async def test_a_flow_that_admits_no_more_ends_it(bench: Bench) -> None:
    bench.stopped = True
    async with serving(telling(1)) as server, polling(bench, server.url):
        await bench.until_ended()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "example.org"}, "write http://host/path"),
        ({"url": "http://a:s3cret@example.org/"}, "under auth"),
        ({"every": Duration(0)}, "every must be more than 0"),
        ({"headers": {"a": "b\nc"}}, "line break"),
        ({"headers": {"If-None-Match": "x"}}, "written by the module itself"),
        ({"headers": {"authorization": "x"}, "auth": Auth(bearer=Secret("s3cret"))}, "written by auth"),
        ({"timeout": Duration(0)}, "more than 0"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Poll(**{"url": "http://127.0.0.1/", **arguments})
    assert "s3cret" not in str(caught.value)


# ------------------------------------------------------------------ in a flow


async def test_in_a_flow_what_a_module_failed_on_is_asked_for_again_until_it_succeeds() -> None:
    tries: list[int] = []
    async with serving(telling([1, 2])) as server:
        flow = Flow("feed")

        @flow.module
        def store(event: Event) -> None:
            tries.append(event.data)
            if event.data == 2 and tries.count(2) < 3:
                raise ValueError("not yet")

        flow.use("http.poll", "feed", url=server.url, every="5ms", split=True) >> store
        async with Director(flow) as director, asyncio.timeout(LIMIT_S):
            await until(lambda: tries.count(2) == 3)
            await asked_more(server)
        assert tries == [1, 2] * 3
    statistics = director.statistics()
    assert statistics.balanced
    assert (statistics.delivered, statistics.failed) == (4, 2)
