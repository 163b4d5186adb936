"""The life of a source that takes messages from a broker: its phases, the same for every broker."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

from furcula.codecs import codec as codec_named
from furcula.errors import Stopped
from furcula.module import Context, Source
from furcula.modules.connecting import Line, meant
from furcula.modules.endpoint import Endpoint, Tls
from furcula.modules.taking import Message, Taken, Told
from furcula.options import Duration

__all__ = ["Arrivals", "Consuming", "Lost"]

C = TypeVar("C")

Lost = Callable[[BaseException | str | None], None]


class Consuming(Source, Generic[C]):
    """A source over a connection that is kept; `C` is the connection, and whatever goes with it: an attribute
    `arrivals`, where the library hands messages over by a callback.

    A derived class says how to connect (`_connect`, `_disconnect`), what comes next (`_next`) and how its broker is
    told (`_say`).

    Attributes:
        broken: What its library raises when the connection does not work any more.
        forgets: What is unsettled when the connection is lost is delivered again by the broker, and cannot be settled
            any more. False: it is settled over the next connection.
        patient: `_next` may be cancelled while it waits: nothing gets lost by that.
    """

    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)
    broken: ClassVar[tuple[type[BaseException], ...]] = (OSError, EOFError)
    forgets: ClassVar[bool] = False
    patient: ClassVar[bool] = True

    _context: Context

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        codec: str,
        prefetch: int,
        max_deliveries: int,
        again_after: Duration,
        timeout: Duration,
        tls: Tls | None,
    ):
        if prefetch < 1 or max_deliveries < 1:
            raise ValueError("prefetch and max_deliveries must be 1 or more")
        if not timeout:
            raise ValueError("timeout must be more than 0")
        self._endpoint = endpoint
        self._decode = codec_named(codec).decode
        self._prefetch = prefetch
        self._max_deliveries = max_deliveries
        self._again_after = again_after
        self._timeout = timeout
        self._tls = tls
        self._line: Line[C] | None = None
        self._taken: Taken | None = None
        self._task: asyncio.Task[None] | None = None
        self._ceased = asyncio.Event()
        self._waiting = False
        #: What had come over a connection that was given up, and can be settled nevertheless.
        self._left: list[Message] = []

    # ------------------------------------------------------------------ what a derived class says

    @abstractmethod
    async def _connect(self, lost: Lost) -> C:
        """Connect, and get ready to take. Calls `lost` when the connection ends."""

    @abstractmethod
    async def _disconnect(self, client: C) -> None:
        """End the connection."""

    @abstractmethod
    async def _next(self, client: C, room: int) -> list[Message]:
        """Wait for the next messages, and give so many at most. None: look again."""

    async def _cease(self, client: C) -> list[Message]:
        """Take no more. Gives what was on its way already."""
        return []

    @abstractmethod
    async def _say(self, client: C, batch: list[Told]) -> None:
        """Tell the broker of these."""

    def _taking(self, context: Context) -> Taken:
        return Taken(
            context,
            decode=self._decode,
            prefetch=self._prefetch,
            max_deliveries=self._max_deliveries,
            again_after=self._again_after,
            tell=self._tell,
        )

    # ------------------------------------------------------------------ phases

    def unready(self) -> str | None:
        """Why nothing can be taken now, or None."""
        return "not started" if self._line is None else self._line.unready()

    async def start(self, context: Context) -> None:
        self._context = context
        if self._tls is not None:
            self._tls.context(context.folder)  # a file that cannot be read is mended by nobody's waiting
        self._taken = self._taking(context)
        self._line = Line(
            shown=str(self._endpoint),
            open=self._connect,
            close=self._hang_up,
            timeout=self._timeout,
            log=context.log,
            clean=self._endpoint.clean,
        )
        self._task = asyncio.ensure_future(self._run(self._line, self._taken))

    async def _run(self, line: Line[C], taken: Taken) -> None:
        error: BaseException | None = None
        try:
            while not self._ceased.is_set():
                await self._turn(line, taken)
        except (Stopped, asyncio.CancelledError):
            pass
        except Exception as caught:  # a mistake of ours: the flow is told that this source has ended
            error = caught
        if error is None:
            self._context.finished()
        else:
            self._context.finished(error)

    async def _hang_up(self, client: C) -> None:
        """The connection is given up: who waits for more of it is to look at the next one."""
        arrivals: Arrivals | None = getattr(client, "arrivals", None)
        if arrivals is not None:
            left = arrivals.rest()
            if not self.forgets:
                self._left += left
            arrivals.end(ConnectionError("the connection was lost"))
        await self._disconnect(client)

    async def _turn(self, line: Line[C], taken: Taken) -> None:
        if self._left:
            left, self._left = self._left, []
            await taken.take(left)
        self._waiting = True
        client = await line.ready()
        room = await taken.room()
        self._waiting = self.patient
        try:
            messages = await self._next(client, room)
        except asyncio.CancelledError:
            self._waiting = False
            if meant():
                raise
            line.lost(client, None)
            return
        except self.broken as error:
            self._waiting = False
            line.lost(client, error)
            await asyncio.sleep(0)
            return
        self._waiting = False
        if messages:
            await taken.take(messages)

    async def cease(self) -> None:
        """Take no more; what was on its way already goes back."""
        self._ceased.set()
        if self._task is None or self._line is None or self._taken is None:
            return
        if self._waiting:
            self._task.cancel()
        left, self._left = self._left, []
        await self._taken.release(left)
        client = self._line.client
        if client is not None:
            try:
                async with asyncio.timeout(self._timeout):
                    await self._taken.release(await self._cease(client))
            except TimeoutError as error:
                self._line.lost(client, error)
            except self.broken as error:
                self._line.lost(client, error)

    async def stop(self) -> None:
        self._ceased.set()
        if self._task is not None:
            if self._waiting:
                self._task.cancel()
            await asyncio.wait([self._task], timeout=self._timeout)
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._taken is not None and self._line is not None:
            connected = self._line.client is not None
            await self._taken.end(self._timeout if connected else 0)
            await self._line.close()

    async def _tell(self, batch: list[Told]) -> None:
        line = self._line
        assert line is not None
        while True:
            client = await line.ready()
            try:
                await self._say(client, batch)
                return
            except self.broken as error:
                line.lost(client, error)
                if self.forgets:
                    return
                await asyncio.sleep(0)


class Arrivals:
    """What a library's callback has handed over, until it is asked for."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._news = asyncio.Event()
        self._nudged = False
        self._error: BaseException | None = None

    def put(self, message: Message) -> None:
        self._messages.append(message)
        self._news.set()

    def end(self, error: BaseException) -> None:
        """No more will come: who waits for it gets this error."""
        self._error = error
        self._news.set()

    def nudge(self) -> None:
        """Who waits is to look again."""
        self._nudged = True
        self._news.set()

    async def some(self, limit: int) -> list[Message]:
        """So many at most; waits until there is one. None: it was nudged.

        Raises:
            BaseException: As given to `end`, once what had come before has been given.
        """
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self._nudged:
                self._nudged = False
                break
            self._news.clear()
            await self._news.wait()
        some, self._messages = self._messages[:limit], self._messages[limit:]
        return some

    def rest(self) -> list[Message]:
        rest, self._messages = self._messages, []
        return rest

    def __len__(self) -> int:
        return len(self._messages)
