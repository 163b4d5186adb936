"""`python -m bench.http.servers NAME PORT`: one server in one process. Each answers POST /echo with what it got."""

from __future__ import annotations

import sys
from typing import Any

TOKEN = "a-token-for-the-bench"


def bare(port: int) -> None:
    """The reference: an ASGI application that sends the bytes of the body back, unread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    _uvicorn(app, port)


def starlette(port: int) -> None:
    """Reads JSON and writes JSON."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse(await request.json())

    _uvicorn(Starlette(routes=[Route("/echo", echo, methods=["POST"])]), port)


def fastapi(port: int) -> None:
    """Reads JSON and writes JSON."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/echo")
    async def echo(body: dict[str, Any]) -> dict[str, Any]:
        return body

    _uvicorn(app, port)


def furcula(port: int) -> None:
    """Reads JSON and writes JSON: one event function."""
    from furcula import Event, Flow

    flow = Flow("echo")
    http = flow.use("http.listen", port=port, routes=["POST /echo"])

    @flow.module
    def echo(event: Event) -> Event:
        return event

    http >> echo >> http
    flow.run()


def modules(port: int) -> None:
    """A bearer token is checked, and three event functions work on the data."""
    from furcula import Event, Flow

    flow = Flow("modules")
    http = flow.use("http.listen", port=port, routes=["POST /echo"])
    auth = flow.use("auth.bearer", "auth", tokens={"bench": TOKEN})

    @flow.module
    def check(event: Event) -> Event:
        event.data["count"] = int(event.data["count"])
        return event

    @flow.module
    def price(event: Event) -> Event:
        event.data["price"] = event.data["count"] * 3
        return event

    @flow.module
    def mark(event: Event) -> Event:
        event.data["user"] = event.headers["auth"]["user"]
        return event

    http >> auth >> check >> price >> mark >> http
    auth.failed >> http
    flow.run()


def _uvicorn(app: Any, port: int) -> None:
    import uvicorn

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", lifespan="off", log_level="error", access_log=False)


SERVERS = {server.__name__: server for server in (bare, starlette, fastapi, furcula, modules)}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
