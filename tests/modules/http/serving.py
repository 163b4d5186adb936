"""A flow with `http.listen` that really listens, and clients for it: aiohttp, and sockets for the ill behaved."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from furcula import Director, Event, Flow, Statistics

__all__ = ["Served", "answers", "exchange", "serving"]


class Served:
    """A running flow.

    Attributes:
        url: Where it listens.
        http: A client.
        statistics: At the end, once it has been left.
    """

    def __init__(self, director: Director, name: str):
        self.director = director
        self.listen = director.modules[name].instance
        self.address = self.listen.addresses[0] if self.listen.addresses else None
        self.url = f"http://{self.address[0]}:{self.address[1]}" if isinstance(self.address, tuple) else ""
        self.http: aiohttp.ClientSession
        self.statistics: Statistics

    async def json(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.http.request(method, self.url + path, **more) as answer:
            return answer.status, await answer.json(content_type=None) if await answer.read() else None

    async def text(self, method: str, path: str, **more: Any) -> tuple[int, str]:
        async with self.http.request(method, self.url + path, **more) as answer:
            return answer.status, await answer.text()

    async def raw(self, request: bytes, *, limit_s: float = 10) -> bytes:
        """Send bytes, and read until the connection is closed (or everything has been quiet for a moment)."""
        return await exchange(self.address, request, limit_s=limit_s)


async def exchange(address: Any, request: bytes, *, limit_s: float = 10, half_close: bool = False) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            if half_close:
                writer.write_eof()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(limit_s):
                return await reader.read()
        return b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(flow: Flow, name: str = "listen", **settings: Any) -> AsyncIterator[Served]:
    """Run the flow; when it is left, everything admitted is settled and nothing of it is left behind."""
    director = Director(flow, **settings)
    async with director:
        served = Served(director, name)
        async with aiohttp.ClientSession(auto_decompress=True) as served.http:
            yield served
    served.statistics = statistics = director.statistics()
    assert statistics.balanced, statistics
    assert statistics.open == 0
    assert statistics.total.late == 0
    assert statistics.total.lost == 0
    site = served.listen.site
    assert site.active == 0
    assert len(site.sockets) == 0
    gc.collect()  # sockets that nobody closed would say so now, and warnings are errors


def answers(function: Callable[..., Any] | None = None, **arguments: Any) -> Flow:
    """A flow that answers each request by one function of the event; without one, by itself."""
    flow = Flow("http")
    arguments.setdefault("port", 0)
    http = flow.use("http.listen", "listen", **arguments)
    handle = flow.module(function or _same, "handle")
    http >> handle >> http
    return flow


def _same(event: Event) -> Event:
    return event
