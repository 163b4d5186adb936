"""Sources: what admits events, and how a generator is driven so that others get their turn."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from time import perf_counter
from typing import Any

from furcula.asking import Asker
from furcula.correlation import CURRENT
from furcula.engine.caught import warn_held
from furcula.engine.counters import HELD_LOOP_S, Counters, Pace, TimeSlice
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch, Link, all_of
from furcula.engine.pool import Watched
from furcula.engine.requests import Request
from furcula.engine.steps import DataStep, events_of
from furcula.errors import InputError, Stopped
from furcula.event import Event, Routed
from furcula.receipt import Origin, Receipt, Slot, Tracked

__all__ = ["Entrance", "drive_async", "drive_sync", "drive_thread"]

_log = logging.getLogger("furcula.flow")


class Entrance:
    """Where a source's events are admitted: each gets its receipt and leaves from an outbox of the source."""

    def __init__(self, name: str, origin: Origin, outcomes: Outcomes, now: Callable[[], float] = time.time):
        self.name = name
        self.origin = origin
        self.outcomes = outcomes
        self.counters: Counters = outcomes.counters
        self._now = now
        #: Stop asking for more. What was given already is still admitted.
        self.ceasing = False
        #: Refuse everything.
        self.closed = False
        self._resumed: asyncio.Future[None] | None = None

    def admit(
        self,
        items: Iterable[Any],
        outbox: str = "outbox",
        *,
        settled: Callable[[Slot], None] | None = None,
        slot: Slot | None = None,
    ) -> Awaitable[None] | None:
        """Admit Events or bare data. See `Context.admit`.

        Args:
            slot: A slot that was opened for the one event in `items` already.
        """
        if self.closed:
            raise Stopped(f"{self.name} admits nothing more: the flow is stopping")
        data = items if type(items) is list else list(items)
        if not data:
            return None
        count = len(data)
        events: Batch
        created = self._now()
        kinds = {*map(type, data)}
        if slot is None and settled is None:
            receipt = Receipt(self.origin, count, created)
            if Event in kinds or Routed in kinds:
                events = []
                for item in data:
                    event = _as_event(item)
                    event._receipt = receipt  # so that the same event given again is seen to be taken
                    events.append(event)
            elif (
                outbox == "outbox"
                and self._resumed is None
                and type(main := self.outcomes.main) is Link
                and (type(main.consumer) is DataStep)
            ):
                self.counters.received += count
                self.counters.sent += count
                main.sent += count
                return main.consumer.push_bare(data, receipt)
            else:
                events = events_of(data, receipt)
        else:
            events = []
            told = None if settled is None else _called_soon(settled, self.name)
            for item in data:
                event = _as_event(item)
                event._receipt = slot or Tracked((Receipt(self.origin, 1, created),), 1, told, created)
                events.append(event)
        self.counters.received += count
        if outbox == "outbox" and Routed in kinds:
            wait = self._by_port(data, events)
        else:
            wait = self._send(outbox, events)
        if self._resumed is None:
            return wait
        resumed = asyncio.shield(self._resumed)
        return resumed if wait is None else all_of([wait, resumed])

    def ask(self, event: Event[Any], asker: Asker, outbox: str = "outbox") -> Awaitable[None] | None:
        """Admit a request. See `Context.ask`."""
        if self.closed:
            raise Stopped(f"{self.name} admits nothing more: the flow is stopping")
        event._receipt = Request.of(self.origin, asker, self._now())
        self.counters.received += 1
        token = CURRENT.set(asker)
        try:
            main = self.outcomes.main
            if outbox == "outbox" and main is not None:
                self.counters.sent += 1
                wait = main.push([event])
            else:
                wait = self._send(outbox, [event])
        finally:
            CURRENT.reset(token)
        if self._resumed is None:
            return wait
        resumed = asyncio.shield(self._resumed)
        return resumed if wait is None else all_of([wait, resumed])

    def pause(self) -> None:
        """Make whoever admits wait from now on. What it has in hand, one batch at most, is still admitted."""
        if self._resumed is None:
            self._resumed = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    def _by_port(self, data: list[Any], events: Batch) -> Awaitable[None] | None:
        ports: dict[str, Batch] = {}
        for item, event in zip(data, events, strict=True):
            ports.setdefault(item.outbox if type(item) is Routed else "outbox", []).append(event)
        waits = [wait for port, batch in ports.items() if (wait := self._send(port, batch)) is not None]
        return all_of(waits)

    def _send(self, outbox: str, events: Batch) -> Awaitable[None] | None:
        outcomes = self.outcomes
        if outbox in ("invalid", "failed") and outbox not in outcomes.exceptions:
            return outcomes.fail(
                [
                    (event, Failed(InputError(str(event.headers.get("reason", "malformed input"))), touched=False))
                    for event in events
                ]
            )
        if outbox in outcomes.exceptions:
            outcomes.counters.sent += len(events)
            return outcomes.exceptions[outbox].push(events)
        if outcomes.is_sink:  # a source that nobody is connected to
            return outcomes.drop(events, "unconnected")
        return outcomes.send(outbox, events)

    def emit(self, items: Iterable[Any], outbox: str = "outbox") -> Awaitable[None] | None:
        """Send out events that no incoming event caused."""
        if self.closed:
            raise Stopped(f"{self.name} sends nothing more: the flow has stopped")
        events = [_as_event(item) for item in items]
        if not events:
            return None
        receipt = Receipt(self.origin, len(events), self._now())
        for event in events:
            event._receipt = receipt
        self.counters.born += len(events)
        return self._send(outbox, events)


