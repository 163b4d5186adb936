"""A flow as an ASGI application: part of a Starlette, FastAPI or Django site, or under a server of your own choice."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from furcula.engine.director import Director
from furcula.errors import ConfigurationError, Stopped
from furcula.flow import FlowGraph

__all__ = ["AsgiFlow"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_log = logging.getLogger("furcula.flow")

_STOPPING = b'{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"it is being stopped"}'


class AsgiFlow:
    """Serves the requests of another server through a flow. `flow.asgi` is one.

    The flow's `http.listen` opens nothing then: what would come to its port comes from here, and everything else about
    it holds. The flow is started by the server's lifespan, by `lifespan` in the one of the application that it is
    mounted in, or else by the first request; only with a lifespan is it drained when the server stops. While it is
    drained, requests are answered 503.

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
        self._stopping: asyncio.Task[None] | None = None
        #: What `_starting` starts.
        self._begun: Director | None = None
        # The flow runs in no request's context: its workers outlive the one that happens to start it.
        self._context = contextvars.copy_context()

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
            try:
                site = await self._started_unless_stopping()
            except Stopped:
                await _unavailable(scope, receive, send)
                return
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
            if scope["type"] == "lifespan":
                await self(scope, receive, send)
                return
            # The path begins with root_path, by ASGI; some servers leave it out.
            path, root = scope.get("path", ""), scope.get("root_path", "").rstrip("/")
            inner = path[len(root) :] if _is_under(path, root) else path
            if _is_under(inner, at):
                await self({**scope, "root_path": root + at, "path": root + inner}, receive, send)
            else:
                await application(scope, receive, send)

        return both

    async def stop(self) -> None:
        """Drain the flow and stop it. The next request, or lifespan, starts it anew.

        A start that is under way is stopped as `Director.stop` does it.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # what ran in a loop that is gone is gone with it
            self._forget(loop)
        if self._stopping is None:
            if self._begun is None and self._starting is None:
                return
            self._stopping = loop.create_task(
                self._stop(self._begun, self._starting), name="furcula asgi stop", context=self._context.copy()
            )
            self._stopping.add_done_callback(self._has_stopped)
            self._director = self._site = None
        await asyncio.shield(self._stopping)

    async def _stop(self, director: Director | None, starting: asyncio.Task[Application] | None) -> None:
        if director is not None:
            await director.stop()
        if starting is not None:
            await asyncio.wait((starting,))

    def _has_stopped(self, stopping: asyncio.Task[None]) -> None:
        if not stopping.cancelled():
            stopping.exception()  # whoever wanted it stopped has it; it is not said again if they have left
        if self._stopping is stopping:
            self._stopping = self._begun = None

    # ------------------------------------------------------------------ starting

    async def _started(self) -> Application:
        """Start the flow, unless it runs. While it is being stopped: wait for that first.

        Raises:
            Stopped: It was stopped before it had started.
        """
        while self._loop is asyncio.get_running_loop() and self._stopping is not None:
            await asyncio.wait((self._stopping,))
        return await self._started_unless_stopping()

    async def _started_unless_stopping(self) -> Application:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # never started, or in a loop that is gone
            self._forget(loop)
        if self._stopping is not None:
            raise Stopped(f"{self._flow.name} is being stopped")
        if self._site is not None:
            return self._site
        if self._starting is None:
            self._starting = loop.create_task(self._start(), name="furcula asgi start", context=self._context.copy())
            self._starting.add_done_callback(self._has_started)
        # Whoever asked first may leave; the others still want it.
        return await asyncio.shield(self._starting)

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._starting = self._stopping = self._director = self._begun = self._site = None

    async def _start(self) -> Application:
        if self._stopping is not None:
            raise Stopped(f"{self._flow.name} was stopped before it had started")
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
        self._begun = director
        await director.start()
        site: Application = instance.site
        if self._stopping is None:
            self._director, self._site = director, site
        return site

    def _has_started(self, starting: asyncio.Task[Application]) -> None:
        failed = starting.cancelled() or starting.exception() is not None
        if self._starting is starting:
            self._starting = None  # after a failure, the next request tries again
            if failed and self._stopping is None:
                self._begun = None

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


def _is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


async def _unavailable(scope: Message, receive: Receive, send: Send) -> None:
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1001})
            return
        kind = "websocket.http.response"
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(_STOPPING)),
        (b"retry-after", b"1"),
    ]
    await send({"type": f"{kind}.start", "status": 503, "headers": headers})
    await send({"type": f"{kind}.body", "body": _STOPPING})
