"""Bounded queues: the rule as a value that needs no loop, and the worker that empties one into a step."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from furcula.engine.caught import abandon
from furcula.engine.counters import Pace, TimeSlice
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch
from furcula.errors import QueueFull
from furcula.options import Overflow

__all__ = ["DEFAULT_SIZE", "Queue", "QueueStep", "Queued"]

#: Places of a queue for which the user gave no number.
DEFAULT_SIZE = 1024


class Queue:
    """Batches in order, `size` places for events, and behind them the batches whose senders are waiting.

    A sender never keeps what it could not place: it hands over the whole batch and waits, so nothing is in two hands
    and a sender that is cancelled loses nothing.
    """

    __slots__ = ("_batches", "_waiting", "count", "size")

    def __init__(self, size: int):
        self.size = size
        #: Events in places. Those of waiting senders come on top; `len(queue)` is both.
        self.count = 0
        self._batches: deque[Batch] = deque()
        self._waiting: deque[tuple[Batch, asyncio.Future[None] | None]] = deque()

    def __len__(self) -> int:
        return self.count + sum(len(batch) for batch, _ in self._waiting)

    def __bool__(self) -> bool:
        return bool(self._batches)

    @property
    def room(self) -> int:
        return self.size - self.count

    @property
    def full(self) -> bool:
        return self.count >= self.size or bool(self._waiting)

    def append(self, batch: Batch) -> None:
        """Put the batch in, whatever the size. The caller has seen to the room, or means to exceed it."""
        self._batches.append(batch)
        self.count += len(batch)

    def put_back(self, batch: Batch) -> None:
        """Return events that were taken, to the head."""
        self._batches.appendleft(batch)
        self.count += len(batch)

    def wait(self, batch: Batch, sender: asyncio.Future[None] | None) -> None:
        """Let the batch wait for room; `sender` is told when the last of it has found a place."""
        self._waiting.append((batch, sender))

    def drop_oldest(self, count: int) -> Batch:
        """Take out the `count` events that have been here longest."""
        dropped: Batch = []
        while count > 0 and self._batches:
            batch = self._batches.popleft()
            if len(batch) > count:
                self._batches.appendleft(batch[count:])
                batch = batch[:count]
            dropped += batch
            self.count -= len(batch)
            count -= len(batch)
        return dropped

    def take(self, most: int) -> Batch:
        """The next events, at most `most`, from one batch; room goes to those who wait."""
        batch = self._batches.popleft()
        if len(batch) > most:
            self._batches.appendleft(batch[most:])
            batch = batch[:most]
        self.count -= len(batch)
        while self._waiting and self.count < self.size:
            rest, sender = self._waiting.popleft()
            room = self.size - self.count
            if len(rest) > room:
                self.append(rest[:room])
                self._waiting.appendleft((rest[room:], sender))
                break
            self.append(rest)
            if sender is not None and not sender.done():
                sender.set_result(None)
        return batch

    def gather(self, most: int) -> Batch:
        """The next events, at most `most`, however they came."""
        batch = self.take(most)
        if len(batch) < most and self._batches:
            batch = list(batch)
            while len(batch) < most and self._batches:
                batch += self.take(most - len(batch))
        return batch

    def clear(self) -> Batch:
        """Everything, also of those who wait; they are told to go on."""
        held = [event for batch in self._batches for event in batch]
        for batch, sender in self._waiting:
            held += batch
            if sender is not None and not sender.done():
                sender.set_result(None)
        self._batches.clear()
        self._waiting.clear()
        self.count = 0
        return held


class Queued:
    """Handles what comes from a queue: counts it as it comes, and lets it in by the rule of `overflow`.

    Args:
        name: For messages.
        outcomes: Of the module; its counters count what is in the queue.

    Attributes:
        after: Called after events have left.
    """

    def __init__(self, name: str, outcomes: Outcomes, size: int, overflow: Overflow):
        self.name = name
        self.outcomes = outcomes
        self.counters = outcomes.counters
        self.queue = Queue(size)
        self.overflow: Overflow = overflow
        self.after: Callable[[], None] | None = None

    def push(self, batch: Batch) -> Awaitable[None] | None:
        count = len(batch)
        self.counters.received += count
        self.counters.held += count
        return self.accept(batch)

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        """The same for events that were counted already."""
        wait = self._enter(batch)
        self.notify()
        return wait

    def notify(self) -> None:
        """Something may be done now that could not before."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        return len(self.queue)

    def _enter(self, batch: Batch) -> Awaitable[None] | None:
        queue, overflow, outcomes = self.queue, self.overflow, self.outcomes
        room = queue.room
        if len(batch) <= room and not queue.full:
            queue.append(batch)
            return None
        if overflow == "block":
            if room > 0 and not queue.full:
                queue.append(batch[:room])
                batch = batch[room:]
            sender: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            queue.wait(batch, sender)
            return sender
        counters = self.counters
        if overflow == "drop-oldest":
            queue.append(batch)
            dropped = queue.drop_oldest(queue.count - queue.size)
            counters.held -= len(dropped)
            return outcomes.drop(dropped, "overflow")
        if room > 0:
            queue.append(batch[:room])
            batch = batch[room:]
        counters.held -= len(batch)
        if overflow == "drop-newest":
            return outcomes.drop(batch, "overflow")
        error = QueueFull(f"the queue of {outcomes.name} is full ({queue.size} places)")
        return outcomes.fail([(event, Failed(error, touched=False)) for event in batch])


class QueueStep(Queued):
    """A queue, and a worker that hands on from it: in front of a step, or on a route.

    Args:
        target: Takes a batch that was counted already.
        outcomes: Of the module behind the queue; its counters count what is in the queue.
        allowed: How many events may pass now; None: any number. For the gate of a cycle.
    """

    def __init__(
        self,
        name: str,
        target: Callable[[Batch], Awaitable[None] | None],
        outcomes: Outcomes,
        time_slice: TimeSlice,
        *,
        size: int = DEFAULT_SIZE,
        overflow: Overflow = "block",
        allowed: Callable[[], int] | None = None,
        batch_limit: int = 256,
    ):
        super().__init__(name, outcomes, size, overflow)
        #: Hand on together what came one by one, as requests do: for a function of batches.
        self.together = False
        self._target = target
        self._slice = time_slice
        self._allowed = allowed
        self._pace = Pace(batch_limit)
        self._busy = False
        self._paused = False
        self._wake: asyncio.Future[None] | None = None

    def notify(self) -> None:
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    # ------------------------------------------------------------------ the worker

    def start(self, spawn: Callable[[Any, str], asyncio.Task[None]]) -> None:
        spawn(self._work(), f"queue of {self.name}")

    async def _work(self) -> None:
        queue, allowed, pace = self.queue, self._allowed, self._pace
        while True:
            most = pace.limit if allowed is None else min(pace.limit, allowed())
            if not queue or self._paused or most <= 0:
                self._busy = False
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
                continue
            self._busy = True
            batch = queue.gather(most) if self.together else queue.take(most)
            began = perf_counter()
            wait = self._target(batch)
            pace.measured(len(batch), perf_counter() - began)
            if self.after is not None:
                self.after()
            if wait is not None:
                await wait
            if self._slice.over():
                await self._slice.let_others_run()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self.notify()

    # ------------------------------------------------------------------ its end

    def idle(self) -> bool:
        return not self.queue and not self._busy

    def abandon(self) -> int:
        return abandon(self.outcomes, self.queue.clear())
