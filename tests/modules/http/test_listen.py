"""http.listen: what a request becomes, and what becomes the answer."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.modules.http.serving import answers, serving

from furcula import ConfigurationError, Event, Flow, Retry
from furcula.errors import StartFailed
from furcula.statuses import Conflict, HttpError, NotFound, NotModified, Unauthorized, UnprocessableContent


async def test_a_request_is_an_event_and_what_comes_back_is_the_answer() -> None:
    seen: list[Event] = []

    def handle(event: Event) -> Event:
        seen.append(event)
        return Event({"total": event.data["count"] * event.headers["params"]["price"]})

    async with serving(answers(handle, routes=["POST /orders/{price:int}"])) as served:
        headers = {"X-Custom": "yes", "Cookie": "a=1; b=two"}
        status, body = await served.json("POST", "/orders/7?x=1&y=2&x=3", json={"count": 6}, headers=headers)
    assert (status, body) == (200, {"total": 42})
    said = seen[0].headers
    assert said["method"] == "POST"
    assert said["path"] == "/orders/7"
    assert said["route"] == "/orders/{price:int}"
    assert said["query"] == {"x": ["1", "3"], "y": "2"}
    assert said["cookies"] == {"a": "1", "b": "two"}
    assert said["request"]["x-custom"] == "yes"
    assert said["client"].startswith("127.0.0.1:")
    assert served.statistics.delivered == 1


@pytest.mark.parametrize(
    ("content_type", "raw", "data"),
    [
        ("application/json", b'{"a": [1, 2]}', {"a": [1, 2]}),
        ("application/json; charset=utf-8", b'"\xc3\xa9"', "é"),
        ("application/vnd.api+json", b"3", 3),
        ("application/msgpack", msgspec.msgpack.encode({"a": 1}), {"a": 1}),
        ("text/plain", b"hello", "hello"),
        ("text/plain; charset=latin-1", b"\xe9", "é"),
        ("application/xml", b"<a/>", b"<a/>"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("application/x-www-form-urlencoded", b"a=1&b=%C3%A9&a=2&c=", {"a": ["1", "2"], "b": "é", "c": ""}),
    ],
)
async def test_a_body_is_read_by_its_content_type(content_type: str, raw: bytes, data: Any) -> None:
    seen: list[Any] = []

    def handle(event: Event) -> Event:
        seen.append(event.data)
        return Event({"ok": True})

    async with serving(answers(handle)) as served:
        status, _ = await served.json("POST", "/", data=raw, headers={"Content-Type": content_type})
    assert (status, seen) == (200, [data])


@pytest.mark.parametrize(
    ("content_type", "raw"),
    [
        ("application/json", b"{"),
        ("application/json", b"[" * 100_000),
        ("application/msgpack", b"\xc1"),
        ("text/plain", b"\xff"),
        ("application/x-www-form-urlencoded", b"a=%ff"),
        ("application/x-www-form-urlencoded", b"&".join(b"a=1" for _ in range(2000))),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=B", b"nonsense"),
        ("multipart/form-data; boundary=B", b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\nx'),
        ("multipart/form-data; boundary=B", b"--B\r\nContent-Disposition: inline\r\n\r\nx\r\n--B--\r\n"),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_a_400_and_enters_no_flow(content_type: str, raw: bytes) -> None:
    async with serving(answers()) as served:
        status, body = await served.json("POST", "/", data=raw, headers={"Content-Type": content_type})
    assert status == 400
    assert body["title"] == "Bad Request"
    assert body["detail"]
    assert served.statistics.admitted == 0


async def test_a_small_file_of_a_form_is_bytes_and_a_long_one_is_on_disk_until_the_request_is_settled(
    tmp_path: Path,
) -> None:
    paths: list[Path] = []

    def handle(event: Event) -> Event:
        small, long = event.data["small"], event.data["long"]
        paths.append(Path(long["path"]))
        assert paths[0].parent == tmp_path
        return Event({"small": small["data"].decode(), "long": paths[0].stat().st_size, "name": small["filename"]})

    form = aiohttp.FormData({"field": "text"}, quote_fields=False)
    form.add_field("small", b"abc", filename="../../etc/a.txt", content_type="text/plain")
    form.add_field("long", b"x" * 300_000, filename="b.bin")
    async with serving(answers(handle, upload_memory="100KB", upload_folder=str(tmp_path))) as served:
        status, body = await served.json("POST", "/", data=form)
    assert (status, body) == (200, {"small": "abc", "long": 300_000, "name": "a.txt"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("answer", "status", "content_type", "body"),
    [
        ({"a": 1}, 200, "application/json", b'{"a":1}'),
        ([1, 2], 200, "application/json", b"[1,2]"),
        ("text", 200, "text/plain; charset=utf-8", b"text"),
        (b"bytes", 200, "application/octet-stream", b"bytes"),
        (12, 200, "application/json", b"12"),
        (None, 204, None, b""),
    ],
)
async def test_the_answer_says_its_type_by_its_data(
    answer: Any, status: int, content_type: str | None, body: bytes
) -> None:
    async with serving(answers(lambda event: Event(answer))) as served, served.http.get(served.url) as got:
        assert (got.status, got.headers.get("content-type"), await got.read()) == (status, content_type, body)


async def test_an_event_says_status_and_header_fields_of_the_answer() -> None:
    def handle(event: Event) -> Event:
        event.headers["status"] = 201
        event.headers["response"] = {"location": "/7", "set-cookie": ["a=1", "b=2"], "content-type": "text/csv"}
        event.data = "a,b"
        return event

    async with serving(answers(handle)) as served, served.http.get(served.url) as got:
        assert got.status == 201
        assert got.headers["location"] == "/7"
        assert got.headers.getall("set-cookie") == ["a=1", "b=2"]
        assert got.headers["content-type"] == "text/csv"
        assert await got.text() == "a,b"


@pytest.mark.parametrize(
    "spoilt",
    [
        {"status": 42},
        {"status": "200"},
        {"response": {"x-a": "line\r\nset-cookie: evil=1"}},
        {"response": {"bad name": "x"}},
        {"response": {"x-a": "\u20ac"}},
        {"response": "none"},
        {"data": {1, object()}},
    ],
)
async def test_an_answer_that_cannot_be_said_is_a_500_and_counts_as_failed(spoilt: dict[str, Any]) -> None:
    def handle(event: Event) -> Event:
        event.data = spoilt.get("data", 1)
        event.headers.update({name: value for name, value in spoilt.items() if name != "data"})
        return event

    async with serving(answers(handle)) as served:
        status, body = await served.json("GET", "/")
    assert (status, body["title"]) == (500, "Internal Server Error")
    assert "detail" not in body
    assert served.statistics.failed == 1


async def test_content_length_and_connection_are_the_servers_own_and_cannot_be_set() -> None:
    def handle(event: Event) -> Event:
        return Event("four", {"response": {"content-length": "400", "transfer-encoding": "chunked"}})

    async with serving(answers(handle)) as served, served.http.get(served.url) as got:
        assert await got.text() == "four"
        assert got.headers["content-length"] == "4"


# ------------------------------------------------------------------ negotiation


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("application/json", "application/json"),
        ("application/msgpack", "application/msgpack"),
        ("text/html, application/xml;q=0.9, */*;q=0.1", "application/xml"),
        ("application/*", "application/json"),
        ("application/json;q=0.1, application/msgpack;q=0.2", "application/msgpack"),
    ],
)
async def test_structured_data_takes_the_form_that_the_client_likes_best(accept: str, content_type: str) -> None:
    flow = answers(lambda event: Event({"a": 1}))
    async with serving(flow) as served, served.http.get(served.url, headers={"Accept": accept}) as got:
        assert got.headers["content-type"] == content_type


async def test_what_no_route_produces_is_a_406_before_it_enters_the_flow() -> None:
    async with serving(answers(produces=["json", "text/html"])) as served:
        status, body = await served.json("GET", "/", headers={"Accept": "image/png"})
        assert (status, body["title"]) == (406, "Not Acceptable")
        assert body["detail"] == "the answer can be given as application/json, text/html"
    assert served.statistics.admitted == 0


async def test_what_no_route_accepts_is_a_415_that_says_what_is() -> None:
    flow = answers(routes=["POST /", {"route": "PUT /", "accepts": ["xml"]}], accepts=["json"])
    async with serving(flow) as served:
        async with served.http.post(served.url, data=b"x", headers={"Content-Type": "text/plain"}) as got:
            assert (got.status, got.headers["accept"]) == (415, "application/json")
        assert (await served.json("POST", "/", data=b"1", headers={"Content-Type": "application/x+json"}))[0] == 200
        assert (await served.json("PUT", "/", json=1))[0] == 415
        assert await served.text("PUT", "/", data=b"<a/>", headers={"Content-Type": "text/xml"}) == (200, "<a/>")


# ------------------------------------------------------------------ routes


async def test_head_is_get_without_its_body_and_options_says_what_can_be_asked() -> None:
    async with serving(answers(lambda event: Event("hello"), routes=["GET /x", "POST /x"])) as served:
        async with served.http.head(f"{served.url}/x") as got:
            assert (got.status, got.headers["content-length"], await got.read()) == (200, "5", b"")
        async with served.http.options(f"{served.url}/x") as got:
            assert (got.status, got.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")
        async with served.http.delete(f"{served.url}/x") as got:
            assert (got.status, got.headers["allow"]) == (405, "GET, HEAD, POST, OPTIONS")
        status, body = await served.json("GET", "/y")
        assert (status, body["detail"]) == (404, "there is nothing at /y")
        assert await served.raw(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") != b""


async def test_routes_lead_to_outboxes_of_their_own_under_a_base_path() -> None:
    flow = Flow("routes")
    http = flow.use(
        "http.listen",
        "listen",
        port=0,
        base="/api",
        routes=[
            {"route": "GET /users/{name}", "outbox": "users"},
            {"route": "GET /users/me", "outbox": "me"},
            {"route": "* /{rest:path}", "outbox": "others"},
        ],
    )
    for port in ("users", "me", "others"):
        http[port] >> flow.module(lambda event, port=port: Event([port, event.headers["params"]]), port) >> http
    async with serving(flow) as served:
        assert await served.json("GET", "/api/users/bob%20b") == (200, ["users", {"name": "bob b"}])
        assert await served.json("GET", "/api/users/me") == (200, ["me", {}])
        assert await served.json("DELETE", "/api/a/b/c") == (200, ["others", {"rest": "a/b/c"}])
        assert (await served.json("GET", "/users/me"))[0] == 404


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"routes": ["GTE /x"]}, "there is no method 'GTE', did you mean 'GET'"),
        ({"routes": ["GET x"]}, "a path begins with '/'"),
        ({"routes": ["GET /{a}/{a}"]}, "two parameters 'a'"),
        ({"routes": ["GET /{a:float}"]}, "no kind of parameter 'float'"),
        ({"routes": ["GET /{a"]}, "a parameter is written"),
        ({"routes": ["GET /x", "GET,POST /x"]}, "two routes GET /x"),
        ({"routes": ["GET,WS /x"]}, "WS stands alone"),
        ({"routes": []}, "there is none"),
        ({"routes": [{"route": "GET /x", "outbx": "a"}]}, "unknown part 'outbx', did you mean 'outbox'"),
        ({"routes": [{"route": "GET /x", "reply": "some"}]}, "Invalid enum value 'some'"),
        ({"routes": [{"route": "GET /x", "timeout": "soon"}]}, "soon"),
        ({"accepts": ["jsn"]}, "'jsn' is not a media type, did you mean 'json'"),
        ({"port": 70_000}, "is not a port"),
        ({"unix": "/tmp/x", "port": 1}, "listen on one of them"),
        ({"base": "api"}, "must begin with '/'"),
        ({"cors": {"origins": ["*"], "credentials": True}}, "'*' stands alone"),
        ({"cors": ["https://shop.example/"]}, "is not an origin"),
        ({"tls": {"crt": "x"}}, "crt"),
        ({"on_drop": 99}, "is not a status"),
    ],
)
def test_a_listener_that_makes_no_sense_is_refused_with_a_reason(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        answers(**arguments).check()
    assert said in str(caught.value)


# ------------------------------------------------------------------ what became of a request


async def test_a_dropped_request_is_answered_at_once_with_its_status() -> None:
    flow = answers(lambda event: None, routes=["GET /a", {"route": "GET /b", "on_drop": 404}], timeout="1h")
    async with serving(flow) as served:
        assert await served.text("GET", "/a") == (204, "")
        status, body = await served.json("GET", "/b")
        assert (status, body["title"]) == (404, "Not Found")


async def test_a_request_that_ends_in_a_sink_elsewhere_is_accepted() -> None:
    flow = Flow("elsewhere")
    flow.use("http.listen", "listen", port=0) >> flow.use("null")
    async with serving(flow) as served:
        assert (await served.text("POST", "/", json=1))[0] == 202


@pytest.mark.parametrize(
    ("error", "status", "members"),
    [
        (NotFound("no order 7"), 404, {"detail": "no order 7"}),
        (Conflict("taken", type="https://e.example/taken", by="bob"), 409, {"by": "bob", "detail": "taken"}),
        (
            UnprocessableContent(errors=[{"path": "a", "message": "missing"}]),
            422,
            {"errors": [{"path": "a", "message": "missing"}]},
        ),
        (HttpError("short and stout", status=418), 418, {"detail": "short and stout", "title": "Client Error"}),
        (ValueError("secret: hunter2"), 500, {"title": "Internal Server Error"}),
        (TimeoutError("db"), 500, {"title": "Internal Server Error"}),
    ],
)
async def test_a_failed_request_is_answered_with_its_errors_status_as_problem_details(
    error: Exception, status: int, members: dict[str, Any]
) -> None:
    def fails(event: Event) -> Event:
        raise error

    async with serving(answers(fails)) as served, served.http.get(served.url) as got:
        assert (got.status, got.headers["content-type"]) == (status, "application/problem+json")
        body = await got.json(content_type=None)
    assert body["status"] == status
    assert members.items() <= body.items()
    assert "hunter2" not in json.dumps(body)
    assert served.statistics.failed == 1


async def test_problem_details_are_xml_for_a_client_that_would_rather_have_that() -> None:
    def fails(event: Event) -> Event:
        raise UnprocessableContent("a < b", errors=["x", {"y": 1}])

    accept = {"Accept": "application/xml"}
    async with serving(answers(fails)) as served, served.http.get(served.url, headers=accept) as got:
        assert got.headers["content-type"] == "application/problem+xml"
        assert await got.text() == (
            '<?xml version="1.0" encoding="UTF-8"?><problem xmlns="urn:ietf:rfc:7807"><type>about:blank</type>'
            "<title>Unprocessable Content</title><status>422</status><errors><i>x</i><i><y>1</y></i></errors>"
            "<detail>a &lt; b</detail></problem>"
        )


async def test_a_failed_event_routed_back_is_answered_as_it_failed_and_its_challenge_goes_along() -> None:
    flow = Flow("auth")
    http = flow.use("http.listen", "listen", port=0)

    @flow.module
    def auth(event: Event) -> Event:
        raise Unauthorized("who are you?", challenge='Basic realm="shop"')

    http >> auth >> http
    auth.failed >> http
    async with serving(flow) as served, served.http.get(served.url) as got:
        assert (got.status, got.headers["www-authenticate"]) == (401, 'Basic realm="shop"')
    assert served.statistics.delivered == 1


async def test_a_module_may_recover_a_failed_event_by_giving_it_a_status() -> None:
    flow = Flow("recovered")
    http = flow.use("http.listen", "listen", port=0)

    @flow.module
    def breaks(event: Event) -> Event:
        raise ValueError

    @flow.module
    def instead(event: Event) -> Event:
        event.headers["status"] = 200
        event.data = "from the cache"
        return event

    http >> breaks >> http
    breaks.failed >> instead >> http
    async with serving(flow) as served:
        assert await served.text("GET", "/") == (200, "from the cache")


async def test_not_modified_has_no_body() -> None:
    def same(event: Event) -> Event:
        raise NotModified(headers={"etag": '"a"'})

    async with serving(answers(same)) as served, served.http.get(served.url) as got:
        assert (got.status, got.headers["etag"], await got.read()) == (304, '"a"', b"")


async def test_errors_show_themselves_where_that_is_asked_for() -> None:
    def fails(event: Event) -> Event:
        raise ValueError("here it is")

    async with serving(answers(fails, show_errors=True)) as served:
        _, body = await served.json("GET", "/")
    assert body["error"]["message"] == "here it is"
    assert "raise ValueError" in body["error"]["traceback"]
    assert body["error"]["module"] == "handle"


async def test_a_late_answer_is_a_504_and_what_comes_afterwards_is_dropped() -> None:
    go_on = asyncio.Event()

    async def slow(event: Event) -> Event:
        await go_on.wait()
        return event

    async with serving(answers(slow, timeout="20ms")) as served:
        async with served.http.get(served.url) as got:
            assert (got.status, got.headers["retry-after"]) == (504, "1")
        assert served.director.statistics().open == 1
        go_on.set()
    assert served.statistics.origins["listen"].reasons == {"dropped answered": 1}


async def test_a_full_flow_is_a_503_with_retry_after_and_recovers() -> None:
    go_on = asyncio.Event()

    async def slow(event: Event) -> Event:
        await go_on.wait()
        return event

    flow = Flow("full")
    http = flow.use("http.listen", "listen", port=0, retry_after="7s")
    http >> flow.module(slow, queue=2) >> http
    async with serving(flow) as served:

        async def ask() -> tuple[int, str | None]:
            async with served.http.get(served.url) as got:
                return got.status, got.headers.get("retry-after")

        tasks = [asyncio.create_task(ask()) for _ in range(20)]
        for finished in itertools.islice(asyncio.as_completed(tasks), 10):
            assert await finished == (503, "7")
        go_on.set()
        given = [task.result() for task in (await asyncio.wait(tasks))[0]]
        assert set(given) == {(204, None), (503, "7")}
        assert await ask() == (204, None)
    assert served.statistics.admitted == served.statistics.delivered == given.count((204, None)) + 1


async def test_a_queue_that_drops_or_fails_makes_a_503_too() -> None:
    for overflow in ("fail", "drop-newest"):
        go_on = asyncio.Event()

        async def slow(event: Event, go_on: asyncio.Event = go_on) -> Event:
            await go_on.wait()
            return event

        flow = Flow("full")
        http = flow.use("http.listen", "listen", port=0)
        http >> flow.module(slow, queue=1, overflow=overflow) >> http
        async with serving(flow) as served:
            tasks = [asyncio.create_task(served.text("GET", "/")) for _ in range(10)]
            first, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert next(iter(first)).result()[0] == 503
            go_on.set()
            statuses = [task.result()[0] for task in (await asyncio.wait(tasks))[0]]
        assert set(statuses) == {200, 204, 503} or set(statuses) == {204, 503}


async def test_too_many_requests_at_once_are_refused() -> None:
    go_on = asyncio.Event()

    async def slow(event: Event) -> Event:
        await go_on.wait()
        return event

    async with serving(answers(slow, concurrent=3)) as served:
        tasks = [asyncio.create_task(served.text("GET", "/")) for _ in range(5)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result()[0] for task in done} == {503}
        while sum(task.done() for task in tasks) < 2:
            await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
        go_on.set()
        await asyncio.wait(tasks)
        assert sorted(task.result()[0] for task in tasks) == [204, 204, 204, 503, 503]


async def test_a_client_that_leaves_cancels_the_coroutine_and_what_waits_behind_it() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()
    ran: list[str] = []

    async def slow(event: Event) -> Event:
        ran.append(event.headers["path"])
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return event

    async with serving(answers(slow, timeout="1h")) as served:
        first = asyncio.create_task(served.text("GET", "/first"))
        await started.wait()
        second = asyncio.create_task(served.text("GET", "/second"))
        while served.director.statistics().admitted < 2:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        first.cancel()
        await cancelled.wait()
        async with asyncio.timeout(10):
            while served.director.statistics().open:
                await asyncio.sleep(0.01)
    assert served.statistics.origins["listen"].reasons == {"dropped cancelled": 2}
    assert ran == ["/first"] or ran == ["/first", "/second"]


async def test_the_first_answer_of_a_fork_wins_and_gather_waits_for_all() -> None:
    flow = Flow("fork")
    http = flow.use("http.listen", "listen", port=0, routes=["GET /first", {"route": "GET /all", "reply": "all"}])
    one = flow.module(lambda event: Event("one"), "one")
    two = flow.module(lambda event: Event("two"), "two")
    http >> (one, two) >> http
    async with serving(flow) as served:
        assert await served.text("GET", "/first") == (200, "one")
        assert await served.json("GET", "/all") == (200, ["one", "two"])
    assert served.statistics.delivered == 2


async def test_an_answer_finds_its_request_through_splits_joins_loops_and_retries() -> None:
    flow = Flow("maze", ttl=5)
    http = flow.use("http.listen", "listen", port=0)

    @flow.module
    def around(event: Event) -> Event:
        event.data["turns"] += 1
        return event.to("again") if event.data["turns"] < 3 else event

    tried: set[str] = set()

    @flow.module(retry=Retry(attempts=3, delay=0), concurrency=4)
    async def flaky(event: Event) -> Event:
        if event.id not in tried:
            tried.add(event.id)
            raise TimeoutError
        return event

    left = flow.module(lambda event: event, "left")
    right = flow.module(lambda event: event, "right")
    meet = flow.module(lambda event: Event(event.data["inbox"]["n"]), "meet", join=True, inboxes=["inbox", "side"])
    http >> around >> flaky >> (left, right)
    around["again"] >> around
    left >> meet >> http
    right >> meet["side"]
    async with serving(flow) as served:
        asked = [served.json("POST", "/", json={"n": n, "turns": 0}) for n in range(50)]
        assert await asyncio.gather(*asked) == [(200, n) for n in range(50)]


async def test_an_event_that_nobody_asked_for_fails_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    flow = Flow("astray")
    http = flow.use("http.listen", "listen", port=0)
    http >> flow.use("null")
    flow.source(lambda: iter([1]), "other") >> http
    async with serving(flow) as served:
        while served.director.statistics().failed < 1:
            await asyncio.sleep(0)
    assert "nobody asked" in caplog.text


# ------------------------------------------------------------------ request ids


async def test_the_request_id_and_the_trace_go_along_into_every_log_line(caplog: pytest.LogCaptureFixture) -> None:
    from furcula.correlation import Correlation

    log = logging.getLogger("shop")
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    async def waits(event: Event) -> Event:
        await asyncio.sleep(0)
        log.warning("waits %s", event.headers["path"])
        return event

    def blocks(event: Event) -> Event:
        log.warning("blocks %s", event.headers["path"])
        return event

    flow = Flow("logged")
    http = flow.use("http.listen", "listen", port=0)
    plain = flow.module(lambda event: log.warning("plain %s", event.headers["path"]) or event, "plain")
    queued = flow.module(lambda event: log.warning("queued %s", event.headers["path"]) or event, "queued", queue=10)
    http >> plain >> queued >> flow.module(waits) >> flow.module(blocks, thread=True) >> http
    handler = caplog.handler
    correlation = Correlation()
    handler.addFilter(correlation)
    try:
        async with serving(flow) as served:
            async with served.http.get(
                f"{served.url}/a", headers={"X-Request-ID": "mine", "Traceparent": trace}
            ) as got:
                assert got.headers["x-request-id"] == "mine"
            async with served.http.get(
                f"{served.url}/b", headers={"X-Request-ID": "bad id\t", "Traceparent": "no"}
            ) as got:
                own = got.headers["x-request-id"]
    finally:
        handler.removeFilter(correlation)
    records = [record for record in caplog.records if record.name == "shop"]
    assert len(records) == 8
    for record in records:
        expected = ("mine", trace) if record.getMessage().endswith("/a") else (own, "")
        assert (record.__dict__["request_id"], record.__dict__["traceparent"]) == expected, record.getMessage()


async def test_each_request_is_logged_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(answers(access_log=True)) as served:
        await served.text("GET", "/a", headers={"X-Request-ID": "abc"})
        await served.text("GET", "/%0aforged")
    lines = [record.getMessage() for record in caplog.records if record.name == "furcula.module.listen"]
    assert any(line.startswith("GET /a 204 ") and line.endswith("[request abc]") for line in lines)
    assert not any("\n" in line for line in lines)


# ------------------------------------------------------------------ gzip, CORS, TLS, sockets


async def test_long_texts_are_compressed_for_clients_that_take_it() -> None:
    async with serving(answers(lambda event: Event({"text": "x" * 5000}))) as served:
        raw = await served.raw(b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b"content-encoding: gzip" in head
        assert b"vary: accept-encoding" in head
        assert json.loads(gzip.decompress(body)) == {"text": "x" * 5000}
        for refusing in (b"identity", b"gzip;q=0", b"br"):
            raw = await served.raw(
                b"GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: %s\r\nConnection: close\r\n\r\n" % refusing
            )
            assert b"content-encoding" not in raw.partition(b"\r\n\r\n")[0]


async def test_pages_of_named_origins_may_ask_and_others_may_not() -> None:
    cors = {"origins": ["https://shop.example"], "credentials": True, "expose": ["x-request-id"]}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with serving(answers(routes=["POST /"], cors=cors)) as served:
        async with served.http.options(served.url, headers={"Origin": "https://shop.example", **preflight}) as got:
            assert got.status == 204
            assert got.headers["access-control-allow-origin"] == "https://shop.example"
            assert got.headers["access-control-allow-methods"] == "POST, OPTIONS"
            assert got.headers["access-control-allow-headers"] == "content-type"
            assert got.headers["access-control-allow-credentials"] == "true"
        async with served.http.options(served.url, headers={"Origin": "https://evil.example", **preflight}) as got:
            assert "access-control-allow-origin" not in got.headers
        async with served.http.post(served.url, json=1, headers={"Origin": "https://shop.example"}) as got:
            assert got.headers["access-control-allow-origin"] == "https://shop.example"
            assert got.headers["vary"] == "origin"
        async with served.http.get(served.url, headers={"Origin": "https://shop.example"}) as got:
            assert (got.status, got.headers["access-control-allow-origin"]) == (405, "https://shop.example")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    subject = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(cert), "-keyout", str(key)]
    subprocess.run([*command.split(), *subject], check=True, capture_output=True, timeout=60)
    return cert, key


async def test_https_is_served_with_a_certificate(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    async with serving(answers(lambda event: Event("safe"), tls={"cert": str(cert), "key": str(key)})) as served:
        trusted = ssl.create_default_context(cafile=str(cert))
        url = served.url.replace("http", "https")
        async with served.http.get(url, ssl=trusted) as got:
            assert await got.text() == "safe"
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await served.http.get(served.url)
        async with served.http.get(url, ssl=trusted) as got:
            assert got.status == 200


async def test_a_certificate_that_is_not_there_is_named_at_the_start() -> None:
    with pytest.raises(StartFailed, match=r"listen .*certificate cannot be loaded \(no\.pem\)"):
        async with serving(answers(tls={"cert": "no.pem"})):
            pass


async def test_a_unix_socket_serves_too_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    flow = answers(lambda event: Event("local"), port=None, unix=str(path))
    client = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)))
    async with serving(flow), client as http, http.get("http://localhost/") as got:
        assert await got.text() == "local"
    assert not path.exists()


async def test_a_listening_socket_can_be_handed_in() -> None:
    given = socket.create_server(("127.0.0.1", 0))
    port = given.getsockname()[1]
    async with serving(answers(lambda event: Event("mine"), port=None, fd=given.detach())) as served:
        assert served.address == ("127.0.0.1", port)
        assert await served.text("GET", "/") == (200, "mine")


async def test_a_port_in_use_is_named_with_the_next_step() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartFailed, match=f"cannot listen on 127.0.0.1:{port}: it is in use"):
            async with serving(answers(port=port)):
                pass


async def test_a_listener_without_a_place_says_so() -> None:
    with pytest.raises(StartFailed, match="neither `port` nor `unix` nor `fd`"):
        async with serving(answers(port=None)):
            pass


# ------------------------------------------------------------------ streams


async def test_a_generator_is_sent_piece_by_piece() -> None:
    async def numbers() -> AsyncIterator[dict[str, int]]:
        for n in range(3):
            yield {"n": n}

    async with serving(answers(lambda event: Event(numbers()))) as served:
        async with served.http.get(served.url) as got:
            assert got.headers["content-type"] == "application/x-ndjson"
            assert await got.text() == '{"n":0}\n{"n":1}\n{"n":2}\n'
        async with served.http.get(served.url, headers={"Accept": "text/event-stream"}) as got:
            assert got.headers["content-type"] == "text/event-stream"
            assert await got.text() == 'data: {"n":0}\n\ndata: {"n":1}\n\ndata: {"n":2}\n\n'


async def test_a_plain_generator_of_bytes_is_a_download() -> None:
    def chunks() -> Any:
        yield b"a" * 100_000
        yield b"b" * 100_000

    def handle(event: Event) -> Event:
        return Event(chunks(), {"response": {"content-type": "application/zip"}})

    async with serving(answers(handle)) as served, served.http.get(served.url) as got:
        assert got.headers["content-type"] == "application/zip"
        assert await got.read() == b"a" * 100_000 + b"b" * 100_000


async def test_a_stream_that_breaks_breaks_the_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"begin"
        raise ValueError("in the middle")

    async with serving(answers(lambda event: Event(broken()))) as served, served.http.get(served.url) as got:
        with pytest.raises(aiohttp.ClientError):
            await got.read()
    assert "ValueError: in the middle" in caplog.text


async def test_a_client_that_leaves_a_stream_closes_its_generator() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0)
        finally:
            closed.set()

    async with serving(answers(lambda event: Event(endless()))) as served:
        async with served.http.get(served.url) as got:
            await got.content.read(5000)
        async with asyncio.timeout(10):
            await closed.wait()


async def test_a_sequence_of_events_becomes_server_sent_events() -> None:
    def three(event: Event) -> Any:
        for n in range(3):
            yield Event({"n": n}, {"event": "tick"})

    flow = answers(three, routes=[{"route": "GET /", "reply": "sse"}])
    async with serving(flow) as served, served.http.get(served.url) as got:
        assert got.headers["content-type"] == "text/event-stream"
        blocks = (await got.text()).strip().split("\n\n")
    assert [block.split("\n")[-1] for block in blocks] == ['data: {"n":0}', 'data: {"n":1}', 'data: {"n":2}']
    assert all(block.startswith("event: tick\nid: ") for block in blocks)


async def test_a_stream_of_events_that_fails_says_so_to_the_client() -> None:
    def breaks(event: Event) -> Any:
        yield Event({"n": 0})
        raise Conflict("half way")

    flow = answers(breaks, routes=[{"route": "GET /sse", "reply": "sse"}, {"route": "GET /plain", "reply": "stream"}])
    async with serving(flow) as served:
        _, text = await served.text("GET", "/sse")
        assert text.endswith(
            'event: error\ndata: {"type":"about:blank","title":"Conflict","status":409,"detail":"half way"}\n\n'
        )
        async with served.http.get(f"{served.url}/plain") as got:
            with pytest.raises(aiohttp.ClientError):
                await got.read()


async def test_answers_for_a_client_that_does_not_read_are_given_up_beyond_the_backlog() -> None:
    def flood(event: Event) -> Any:
        for n in range(500):
            yield Event({"n": n, "text": "x" * 100_000})

    flow = answers(flood, routes=[{"route": "GET /", "reply": "stream"}], backlog=10)
    async with serving(flow) as served:
        _reader, writer = await asyncio.open_connection(*served.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            while served.director.statistics().open or not served.director.statistics().admitted:
                await asyncio.sleep(0.01)
        writer.close()
    assert served.statistics.failed == 1


# ------------------------------------------------------------------ stopping


async def test_what_was_accepted_is_answered_when_the_flow_stops_and_nothing_new_is_taken() -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(event: Event) -> Event:
        started.set()
        await go_on.wait()
        return event

    async with serving(answers(slow)) as served:
        asked = asyncio.create_task(served.http.post(served.url, json={"a": 1}))
        await started.wait()
        stopping = asyncio.create_task(served.director.stop("10s"))
        while served.director.phase != "draining" or not served.listen.site.ceased:
            await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientError):
            await served.http.get(served.url)
        go_on.set()
        async with await asked as got:
            assert (got.status, await got.json(), got.headers["connection"]) == (200, {"a": 1}, "close")
        await stopping


async def test_a_request_that_the_deadline_of_a_stop_overtakes_is_a_503() -> None:
    started = asyncio.Event()

    async def stuck(event: Event) -> Event:
        started.set()
        await asyncio.Event().wait()
        return event

    async with serving(answers(stuck)) as served:
        asked = asyncio.create_task(served.http.get(served.url))
        await started.wait()
        await served.director.stop("20ms")
        async with await asked as got:
            assert got.status == 503


async def test_a_stream_of_known_length_says_it_and_a_head_request_hears_it_too() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    def handle(event: Event) -> Event:
        return Event(chunks(), {"response": {"content-length": "3", "content-type": "text/plain"}})

    async with serving(answers(handle)) as served:
        async with served.http.get(served.url) as got:
            assert (got.headers["content-length"], await got.text()) == ("3", "abc")
        async with served.http.head(served.url) as got:
            assert (got.headers["content-length"], await got.text()) == ("3", "")


async def test_an_answer_with_a_strong_etag_is_not_compressed() -> None:
    def handle(event: Event) -> Event:
        return Event("x" * 5000, {"response": {"etag": event.headers["query"]["tag"]}})

    async with serving(answers(handle)) as served:
        for tag, encoding in (("%22a%22", None), ("W/%22a%22", "gzip")):
            async with served.http.get(f"{served.url}/?tag={tag}", headers={"Accept-Encoding": "gzip"}) as got:
                assert got.headers.get("content-encoding") == encoding


async def test_who_is_refused_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def handle(event: Event) -> Event:
        raise NotFound if event.headers["path"] == "/missing" else ValueError

    async with serving(answers(handle)) as served:
        await served.text("GET", "/missing")
        await served.text("GET", "/broken")
    levels = {record.levelname: record.getMessage() for record in caplog.records if "failed on" in record.getMessage()}
    assert "NotFound" in levels["INFO"]
    assert "ValueError" in levels["ERROR"]


async def test_a_preflight_is_answered_also_where_a_route_takes_every_method() -> None:
    preflight = {"Origin": "https://shop.example", "Access-Control-Request-Method": "PUT"}
    async with serving(answers(cors=["https://shop.example"])) as served:
        async with served.http.options(f"{served.url}/x", headers=preflight) as got:
            assert (got.status, "PUT" in got.headers["access-control-allow-methods"]) == (204, True)
        async with served.http.options(f"{served.url}/x") as got:
            assert got.status == 204
    assert served.statistics.admitted == 1


async def test_a_stream_that_cannot_begin_is_answered_as_its_error_says() -> None:
    async def missing() -> AsyncIterator[bytes]:
        raise NotFound("no such file")
        yield b""

    async def broken() -> AsyncIterator[bytes]:
        raise ValueError("secret")
        yield b""

    def handle(event: Event) -> Event:
        return Event(missing() if event.headers["path"] == "/missing" else broken())

    async with serving(answers(handle)) as served:
        assert (await served.json("GET", "/missing"))[1]["detail"] == "no such file"
        status, body = await served.json("GET", "/broken")
        assert (status, "secret" in str(body)) == (500, False)


async def test_a_client_that_leaves_before_the_first_item_closes_the_generator() -> None:
    closed, began = asyncio.Event(), asyncio.Event()

    async def waits() -> AsyncIterator[bytes]:
        try:
            began.set()
            await asyncio.Event().wait()
            yield b""
        finally:
            closed.set()

    for accept in ("text/event-stream", "*/*"):
        closed.clear()
        began.clear()
        async with serving(answers(lambda event: Event(waits()))) as served:
            _, writer = await asyncio.open_connection(*served.address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: %s\r\n\r\n" % accept.encode())
            await began.wait()
            writer.close()
            async with asyncio.timeout(10):
                await closed.wait()


async def test_server_sent_events_begin_before_there_is_one() -> None:
    go_on = asyncio.Event()

    async def waits() -> AsyncIterator[str]:
        await go_on.wait()
        yield "now"

    flow = answers(lambda event: Event(waits()))
    async with serving(flow) as served, served.http.get(served.url, headers={"Accept": "text/event-stream"}) as got:
        assert got.headers["content-type"] == "text/event-stream"
        go_on.set()
        assert await got.text() == "data: now\n\n"


async def test_a_stream_that_was_cut_short_does_not_look_whole() -> None:
    def flood(event: Event) -> Any:
        for _ in range(300):
            yield Event("x" * 100_000)

    flow = answers(flood, routes=[{"route": "GET /", "reply": "stream"}], backlog=5)
    async with serving(flow) as served, served.http.get(served.url) as got:
        with pytest.raises(aiohttp.ClientError):
            await got.read()


async def test_a_unix_socket_that_somebody_listens_on_is_not_taken_from_him(tmp_path: Path) -> None:
    path = str(tmp_path / "http.sock")
    async with serving(answers(lambda event: Event("first"), port=None, unix=path)):
        with pytest.raises(StartFailed, match="in use"):
            async with serving(answers(port=None, unix=path)):
                pass
        client = aiohttp.ClientSession(connector=aiohttp.UnixConnector(path))
        async with client as http, http.get("http://localhost/") as got:
            assert await got.text() == "first"


async def test_a_file_that_the_flow_has_moved_or_replaced_is_no_trouble(tmp_path: Path) -> None:
    def unpack(event: Event) -> Event:
        path = Path(event.data["f"]["path"])
        path.unlink()
        path.mkdir()
        return Event("unpacked")

    async with serving(answers(unpack, upload_memory="1KB", upload_folder=str(tmp_path))) as served:
        for _ in range(2):
            form = aiohttp.FormData()
            form.add_field("f", b"x" * 5000, filename="f")
            assert await served.text("POST", "/", data=form) == (200, "unpacked")


async def test_what_a_module_sets_in_its_context_is_gone_with_the_request() -> None:
    """Also where requests of one connection are answered without a task of their own."""
    from contextvars import ContextVar

    user: ContextVar[str] = ContextVar("user", default="nobody")

    def handle(event: Event) -> Event:
        before = user.get()
        user.set("somebody")
        return Event(before)

    async with serving(answers(handle)) as served:
        for _ in range(3):
            assert await served.text("GET", "/") == (200, "nobody")
            assert await served.text("POST", "/", data=b"x" * 100_000) == (200, "nobody")