def _called_soon(settled: Callable[[Slot], None], name: str) -> Callable[[Slot], None]:
    """`settled`, called from the loop: it may admit the next event at once, and may raise without harm."""
    loop = asyncio.get_running_loop()

    def call(slot: Slot) -> None:
        try:
            settled(slot)
        except Stopped:
            pass
        except Exception:
            _log.exception("%s raised when it was told that an event is settled", name)

    return lambda slot: _soon(loop, call, slot)


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[Slot], None], slot: Slot) -> None:
    if not loop.is_closed():
        loop.call_soon(call, slot)


def _as_event(item: Any) -> Event[Any]:
    if type(item) is Routed:
        item = item.target
    if not isinstance(item, Event):
        return Event(item)
    # An Event that is admitted already somewhere begins a lineage of its own here.
    return item if item._receipt is None else item.clone()


async def drive_sync(
    entrance: Entrance, iterator: Iterator[Any], time_slice: TimeSlice, batch_limit: int
) -> BaseException | None:
    """Run a plain generator or iterable in the loop, in batches that take about a millisecond.

    Returns:
        What it raised, or None when it came to its end (or the entrance was closed).
    """
    pace = Pace(batch_limit)
    while not entrance.ceasing:
        items: list[Any] = []
        limit = pace.limit
        error: BaseException | None = None
        began = perf_counter()
        try:
            items.extend(itertools.islice(iterator, limit))
        except (Exception, SystemExit) as raised:
            error = raised
        pulled = perf_counter()
        if items:
            if pulled - began > HELD_LOOP_S:
                warn_held(entrance.name, entrance.counters, len(items), pulled - began)
            entrance.counters.busy_s += pulled - began
            wait = entrance.admit(items)
            pace.measured(len(items), perf_counter() - began)
            if wait is not None:
                await wait
        if error is not None or len(items) < limit:
            return error
        if time_slice.over():
            await time_slice.let_others_run()
    return None


async def drive_async(
    entrance: Entrance, iterable: AsyncIterable[Any], time_slice: TimeSlice, batch_limit: int
) -> BaseException | None:
    """Run an async generator: what it gives without waiting goes on as one batch when it waits."""
    items: list[Any] = []
    pressure: list[Awaitable[None]] = []
    relieving = False

    def flush() -> None:
        if items and not relieving and not entrance.closed:
            batch = items.copy()
            items.clear()
            wait = entrance.admit(batch)
            if wait is not None:
                pressure.append(wait)

    async def relieve() -> None:
        nonlocal relieving
        relieving = True
        try:
            while pressure:
                await pressure.pop(0)
        finally:
            relieving = False

    async def loop() -> BaseException | None:
        try:
            async for item in iterable:
                items.append(item)
                if pressure:
                    await relieve()
                if len(items) >= batch_limit:
                    flush()
                    await relieve()
                    if time_slice.over():
                        await time_slice.let_others_run()
                if entrance.ceasing:
                    break
        except (Exception, SystemExit) as error:
            return error
        finally:
            flush()
        return None

    result: BaseException | None = await Watched(loop(), flush, _nothing)
    await relieve()
    return result


def _nothing() -> None:
    return None


_END: Any = object()


async def drive_thread(entrance: Entrance, iterator: Iterator[Any], batch_limit: int) -> BaseException | None:
    """Run a plain generator in a thread of its own, for one that blocks."""
    loop = asyncio.get_running_loop()
    waiting: deque[Any] = deque()
    room = threading.Semaphore(4 * batch_limit)
    arrived = asyncio.Event()
    stopping = threading.Event()

    def run() -> None:
        error: BaseException | None = None
        try:
            for item in iterator:
                while not room.acquire(timeout=0.5):
                    if stopping.is_set():
                        return
                if stopping.is_set():
                    return
                waiting.append(item)
                loop.call_soon_threadsafe(arrived.set)
        except BaseException as raised:
            error = raised
        waiting.append((_END, error))
        try:
            loop.call_soon_threadsafe(arrived.set)
        except RuntimeError:  # the loop has gone; nobody waits for the end any more
            pass

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name=f"furcula source {entrance.name}", daemon=True)
    thread.start()
    try:
        while True:
            await arrived.wait()
            arrived.clear()
            while waiting:
                batch: list[Any] = []
                while waiting and len(batch) < batch_limit:
                    item = waiting.popleft()
                    if type(item) is tuple and len(item) == 2 and item[0] is _END:
                        if batch:
                            await _admitted(entrance, batch)
                        end: BaseException | None = item[1]
                        return end
                    batch.append(item)
                room.release(len(batch))
                await _admitted(entrance, batch)
                if entrance.ceasing:
                    return None
    finally:
        stopping.set()
        given = [item for item in waiting if not (type(item) is tuple and len(item) == 2 and item[0] is _END)]
        if given and not entrance.closed:  # the thread has them from its source: they are admitted
            entrance.admit(given)


async def _admitted(entrance: Entrance, batch: list[Any]) -> None:
    wait = entrance.admit(batch)
    if wait is not None:
        await wait
