"""One request and what becomes of it: who asks, as the engine sees it, and who waits, as the server does."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from furcula.asking import Asker
from furcula.event import Event
from furcula.modules.http.answers import Response, answer, problem, unanswered
from furcula.receipt import Slot

if TYPE_CHECKING:
    from furcula.modules.http.application import Endpoint, Site

__all__ = ["Exchange", "Gathering", "Relay", "TooSlow", "new_id", "until_left"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Seconds after which it is first asked whether the client is still there. Most requests are done by then, and asking
#: costs as much as handling one.
LOOK_AFTER_S: Final = 0.05

#: The headers of an event that make the answer.
_SAYS: Final = ("status", "response")

_prefix = os.urandom(5).hex()
_next_number = itertools.count(1).__next__


def new_id() -> str:
    """An id for a request: a prefix of this process's, and a number."""
    return f"{_prefix}-{_next_number()}"


async def until_left(receive: Receive) -> None:
    """Wait until the client has left."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        await asyncio.sleep(0)  # some servers give what there is without waiting


class Exchange(Asker):
    """A request whose first answer is the response.

    Attributes:
        response: The answer, when there is one.
        clean_up: Called when all of the request is settled.
    """

    __slots__ = ("_waiter", "accept", "clean_up", "endpoint", "request_id", "response", "site", "trace")

    def __init__(self, site: Site, endpoint: Endpoint, accept: str | None):
        super().__init__()
        self.site = site
        self.accept = accept
        self.endpoint = endpoint
        self.response: Response | None = None
        self.request_id = ""
        self.trace = ""
        self.clean_up: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def notes(self) -> Mapping[str, str]:
        return {"request_id": self.request_id, "traceparent": self.trace}

    # ------------------------------------------------------------------ told by the engine

    def take(self, reply: Event[Any]) -> bool:
        if "connection" in reply.headers:
            self.site.push(reply)
            return False
        self.taken(reply)
        return True

    def taken(self, reply: Event[Any]) -> None:
        """Here is an answer to this request."""
        site = self.site
        self.response = answer(reply, accept=self.accept, produces=self.endpoint.produces, show_errors=site.show_errors)
        self.wake()

    def settled(self, slot: Slot) -> None:
        if self.clean_up is not None:
            self.clean_up()
        if self.response is None and not self.gone:
            self.response = self.unanswered(slot)
            self.wake()

    def unanswered(self, slot: Slot) -> Response:
        site = self.site
        return unanswered(slot, self.accept, self.endpoint.on_drop, site.show_errors, site.retry_after)

    # ------------------------------------------------------------------ waited for by the server

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def wait(self, receive: Receive, timeout_s: float) -> None:
        """Wait until there is a response, the deadline has passed (a 504 then), or the client has left (none then)."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        looking = _Looking(self, receive)
        look = loop.call_later(min(LOOK_AFTER_S, timeout_s), looking.begin)
        deadline = loop.call_later(timeout_s, self._too_late)
        try:
            await self._waiter
        except asyncio.CancelledError:  # the server gave it up
            self.leave()
            raise
        finally:
            look.cancel()
            deadline.cancel()
            looking.end()
            self._waiter = None

    def _too_late(self) -> None:
        if self.response is None:
            self.over = True
            detail = {"detail": "no answer in time"}
            self.response = problem(504, detail, {"retry-after": self.site.retry_after}, self.accept)
            self.wake()

    def left(self) -> None:
        """The client has left."""
        if self.response is None:
            self.leave()
        self.wake()


class _Looking:
    """Asks the server whether the client is still there, as long as its answer is being waited for."""

    __slots__ = ("_exchange", "_receive", "_task")

    def __init__(self, exchange: Exchange, receive: Receive):
        self._exchange = exchange
        self._receive = receive
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._look(), name="furcula http: is the client there?")

    async def _look(self) -> None:
        await until_left(self._receive)
        self._exchange.left()

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Gathering(Exchange):
    """A request that is answered with the list of all that came back, once all of it is settled."""

    __slots__ = ("_replies",)

    many = True

    def __init__(self, site: Site, endpoint: Endpoint, accept: str | None):
        super().__init__(site, endpoint, accept)
        self._replies: list[Event[Any]] = []

    def taken(self, reply: Event[Any]) -> None:
        self._replies.append(reply)

    def unanswered(self, slot: Slot) -> Response:
        if not self._replies:
            return super().unanswered(slot)
        first = self._replies[0]
        headers: dict[str, Any] = {name: first.headers[name] for name in _SAYS if name in first.headers}
        failures = [reply.failures[-1] for reply in self._replies if reply.failures and "status" not in reply.headers]
        together: Event[Any] = Event([reply.data for reply in self._replies], headers, failures=tuple(failures[:1]))
        try:
            return answer(
                together, accept=self.accept, produces=self.endpoint.produces, show_errors=self.site.show_errors
            )
        except Exception as error:  # the replies are settled: nobody is left who could fail with it
            self.site.context.log.error("the gathered answer cannot be given: %s", error)
            return problem(500, {}, {}, self.accept)


class TooSlow(Exception):
    """The client reads more slowly than answers come, and has been given up."""


class Relay(Exchange):
    """A request whose answers are passed on one by one, as they come.

    Answers that the client has not read yet are held, up to `site.backlog`; beyond that the client is too slow, and
    the rest fails.
    """

    __slots__ = ("_held", "ended", "failure", "too_slow")

    many = True

    def __init__(self, site: Site, endpoint: Endpoint, accept: str | None):
        super().__init__(site, endpoint, accept)
        self.ended = self.too_slow = False
        #: What the request failed with, after answers had gone out.
        self.failure: Response | None = None
        self._held: deque[Event[Any]] = deque()

    def taken(self, reply: Event[Any]) -> None:
        if self.response is not None and self.response.stream is not self:  # it ended otherwise: too late, too slow
            raise TooSlow("the client of this request has been given up")
        if len(self._held) >= self.site.backlog:
            self.gone = self.too_slow = True
            self.wake()
            raise TooSlow(f"the client does not read: {len(self._held)} answers wait for it")
        if self.response is None:
            self._begin(reply)
        self._held.append(reply)
        self.wake()

    def _begin(self, reply: Event[Any]) -> None:
        first = answer(
            Event(self, {name: reply.headers[name] for name in _SAYS if name in reply.headers}),
            show_errors=self.site.show_errors,
        )
        self.response = first

    def settled(self, slot: Slot) -> None:
        self.ended = True
        if self.response is not None and slot.fate == "failed":
            self.failure = self.unanswered(slot)
        super().settled(slot)
        self.wake()

    def __aiter__(self) -> Relay:
        return self

    async def __anext__(self) -> Event[Any]:
        while not self._held:
            if self.too_slow:  # what it got is not the whole: it must not look so
                raise TooSlow("the client read more slowly than answers came")
            if self.ended or self.gone:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._held.popleft()
