"""One module, one event: tries, time limits, back-off and the circuit breaker."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, Protocol

from furcula.engine.caught import CAUGHT, snapshot
from furcula.engine.counters import BATCH_LIMIT
from furcula.engine.outcome import ABSENT, Failed, Many
from furcula.engine.splitting import iterate, own_item, take
from furcula.errors import CircuitOpen
from furcula.event import Event, copy_data
from furcula.module import Handling
from furcula.options import Breaker, Retry

__all__ = ["BreakerState", "Handle", "Parking", "is_stop", "isolated", "retrying", "single"]

_log = logging.getLogger("furcula.flow")

#: Handles one event and gives the answer: what the module gave, or a `Failed` or `Many`. Raises what the module raised.
Handle = Callable[[Event[Any]], Awaitable[Any]]


class BreakerState:
    """A circuit breaker as it stands: closed, open until a time, or half open with one event on trial."""

    def __init__(self, breaker: Breaker, name: str, now: Callable[[], float]):
        self._breaker = breaker
        self._name = name
        self._now = now
        self._failures = 0
        self._open_until: float | None = None
        self._trial: Event[Any] | None = None

    def check(self, event: Event[Any]) -> None:
        """Raise CircuitOpen if the module is to be left alone. Where it may be tried again, `event` is the trial."""
        if self._open_until is None:
            return
        if self._now() < self._open_until or self._trial is not None:
            left = max(0.0, self._open_until - self._now())
            raise CircuitOpen(f"{self._name} failed {self._failures} times in a row; it is tried again in {left:.1f} s")
        self._trial = event

    def release(self, event: Event[Any]) -> None:
        """The module is through with this event. If it was the trial and proved nothing, the next event is."""
        if self._trial is event:
            self._trial = None

    def succeeded(self) -> None:
        if self._open_until is not None:
            _log.warning("%s works again: its circuit is closed", self._name)
        self._failures = 0
        self._open_until = None
        self._trial = None

    def failed(self) -> None:
        self._failures += 1
        if self._trial is not None or self._failures == self._breaker.failures:
            self._open_until = self._now() + self._breaker.reset
            _log.warning(
                "%s failed %d times in a row: its circuit is open for %g s",
                self._name,
                self._failures,
                self._breaker.reset,
            )
        self._trial = None


def single(
    handling: Handling,
    convert: Callable[[Any], Any] | None,
    executor: Executor | None,
    piece: Callable[[Event[Any], list[Any]], Awaitable[None]] | None = None,
) -> Handle:
    """A coroutine function that makes one try at one event, whatever the shape of the module.

    A plain coroutine function over Events is returned as it is, so that it costs nothing more.

    Args:
        piece: Takes the first items of a long split off an async generator's hands; None: keep all to the end, because
            what was handed on could not be tried again.
    """
    call, bare = handling.call, handling.receives == "data"
    if handling.shape == "coroutine" and not bare and executor is None:
        return call
    if handling.shape == "coroutine":

        async def await_data(event: Event[Any]) -> Any:
            data = event.data if convert is None else convert(event.data)
            return _answer(handling, event, await call(data))

        return await_data
    if handling.shape == "async_generator":

        async def collect(event: Event[Any]) -> Any:
            argument: Any = event
            if bare:
                argument = event.data if convert is None else convert(event.data)
            found: list[Any] = []
            try:
                async for item in call(argument):
                    found.append(own_item(item, event))
                    if len(found) >= BATCH_LIMIT and piece is not None:
                        items, found = found, []
                        await piece(event, items)
            except CAUGHT as error:
                if is_stop(error):
                    raise
                return Many(found, Failed(error))
            return Many(found)

        return collect

    def plain(event: Event[Any]) -> Any:
        argument: Any = event
        if bare:
            argument = event.data if convert is None else convert(event.data)
        if handling.shape == "generator" or handling.role == "flat_map":
            return take(iterate(call, argument), event, 1 << 60)
        answer = call(argument)
        if handling.role == "choose":
            return answer if answer is None else event.to(answer)
        return _answer(handling, event, answer) if bare else answer

    if executor is None:
        splits = handling.shape == "generator" or handling.role == "flat_map"

        async def directly(event: Event[Any]) -> Any:
            return plain(event)

        async def in_pieces(event: Event[Any]) -> Any:
            items = iterate(call, event if not bare else event.data if convert is None else convert(event.data))
            while True:
                many = take(items, event, BATCH_LIMIT)
                if len(many.items) < BATCH_LIMIT or many.failed is not None or piece is None:
                    return many
                await piece(event, many.items)

        return in_pieces if splits and piece is not None else directly

    async def in_thread(event: Event[Any]) -> Any:
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        # The error comes back as a value: a future cannot carry a StopIteration.
        answer, error = await loop.run_in_executor(executor, context.run, _caught, plain, event)
        if error is not None:
            raise error
        return answer

    return in_thread


def isolated(attempt: Handle) -> Handle:
    """`attempt` in a context of its own for each event."""

    async def in_own_context(event: Event[Any]) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.create_task(_as_coroutine(attempt, event), context=contextvars.copy_context())

    return in_own_context


async def _as_coroutine(attempt: Handle, event: Event[Any]) -> Any:
    return await attempt(event)


def is_stop(error: BaseException) -> bool:
    """Was the task told to stop? A CancelledError out of a future of the user's own is an ordinary failure."""
    return isinstance(error, asyncio.CancelledError) and _cancelled()


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _caught(call: Callable[[Any], Any], argument: Any) -> tuple[Any, BaseException | None]:
    try:
        return call(argument), None
    except StopIteration:
        return None, RuntimeError("the function raised StopIteration")
    except BaseException as error:
        return None, error


