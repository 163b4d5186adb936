"""Where a module of an old kind sends to.

In the old systems a module *sends*, as often as it likes and whenever it likes; in furcula it *answers*, and from the
answer follows what became of the event. So what is sent while an event is being handled is collected, and is that
event's answer: one event carries its lineage on, several are a split, none means that it was dropped. What is sent at
any other time (by a thread of the module's own, from a timer) begins a lineage of its own.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Generator
from contextvars import ContextVar
from typing import Any

from furcula.engine.outcome import Failed, Many
from furcula.errors import Stopped
from furcula.event import Event
from furcula.module import Context

__all__ = ["Outgoing", "Sent", "SentToErrors"]


class Sent:
    """What a send gives back. Nobody has to await it; a coroutine that sends much does, and so waits for room."""

    def __init__(self, wait: Awaitable[None] | None = None):
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        if self._wait is not None:
            yield from self._wait.__await__()


class _Handling:
    """One event being handled, and what was sent so far."""

    __slots__ = ("failed", "items", "open", "owner")

    def __init__(self, owner: Outgoing):
        self.owner = owner
        self.items: list[Event[Any]] = []
        self.failed: Event[Any] | None = None
        self.open = True


#: A context variable, because coroutines and threads that handle an event each see their own. A task or thread that
#: outlives the handling may still see it, and finds it closed.
_handling: ContextVar[_Handling | None] = ContextVar("furcula_compat_handling", default=None)


class Outgoing:
    """The way out of one module."""

    def __init__(self) -> None:
        self._put: Callable[..., Awaitable[None] | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    # ------------------------------------------------------------------ the module's life

    def open(self, context: Context, *, is_source: bool = False) -> None:
        """The flow has started; called on its loop."""
        self._put = context.admit if is_source else context.emit
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def close(self) -> None:
        """From now on what is sent outside of handling is refused."""
        self._put = None

    # ------------------------------------------------------------------ handling

    def handle(self, event: Event[Any], consume: Callable[[], Any]) -> Any:
        """Call `consume`; return what it sent as the engine's answer for `event`."""
        handling = _Handling(self)
        token = _handling.set(handling)
        try:
            consume()
        except Exception as error:
            return _answer(event, handling, error)
        finally:
            handling.open = False
            _handling.reset(token)
        return _answer(event, handling)

    async def handle_async(self, event: Event[Any], consume: Callable[[], Awaitable[Any]]) -> Any:
        """The same for a coroutine."""
        handling = _Handling(self)
        token = _handling.set(handling)
        try:
            await consume()
        except Exception as error:
            return _answer(event, handling, error)
        finally:
            handling.open = False
            _handling.reset(token)
        return _answer(event, handling)

    # ------------------------------------------------------------------ sending

    def send(self, event: Event[Any], outbox: str = "outbox") -> Sent:
        """Send `event`, which nobody else holds.

        Outside of handling: on the loop's thread await the answer for back-pressure; any other thread waits here.

        Raises:
            Stopped: The flow does not run (any more).
        """
        handling = _handling.get()
        if handling is None or handling.owner is not self or not handling.open:
            return self._send_unrelated(event, outbox)
        if outbox == "failed" and handling.failed is None:
            handling.failed = event
        else:
            handling.items.append(event if outbox == "outbox" else event.to(outbox))
        return Sent()

    def _send_unrelated(self, event: Event[Any], outbox: str) -> Sent:
        put, loop = self._put, self._loop
        if put is None or loop is None:
            raise Stopped("the flow does not run")
        if threading.get_ident() == self._thread:
            return Sent(put([event], outbox))

        async def put_and_wait() -> None:
            wait = put([event], outbox)
            if wait is not None:
                await wait

        work = put_and_wait()
        try:
            asyncio.run_coroutine_threadsafe(work, loop).result()
        except (concurrent.futures.CancelledError, RuntimeError) as error:
            work.close()
            raise Stopped("the flow has ended") from error
        return Sent()


def _answer(event: Event[Any], handling: _Handling, error: Exception | None = None) -> Any:
    items, sent_to_failed = handling.items, handling.failed
    if error is not None:
        if not items:
            raise error
        return Many(items, Failed(error))
    if sent_to_failed is not None:
        # The event itself fails, and goes on with what the module made of it.
        event.data, event.headers = sent_to_failed.data, sent_to_failed.headers
        failed = Failed(SentToErrors("the module sent it to its error queue"))
        return Many(items, failed) if items else failed
    if not items:
        return None
    return items[0] if len(items) == 1 else Many(items)


class SentToErrors(Exception):
    """The reason of a failure that is the module's own decision."""
