"""The modules that stand behind http.listen, asked over real connections: what a client sees of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from pathlib import Path
from typing import Any

import jwt
import pytest

from furcula import Event, Flow
from furcula.modules.http.reply import set_cookie

from .serving import serving
from .upstreams import always
from .upstreams import serving as upstream

KEY = "a shared secret of 32 bytes or more"
LONG = bytes(range(256)) * 4096


def basic(pair: str) -> str:
    return "Basic " + base64.b64encode(pair.encode()).decode()


def guarded(kind: str, **arguments: Any) -> Flow:
    """A flow that answers with `headers.auth` and what is left of the request."""
    flow = Flow("shop")
    listen = flow.use("http.listen", "listen", port=0, raw_body=True)
    guard = flow.use(kind, "guard", **arguments)

    @flow.module
    def show(event: Event) -> Event:
        event.data = {"auth": event.headers["auth"], "request": event.headers["request"]}
        return event

    listen >> guard >> show >> listen
    return flow


@pytest.mark.parametrize(
    ("kind", "arguments", "good", "bad", "challenge"),
    [
        (
            "auth.basic",
            {"users": {"Zoë": "s3cret"}},
            {"authorization": basic("Zoë:s3cret")},
            {"authorization": basic("Zoë:wrong")},
            'Basic realm="furcula", charset="UTF-8"',
        ),
        (
            "auth.bearer",
            {"tokens": {"ci": "t0ken"}},
            {"authorization": "Bearer t0ken"},
            {"authorization": "Bearer t1ken"},
            'Bearer realm="furcula", error="invalid_token", error_description="the token is not known"',
        ),
        ("auth.key", {"keys": {"ci": "k3y"}}, {"x-api-key": "k3y"}, {"x-api-key": "x"}, 'ApiKey realm="furcula"'),
    ],
)
async def test_who_has_credentials_passes_without_them_and_others_see_the_challenge(
    kind: str, arguments: Any, good: dict[str, str], bad: dict[str, str], challenge: str
) -> None:
    async with serving(guarded(kind, **arguments)) as served:
        status, data = await served.json("GET", "/", headers=good)
        assert (status, data["auth"]["scheme"]) == (200, kind.partition(".")[2])
        assert not set(good) & set(data["request"])
        for headers in (bad, {"authorization": "nonsense"}, {}):
            async with served.http.get(served.url, headers=headers) as answer:
                assert answer.status == 401
                assert answer.content_type == "application/problem+json"
                if headers is bad:
                    assert answer.headers["www-authenticate"] == challenge


async def test_a_token_without_the_scope_is_answered_403() -> None:
    flow = guarded("auth.bearer", jwt_key=KEY, algorithms=["HS256"], scopes=["orders"])
    async with serving(flow) as served:
        for scope, wanted in (("orders x", 200), ("x", 403)):
            token = jwt.encode({"sub": "ada", "exp": time.time() + 60, "scope": scope}, KEY, "HS256")
            status, _ = await served.json("GET", "/", headers={"authorization": f"Bearer {token}"})
            assert status == wanted


async def test_a_signed_body_passes_as_it_was_sent_and_not_otherwise() -> None:
    body = b'{"a" :  1}'
    good = "sha256=" + hmac.new(b"x", body, hashlib.sha256).hexdigest()
    async with serving(guarded("auth.signature", form="github", secrets=["x"])) as served:
        for sent, wanted in ((body, 200), (b'{"a": 1}', 401), (b"", 401)):
            headers = {"x-hub-signature-256": good, "content-type": "application/json"}
            async with served.http.post(served.url, data=sent, headers=headers) as answer:
                assert answer.status == wanted


async def test_who_asks_too_often_is_told_when_to_come_again() -> None:
    flow = Flow("shop")
    listen = flow.use("http.listen", "listen", port=0)
    listen >> flow.use("http.limit", "limit", rate="2/1h") >> listen
    async with serving(flow) as served:
        assert [(await served.json("GET", "/"))[0] for _ in range(3)] == [204, 204, 429]
        async with served.http.get(served.url) as answer:
            assert 1790 <= int(answer.headers["retry-after"]) <= 1800
            problem = await answer.json()
    assert (problem["title"], problem["limit"], problem["window_s"]) == ("Too Many Requests", 2, 3600)


async def test_methods_part_and_answers_are_dressed() -> None:
    flow = Flow("shop")
    listen = flow.use("http.listen", "listen", port=0, routes=["* /orders/{id}", "* /orders"])
    way = flow.use("http.method", "way", methods=["GET", "POST", "DELETE"])
    listen >> way

    @flow.module
    def order(event: Event) -> Event:
        event.data = {"id": event.headers["params"]["id"]}
        return set_cookie(event, "seen", "1")

    way["get"] >> order >> listen
    made = flow.use("http.reply", "made", location="/orders/{{ data.id }}", cookies={"last": {"value": "7"}})
    way["post"] >> made >> listen
    way["delete"] >> flow.use("http.reply", "gone", empty=True) >> listen
    async with serving(flow) as served:
        async with served.http.get(served.url + "/orders/7") as answer:
            assert (answer.status, await answer.json()) == (200, {"id": "7"})
            assert answer.headers["set-cookie"] == "seen=1; HttpOnly; Path=/; SameSite=Lax"
        async with served.http.head(served.url + "/orders/7") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
        async with served.http.post(served.url + "/orders", json={"id": "a/b\r\nx: y"}) as answer:
            assert (answer.status, answer.headers["location"]) == (201, "/orders/a%2Fb%0D%0Ax%3A%20y")
            assert answer.cookies["last"].value == "7"
        async with served.http.delete(served.url + "/orders/7") as answer:
            assert (answer.status, await answer.read()) == (204, b"")
        async with served.http.put(served.url + "/orders/7") as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "GET, POST, DELETE, HEAD")


async def test_files_over_a_connection(tmp_path: Path) -> None:
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / "hello.txt").write_text("0123456789")
    (folder / "long.bin").write_bytes(LONG)
    (tmp_path / "secret.txt").write_text("secret")
    flow = Flow("site", folder=tmp_path)
    listen = flow.use("http.listen", "listen", port=0, routes=["GET /static/{path:path}"])
    listen >> flow.use("http.files", "files", folder="public", cache_control="no-cache") >> listen
    async with serving(flow) as served:
        url = served.url + "/static/"
        async with served.http.get(url + "hello.txt") as answer:
            assert (answer.status, await answer.text()) == (200, "0123456789")
            etag = answer.headers["etag"]
        async with served.http.get(url + "hello.txt", headers={"if-none-match": etag}) as answer:
            assert (answer.status, await answer.read(), answer.headers["etag"]) == (304, b"", etag)
        async with served.http.get(url + "hello.txt", headers={"range": "bytes=2-4"}) as answer:
            assert (answer.status, await answer.read()) == (206, b"234")
        async with served.http.get(url + "hello.txt", headers={"range": "bytes=99-"}) as answer:
            assert (answer.status, answer.headers["content-range"]) == (416, "bytes */10")
        async with served.http.head(url + "hello.txt") as answer:
            assert (answer.status, answer.headers["content-length"], await answer.read()) == (200, "10", b"")
        async with served.http.get(url + "long.bin") as answer:
            assert await answer.read() == LONG
        async with served.http.get(url + "long.bin", headers={"range": "bytes=5-900000"}) as answer:
            assert (answer.status, await answer.read()) == (206, LONG[5:900001])
        for path in ("..%2fsecret.txt", "%2e%2e/secret.txt", "..%5csecret.txt", "x%00", "//etc/passwd"):
            raw = await served.raw(f"GET /static/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
            assert b" 404 " in raw.partition(b"\r\n")[0] or b" 400 " in raw.partition(b"\r\n")[0]
            assert b"secret" not in raw.partition(b"\r\n\r\n")[2].replace(b"secret.txt", b"")


async def test_a_client_that_leaves_in_the_middle_of_a_file_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "long.bin").write_bytes(LONG * 8)
    flow = Flow("site", folder=tmp_path)
    listen = flow.use("http.listen", "listen", port=0, routes=["GET /{path:path}"])
    listen >> flow.use("http.files", "files", folder=".") >> listen
    async with serving(flow) as served:
        for _ in range(5):
            answer = await served.http.get(served.url + "/long.bin")
            await answer.content.readexactly(1000)
            answer.close()
        async with served.http.get(served.url + "/long.bin") as answer:
            assert await answer.read() == LONG * 8


async def test_a_flow_that_asks_another_server_hands_its_answer_on_and_hides_its_errors() -> None:
    for status, wanted in ((200, 200), (404, 502), (500, 502), (503, 502), (504, 504)):
        async with upstream(always(status, b'{"inner": "matters"}', content_type="application/json")) as server:
            flow = Flow("proxy")
            listen = flow.use("http.listen", "listen", port=0)
            listen >> flow.use("http.request", "ask", url=server.url + "{{ headers.path | safe }}") >> listen
            async with serving(flow) as served:
                found, data = await served.json("POST", "/a/b", json={"n": 1}, headers={"x-request-id": "r-1"})
        assert found == wanted
        assert ("inner" in str(data)) == (status == 200)
        (request,) = server.asked
        assert (request.path, request.body, request.headers["x-request-id"]) == ("/a/b", b'{"n":1}', "r-1")
