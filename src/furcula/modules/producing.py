"""The life of a sink that hands events to a broker: its phases, the same for every broker."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.connecting import Line, first_line
from furcula.modules.consuming import Lost
from furcula.modules.endpoint import Endpoint, Tls
from furcula.modules.sending import Destination, Outgoing, Unavailable, report
from furcula.options import Duration

__all__ = ["TIMEOUT", "Producing"]

C = TypeVar("C")

TIMEOUT = Duration(10)


class Producing(Module, Generic[C]):
    """A sink over a connection that is kept; `C` is the connection, and whatever goes with it.

    A derived class says how to connect (`_connect`, `_disconnect`) and how a batch is sent (`_send`).

    Attributes:
        broken: What its library raises when the connection does not work any more.
    """

    broken: ClassVar[tuple[type[BaseException], ...]] = (OSError, EOFError)

    _context: Context

    def __init__(self, endpoint: Endpoint, destination: Destination, *, timeout: Duration, tls: Tls | None):
        if not timeout:
            raise ValueError("timeout must be more than 0")
        self._endpoint = endpoint
        self._destination = destination
        self._timeout = timeout
        self._tls = tls
        self._line: Line[C] | None = None

    @abstractmethod
    async def _connect(self, lost: Lost) -> C:
        """Connect. Calls `lost` when the connection ends."""

    @abstractmethod
    async def _disconnect(self, client: C) -> None:
        """End the connection."""

    @abstractmethod
    async def _send(self, client: C, batch: list[Outgoing]) -> dict[int, BaseException]:
        """Send all of these, and wait until the broker has them. Gives an error by index for each that it has not."""

    def unready(self) -> str | None:
        """Why nothing can be sent now, or None."""
        return "not started" if self._line is None else self._line.unready()

    async def start(self, context: Context) -> None:
        self._context = context
        if self._tls is not None:
            self._tls.context(context.folder)  # a file that cannot be read is mended by nobody's waiting
        self._line = Line(
            shown=str(self._endpoint),
            open=self._connect,
            close=self._disconnect,
            timeout=self._timeout,
            log=context.log,
            clean=self._endpoint.clean,
        )

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        batch, errors = self._destination.prepared(events)
        if batch:
            try:
                errors.update(await self._sent(batch))
            except Unavailable as error:
                errors.update(dict.fromkeys((sent.index for sent in batch), error))
        return report(events, errors)

    async def _sent(self, batch: list[Outgoing]) -> dict[int, BaseException]:
        line = self._line
        assert line is not None
        client = await line.ready(self._timeout)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._send(client, batch)
        except TimeoutError as error:
            line.lost(client, f"no answer within {float(self._timeout):g} s")
            raise Unavailable(f"{self._endpoint}: no answer within {float(self._timeout):g} s") from error
        except self.broken as error:
            line.lost(client, error)
            raise Unavailable(f"{self._endpoint}: {self._endpoint.clean(first_line(error))}") from error

    async def stop(self) -> None:
        if self._line is not None:
            await self._line.close()
