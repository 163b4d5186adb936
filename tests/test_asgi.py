"""flow.asgi: a flow as part of another application."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from furcula import ConfigurationError, Event, Flow
from furcula.asgi import AsgiFlow


def shop(**arguments: Any) -> Flow:
    flow = Flow("shop")
    http = flow.use("http.listen", "http", routes=["POST /orders/{id:int}", "GET /", "WS /ws"], **arguments)

    @flow.module
    async def handle(event: Event) -> Event:
        await asyncio.sleep(0)
        return Event({"path": event.headers["path"], "id": event.headers["params"].get("id"), "data": event.data})

    http >> handle >> http
    return flow


async def ask(app: Any, method: str, path: str, body: bytes = b"", root_path: str = "") -> tuple[int, bytes]:
    """One request by the ASGI protocol itself."""
    sent: list[Any] = []
    coming = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if coming:
            return coming.pop()
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"test"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
        "scheme": "http",
    }
    async with asyncio.timeout(10):
        await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def test_a_flow_is_mounted_in_starlette_and_starts_and_drains_with_it() -> None:
    flow = shop()
    hello = Route("/hello", lambda request: PlainTextResponse("hello"))
    app = Starlette(routes=[hello, Mount("/flow", flow.asgi)], lifespan=flow.asgi.lifespan)
    async with app.router.lifespan_context(app):
        director = flow.asgi.director
        assert director is not None
        status, body = await ask(app, "POST", "/flow/orders/7", b'{"a":1}')
        assert (status, body) == (200, b'{"path":"/orders/7","id":7,"data":{"a":1}}')
        assert await ask(app, "GET", "/hello") == (200, b"hello")
        assert (await ask(app, "GET", "/flow/nothing"))[0] == 404
    assert director.phase == "stopped"
    assert director.statistics().delivered == 1


async def test_a_flow_is_mounted_in_fastapi_and_starts_with_the_first_request_where_nobody_starts_it() -> None:
    flow = shop()
    app = FastAPI()
    app.mount("/flow", flow.asgi)
    assert flow.asgi.director is None
    asked = [ask(app, "POST", f"/flow/orders/{n}", b"1") for n in range(20)]
    assert {status for status, _ in await asyncio.gather(*asked)} == {200}
    director = flow.asgi.director
    assert director is not None
    assert director.statistics().admitted == 20
    await flow.asgi.stop()


async def test_the_lifespan_of_a_server_runs_the_flow_again_and_again() -> None:
    flow = shop()
    for _ in range(2):
        messages = asyncio.Queue[Any]()
        sent = asyncio.Queue[Any]()
        serving = asyncio.create_task(flow.asgi({"type": "lifespan"}, messages.get, sent.put))
        messages.put_nowait({"type": "lifespan.startup"})
        assert await sent.get() == {"type": "lifespan.startup.complete"}
        assert (await ask(flow.asgi, "GET", "/"))[0] == 200
        messages.put_nowait({"type": "lifespan.shutdown"})
        assert await sent.get() == {"type": "lifespan.shutdown.complete"}
        await serving


async def test_a_flow_that_cannot_start_says_so_to_the_server() -> None:
    flow = shop()

    class Broken:
        def start(self) -> None:
            raise OSError("no database")

        def process(self, event: Event) -> Event:
            return event

    flow.places["handle"] >> flow.use(Broken) >> flow.use("null")
    messages, sent = asyncio.Queue[Any](), asyncio.Queue[Any]()
    messages.put_nowait({"type": "lifespan.startup"})
    await flow.asgi({"type": "lifespan"}, messages.get, sent.put)
    told = await sent.get()
    assert told["type"] == "lifespan.startup.failed"
    assert "no database" in told["message"]


async def test_a_flow_stands_beside_an_application_that_cannot_mount() -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("other")(scope, receive, send)

    flow = shop()
    app = flow.asgi.beside(other, at="/flow")
    assert await ask(app, "GET", "/flowers") == (200, b"other")
    assert (await ask(app, "POST", "/flow/orders/3", b"2"))[1] == b'{"path":"/orders/3","id":3,"data":2}'
    await flow.asgi.stop()


async def test_a_flow_without_one_http_listen_cannot_be_mounted() -> None:
    flow = Flow("none")
    flow.source(lambda: iter([1]), "one") >> flow.use("null")
    with pytest.raises(ConfigurationError, match=r"one http\.listen is needed to mount the flow, and there are none"):
        await ask(flow.asgi, "GET", "/")
    two = shop()
    two.use("http.listen", "second", port=0) >> two.use("null")
    with pytest.raises(ConfigurationError, match=r"several \(http, second\)"):
        await ask(two.asgi, "GET", "/")
    by_name = AsgiFlow(two, "http")
    assert (await ask(by_name, "GET", "/"))[0] == 200
    await by_name.stop()


@pytest.fixture
def django_project(tmp_path: Path) -> Path:
    (tmp_path / "site_asgi.py").write_text(
        textwrap.dedent(
            """
            import asyncio
            import django
            from django.conf import settings
            from django.http import HttpResponse
            from django.urls import path

            settings.configure(
                ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", LOGGING_CONFIG=None, MIDDLEWARE=[]
            )
            urlpatterns = [path("hello", lambda request: HttpResponse("django"))]
            django.setup()

            from django.core.asgi import get_asgi_application
            from tests.test_asgi import ask, shop

            flow = shop()
            application = flow.asgi.beside(get_asgi_application(), at="/flow")

            async def main():
                print(await ask(application, "GET", "/hello"))
                print(await ask(application, "POST", "/flow/orders/5", b"true"))
                await flow.asgi.stop()

            asyncio.run(main())
            """
        )
    )
    return tmp_path


def test_a_flow_stands_beside_django(django_project: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(django_project / "site_asgi.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )
    assert ended.stdout.splitlines() == [
        "(200, b'django')",
        """(200, b'{"path":"/orders/5","id":5,"data":true}')""",
    ], ended.stderr
