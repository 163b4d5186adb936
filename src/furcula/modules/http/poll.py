"""`http.poll`: ask a server again and again what is new."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

from furcula.codecs import BadFrame
from furcula.errors import InputError, Stopped
from furcula.event import Event
from furcula.module import Context, Source
from furcula.modules.http.client import Answer, Auth, Client, check_field, check_url, decoded, failure
from furcula.modules.http.upstream import UpstreamFailed
from furcula.modules.received import invalid
from furcula.options import Duration, Size
from furcula.receipt import Slot

__all__ = ["Poll"]

EVERY: Final = Duration("10s")
MAX_BACKOFF: Final = Duration("5m")
TIMEOUT: Final = Duration("30s")
CONNECT_TIMEOUT: Final = Duration("10s")
MAX_RESPONSE: Final = Size("16MB")
#: Items of a list that are admitted together.
TURN: Final = 256

#: Which field of an answer becomes which condition of the next request.
_CONDITIONS: Final = {"etag": "if-none-match", "last-modified": "if-modified-since"}


class Poll(Source):
    """Ask a URL at intervals, and make an event of each answer that is new.

    The data is the body by its content type: JSON and MessagePack as values, text as str, others as bytes. Headers:
    `url`, `http_status` and `http_headers`. A body that is not what it says leaves by `invalid`, with the reason; an
    empty one makes no event.

    A server that says `ETag` or `Last-Modified` is asked for what has changed since; 304 makes no event. When an event
    has failed, and nothing caught it, the next request has no condition, so what the server still has comes again. A
    server that says neither gives an event each time. What was read is remembered until the flow stops, not beyond.

    Errors are logged once, until the server answers again, and counted; each makes the next wait twice as long. A flow
    that has no room is waited for.

    Args:
        url: What is asked, by GET.
        every: The time from one request to the next; the first is sent at once.
        split: The body is a list; make an event of each item.
        headers: Header fields.
        auth: `{user: …, password: …}`, `{bearer: …}`, or `{header: x-api-key, key: …}`.
        max_backoff: No wait after errors is longer, unless `every` is; a server may ask for so long a wait by
            `Retry-After`.
        timeout: Seconds for one request.
        connect_timeout: Seconds for making a connection.
        verify: Check the server's certificate.
        ca_file: A file with the certificates that vouch for it, instead of the system's; relative to the flow's folder.
        follow_redirects: Go where the server points.
        max_response: Bytes that an answer may have, unpacked.
    """

    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)
    acknowledges: ClassVar[str] = "position"

    _context: Context

    def __init__(
        self,
        *,
        url: str,
        every: Duration = EVERY,
        split: bool = False,
        headers: dict[str, str] | None = None,
        auth: Auth | None = None,
        max_backoff: Duration = MAX_BACKOFF,
        timeout: Duration = TIMEOUT,
        connect_timeout: Duration = CONNECT_TIMEOUT,
        verify: bool = True,
        ca_file: str | None = None,
        follow_redirects: bool = False,
        max_response: Size = MAX_RESPONSE,
    ):
        self._client = Client(
            auth=auth,
            timeout=timeout,
            connect_timeout=connect_timeout,
            pool=1,
            verify=verify,
            ca_file=ca_file,
            follow_redirects=follow_redirects,
            max_response=max_response,
        )
        check_url(url)
        if not every:
            raise ValueError("every must be more than 0")
        self._url = url
        self._shown = url.partition("?")[0]  # in logs: who cannot help it has a token in the query
        self._every_s = float(every)
        self._longest_s = max(float(max_backoff), self._every_s)
        self._split = split
        self._headers = {name.lower(): value for name, value in (headers or {}).items()}
        for name, value in self._headers.items():
            check_field(name, value, "headers")
            if name in _CONDITIONS.values():
                raise ValueError(f"headers: {name} is written by the module itself")
            if auth is not None and name == auth.field()[0]:
                raise ValueError(f"headers: {name} is written by auth")
        #: Requests that failed.
        self.errors = 0
        #: Events that failed and that nothing caught.
        self.refused = 0
        self._condition: dict[str, str] = {}
        self._ceased = asyncio.Event()
        self._asking = False
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ phases

    async def start(self, context: Context) -> None:
        self._context = context
        await self._client.open(context)
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        error: BaseException | None = None
        try:
            await self._ask_again_and_again()
        except Stopped:
            pass
        except asyncio.CancelledError:
            if not self._ceased.is_set():
                raise
        except Exception as caught:  # a mistake of ours: the flow is told that this source has ended
            error = caught
        finally:
            if error is None:
                self._context.finished()
            else:
                self._context.finished(error)

    async def _ask_again_and_again(self) -> None:
        clock = asyncio.get_running_loop().time
        failed = 0
        while not self._ceased.is_set():
            began = clock()
            try:
                await self._admit(await self._ask())
            except UpstreamFailed as error:
                self.errors += 1
                failed += 1
                if failed == 1:
                    self._context.log.warning("%s; asking again, less and less often", error)
                wait_s = self._backoff_s(failed, error.retry_after_s)
            else:
                if failed:
                    self._context.log.info(
                        "%s answers again, after %d error%s", self._shown, failed, "s" * (failed > 1)
                    )
                failed = 0
                wait_s = max(0.0, self._every_s - (clock() - began))
            await self._wait(wait_s)

    def _backoff_s(self, failed: int, wanted_s: float | None) -> float:
        """The wait after so many errors in a row; as long as the server wants, within the limit."""
        wait_s = min(self._every_s * 2.0 ** min(failed, 64), self._longest_s)
        return max(wait_s, min(wanted_s or 0.0, self._longest_s))

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._ceased.wait()
        except TimeoutError:
            pass

    def cease(self) -> None:
        """Ask no more, and give up the request that is under way."""
        self._ceased.set()
        if self._asking and self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        self._ceased.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._client.close()

    # ------------------------------------------------------------------ one request

    async def _ask(self) -> Answer | None:
        """What is new, or None."""
        condition = self._condition
        self._asking = True
        try:
            answer = await self._client.ask("GET", self._url, {**self._headers, **condition})
        finally:
            self._asking = False
        if answer.status == 304 and condition:
            return None
        if not 200 <= answer.status < 300:
            raise failure(answer)
        return answer

    async def _admit(self, answer: Answer | None) -> None:
        if answer is None:
            return
        good, bad = self._events(answer)
        # Before anything is admitted: a flow without queues has settled it when `admit` returns.
        self._condition = {
            condition: answer.headers[field] for field, condition in _CONDITIONS.items() if field in answer.headers
        }
        for outbox, events in (("outbox", good), ("invalid", bad)):
            for begin in range(0, len(events), TURN):
                waits = self._context.admit(events[begin : begin + TURN], outbox, settled=self._settled)
                if waits is None:
                    await asyncio.sleep(0)
                else:
                    await asyncio.shield(waits)

    def _events(self, answer: Answer) -> tuple[list[Event[Any]], list[Event[Any]]]:
        headers = {"url": self._url, "http_status": answer.status, "http_headers": answer.headers}
        try:
            data = decoded(answer)
            if self._split and data is not None and not isinstance(data, list):
                raise InputError(f"expected a list to split, not {type(data).__name__}")
        except InputError as error:
            return [], [invalid(BadFrame.of(str(error), answer.body), headers)]
        if data is None and not answer.body:
            return [], []
        items = data if self._split and data is not None else [] if self._split else [data]
        return [Event(item, {**headers, "http_headers": answer.headers.copy()}) for item in items], []

    def _settled(self, slot: Slot) -> None:
        if slot.fate != "failed":
            return
        # Also where the server has said something newer meanwhile: what failed may be part of that too.
        self._condition = {}
        if slot.reason not in ("abandoned", "lost"):
            self.refused += 1
            self._context.log.warning("an event of %s failed: %s", self._shown, slot.failure or slot.reason)
