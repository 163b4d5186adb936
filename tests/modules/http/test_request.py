"""http.request: each event asks a real server, which may be slow, wrong, gone or hostile."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from tests.modules.conftest import Bench

from furcula import Director, Event, Flow, Options, Retry, Secret
from furcula.config import dump, loads
from furcula.errors import ConfigurationError, FurculaError, Unanswered
from furcula.module import bind_arguments
from furcula.modules.http.client import Auth
from furcula.modules.http.request import Request
from furcula.modules.http.upstream import UpstreamFailed, UpstreamRefused, UpstreamTimeout, UpstreamUnavailable
from furcula.options import Duration

from .upstreams import always, certificate, fine, serving, talking


@asynccontextmanager
async def asking(url: str, folder: Path | None = None, **arguments: Any) -> AsyncIterator[Request]:
    values, problems = bind_arguments(Request, {"url": url, **arguments})  # as a flow does it, with conversion
    assert problems == []
    module = Request(**values)
    await module.start(Bench(folder or Path()))
    try:
        yield module
    finally:
        await module.stop()


async def asked(url: str, event: Event | None = None, **arguments: Any) -> Event:
    async with asking(url, **arguments) as module:
        return await module.process(event or Event({"n": 1}))


async def refused(url: str, event: Event | None = None, **arguments: Any) -> UpstreamFailed:
    with pytest.raises(UpstreamFailed) as caught:
        await asked(url, event, **arguments)
    return caught.value


# ------------------------------------------------------------------ what is sent


async def test_the_data_is_posted_as_json_and_the_answer_becomes_the_data() -> None:
    async with serving() as server:
        event = await asked(f"{server.url}/orders", Event({"sku": "x", "n": [1]}, {"kept": 1}))
    (request,) = server.asked
    assert (request.method, request.path, request.body) == ("POST", "/orders", b'{"sku":"x","n":[1]}')
    assert request.headers["content-type"] == "application/json"
    assert event.data == {"fine": True}
    assert event.headers["kept"] == 1
    assert event.headers["http_status"] == 200
    assert event.headers["http_headers"]["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("content_type", "data", "named", "body"),
    [
        ("json", None, "application/json", b"null"),
        ("json", "é", "application/json", '"é"'.encode()),
        ("msgpack", {"a": b"\xff"}, "application/msgpack", msgspec.msgpack.encode({"a": b"\xff"})),
        ("text", "é", "text/plain; charset=utf-8", "é".encode()),
        ("bytes", b"\0\xff", "application/octet-stream", b"\0\xff"),
        ("form", {"a": "x y&z", "b": [1, 2]}, "application/x-www-form-urlencoded", b"a=x+y%26z&b=1&b=2"),
    ],
)
async def test_bodies_of_all_kinds(content_type: str, data: Any, named: str, body: bytes) -> None:
    async with serving() as server:
        await asked(server.url, Event(data), content_type=content_type)
    (request,) = server.asked
    assert (request.headers["content-type"], request.body) == (named, body)


@pytest.mark.parametrize(
    ("content_type", "data", "message"),
    [
        ("json", object(), "cannot be said in JSON|object"),
        ("text", 7, "text takes a str, and the body is int"),
        ("bytes", "x", "bytes takes bytes, and the body is str"),
        ("form", [1], "form takes a dict"),
        ("form", {"a": {"b": 1}}, "cannot say 'a'"),
    ],
)
async def test_data_that_cannot_be_said_fails_before_anything_is_sent(
    content_type: str, data: Any, message: str
) -> None:
    async with serving() as server:
        with pytest.raises((TypeError, ValueError), match=message):
            await asked(server.url, Event(data), content_type=content_type)
    assert server.asked == []


@pytest.mark.parametrize(
    ("body", "sent"),
    [("data.order", b'{"n":1}'), ("headers.user", b'"ada"'), ('{"n": {{ data.order.n }}}', b'{"n": 1}')],
)
async def test_the_body_is_what_is_at_a_path_or_the_text_of_a_template(body: str, sent: bytes) -> None:
    async with serving() as server:
        await asked(server.url, Event({"order": {"n": 1}}, {"user": "ada"}), body=body)
        with pytest.raises(Exception, match=r"order|user"):
            await asked(server.url, Event({}), body=body)
    assert [request.body for request in server.asked] == [sent]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "get"])
async def test_some_methods_have_no_body_unless_one_is_asked_for(method: str) -> None:
    async with serving() as server:
        await asked(server.url, method=method)
        await asked(server.url, method="DELETE", body="data")
    first, second = server.asked
    assert (first.method, first.body) == (method.upper(), b"")
    assert "content-type" not in first.headers
    assert second.body == b'{"n":1}'


async def test_url_query_and_header_fields_are_templates_whose_values_stay_values() -> None:
    event = Event({"id": "a/../b?x=1#y", "q": "x&y=z é", "name": "ada"}, {"tenant": "t1"})
    async with serving() as server:
        await asked(
            server.url + "/orders/{{ data.id }}?fixed=1#gone",
            event,
            query={"q": "{{ data.q }}", "page": 2, "all": True},
            headers={"X-Name": "{{ data.name }}", "accept": "application/json", "x-t": "{{ headers.tenant }}"},
        )
    (request,) = server.asked
    assert request.path == "/orders/a%2F..%2Fb%3Fx%3D1%23y?fixed=1&q=x%26y%3Dz%20%C3%A9&page=2&all=true"
    assert (request.headers["x-name"], request.headers["accept"], request.headers["x-t"]) == (
        "ada", "application/json", "t1",
    )  # fmt: skip


async def test_the_url_may_come_from_the_event() -> None:
    async with serving() as server:
        await asked("{{ data.url | safe }}", Event({"url": f"{server.url}/hook?a=b"}))
        assert server.asked[0].path == "/hook?a=b"
        for wrong in (
            "",
            "/x",
            "ftp://x/",
            "file:///etc/passwd",
            "http://",
            "http://a:b@127.0.0.1/",
            "http://h:99999/",
        ):
            with pytest.raises(ValueError, match="the URL that the template made"):
                await asked("{{ data.url | safe }}", Event({"url": wrong}))
    assert len(server.asked) == 1


async def test_a_value_that_leads_out_of_its_folder_makes_the_event_fail() -> None:
    async with serving() as server:
        with pytest.raises(ValueError, match="lead elsewhere"):
            await asked(server.url + "/users/{{ data }}/private", Event(".."))
    assert server.asked == []


@pytest.mark.parametrize("char", ["\r", "\n", "\0", "\r\nx-admin: true"])
async def test_a_value_cannot_begin_another_header_field(char: str) -> None:
    async with serving() as server:
        with pytest.raises(ValueError, match="headers: the value of x-name has a line break"):
            await asked(server.url, Event(f"a{char}b"), headers={"x-name": "{{ data }}"})
    assert server.asked == []


async def test_the_trace_and_the_number_of_the_request_go_along() -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with serving() as server:
        await asked(server.url, Event(1, {"traceparent": trace, "request_id": "r-1"}))
        await asked(server.url, Event(1, {"request_id": "r-1"}), headers={"X-Request-Id": "own"})
        await asked(server.url, Event(1, {"traceparent": "a\r\nb", "request_id": 7}))
    first, second, third = server.asked
    assert (first.headers["traceparent"], first.headers["x-request-id"]) == (trace, "r-1")
    assert second.headers["x-request-id"] == "own"
    assert not {"traceparent", "x-request-id"} & set(third.headers)


@pytest.mark.parametrize(
    ("auth", "name", "value"),
    [
        ({"user": "ada", "password": "s3cret é"}, "authorization", "Basic YWRhOnMzY3JldCDDqQ=="),
        ({"bearer": "s3cret"}, "authorization", "Bearer s3cret"),
        ({"header": "X-Api-Key", "key": "s3cret"}, "x-api-key", "s3cret"),
    ],
)
async def test_who_we_are_is_said_and_never_shown(auth: dict[str, str], name: str, value: str) -> None:
    async with serving(always(503)) as server:
        error = await refused(server.url, auth=auth)
    assert server.asked[0].headers[name] == value
    assert "s3cret" not in str(error)
    assert "s3cret" not in repr(Auth(**{k: Secret(v) if v.startswith("s3") else v for k, v in auth.items()}))


async def test_a_secret_among_the_header_fields_is_sent_in_plain() -> None:
    async with serving() as server:
        await asked(server.url, headers={"x-key": Secret("s3cret"), "x-two": Secret("a-{{ data.n }}")})
    assert (server.asked[0].headers["x-key"], server.asked[0].headers["x-two"]) == ("s3cret", "a-1")


# ------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json", b'{"a": [1]}', {"a": [1]}),
        ("application/problem+json", b"{}", {}),
        ("application/msgpack", b"\x93\x01\x02\x03", [1, 2, 3]),
        ("text/html; charset=latin-1", b"gr\xfc\xdfe", "grüße"),
        ("text/plain", "é".encode(), "é"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("application/json", b"", None),
    ],
)
async def test_answers_are_read_by_their_type(content_type: str, body: bytes, data: Any) -> None:
    async with serving(always(body=body, content_type=content_type)) as server:
        assert (await asked(server.url)).data == data


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"<html>"),
        ("application/json", b"\xff"),
        ("application/json", b"[" * 100_000),
        ("application/msgpack", b"\xc1"),
        ("text/plain", b"\xff"),
        ("text/plain; charset=klingon", b"x"),
    ],
)
async def test_an_answer_that_is_not_what_it_says_fails_unless_nobody_wants_it(content_type: str, body: bytes) -> None:
    async with serving(always(body=body, content_type=content_type)) as server:
        error = await refused(server.url)
        assert type(error) is UpstreamRefused
        assert "not what it says it is" in str(error)
        assert not error.retryable
        event = await asked(server.url, keep=True)
    assert (event.data, event.headers["http_status"]) == ({"n": 1}, 200)


async def test_header_fields_that_come_again_are_joined() -> None:
    async def handle(request: web.Request) -> web.Response:
        response = web.Response()
        response.headers.add("X-A", "1")
        response.headers.add("x-a", "2")
        return response

    async with serving(handle) as server:
        assert (await asked(server.url)).headers["http_headers"]["x-a"] == "1, 2"


async def test_cookies_of_one_answer_are_no_part_of_the_next_request() -> None:
    async with serving(always(set_cookie="session=1")) as server, asking(server.url) as module:
        await module.process(Event(1))
        await module.process(Event(1))
    assert "cookie" not in server.asked[1].headers
    assert server.connections == 1  # but the connection is


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422, 304, 302])
async def test_what_will_not_be_done_is_not_worth_another_try(status: int) -> None:
    async with serving(always(status, b"because \x1b[31m of you" if status != 304 else None)) as server:
        error = await refused(f"{server.url}/a?token=s3cret")
    assert type(error) is UpstreamRefused
    assert (error.upstream_status, error.retryable, error.status) == (status, False, 502)
    assert f"POST {server.url}/a was answered {status} " in str(error)
    assert "s3cret" not in str(error)
    assert "\x1b" not in str(error)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 507])
async def test_what_cannot_be_done_now_is_worth_another_try(status: int) -> None:
    async with serving(always(status)) as server:
        error = await refused(server.url)
    assert type(error) is UpstreamUnavailable
    assert (error.upstream_status, error.retryable, error.status) == (status, True, 502)


async def test_a_gateway_that_waited_in_vain_is_a_timeout() -> None:
    async with serving(always(504)) as server:
        error = await refused(server.url)
    assert isinstance(error, UpstreamTimeout)
    assert (error.status, error.retryable) == (504, True)


async def test_when_to_ask_again_is_in_the_message() -> None:
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    for field, shortest, longest in (("7", 7, 7), (later, 90, 100), ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0)):
        async with serving(always(503, retry_after=field)) as server:
            error = await refused(server.url)
        assert error.retry_after_s is not None
        assert shortest <= error.retry_after_s <= longest
        assert f"to be asked again in {error.retry_after_s:g} s" in str(error)
    for field in ("soon", "-1", "9" * 40, "Sat, 99 Foo 2000"):
        async with serving(always(503, retry_after=field)) as server:
            assert (await refused(server.url)).retry_after_s is None


async def test_nothing_of_the_server_is_told_to_who_asked_us() -> None:
    async with serving(always(500, b"the password of the database is x", x_inner="y", retry_after="9")) as server:
        error = await refused(server.url)
    assert "password of the database" in str(error)  # for our log
    assert (error.problem(), error.headers) == ({}, {})


async def test_other_statuses_may_be_a_success() -> None:
    async with serving(always(404, b"none", content_type="text/plain")) as server:
        assert (await asked(server.url, accept=["200..299", 404])).headers["http_status"] == 404
        assert (await asked(server.url, accept=["4xx"])).data == "none"
        await refused(server.url, accept=[200, "405..499"])


# ------------------------------------------------------------------ servers that are gone, slow, wrong or hostile


async def test_a_connection_that_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        error = await refused(f"http://127.0.0.1:{taken.getsockname()[1]}/x")
    assert type(error) is UpstreamUnavailable
    assert "/x: " in str(error)
    assert error.upstream_status is None


async def test_a_server_that_does_not_answer_in_time() -> None:
    done = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await done.wait()
        return web.Response()

    async with serving(slow) as server:
        error = await refused(server.url, timeout="50ms")
        done.set()
    assert isinstance(error, UpstreamTimeout)
    assert "no answer within 0.05 s" in str(error)
    assert (error.status, error.retryable, error.problem()) == (504, True, {})


async def test_a_server_that_gives_its_answer_too_slowly() -> None:
    done = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        await done.wait()
        return response

    async with serving(slow) as server:
        error = await refused(server.url, timeout="50ms")
        kept = await asked(server.url, timeout="500ms", keep=True)  # it has said 200, and more is not wanted
        done.set()
    assert isinstance(error, UpstreamTimeout)
    assert kept.headers["http_status"] == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 999999 x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_a_server_that_breaks_off_or_talks_nonsense(raw: bytes) -> None:
    async with talking(raw) as url:
        error = await refused(url)
    assert type(error) is UpstreamUnavailable
    assert error.retryable


async def test_an_answer_that_is_too_long_is_not_read_to_its_end() -> None:
    written = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)
            written += 65536

    async with serving(endless) as server:
        error = await refused(server.url, max_response="100kB")
        kept = await asked(server.url, max_response="100kB", keep=True)
    assert type(error) is UpstreamRefused
    assert "more than 100000 bytes" in str(error)
    assert written < 50_000_000
    assert kept.data == {"n": 1}


async def test_a_small_answer_that_unpacks_to_a_huge_one_is_too_long() -> None:
    bomb = gzip.compress(b"\0" * 20_000_000)
    async with serving(always(body=bomb, content_encoding="gzip")) as server:
        error = await refused(server.url, max_response="1MB")
    assert len(bomb) < 100_000
    assert "more than 1000000 bytes" in str(error)


async def test_an_answer_of_just_the_allowed_length_is_taken() -> None:
    async with serving(always(body=b"x" * 1000)) as server:
        assert len((await asked(server.url, max_response=1000)).data) == 1000
        await refused(server.url, max_response=999)


# ------------------------------------------------------------------ redirections


def pointing(where: str, status: int = 302) -> Any:
    async def handle(request: web.Request) -> web.Response:
        if request.path == "/end":
            return await fine(request)
        return web.Response(status=status, headers={"location": where})

    return handle


async def test_redirections_are_not_followed_unless_told_and_the_message_says_where_they_lead() -> None:
    async with serving(pointing("/end")) as server:
        error = await refused(server.url)
    assert "was answered 302 Found (see /end)" in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [(301, "POST", "GET"), (302, "POST", "GET"), (303, "PUT", "GET"), (307, "POST", "POST"), (308, "PUT", "PUT"),
     (302, "PUT", "PUT")],
)  # fmt: skip
async def test_redirections_change_the_method_as_browsers_do(status: int, method: str, then: str) -> None:
    async with serving(pointing("end#part", status)) as server:
        await asked(f"{server.url}/a", method=method, body="data", follow_redirects=True, auth={"bearer": "x"})
    _, last = server.asked
    assert (last.method, last.path) == (then, "/end")
    assert last.body == (b'{"n":1}' if then == method else b"")
    assert ("content-type" in last.headers) == (then == method)
    assert last.headers["authorization"] == "Bearer x"


@pytest.mark.parametrize("auth", [{"bearer": "s3cret"}, {"header": "x-key", "key": "s3cret"}])
async def test_who_we_are_is_not_said_to_another_site(auth: dict[str, str]) -> None:
    async with serving() as other, serving(pointing(f"{other.url}/end", 307)) as server:
        await asked(server.url, follow_redirects=True, auth=auth, headers={"cookie": "s3cret", "x-other": "1"})
    (request,) = other.asked
    assert "s3cret" not in str(request.headers)
    assert request.headers["x-other"] == "1"


@pytest.mark.parametrize("where", ["ftp://127.0.0.1/", "file:///etc/passwd", "http://a:b@127.0.0.1/", "http://h:x/"])
async def test_redirections_to_what_cannot_be_asked_are_refused(where: str) -> None:
    async with serving(pointing(where)) as server:
        error = await refused(server.url, follow_redirects=True)
    assert type(error) is UpstreamRefused
    assert "points to what cannot be asked" in str(error)


async def test_redirections_without_end_are_given_up() -> None:
    async with serving(pointing("/again")) as server:
        error = await refused(server.url, follow_redirects=True)
    assert "more than 10 redirections" in str(error)
    assert len(server.asked) == 11


# ------------------------------------------------------------------ TLS


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    context, _ = certificate(tmp_path)
    async with serving(tls=context) as server:
        error = await refused(server.url)
    assert type(error) is UpstreamRefused
    assert "certificate" in str(error).lower()
    assert server.asked == []


async def test_a_certificate_of_ones_own_is_named_or_none_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context, name = certificate(tmp_path)
    async with serving(tls=context) as server:
        assert (await asked(server.url, folder=tmp_path, ca_file=name)).data == {"fine": True}
        assert caplog.messages == []
        assert (await asked(server.url, verify=False)).data == {"fine": True}
    assert caplog.messages == ["certificates are not checked (verify: false): anybody could answer"]


async def test_certificates_that_cannot_be_read_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    for name in ("bad.pem", "none.pem"):
        with pytest.raises(FurculaError, match=f"bench cannot read the certificates in .*{name}"):
            await asked("https://127.0.0.1/", folder=tmp_path, ca_file=name)


async def test_a_redirection_from_https_to_http_is_refused(tmp_path: Path) -> None:
    context, name = certificate(tmp_path)
    async with serving() as plain, serving(pointing(plain.url), context) as server:
        error = await refused(server.url, folder=tmp_path, ca_file=name, follow_redirects=True)
    assert "points from https to http" in str(error)
    assert plain.asked == []


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "example.org/x"}, "write http://host/path"),
        ({"url": "ftp://example.org"}, "write http://host/path"),
        ({"url": "http://"}, "write http://host/path"),
        ({"url": "http://ada:s3cret@example.org/"}, "under auth"),
        ({"url": "http://größe.example/"}, "ASCII form"),
        ({"url": "http://example.org:99999/"}, "is not a URL"),
        ({"url": "http://example.org/{{ data"}, "url: the template is wrong"),
        ({"method": "GE T"}, "not a method"),
        ({"method": ""}, "not a method"),
        ({"headers": {"a b": "c"}}, "not the name of a header field"),
        ({"headers": {"a": "b\nc"}}, "line break"),
        ({"headers": {"a": "{{"}}, "headers: a: the template is wrong"),
        ({"headers": {"Content-Length": "7"}}, "follows from the body"),
        ({"headers": {"Authorization": "x"}, "auth": Auth(bearer=Secret("s3cret"))}, "is written by auth"),
        ({"query": {"a": "{{"}}, "query: a: the template is wrong"),
        ({"body": "order"}, "body: .*or write a template"),
        ({"body": "{{"}, "body: the template is wrong"),
        ({"accept": ("many",)}, "not a status"),
        ({"accept": (99,)}, "not a status"),
        ({"accept": ()}, "no status"),
        ({"accept": ("300..200",)}, "no status"),
        ({"pool": 0}, "pool must be 1"),
        ({"timeout": Duration(0)}, "more than 0"),
        ({"ca_file": "x", "verify": False}, "nobody has to"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Request(**{"url": "http://127.0.0.1/", **arguments})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "auth",
    [
        {},
        {"user": "ada"},
        {"password": "s3cret"},
        {"user": "ada", "password": "s3cret", "bearer": "s3cret"},
        {"header": "x-key"},
        {"key": "s3cret"},
        {"header": "x key", "key": "s3cret"},
        {"bearer": "s3cret\r\nx: y"},
        {"user": "a:b", "password": "s3cret"},
    ],
)
def test_half_of_who_we_are_is_refused_and_not_shown(auth: dict[str, str]) -> None:
    given = Auth(**{name: Secret(v) if name in ("password", "bearer", "key") else v for name, v in auth.items()})
    with pytest.raises(ValueError, match="auth") as caught:
        Request(url="http://127.0.0.1/", auth=given)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "auth", ["{user: ada, password: '${TOKEN}'}", "{bearer: '${TOKEN}'}", "{header: x-key, key: '${TOKEN}'}"]
)
def test_a_flow_file_says_all_of_it_and_its_secret_is_written_out_as_the_variable_it_was(auth: str) -> None:
    text = f"""
        flow: send
        modules:
          in: inlet
          send:
            use: http.request
            concurrency: 8
            with:
              url: "https://example.org/{{{{ data.id }}}}"
              auth: {auth}
              query: {{page: 2, all: true, q: "{{{{ data.q }}}}"}}
              headers: {{accept: application/json}}
              accept: [200..299, 404]
              timeout: 5s
    """
    flow = loads(text, environment={"TOKEN": "s3cret"})
    flow.check()
    written = dump(flow)
    assert "${TOKEN}" in written
    assert "s3cret" not in written
    with pytest.raises(ConfigurationError) as caught:
        loads(text.replace("timeout: 5s", "timeout: soon"), environment={"TOKEN": "s3cret"})
    assert "s3cret" not in str(caught.value)


# ------------------------------------------------------------------ in flows


async def run(flow: Flow) -> Any:
    statistics = await flow.run_async()
    assert statistics.balanced
    return statistics


async def test_as_a_sink_an_event_is_delivered_when_the_server_has_taken_it() -> None:
    async with serving(always(202)) as server:
        flow = Flow("send")
        flow.source([{"n": n} for n in range(50)], "in") >> flow.use(
            "http.request", "send", url=server.url, options=Options(concurrency=8)
        )
        statistics = await run(flow)
    assert statistics.delivered == 50
    assert sorted(json.loads(request.body)["n"] for request in server.asked) == list(range(50))


async def test_no_more_connections_are_made_than_the_pool_has() -> None:
    async with serving() as server:
        flow = Flow("send")
        flow.source(range(100), "in") >> flow.use(
            "http.request", "send", url=server.url, pool=3, options=Options(concurrency=50)
        )
        await run(flow)
    assert len(server.asked) == 100
    assert server.connections <= 3


async def test_a_retry_tries_again_what_may_succeed_and_nothing_else() -> None:
    async def flaky(request: web.Request) -> web.Response:
        tries = sum(asked.path == request.raw_path for asked in server.asked)
        if request.path == "/never":
            return web.Response(status=400)
        return web.Response(status=503 if tries < 3 else 200)

    async with serving(flaky) as server:
        flow = Flow("send")
        retry = Retry(attempts=5, delay=0, errors=["furcula.modules.http.upstream:UpstreamUnavailable"])
        send = flow.use(
            "http.request", "send", url=server.url + "/{{ data.path }}", headers={"idempotency-key": "{{ event.id }}"},
            options=Options(retry=retry),
        )  # fmt: skip
        dead: list[Event] = []
        flow.source([{"path": "later"}, {"path": "never"}], "in") >> send
        send.failed >> flow.module(dead.append, "dead")
        statistics = await run(flow)
    assert [request.path for request in server.asked] == ["/later", "/later", "/later", "/never"]
    assert len({request.headers["idempotency-key"] for request in server.asked}) == 2
    assert statistics.delivered == 2
    (failure,) = dead[0].failures
    assert (failure.type, failure.status, failure.retryable, failure.problem) == ("UpstreamRefused", 502, False, {})
    assert dead[0].data == {"path": "never"}


async def test_who_asked_us_is_told_502_and_nothing_of_the_server(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with serving(always(500, b"inner matters")) as server:
        flow = Flow("proxy")
        http = flow.use("inlet", "http")
        http >> flow.use("http.request", "ask", url=server.url) >> http
        async with Director(flow) as director:
            with pytest.raises(Unanswered) as caught:
                await director.ask("http", {"n": 1})
    failure = caught.value.failure
    assert (failure.status, failure.problem, failure.headers) == (502, {}, {})
    assert "inner matters" in caplog.text


async def test_an_event_goes_on_with_the_answer() -> None:
    async with serving(always(body=b"[1, 2]", content_type="application/json")) as server:
        flow = Flow("ask")
        found: list[Event] = []
        ask = flow.use("http.request", "ask", url=server.url, method="GET")
        flow.source([{"n": 1}], "in") >> ask >> flow.module(found.append, "see")
        await run(flow)
    assert [event.data for event in found] == [[1, 2]]