def _answer(handling: Handling, event: Event[Any], answer: Any) -> Any:
    """What a function of bare data answered, as an answer about the event."""
    if handling.role == "filter":
        return event if answer else None
    if handling.role == "map":
        return data_answer(event, answer)
    if answer is None or isinstance(answer, Event):
        return answer
    return data_answer(event, answer)


def data_answer(event: Event[Any], data: Any) -> Event[Any]:
    event.data = data
    return event


def retrying(
    attempt: Handle,
    retry: Retry,
    breaker: BreakerState | None,
    retried: Callable[[], None],
    parking: Parking | None = None,
) -> Handle:
    """Make further tries after a failure. Each sees the original payload.

    Args:
        attempt: One try.
        retried: Called for each further try.
        parking: Where an event waits for its next try; it is handled again then. None: wait here.
    """

    async def handle(event: Event[Any]) -> Any:
        state = (parking.resumed(event) if parking is not None else None) or _Try(event)
        while True:
            state.tried += 1
            answer: Any
            try:
                if breaker is not None:
                    breaker.check(event)
                answer = await attempt(event)
                error = answer.failed.error if type(answer) is Many and answer.failed is not None else None
            except CAUGHT as raised:
                if is_stop(raised):
                    raise
                answer, error = None, raised
            if answer is ABSENT:  # it was given up for taking too long
                if breaker is not None:
                    breaker.failed()
                return answer
            if error is None:
                if breaker is not None:
                    breaker.succeeded()
                return answer
            # What a module makes of being cancelled says nothing about it, and nobody waits for a further try.
            cancelled = _cancelled()
            if breaker is not None and not isinstance(error, CircuitOpen) and not cancelled:
                breaker.failed()
            # An open circuit is not waited for: leaving the module alone is its purpose.
            last = cancelled or state.tried >= retry.attempts or isinstance(error, CircuitOpen)
            last = last or not isinstance(error, retry.errors)
            state.restore(event, last)
            if last:
                failed = Failed(error, state.tried, touched=False)
                return Many(answer.items, failed) if type(answer) is Many else failed
            retried()
            if parking is not None:
                return parking.park(event, retry.delay_s(state.tried), state)
            await asyncio.sleep(retry.delay_s(state.tried))

    if breaker is None:
        return handle

    async def released(event: Event[Any]) -> Any:
        try:
            return await handle(event)
        finally:
            breaker.release(event)

    return released


class Parking(Protocol):
    """Where events wait between their tries. It keeps what was tried with the event, and lets go of both at once."""

    def park(self, event: Event[Any], delay_s: float, tries: Any) -> Any:
        """Put the event into back-off. Returns the answer to give meanwhile."""

    def resumed(self, event: Event[Any]) -> Any:
        """What `park` was given with this event, if it comes out of its back-off now; else None."""


class _Try:
    """An event as it was before the first try, and how often it was tried."""

    __slots__ = ("data", "headers", "key", "tags", "tried")

    def __init__(self, event: Event[Any]):
        self.data, self.headers = snapshot(event)
        self.tags, self.key = event.tags, event.key
        self.tried = 0

    def restore(self, event: Event[Any], last: bool) -> None:
        event.data = self.data if last else copy_data(self.data)
        event.headers = self.headers if last else copy_data(self.headers)
        event.tags, event.key = self.tags, self.key
