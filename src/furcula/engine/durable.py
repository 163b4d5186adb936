"""A queue in a file, in front of a module.

Two sides that share nothing but the store. What is pushed is delivered, as far as its source is concerned, once it is
on the disk. What is read begins a new lineage, under the origin `queue(module)`, with the same id; its row is removed
when that lineage is settled. In the statistics the queue stands as a module of its own, `module.queue`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from furcula.codecs import decode_each, decode_events, encode_each
from furcula.engine.caught import abandon
from furcula.engine.counters import Counters, TimeSlice
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch, Consumer, settle
from furcula.errors import InputError, QueueFull, Stopped, StoreError
from furcula.event import Failure
from furcula.options import Durable, Overflow
from furcula.receipt import Fate, Origin, Slot, Tracked
from furcula.store import Letter, Store, Taken
from furcula.verdict import verdict

__all__ = ["DurableQueue"]

_log = logging.getLogger("furcula.flow")

#: Seconds between two looks at what is left, at the end of a flow.
LOOK_S = 0.25
#: Seconds between two looks whether a full queue has room.
FULL_S = 0.1
#: Batches that are taken at once, at most: each time costs a commit.
AHEAD = 4
#: Events that are taken at once at least, and the seconds that they may wait for us before fewer are taken: what this
#: process has taken no other gets.
FEW = 32
WAIT_S = 0.05
#: Full batches on their way to the disk before whoever pushes has to wait: no more than are taken at once, so that what
#: is put can be taken in the same commit.
STORING = AHEAD


class _Stored(Tracked, gc=False, eq=False):
    """The slot of an event that was read: which row it is, and how often it was handed out."""

    # What is usual is short here: an event that stays one event, and is delivered.
    queue: Any = None
    row: int = 0
    attempts: int = 1

    def settle(self, fate: Fate, count: int = 1, reason: str = "", failure: object = None) -> None:
        if fate == "delivered" and count == self.shares == 1 and self.fate != "failed":
            self.shares = 0
            self.fate = fate
            queue = self.queue
            queue._finished.append(self.row)
            if not queue._telling:
                queue._tell_soon()
        else:
            Slot.settle(self, fate, count, reason, failure)

    def close(self) -> None:
        self.fate = self.fate or "dropped"
        self.queue.settled(self)


class DurableQueue:
    """The queue of one inbox.

    Args:
        name: The module's name.
        options: Its option `queue`.
        path: Where the store is.
        channel: The queue's name in the store.
        entry: What takes the events that are read.
        outcomes: Of the module: what cannot be stored fails there.
        origin: Under whose name events are read.
        flow: The flow's name, for dead letters.
        overflow: What happens when it holds as many events as it may.
        batch_limit: The most events that are handed on together.
    """

    def __init__(
        self,
        name: str,
        options: Durable,
        path: Path,
        channel: str,
        entry: Consumer,
        outcomes: Outcomes,
        origin: Origin,
        *,
        flow: str,
        overflow: Overflow,
        time_slice: TimeSlice,
        batch_limit: int,
    ):
        self.name = name
        self.counters = Counters()
        self._options = options
        self._store = Store(path)
        self._channel = channel
        self._entry = entry
        self._outcomes = outcomes
        self._origin = origin
        self._flow = flow
        self._overflow = overflow
        self._slice = time_slice
        self._batch_limit = batch_limit
        #: Events in the store, as far as this process knows.
        self._count = 0
        self._in_hand = 0
        #: Of those in hand in the store, the ones that have not been handed on.
        self._taken = 0
        self._takes: deque[asyncio.Task[list[Taken]]] = deque()
        #: So many are taken at once; and when the last ones were.
        self._most = batch_limit
        self._taken_at = 0.0
        #: A row that was in hand when a process died, and a future that is done when the store knows what became of it.
        self._suspect: tuple[int, asyncio.Future[None]] | None = None
        self._storing: dict[int, Batch] = {}
        #: Events in them.
        self._storing_count = 0
        self._next = 0
        self._waiting: deque[tuple[Batch, asyncio.Future[None]]] = deque()
        #: Events that may be stored before the store is asked again how many it has.
        self._room = 0
        self._counting = False
        #: How many more are in the queue than when the store was asked to count them.
        self._since = 0
        self._fewer: asyncio.Future[None] | None = None
        self._finished: list[int] = []
        self._telling = False
        self._reading = False
        self._ceased = False
        #: Everything in the store was in somebody's hand when last looked.
        self._all_read = False
        self._settlements = 0
        self._moved = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed.set()

    # ------------------------------------------------------------------ opening and closing

    async def open(self) -> None:
        """Open the store. Raises StoreError."""
        await self._store.open()
        self._count = await self._store.count(self._channel)
        self._room = max(0, self._options.size - self._count + 1) // 2
        if self._count:
            _log.info("%s: %d event(s) wait in its durable queue %s", self.name, self._count, self._store.path)

    async def close(self) -> None:
        """Write what is still to be written, and let go."""
        if self._finished:
            self._tell()
        await self._store.close()
        left = self._count - len(self._finished)
        if left > 0 and self._ceased:
            _log.info("%s: %d event(s) stay in its durable queue for the next run", self.name, left)

    # ------------------------------------------------------------------ the side that stores

    def push(self, batch: Batch) -> Awaitable[None] | None:
        count = len(batch)
        self.counters.received += count
        self.counters.held += count
        return self._enter(batch)

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        """From a queue in memory in front of this one, which has counted the batch at the module already."""
        count = len(batch)
        self._outcomes.counters.held -= count
        self._outcomes.counters.sent += count
        return self.push(batch)

    def _enter(self, batch: Batch) -> Awaitable[None] | None:
        if len(batch) <= self._room and not self._waiting:
            return self._store_all(batch)
        sender: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, sender))
        self._count_anew()
        return sender

    def _count_anew(self) -> None:
        """Ask the store how much room there is. Others put and take too, so what we knew of it was an upper bound."""
        if self._counting or not self._waiting:
            return
        try:
            counting = self._store.do(lambda file: file.count(self._channel))
        except Stopped as error:
            self._refuse_all(error)
            return
        self._counting = True
        self._since = 0
        counting.add_done_callback(self._counted)

    def _counted(self, counting: asyncio.Future[int]) -> None:
        self._counting = False
        if counting.cancelled() or (error := counting.exception()) is not None:
            self._refuse_all(error if isinstance(error, Exception) else Stopped("the store was closed"))
            return
        self._count = counting.result() + self._since
        room = self._options.size - self._count
        # Half of it is left for others, who count too; the last places are given away one by one.
        self._room = (room + 1) // 2 if room > 0 else 0
        self._let_in()
        if not self._waiting:
            return
        if room > 1:
            self._count_anew()
        elif self._overflow == "block":
            asyncio.get_running_loop().call_later(FULL_S, self._count_anew)
        else:
            self._refuse_all(QueueFull(f"the durable queue of {self.name} is full ({self._options.size} events)"))

    def _let_in(self) -> None:
        """Store what waits, as far as there is room."""
        while self._waiting and self._room > 0:
            batch, sender = self._waiting.popleft()
            fits, rest = batch[: self._room], batch[self._room :]
            self._store_all(fits)
            if rest:
                self._waiting.appendleft((rest, sender))
            elif not sender.done():
                sender.set_result(None)

    def _refuse_all(self, error: Exception) -> None:
        """What waits for room has none: by `overflow`, or because the store cannot be used."""
        waiting, self._waiting = self._waiting, deque()
        for batch, sender in waiting:
            self.counters.held -= len(batch)
            if isinstance(error, QueueFull) and self._overflow == "drop-newest":
                self.counters.dropped += len(batch)
                self.counters.reasons["dropped", "overflow"] += len(batch)
                settle(batch, "dropped", "overflow")
            else:
                self._fail(batch, error)
            if not sender.done():
                sender.set_result(None)

    def _store_all(self, batch: Batch) -> Awaitable[None] | None:
        try:
            bodies = encode_each(batch)
        except (ValueError, TypeError, RecursionError):
            batch, bodies = self._encoded(batch)
            if not batch:
                return None
        try:
            storing = self._store.do(lambda file: file.put(self._channel, bodies))
        except Stopped as error:
            self.counters.held -= len(batch)
            self._fail(batch, error)
            return None
        number = self._next
        self._next += 1
        self._storing[number] = batch
        self._storing_count += len(batch)
        self._changed(len(batch))
        self._room -= len(batch)
        storing.add_done_callback(partial(self._was_stored, number))
        if self._storing_count < STORING * self._batch_limit:
            return None
        if self._fewer is None:
            self._fewer = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._fewer)

    def _encoded(self, batch: Batch) -> tuple[Batch, list[bytes]]:
        good: Batch = []
        bodies: list[bytes] = []
        for event in batch:
            try:
                bodies += encode_each([event])
                good.append(event)
            except (ValueError, TypeError, RecursionError) as error:
                self.counters.held -= 1
                self._fail([event], InputError(f"the event cannot be stored: {error}"))
        return good, bodies

    def _fail(self, batch: Batch, error: Exception) -> None:
        """These events fail at the module, which they have reached in so far."""
        self.counters.sent += len(batch)
        self._outcomes.counters.received += len(batch)
        self._outcomes.fail([(event, Failed(error, touched=False)) for event in batch])

    def _was_stored(self, number: int, storing: asyncio.Future[None]) -> None:
        batch = self._storing.pop(number, None)
        if batch is None:  # the deadline has passed meanwhile
            return
        error = None if storing.cancelled() else storing.exception()
        self._storing_count -= len(batch)
        self.counters.held -= len(batch)
        if error is None and not storing.cancelled():
            self.counters.delivered += len(batch)
            settle(batch, "delivered", "stored")
        else:
            self._changed(-len(batch))
            self._fail(batch, error if isinstance(error, Exception) else Stopped("the store was closed"))
            self._count_anew()
        fewer, self._fewer = self._fewer, None
        if fewer is not None and not fewer.done():
            fewer.set_result(None)

    # ------------------------------------------------------------------ the side that reads

    def start(self, spawn: Callable[[Coroutine[Any, Any, None], str], Any]) -> None:
        spawn(self._read(), f"durable queue of {self.name}")

    async def _read(self) -> None:
        takes = self._takes
        rest: list[Taken] = []
        at_once = 1
        try:
            while not self._ceased:
                await self._resumed.wait()
                while len(takes) < at_once:
                    takes.append(self._take())
                ahead = takes[0].done()
                await asyncio.wait([takes[0]])
                take = takes.popleft()
                if take.cancelled():  # the module was paused
                    continue
                try:
                    taken = take.result()
                except Stopped:
                    return
                except StoreError as error:
                    _log.error("%s: %s", self.name, error)
                    at_once = 1
                    await asyncio.sleep(1.0)
                    continue
                rest.extend(taken)
                if self._ceased:
                    return  # they are given back below
                self._reading = True
                # The next ones are taken while these are handled: a commit is a long wait. Where we had to wait for the
                # store, two takes are on their way, so that each commit has one: what is put in it is written as taken.
                at_once = 2 if len(taken) >= self._batch_limit and not ahead else 1
                if ahead and time.monotonic() > self._taken_at + WAIT_S:
                    self._most = max(FEW, self._most // 2)
                elif not ahead and len(taken) == self._most:
                    self._most = min(self._most * 2, AHEAD * self._batch_limit)
                while self._resumed.is_set() and len(takes) < at_once:
                    takes.append(self._take())
                while rest and not self._ceased:
                    wait = self._hand_on(self._portion(rest))
                    if wait is not None:
                        await wait
                    if self._suspect is not None:
                        await self._suspect[1]
                        self._suspect = None
                    if self._slice.over():
                        await self._slice.let_others_run()
                self._reading = False
                self._moved.set()
        finally:
            self._reading = False
            for taking in takes:
                taking.cancel()
                await asyncio.wait([taking])
                if not taking.cancelled() and taking.exception() is None:
                    rest.extend(taking.result())
            if rest:
                self._taken -= len(rest)
                with suppress(Stopped):
                    self._store.back(self._channel, [one.id for one in rest], charged=False)

    def _portion(self, rest: list[Taken]) -> list[Taken]:
        """The next ones to hand on. One that was in hand when a process died goes alone: it may have been the cause."""
        portion = rest[: self._batch_limit]
        if portion[0].suspect:
            portion = portion[:1]
            self._suspect = (portion[0].id, asyncio.get_running_loop().create_future())
        elif [one for one in portion if one.suspect]:
            portion = list(takewhile(lambda one: not one.suspect, portion))
        del rest[: len(portion)]
        return portion

    def _take(self) -> asyncio.Task[list[Taken]]:
        taking = self._store.take(self._channel, self._most, self._were_taken)
        return asyncio.get_running_loop().create_task(taking, name=f"furcula takes for {self.name}")

    def _were_taken(self, count: int) -> None:
        self._taken += count
        if count > 0:
            self._taken_at = time.monotonic()

    def _hand_on(self, taken: list[Taken]) -> Awaitable[None] | None:
        self._taken -= len(taken)
        most = self._options.max_deliveries
        worn_out = [one for one in taken if one.attempts > most]
        if worn_out:
            taken = [one for one in taken if one.attempts <= most]
            for one in worn_out:
                self._give_up(one)
        try:
            events = decode_each([one.body for one in taken])
        except InputError:
            taken, events = self._decoded(taken)
        if not events:
            self._suspect = None
            return None
        self._store.begun(self._channel, taken[-1].id)
        origin = self._origin
        for one, event in zip(taken, events, strict=True):
            # By place, which takes half the time that it takes by name.
            event._receipt = _Stored(
                (), 1, None, event._created or event.created, None, "", None, origin, self, one.id, one.attempts
            )
        origin.admit(len(events))
        self._in_hand += len(events)
        self.counters.born += len(events)
        self.counters.sent += len(events)
        return self._entry.push(events)

    def _give_up(self, one: Taken) -> None:
        """It was handed out too often. Each time the process must have died, or it would have been settled."""
        times = one.attempts - 1
        failure = Failure(self.name, "Lost", f"it was handed out {times} times and never settled", attempts=times)
        self._reject(one.id, failure, times)

    def _decoded(self, taken: list[Taken]) -> tuple[list[Taken], Batch]:
        good: list[Taken] = []
        events: Batch = []
        for one in taken:
            try:
                events += decode_events(one.body)
                good.append(one)
            except InputError as error:
                _log.error("%s: what stands in %s is no event: %s", self.name, self._store.path, error)
                self._reject(one.id, Failure(self.name, "InputError", str(error)), one.attempts)
        return good, events

    def _tell_soon(self) -> None:
        self._telling = True
        asyncio.get_running_loop().call_soon(self._tell)

    def settled(self, slot: _Stored) -> None:
        """An event of several shares is settled, or one that was not delivered."""
        fate = slot.fate or "dropped"
        if fate == "delivered":
            self._finished.append(slot.row)
            if not self._telling:
                self._tell_soon()
            return
        word = verdict(slot, slot.attempts, self._options.max_deliveries)
        self._origin.settle(fate, 1, slot.reason)
        self._in_hand -= 1
        self._looked_over()
        if word == "ack":
            self._gone([slot.row])
        elif word == "reject":
            failure = slot.failure if isinstance(slot.failure, Failure) else Failure(self.name, slot.reason, "")
            self._reject(slot.row, failure, slot.attempts)
        else:
            delay_s = self._options.delay_s(slot.attempts) if word == "again" else 0.0
            with suppress(Stopped):  # a closed store has given back all that was in hand
                noting = self._store.back(self._channel, [slot.row], delay_s=delay_s, charged=word == "again")
                self._when_noted([slot.row], noting)

    def _looked_over(self) -> None:
        """What was seen of the store may be true no longer."""
        self._settlements += 1
        self._all_read = False
        self._moved.set()

    def _tell(self) -> None:
        """All that was delivered in one turn of the loop, at once."""
        self._telling = False
        rows, self._finished = self._finished, []
        if rows:
            self._origin.settle("delivered", len(rows), "")
            self._in_hand -= len(rows)
            self._looked_over()
            self._gone(rows)

    def _gone(self, rows: list[int]) -> None:
        try:
            self._when_noted(rows, self._store.done(self._channel, rows))
        except Stopped:
            text = "%s: %d event(s) were settled after the store was closed; they come again"
            _log.error(text, self.name, len(rows))
        self._made_room(len(rows))

    def _changed(self, by: int) -> None:
        """So many more, or fewer, are in the queue."""
        self._count += by
        self._since += by

    def _made_room(self, count: int) -> None:
        self._changed(-count)
        self._room = min(self._room + count, self._options.size)
        self._let_in()

    def _when_noted(self, rows: list[int], noting: asyncio.Future[None]) -> None:
        """The next suspect goes out only when the store knows what became of the last one, or it would be charged."""
        if self._suspect is not None and self._suspect[0] in rows:
            _, noted = self._suspect
            noting.add_done_callback(lambda _: None if noted.done() else noted.set_result(None))

    def _reject(self, row: int, failure: Failure, attempts: int) -> None:
        flow, origin, channel = self._flow, self._origin.name, self._channel

        def letter(body: bytes) -> Letter:
            return Letter(
                failure.at or time.time(), flow, failure.module, (origin, failure.module), failure.type,
                failure.message, failure.traceback, attempts, body, channel,
            )  # fmt: skip

        try:
            noting = self._store.do(lambda file: file.reject(channel, row, letter), stubborn=True)
            self._when_noted([row], noting)
        except Stopped:
            _log.error("%s: an event was rejected after the store was closed; it comes again", self.name)
        self._made_room(1)

    # ------------------------------------------------------------------ its end

    def cease(self) -> None:
        """Read nothing more. What is stored stays for the next run."""
        self._ceased = True

    def run_dry(self, spawn: Callable[[Coroutine[Any, Any, None], str], Any]) -> None:
        """No more is coming: from now on, be idle once everything that was stored has been read."""
        spawn(self._watch(), f"end of the durable queue of {self.name}")

    async def _watch(self) -> None:
        while True:
            self._moved.clear()
            try:
                if not self._reading and not self._taken:
                    settled = self._settlements
                    all_read = not await self._store.do(lambda file: file.has_unread(self._channel))
                    # What was settled meanwhile may have gone back behind this look.
                    self._all_read = all_read and settled == self._settlements
            except Stopped:
                return
            except StoreError as error:
                _log.error("%s: %s", self.name, error)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._moved.wait()

    def idle(self) -> bool:
        if self._storing or self._reading:
            return False
        # What waits for room in a full store when nothing is read any more has no hope of it; it is abandoned.
        return self._ceased or (not self._waiting and self._all_read and not self._taken)

    @property
    def dry(self) -> bool:
        """Is everything that was stored settled, or left for the next run?"""
        return self._ceased or (self.idle() and not self._in_hand and not self._finished)

    @property
    def depth(self) -> int:
        return max(0, self._count - self._in_hand)

    def pause(self) -> None:
        self._resumed.clear()
        for take in self._takes:  # what it would bring others can handle meanwhile
            take.cancel()

    def resume(self) -> None:
        self._resumed.set()

    def abandon(self) -> int:
        """The deadline has passed: what is not known to be stored fails. It may be stored all the same."""
        held = [event for batch in self._storing.values() for event in batch]
        held += [event for batch, _ in self._waiting for event in batch]
        self._storing.clear()
        self._storing_count = 0
        for _, sender in self._waiting:
            if not sender.done():
                sender.set_result(None)
        self._waiting.clear()
        if held:
            self.counters.held -= len(held)
            self.counters.sent += len(held)
            self._outcomes.counters.received += len(held)
            self._outcomes.counters.held += len(held)
        return abandon(self._outcomes, held)
