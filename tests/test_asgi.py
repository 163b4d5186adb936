"""flow.asgi: a flow as part of another application."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
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
from furcula.errors import StartFailed


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


@pytest.mark.parametrize("path", ["/pre/flow/orders/3", "/flow/orders/3"])
async def test_a_flow_beside_another_application_is_found_behind_a_root_path(path: str) -> None:
    """Servers of today put root_path before the path, those of yesterday do not."""

    async def other(scope: Any, receive: Any, send: Any) -> None:
        assert scope["root_path"] == "/pre"
        await PlainTextResponse(scope["path"])(scope, receive, send)

    flow = shop()
    app = flow.asgi.beside(other, at="/flow")
    assert (await ask(app, "POST", path, b"2", "/pre"))[1] == b'{"path":"/orders/3","id":3,"data":2}'
    assert (await ask(app, "GET", "/pre/flowers", root_path="/pre"))[1] == b"/pre/flowers"
    assert (await ask(app, "GET", "/prefix/flow/a", root_path="/pre"))[1] == b"/prefix/flow/a"
    await flow.asgi.stop()


# ------------------------------------------------------------------ starts and stops that meet


class Gate:
    """A module that counts its starts and stops. It starts when it is let, and handles when it is let."""

    def __init__(self) -> None:
        self.starts = self.stops = 0
        self.fails = False
        self.begun, self.may_start = asyncio.Event(), asyncio.Event()
        self.handling, self.may_handle = asyncio.Event(), asyncio.Event()
        self.may_start.set()
        self.may_handle.set()

    def flow(self) -> Flow:
        gate = self

        class Gated:
            async def start(self) -> None:
                gate.begun.set()
                await gate.may_start.wait()
                if gate.fails:
                    raise OSError("no database")
                gate.starts += 1

            def stop(self) -> None:
                gate.stops += 1

            async def process(self, event: Event) -> Event:
                gate.handling.set()
                await gate.may_handle.wait()
                return Event("fine")

        flow = Flow("gated")
        http = flow.use("http.listen", "http")
        http >> flow.use(Gated, "gated") >> http
        return flow


async def test_a_flow_that_is_stopped_while_it_starts_does_not_run_afterwards() -> None:
    gate = Gate()
    gate.may_start.clear()
    app = gate.flow().asgi
    asked = asyncio.create_task(ask(app, "GET", "/"))
    await gate.begun.wait()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0)
    gate.may_start.set()
    await stopping
    assert (gate.starts, gate.stops, app.director) == (1, 1, None)
    assert (await asked)[0] == 503
    assert (await ask(app, "GET", "/")) == (200, b"fine")
    await app.stop()
    assert (gate.starts, gate.stops) == (2, 2)


async def test_a_flow_that_is_stopped_before_its_start_has_begun_is_not_started() -> None:
    gate = Gate()
    app = gate.flow().asgi
    asked = asyncio.create_task(ask(app, "GET", "/"))
    await asyncio.sleep(0)
    await app.stop()
    assert (await asked)[0] == 503
    assert gate.starts == gate.stops
    assert app.director is None


async def test_a_start_that_hangs_does_not_hold_up_the_stop_for_longer_than_the_deadline() -> None:
    gate = Gate()
    gate.may_start.clear()
    app = AsgiFlow(gate.flow(), deadline="10ms")
    asked = asyncio.create_task(ask(app, "GET", "/"))
    await gate.begun.wait()
    async with asyncio.timeout(10):
        await app.stop()
    assert (await asked)[0] == 503
    assert app.director is None


async def test_requests_while_a_flow_is_drained_are_refused_and_start_no_other() -> None:
    gate = Gate()
    gate.may_handle.clear()
    app = gate.flow().asgi
    first = asyncio.create_task(ask(app, "GET", "/"))
    await gate.handling.wait()
    stopping = [asyncio.create_task(app.stop()) for _ in range(2)]
    await asyncio.sleep(0)
    status, body = await ask(app, "GET", "/")
    assert (status, body[:60]) == (503, b'{"type":"about:blank","title":"Service Unavailable","status"')
    again = asyncio.create_task(started(app))
    await asyncio.sleep(0)
    gate.may_handle.set()
    assert await first == (200, b"fine")
    await asyncio.gather(*stopping)
    assert (await again, gate.starts, gate.stops) == ("running", 2, 1)
    await app.stop()
    assert (gate.starts, gate.stops) == (2, 2)


async def started(app: AsgiFlow) -> str:
    await app._started()
    assert app.director is not None
    return app.director.phase


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
async def test_a_websocket_while_a_flow_is_drained_is_refused(extensions: Any) -> None:
    gate = Gate()
    gate.may_handle.clear()
    app = gate.flow().asgi
    first = asyncio.create_task(ask(app, "GET", "/"))
    await gate.handling.wait()
    stopping = asyncio.create_task(app.stop())
    await asyncio.sleep(0)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append((message["type"], message.get("code") or message.get("status")))

    await app({"type": "websocket", "path": "/", "extensions": extensions}, receive, send)
    assert sent[0] == (("websocket.http.response.start", 503) if extensions else ("websocket.close", 1001))
    gate.may_handle.set()
    await first
    await stopping


async def test_after_a_start_that_failed_the_next_request_tries_again() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    gate = Gate()
    gate.fails = True
    gate.may_start.clear()
    app = gate.flow().asgi
    asked = [asyncio.create_task(ask(app, "GET", "/")) for _ in range(2)]
    await gate.begun.wait()
    asked[0].cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asked[0]
    gate.may_start.set()
    with pytest.raises(StartFailed, match="no database"):
        await asked[1]
    with pytest.raises(StartFailed, match="no database"):
        await ask(app, "GET", "/")
    await app.stop()
    gate.fails = False
    assert await ask(app, "GET", "/") == (200, b"fine")
    await app.stop()
    assert gate.starts == 1
    del asked
    gc.collect()
    assert complaints == []


async def test_the_context_of_the_request_that_starts_a_flow_is_not_that_of_the_others() -> None:
    user = contextvars.ContextVar("user", default="nobody")
    flow = Flow("whose")
    http = flow.use("http.listen", "http")

    async def whose(event: Event) -> Event:
        return Event(user.get())

    http >> flow.module(whose, "whose") >> http
    app = flow.asgi

    async def ask_as(name: str) -> bytes:
        user.set(name)
        return (await ask(app, "GET", "/"))[1]

    assert [await asyncio.create_task(ask_as(name)) for name in ("alice", "bob")] == [b"nobody", b"nobody"]
    await app.stop()


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
