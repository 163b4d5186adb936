"""A flow as an ASGI application: part of a Starlette, FastAPI or Django site, or under a server of your own choice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from furcula.engine.director import Director
from furcula.errors import ConfigurationError
from furcula.flow import FlowGraph

__all__ = ["AsgiFlow"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_log = logging.getLogger("furcula.flow")


class AsgiFlow:
    """Serves the requests of another server through a flow. `flow.asgi` is one.

    The flow's `http.listen` opens nothing then: what would come to its port comes from here, and everything else about
    it holds. The flow is started by the server's lifespan, by `lifespan` in the one of the application that it is
    mounted in, or else by the first request; only with a lifespan is it drained when the server stops.

    Args:
        flow: The flow.
        name: Which of its `http.listen` modules; needed where there are several.
        settings: See `Director`.
    """

    def __init__(self, flow: FlowGraph, name: str | None = None, **settings: Any):
        self._flow = flow
        self._name = name
        self._settings = settings
        self._director: Director | None = None
        self._site: Application | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[Application] | None = None

    @property
    def director(self) -> Director | None:
        """What runs the flow, once it is started."""
        return self._director

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        site = self._site
        if site is None or self._loop is not asyncio.get_running_loop():
            site = await self._started()
        await site(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(self, application: Any = None) -> AsyncIterator[None]:
        """Run the flow meanwhile: `Starlette(lifespan=flow.asgi.lifespan, routes=[Mount("/flow", flow.asgi)])`."""
        await self._started()
        try:
            yield
        finally:
            await self.stop()

    def beside(self, application: Application, *, at: str) -> Application:
        """An application that serves what is under the path `at` through the flow, and anything else by `application`.

        For those that cannot mount, like Django's. The server's lifespan runs the flow.
        """
        if not at.startswith("/") or at.endswith("/"):
            raise ConfigurationError(f"{at!r}: the path must begin with '/' and not end with one")

        async def both(scope: Message, receive: Receive, send: Send) -> None:
            path = scope.get("path", "")
            if scope["type"] == "lifespan":
                await self(scope, receive, send)
            elif path == at or path.startswith(f"{at}/"):
                await self({**scope, "root_path": scope.get("root_path", "") + at}, receive, send)
            else:
                await application(scope, receive, send)

        return both

    async def stop(self) -> None:
        """Drain the flow and stop it. The next request, or lifespan, starts it anew."""
        director, self._director, self._site = self._director, None, None
        if director is not None and self._loop is asyncio.get_running_loop():
            await director.stop()

    # ------------------------------------------------------------------ starting

    async def _started(self) -> Application:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # never started, or in a loop that is gone
            self._loop, self._starting, self._site = loop, None, None
        if self._site is not None:
            return self._site
        if self._starting is None or (self._starting.done() and self._site is None):
            self._starting = loop.create_task(self._start(), name="furcula asgi start")
        # Whoever asked first may leave; the others still want it.
        return await asyncio.shield(self._starting)

    async def _start(self) -> Application:
        director = Director(self._flow, **self._settings)
        listening = [name for name, run in director.modules.items() if hasattr(run.instance, "mounted")]
        if self._name is not None:
            listening = [name for name in listening if name == self._name]
        if len(listening) != 1:
            what = f"several ({', '.join(listening)}): name one, AsgiFlow(flow, name)" if listening else "none"
            raise ConfigurationError(
                f"{self._flow.name}: one http.listen is needed to mount the flow, and there are {what}"
            )
        instance = director.modules[listening[0]].instance
        instance.mounted = True
        await director.start()
        self._director = director
        self._site = site = instance.site
        return site  # type: ignore[no-any-return]

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._started()
                except Exception as error:
                    _log.exception("%s could not start", self._flow.name)
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return
