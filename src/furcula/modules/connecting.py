"""A connection that is kept: made in the background, made again when it breaks, and never the end of a flow."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Generic, TypeVar

from furcula.modules.sending import Unavailable
from furcula.options import Duration, Retry

__all__ = ["BACK_OFF", "Line", "first_line", "meant"]

C = TypeVar("C")

#: Waits between tries: from 0.1 s to 3 s, each shortened at random by up to a half, so that many do not come at once.
BACK_OFF: Final = Retry(delay=Duration(0.1), max_delay=Duration(3))
#: A connection that held so long was a good one: the next wait is the shortest again.
STEADY_S: Final = 5.0


class Line(Generic[C]):
    """Keeps one connection. All calls are made on the event loop's thread.

    What happens is logged once when the connection is lost (or cannot be made), again if somebody refuses us, or for
    another reason, and once when it is back. That nobody answers is one reason, in whatever words.

    Args:
        shown: What we connect to, for messages; without secrets.
        open: Connects, and gets everything ready that the connection needs. It is handed a function to call when the
            connection is lost. What it raises is told, and it is tried again.
        close: Ends a connection, whatever state it is in.
        timeout: Seconds that `open` and `close` may take.
        log: Where it is told.
        clean: Takes secrets out of what a library says.

    Attributes:
        connected: How often a connection was made.
        errors: How often one could not be made, or was lost.
    """

    def __init__(
        self,
        *,
        shown: str,
        open: Callable[[Callable[[BaseException | str | None], None]], Awaitable[C]],
        close: Callable[[C], Awaitable[None]],
        timeout: Duration,
        log: logging.LoggerAdapter[logging.Logger],
        clean: Callable[[str], str] = str,
    ):
        self.connected = 0
        self.errors = 0
        self._shown = shown
        self._open = open
        self._close = close
        self._timeout_s = float(timeout)
        self._log = log
        self._clean = clean
        self._client: C | None = None
        self._gone: asyncio.Future[str] | None = None
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reason = "still connecting"
        self._told = ""
        self._told_away = False
        self._down_since = asyncio.get_running_loop().time()
        self._task = asyncio.ensure_future(self._keep())

    # ------------------------------------------------------------------ for who uses it

    @property
    def client(self) -> C | None:
        """What there is now."""
        return self._client

    async def ready(self, within_s: float | None = None) -> C:
        """The connection; waits until there is one.

        Raises:
            Unavailable: There was none within so many seconds.
        """
        try:
            async with asyncio.timeout(within_s):
                while self._client is None:
                    await asyncio.shield(self._changed)
        except TimeoutError:
            raise Unavailable(self.unready() or f"no connection to {self._shown}") from None
        return self._client

    def lost(self, client: C, error: BaseException | str | None) -> None:
        """Say that this connection does not work any more. A new one is made; an old one's loss is no news."""
        if client is self._client and self._gone is not None:
            _resolve(self._gone, _reason(error))

    def unready(self) -> str | None:
        """Why nothing can be done now, or None."""
        if self._client is not None:
            return None
        down_s = asyncio.get_running_loop().time() - self._down_since
        return f"not connected to {self._shown} for {down_s:.0f} s: {self._reason}"

    async def close(self) -> None:
        """End the connection, and connect no more."""
        self._task.cancel()
        await asyncio.wait([self._task])

    # ------------------------------------------------------------------ keeping

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        tried = 0
        while True:
            gone: asyncio.Future[str] = loop.create_future()
            began = loop.time()
            try:
                async with asyncio.timeout(self._timeout_s):
                    client = await self._open(partial(_ended, gone))
            except asyncio.CancelledError:
                if meant():
                    raise
                self._down("the library gave up", True)
            except Exception as error:
                away = _is_away(error)
                self._down(_reason(error, self._timeout_s), away or isinstance(error, OSError), away=away)
            else:
                self._gone = gone
                try:
                    self._up(client)
                    began = loop.time()
                    reason = await gone
                    self._down(reason, True)
                finally:
                    self._client = None
                    await self._ended(client)
                if loop.time() - began >= STEADY_S:
                    tried = 0
            tried += 1
            await asyncio.sleep(BACK_OFF.delay_s(tried))

    async def _ended(self, client: C) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._close(client)
        except Exception as error:  # it was broken anyway
            self._log.debug("while the connection to %s was closed: %s", self._shown, _reason(error))

    def _up(self, client: C) -> None:
        self._client = client
        self.connected += 1
        if self._told:
            down_s = asyncio.get_running_loop().time() - self._down_since
            self._log.info("connected to %s again, after %.1f s", self._shown, down_s)
        self._told, self._told_away = "", False
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        _resolve(changed, None)

    def _down(self, reason: str, ordinary: bool, *, away: bool = True) -> None:
        self.errors += 1
        if self._client is not None:
            self._client = None
            self._down_since = asyncio.get_running_loop().time()
        reason = self._reason = self._clean(reason)
        if reason != self._told and not (away and self._told_away):
            level = logging.WARNING if ordinary else logging.ERROR
            self._log.log(level, "no connection to %s: %s; trying again, less and less often", self._shown, reason)
            self._told, self._told_away = reason, away


def meant() -> bool:
    """Was this task really cancelled? Some libraries cancel what waits for them when their connection is lost."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _ended(gone: asyncio.Future[str], error: BaseException | str | None) -> None:
    _resolve(gone, _reason(error))


def _is_away(error: BaseException) -> bool:
    """Is nobody there? Libraries have words of their own for what the system told them."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, ConnectionError | EOFError | TimeoutError | socket.gaierror):
            return True
        if isinstance(one, OSError) and one.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return True
        one = one.__cause__ or one.__context__
    return False


def _resolve(future: asyncio.Future[C], value: C) -> None:
    if not future.done():
        future.set_result(value)


def _reason(error: BaseException | str | None, timeout_s: float | None = None) -> str:
    if error is None:
        return "the connection was lost"
    if isinstance(error, str):
        return error
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer" + (f" within {timeout_s:g} s" if timeout_s else "")
    return first_line(error)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its class where it says nothing."""
    if isinstance(error, OSError) and (error.errno or 0) > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno or 0).lower()
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
