"""Modules that compute: a step that hands batches to processes of its own and puts the answers back in order.

The events, their receipts and their tries stay at home; only data and what a function may see of an Event crosses, as
MessagePack. A child is given what is there, up to about `BATCH_S` of its time, and at most two batches at once: one
that it runs and one that waits, so that it is never idle while an answer is on its way. Where single events take so
long that this does not matter, it is given one batch, so that no event waits behind a slow one while others are idle.

A child that dies takes nothing with it but time: what it had answered stands, the event that it was at is charged with
a try, and the rest is handed out again, free: the batch that it was running one by one, because another of them may be
to blame, the batch that had waited as it was.

With a key, events of one key are in one child at a time and in order; what comes meanwhile waits in the key's lane.
With a retry besides, they are handed out one at a time, because one that fails holds those behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from time import monotonic
from typing import Any

from furcula.engine.attempts import BreakerState
from furcula.engine.batch_answers import Tried, tries_outcome
from furcula.engine.batches import _without
from furcula.engine.caught import CAUGHT, abandon
from furcula.engine.counters import BATCH_LIMIT
from furcula.engine.moving import MovingLoop
from furcula.engine.outcome import Dropped, Failed, Many, Outcomes
from furcula.engine.outlets import Batch, all_of
from furcula.engine.processes.answers import result_of, whole_result_of
from furcula.engine.processes.messages import (
    Answers,
    Setup,
    encode,
    event_wire,
    place_of,
)
from furcula.engine.processes.spawning import Child
from furcula.engine.queue import Queued
from furcula.errors import CircuitOpen, InputError, ModuleError, ModuleTimeout, WorkerDied
from furcula.event import Event
from furcula.module import BatchFailed
from furcula.naming import encode_arguments
from furcula.options import Overflow, Retry

__all__ = ["BATCH_S", "ProcessPool", "Processes"]

_log = logging.getLogger("furcula.flow")

#: A batch takes about so long in a child, where events are fast enough.
BATCH_S = 0.01
#: What is there is divided among the children, but not into batches that take less.
LEAST_S = 0.001
#: No longer wait before a child is replaced, where they die one after the other with nobody to blame.
MOST_DELAY_S = 10.0

_PENDING: Any = object()


class _Lane:
    """The events of one key."""

    __slots__ = ("busy", "child", "key", "waiting")

    def __init__(self, key: Hashable, child: Child):
        self.key = key
        #: The child that has them; None while they are on their way to one.
        self.child: Child | None = child
        #: Events that are in a child, on their way to one, or in back-off.
        self.busy = 1
        self.waiting: deque[_Item] = deque()


class _Item:
    """One event that was taken from the queue; or a whole batch, for a function of batches."""

    __slots__ = ("alone", "came", "event", "lane", "result", "tried", "tries", "whole")

    def __init__(self, event: Event[Any]):
        self.event = event
        #: For a function of batches: what came together, and what of it is still to be handled.
        self.came: Batch = []
        self.whole: Batch = []
        #: For a function of batches: its tries that are over.
        self.tries: list[Tried] = []
        self.lane: _Lane | None = None
        self.result: Any = _PENDING
        self.tried = 0
        #: Not to be handed out together with others: it was in a batch in which a child died.
        self.alone = False


class _Job:
    """A batch that a child was given."""

    __slots__ = ("answered", "items", "number")

    def __init__(self, number: int, items: list[_Item]):
        self.number = number
        self.items = items
        self.answered = 0


class ProcessPool(Queued):
    """A step whose function runs in child processes.

    Args:
        setup: What each child is told first.
        processes: How many children.
        bare: The function takes data, not Events.
        together: The function takes a whole batch.
        ordered: Keep the order of arrival.
        key: Gives the key of an event; None: no lanes.
        timeout_s: The limit of one try; the child that exceeds it is ended.
        left: Has whoever asked for this event left?
    """

    def __init__(
        self,
        setup: Callable[[], Setup],
        outcomes: Outcomes,
        *,
        processes: int,
        bare: bool,
        together: bool = False,
        ordered: bool = True,
        key: Callable[[Event[Any]], Hashable] | None = None,
        retry: Retry | None = None,
        breaker: BreakerState | None = None,
        timeout_s: float | None = None,
        size: int = 1024,
        overflow: Overflow = "block",
        batch_limit: int = BATCH_LIMIT,
        left: Callable[[Event[Any]], bool] | None = None,
    ):
        super().__init__(outcomes.name, outcomes, size, overflow)
        self._setup = setup
        self._processes = processes
        self._bare = bare
        self._together = together
        self._ordered = ordered and key is None
        self._key = key
        self._retry = retry
        self._breaker = breaker
        self._timeout_s = timeout_s
        self._batch_limit = batch_limit
        self._left = left
        self._spawn: Callable[[Any, str], asyncio.Task[None]] | None = None
        self._children: list[Child] = []
        self._opened = False
        self._closed = False
        self._paused = False
        self._pumping = False
        #: Children that died in a row without having answered anything, and with nobody to blame.
        self._vain = 0
        self._number = 0
        # How long an event takes, and so how many are handed out together.
        self._event_s: float | None = None
        self._most = 1
        # All that was taken from the queue and has not left: in order of arrival, or in none.
        self._ring: deque[_Item] = deque()
        self._open: dict[_Item, None] = {}
        self._done: list[_Item] = []
        self._in_hand = 0
        self._in_hand_limit = 2 * processes * BATCH_LIMIT if size >= BATCH_LIMIT else max(size, 2 * processes)
        # What is handed out before anything new: what was tried, and lanes whose turn it is.
        self._again: deque[list[_Item]] = deque()
        self._parked: dict[_Item, asyncio.TimerHandle] = {}
        self._lanes: dict[Hashable, _Lane] = {}
        self._pressure: list[Awaitable[None]] = []
        self._relieving = False
        #: Children that are starting.
        self._hatching = 0
        self._holds_clock = False

    def start(self, spawn: Callable[[Any, str], asyncio.Task[None]]) -> None:
        self._spawn = spawn

    # ------------------------------------------------------------------ handing out

    def notify(self) -> None:
        """Hand out what can be handed out."""
        if self._pumping or self._paused or self._closed or not self._opened:
            return
        self._pumping = True
        try:
            while not self._pressure and not self._relieving and (child := self._free_child()) is not None:
                items = self._next(child)
                if items is None:
                    break
                if items:
                    self._give(child, items)
                self._flush()
        finally:
            self._pumping = False
        self._hold_clock()
        if self._pressure and not self._relieving and self._spawn is not None:
            self._relieving = True
            self._spawn(self._relieve(), f"{self.name} waiting for room")

    async def _relieve(self) -> None:
        """Wait until downstream has room."""
        try:
            while self._pressure:
                waits, self._pressure = self._pressure, []
                wait = all_of(waits)
                if wait is not None:
                    await wait
        finally:
            self._relieving = False
        self.notify()

    def _free_child(self) -> Child | None:
        slow = self._event_s is None or self._event_s > BATCH_S
        free = [child for child in self._children if child.is_ready and len(child.jobs) < (1 if slow else 2)]
        return min(free, key=lambda child: len(child.jobs), default=None)

    def _next(self, child: Child) -> list[_Item] | None:
        """What this child is given next; None: there is nothing. Empty: what there was needed no child."""
        waiting = sum(map(len, self._again)) + len(self.queue)
        ready = sum(1 for child in self._children if child.is_ready)
        # So that all children are busy; but a batch of less than LEAST_S costs more than it takes.
        share = max(-(-waiting // max(1, ready)), int(LEAST_S / (self._event_s or BATCH_S)))
        most = max(1, min(self._most, share))
        items: list[_Item] = []
        while self._again and len(items) < most:
            if self._again[0][0].alone or self._together:
                if not items:
                    items = self._again.popleft()
                return self._allowed(items)
            items += self._again.popleft()
        took = False
        while len(items) < most and self.queue and self._in_hand < self._in_hand_limit:
            took = True
            batch = self.queue.gather(min(most - len(items), self._in_hand_limit - self._in_hand))
            self._in_hand += len(batch)
            if self._together:
                whole = _Item(batch[0])
                whole.whole = whole.came = batch
                self._keep(whole)
                return self._allowed([whole])
            for event in batch:
                item = _Item(event)
                self._keep(item)
                if self._key is None or self._in_lane(item, child, self._key):
                    items.append(item)
        return self._allowed(items) if items or took else None

    def _keep(self, item: _Item) -> None:
        if self._ordered:
            self._ring.append(item)
        else:
            self._open[item] = None

    def _in_lane(self, item: _Item, child: Child, key_of: Callable[[Event[Any]], Hashable]) -> bool:
        """True: it may be given to this child now. False: it waits behind its key, or has none and failed."""
        try:
            key = key_of(item.event)
            lane = self._lanes.get(key)
        except CAUGHT as error:
            self._finish(item, Failed(error, touched=False))
            return False
        if lane is None:
            item.lane = self._lanes[key] = _Lane(key, child)
            return True
        item.lane = lane
        if self._retry is None and lane.child is child and not lane.waiting:
            lane.busy += 1
            return True
        lane.waiting.append(item)
        return False

    def _allowed(self, items: list[_Item]) -> list[_Item]:
        """Those of them that are to be handled: not those nobody waits for, nor while the circuit is open."""
        if self._left is None and self._breaker is None:
            return items
        allowed = []
        for item in items:
            if self._left is not None:
                if item.whole:
                    self._leave_out(item, self._left)
                    if not item.whole:
                        continue
                elif self._left(item.event):
                    self._finish(item, Dropped("cancelled"))
                    continue
            if self._breaker is not None and not item.whole:
                try:
                    self._breaker.check(item.event)
                except CircuitOpen as error:
                    self._finish(item, Failed(error, item.tried + 1, touched=False))
                    continue
            allowed.append(item)
        return allowed

    def _leave_out(self, item: _Item, left: Callable[[Event[Any]], bool]) -> None:
        gone = [event for event in item.whole if left(event)]
        if gone:
            item.whole = [event for event in item.whole if not left(event)]
            self.counters.held -= len(gone)
            self._in_hand -= len(gone)
            self.outcomes.drop(gone, "cancelled")
            if not item.whole:
                self._finish(item, tuple(item.tries))

    def _give(self, child: Child, items: list[_Item]) -> None:
        self._number += 1
        items, body = self._encoded(self._number, items)
        if not items:
            return
        for item in items:
            if item.lane is not None:
                item.lane.child = child
        child.jobs.append(_Job(self._number, items))
        child.send(body)
        if self._timeout_s is not None and len(child.jobs) == 1:
            self._watch(child, self._timeout_s)

    def _things(self, items: list[_Item]) -> list[Any]:
        if self._bare:
            return [item.event.data for item in items]
        if self._together:
            return [event_wire(event) for item in items for event in item.whole]
        return [event_wire(item.event) for item in items]

    def _encoded(self, number: int, items: list[_Item]) -> tuple[list[_Item], bytes]:
        try:
            return items, encode([number, self._things(items)])
        except (ValueError, TypeError, OverflowError, RecursionError):
            pass  # some event cannot be told: find out which
        good = []
        for item in items:
            if item.whole:
                self._tellable(item)
                if item.whole:
                    good.append(item)
                continue
            try:
                encode(self._things([item]))
                good.append(item)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                self._release(item)
                self._finish(item, Failed(_untellable(error), item.tried + 1, touched=False))
        return good, encode([number, self._things(good)]) if good else b""

    def _tellable(self, item: _Item) -> None:
        """Fail those members of a batch that cannot be told."""
        good = []
        for event in item.whole:
            try:
                encode(event_wire(event))
                good.append(event)
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                self.counters.held -= 1
                self._in_hand -= 1
                self.outcomes.fail([(event, Failed(_untellable(error), touched=False))])
        item.whole = good
        if not good:
            self._finish(item, tuple(item.tries))

    # ------------------------------------------------------------------ answers

    def _answered(self, child: Child, frame: Answers) -> None:
        if self._closed:
            return
        self._vain = 0
        job: _Job = child.jobs[0]
        items = job.items[job.answered : job.answered + len(frame.answers)]
        job.answered += len(items)
        events = sum(len(item.whole) for item in items) if self._together else len(items)
        self._measured(events, frame.seconds)
        for item, answer in zip(items, frame.answers, strict=True):
            if self._together:
                self._whole_answer(item, answer)
            else:
                self._one_answer(item, result_of(item.event, answer))
        if job.answered == len(job.items):
            child.jobs.popleft()
            if self._timeout_s is not None and child.jobs:
                self._watch(child, self._timeout_s)
        self._flush()
        self._hold_clock()
        self.notify()

    def _measured(self, count: int, seconds: float) -> None:
        each = seconds / max(1, count)
        self.counters.histogram[min(int(each * 1e9).bit_length(), 47)] += count
        self._event_s = each if self._event_s is None else 0.7 * self._event_s + 0.3 * each
        wanted = int(BATCH_S / max(self._event_s, 1e-9))
        self._most = max(1, min(wanted, 2 * self._most, self._batch_limit))

    def _one_answer(self, item: _Item, result: Any) -> None:
        """The outcome of one try."""
        item.tried += 1
        failed = result if type(result) is Failed else result.failed if type(result) is Many else None
        breaker, retry = self._breaker, self._retry
        if failed is None:
            if breaker is not None:
                breaker.succeeded()
                breaker.release(item.event)
            self._finish(item, result)
            return
        failed.attempts = item.tried
        if breaker is not None:
            breaker.failed()
            breaker.release(item.event)
        if retry is not None and item.tried < retry.attempts and isinstance(failed.error, retry.errors):
            self._park(item, retry.delay_s(item.tried))
        else:
            self._finish(item, result)

    def _release(self, item: _Item) -> None:
        if self._breaker is not None:
            self._breaker.release(item.event)

    def _park(self, item: _Item, delay_s: float) -> None:
        """Let it wait for its next try; its lane waits with it."""
        self.counters.retried += len(item.whole) or 1

        def due() -> None:
            del self._parked[item]
            self._again.append([item])
            self.notify()

        self._parked[item] = asyncio.get_running_loop().call_later(delay_s, due)

    def _finish(self, item: _Item, result: Any) -> None:
        """This is what becomes of it. It leaves in its turn."""
        item.result = result
        if item.lane is not None:
            lane, item.lane = item.lane, None
            lane.busy -= 1
            self._go_on(lane)
        if not self._ordered:
            self._done.append(item)

    def _go_on(self, lane: _Lane) -> None:
        """Whose turn it is in a lane that nothing is under way of."""
        if lane.busy:
            return
        lane.child = None
        if not lane.waiting:
            self._lanes.pop(lane.key, None)
            return
        group = [lane.waiting.popleft()]
        if self._retry is None and not group[0].alone:
            while lane.waiting and len(group) < self._most and not lane.waiting[0].alone:
                group.append(lane.waiting.popleft())
        lane.busy = len(group)
        self._again.append(group)

    def _flush(self) -> None:
        """Let go on what is done and whose turn it is."""
        items: list[_Item]
        if self._ordered:
            items, ring = [], self._ring
            while ring and ring[0].result is not _PENDING:
                items.append(ring.popleft())
        else:
            items, self._done = self._done, []
            for item in items:
                del self._open[item]
        if not items:
            return
        if self._together:
            for item in items:
                self._out_whole(item)
        else:
            count = len(items)
            self.counters.held -= count
            self._in_hand -= count
            wait = self.outcomes.sort_out([item.event for item in items], [item.result for item in items])
            if wait is not None:
                self._pressure.append(wait)
        if self.after is not None:
            self.after()

    # ------------------------------------------------------------------ functions of whole batches

    def _whole_answer(self, item: _Item, answer: Any) -> None:
        originals = [(event.data, event.headers) for event in item.whole]
        item.tried += 1
        tried = Tried(item.whole, whole_result_of(item.whole, answer), originals, item.tried)
        again = self._worth_another(tried)
        if not again:
            item.tries.append(tried)
            self._finish(item, tuple(item.tries))
            return
        if len(again) < len(tried.batch):
            item.tries.append(_without(tried, again))
        item.whole = [tried.batch[index] for index in again]
        for index in again:
            tried.batch[index].data, tried.batch[index].headers = originals[index]
        assert self._retry is not None
        self._park(item, self._retry.delay_s(item.tried))

    def _worth_another(self, tried: Tried) -> list[int]:
        """The places of those that are handed over once more, as `BatchPool` has it."""
        retry, answer = self._retry, tried.answer
        if retry is None or tried.attempts >= retry.attempts or not isinstance(answer, BaseException):
            return []
        if not isinstance(answer, BatchFailed):
            return list(range(len(tried.batch))) if isinstance(answer, retry.errors) else []
        return sorted(
            index
            for index, error in answer.errors.items()
            if 0 <= index < len(tried.batch) and isinstance(error, retry.errors) and getattr(error, "retryable", True)
        )

    def _out_whole(self, item: _Item) -> None:
        tries: tuple[Tried, ...] = item.result
        handled = {id(event) for tried in tries for event in tried.batch}
        events = [event for event in item.came if id(event) in handled]
        self.counters.held -= len(events)
        self._in_hand -= len(events)
        if tries:
            wait = tries_outcome(self.outcomes, events, tries)
            if wait is not None:
                self._pressure.append(wait)

    # ------------------------------------------------------------------ time limits

    def _watch(self, child: Child, seconds: float) -> None:
        """Look after `seconds` how long the child has been at what it is at."""
        asyncio.get_running_loop().call_later(seconds, self._look, child, child.jobs[0].number)

    def _look(self, child: Child, number: int) -> None:
        if not child.jobs or child.jobs[0].number != number or not child.is_ready or self._timeout_s is None:
            return
        began, mark = child.running()
        left = self._timeout_s if not mark else began + self._timeout_s - monotonic()
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._look, child, number)
        else:
            child.ended_for = mark
            child.kill()

    # ------------------------------------------------------------------ children

    async def open(self) -> None:
        """Start the children, and wait until each of them can be given work.

        Raises:
            ModuleError: One of them cannot: its function is not found, or its module cannot be imported.
        """
        await asyncio.gather(*[self._hatch() for _ in range(self._processes)])
        self._opened = True
        self.notify()

    async def _hatch(self) -> None:
        child = Child(self._answered, self._lost)
        self._children.append(child)
        self._hatching += 1
        self._hold_clock()
        try:
            setup = self._setup()
            await child.open(encode_arguments(setup), setup.paths)
            await child.ready
        except OSError:
            self._children.remove(child)
            child.close()
            raise
        finally:
            self._hatching -= 1
            self._hold_clock()

    def _lost(self, child: Child) -> None:
        if not self._closed and self._spawn is not None:
            self._spawn(self._replace(child), f"{self.name} replacing a process")

    async def _replace(self, child: Child) -> None:
        """A child is gone: see who is charged with it, and start another."""
        began = child.is_ready or bool(child.jobs) or self._opened
        await child.buried()
        if child in self._children:
            self._children.remove(child)
        if not began or self._closed:
            return
        blamed = self._take_back(child)
        if not blamed:
            self._vain += 1
            _log.warning("%s: %s while it was at nothing; it is replaced", self.name, child.end)
        self._flush()
        self._hold_clock()
        self.notify()
        while not self._closed:
            # Where they die at once, one after the other, they are not let die as fast as they can.
            await asyncio.sleep(0 if self._vain < 2 else min(0.1 * 2.0 ** min(self._vain - 2, 20), MOST_DELAY_S))
            try:
                await self._hatch()
            except ModuleError as error:  # the child is gone, and so replaced: only why is told here
                _log.error("%s: a process could not start: %s", self.name, error)
            except OSError as error:
                self._vain += 1
                _log.error("%s: a process could not be made: %s", self.name, error)
                continue
            break
        self.notify()

    def _take_back(self, child: Child) -> bool:
        """Charge the event that the child was at, and hand out the others again. False: it was at none."""
        number, place = place_of(child.running()[1])
        jobs, child.jobs = list(child.jobs), deque()
        charged: _Item | None = None
        for job in jobs:
            if job.number == number and job.answered <= place < len(job.items):
                charged = job.items[place]
        if charged is None and jobs and jobs[0].answered == len(jobs[0].items) - 1 and jobs[0].items[-1].alone:
            charged = jobs[0].items[-1]  # it died of what it was told: there is nobody else to blame
        again: list[list[_Item]] = []
        lanes: dict[_Lane, list[_Item]] = {}
        for job in jobs:
            rest = [item for item in job.items[job.answered :] if item is not charged]
            for item in rest:
                item.alone = item.alone or job is jobs[0]
                self._release(item)
                if item.lane is not None:
                    lanes.setdefault(item.lane, []).append(item)
            free = [item for item in rest if item.lane is None]
            again += [[item] for item in free] if job is jobs[0] else [free] if free else []
        self._again.extendleft(reversed(again))
        for lane, items in lanes.items():
            lane.child = None
            lane.busy -= len(items)
            lane.waiting.extendleft(reversed(items))
        if charged is not None:
            charged.alone = True
            if charged.lane is not None:
                charged.lane.child = None
            self._charge(charged, self._death(child, charged))
        for lane in lanes:
            self._go_on(lane)
        return charged is not None

    def _death(self, child: Child, charged: _Item) -> BaseException:
        if child.ended_for is not None and child.ended_for == child.running()[1]:
            return ModuleTimeout(f"{self.name} took longer than {self._timeout_s:g} s; its process was ended")
        if child.unreadable:
            return InputError(f"{self.name}: what it answered cannot be read again: {child.unreadable}")
        return WorkerDied(f"{self.name}: {child.end} while it handled this event")

    def _charge(self, item: _Item, error: BaseException) -> None:
        if self._together:
            self._whole_answer(item, error)
        else:
            self._one_answer(item, Failed(error, touched=False))

    def _hold_clock(self) -> None:
        """Let a clock that moves by itself stand still while children are at work."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, MovingLoop):
            return
        at_work = not self._closed and bool(self._hatching or any(child.jobs for child in self._children))
        if at_work != self._holds_clock:
            self._holds_clock = at_work
            loop.threads += 1 if at_work else -1

    def unready(self) -> str | None:
        """Why nothing can be handled now."""
        if self._opened and not any(child.is_ready for child in self._children):
            return "none of its processes can be given work"
        return None

    # ------------------------------------------------------------------ pause, end

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.notify()

    def idle(self) -> bool:
        return not (self.queue or self._in_hand or self._pressure or self._relieving)

    def abandon(self) -> int:
        held = self.queue.clear()
        for item in self._ring or self._open:
            held += self._events_of(item)
        for timer in self._parked.values():
            timer.cancel()
        if self._in_hand:  # they are at what nobody waits for any more
            for child in self._children:
                child.kill()
        for kept in (self._ring, self._open, self._again, self._parked, self._lanes):
            kept.clear()
        self._done = []
        self._in_hand = 0
        self._closed = True
        self._hold_clock()
        return abandon(self.outcomes, held)

    def _events_of(self, item: _Item) -> Batch:
        if not self._together:
            return [item.event]
        over = [event for tried in item.tries for event in tried.batch]
        return over + item.whole if item.result is _PENDING else over

    async def close(self) -> None:
        """Let the children end, and wait until they have."""
        self._closed = True
        for child in self._children:
            child.enough()
        await asyncio.gather(*[child.buried() for child in self._children])
        self._children = []

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End whatever is left, at once."""
        self._closed = True
        for child in self._children:
            child.close()
        self._children = []


class Processes:
    """The children of one module, as the Director starts and stops them: like a class module."""

    def __init__(self, pool: ProcessPool):
        self._pool = pool

    async def start(self) -> None:
        await self._pool.open()

    async def stop(self) -> None:
        await self._pool.close()

    def unready(self) -> str | None:
        return self._pool.unready()


def _untellable(error: Exception) -> InputError:
    reason = "it is nested too deeply, or contains itself" if isinstance(error, RecursionError) else error
    return InputError(f"the event cannot be told to another process: {reason}")
