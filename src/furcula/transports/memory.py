"""The transport inside one process: the plainest keeper of the contract, and the one that others are compared with.

Transports of one name share a *room*. They may belong to different threads, each with a loop of its own, so a room is
guarded by a lock, which is held for a few statements and never while waiting, and whoever waits is woken on its loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable

from furcula.errors import FurculaError, Stopped
from furcula.transport import Loss, Message, Promises, Subscription
from furcula.transports.asked import check_body, check_channel, check_subscription
from furcula.transports.history import History

__all__ = ["MemoryTransport"]

_named: weakref.WeakValueDictionary[str, _Room] = weakref.WeakValueDictionary()


class MemoryTransport:
    """Channels in memory.

    Args:
        size: Bodies that may wait in one channel, for a worker or for one subscriber, before senders wait.
        name: Transports of the same name in this process share their channels. None: this one has its own.
        history: Bodies of each channel that are kept for `replay`.

    What a name stands for has the size and history of the transport that came first, and is forgotten with the last.
    """

    def __init__(self, size: int = 64, *, name: str | None = None, history: int = 256):
        self.promises = Promises(order=True, replay=True, reports=True, loss=("block", "drop"))
        self._room = _Room(size, history) if name is None else _named.setdefault(name, _Room(size, history))
        self._subscriptions: set[_Subscription] = set()
        self._taken: dict[_Message, None] = {}
        self._closed = False

    async def open(self) -> None:
        if self._closed:
            raise FurculaError("this transport was closed; make a new one")

    async def close(self) -> None:
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.close()
        # Backwards: each goes to the head of its queue, and they shall stand there as they did.
        for message in reversed(list(self._taken)):
            await message.release()
        with self._room.lock:
            self._room.wake_all()

    async def publish(self, channel: str, body: bytes) -> None:
        check_body(body, self.promises)
        check_channel(channel)
        while True:
            with self._room.lock:
                self._check_open()
                full = self._room.published(channel, body)
                if full is None:
                    return
                waiting = full.changed.wait()
            await waiting

    async def subscribe(
        self, *channels: str, prefix: bool = False, replay: int = 0, when_slow: Loss | None = None
    ) -> Subscription:
        self._check_open()
        policy = check_subscription(channels, replay, when_slow, self.promises, "memory")
        subscription = _Subscription(self._room, channels, prefix, policy, self._subscriptions.discard)
        with self._room.lock:
            self._room.subscriptions.append(subscription)
            subscription.unread.extend(self._room.history.last(channels, prefix, replay))
            subscription.replayed = len(subscription.unread)
        self._subscriptions.add(subscription)
        return subscription

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        check_body(body, self.promises)
        check_channel(channel)
        loop = asyncio.get_running_loop()
        while True:
            with self._room.lock:
                self._check_open()
                queue = self._room.queue(channel)
                if len(queue) < self._room.size:
                    queue.add(_Entry(body, reported, loop))
                    return
                waiting = queue.changed.wait()
            await waiting

    async def take(self, channel: str) -> Message:
        check_channel(channel)
        while True:
            with self._room.lock:
                self._check_open()
                queue = self._room.queue(channel)
                entry = queue.next()
                if entry is not None:
                    entry.attempts += 1
                    message = _Message(self._room, queue, entry, self._taken)
                    queue.changed.wake()
                    return message
                waiting = queue.changed.wait()
                due_in = queue.due_in_s()
            try:
                async with asyncio.timeout(due_in):
                    await waiting
            except TimeoutError:  # a message that came back with a delay may be due
                pass

    def _check_open(self) -> None:
        if self._closed:
            raise Stopped("the transport is closed")


class _Room:
    """What transports of one name share. Everything in it is touched under `lock` only."""

    def __init__(self, size: int, history: int):
        self.lock = threading.Lock()
        self.size = size
        #: A queue lives as long as something is in it or in hand, or somebody waits at it.
        self.queues: weakref.WeakValueDictionary[str, _Queue] = weakref.WeakValueDictionary()
        self._filled: set[_Queue] = set()
        self.subscriptions: list[_Subscription] = []
        self.history = History(history)

    def queue(self, channel: str) -> _Queue:
        queue = self.queues.get(channel)
        if queue is None:
            queue = self.queues[channel] = _Queue(self._filled)
        return queue

    def published(self, channel: str, body: bytes) -> _Subscription | None:
        """Give every subscriber the body, or nobody: then the one that has no room is returned."""
        wanted = [one for one in self.subscriptions if one.wants(channel)]
        for one in wanted:
            if one.policy == "block" and len(one.unread) >= self.size:
                return one
        for one in wanted:
            if len(one.unread) >= self.size:
                one.unread.popleft()
                one.dropped += 1
            one.unread.append((channel, body))
            one.changed.wake()
        self.history.add(channel, body)
        return None

    def wake_all(self) -> None:
        for queue in list(self.queues.values()):
            queue.changed.wake()
        for subscription in self.subscriptions:
            subscription.changed.wake()


class _Signal:
    """Wakes all who wait, each on the loop where it waits."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    def wait(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = [one for one in self._waiting if not one.done()]
        self._waiting.append(future)
        return future

    def wake(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            _on_loop_of(future.get_loop(), _finish, future)


def _on_loop_of(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    if loop is asyncio._get_running_loop():
        call(*arguments)
        return
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:  # that loop has ended, and with it whoever waited there
        pass


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Queue:
    """A work queue: first in, first out; what comes back goes to the head, when it is due."""

    def __init__(self, filled: set[_Queue]) -> None:
        #: Those that have something in them.
        self._filled = filled
        self.ready: deque[_Entry] = deque()
        self.later: list[tuple[float, int, _Entry]] = []
        self.changed = _Signal()

    def __len__(self) -> int:
        return len(self.ready) + len(self.later)

    def add(self, entry: _Entry) -> None:
        self.ready.append(entry)
        self._came()

    def give_back(self, entry: _Entry, delay_s: float = 0.0) -> None:
        if delay_s > 0:
            heapq.heappush(self.later, (time.monotonic() + delay_s, next(_ticket), entry))
        else:
            self.ready.appendleft(entry)
        self._came()

    def _came(self) -> None:
        self._filled.add(self)
        self.changed.wake()

    def next(self) -> _Entry | None:
        if self.later and self.later[0][0] <= time.monotonic():
            entry = heapq.heappop(self.later)[2]
        elif self.ready:
            entry = self.ready.popleft()
        else:
            return None
        if not len(self):
            self._filled.discard(self)
        return entry

    def due_in_s(self) -> float | None:
        return max(0.0, self.later[0][0] - time.monotonic()) if self.later else None


class _Entry:
    """One body in a work queue, and the loop of whoever put it, where its report goes."""

    __slots__ = ("attempts", "body", "loop", "reported")

    def __init__(self, body: bytes, reported: Callable[[bool, bytes], None] | None, loop: asyncio.AbstractEventLoop):
        self.body = body
        self.attempts = 0
        self.reported = reported
        self.loop = loop


_ticket = itertools.count()


class _Message:
    def __init__(self, room: _Room, queue: _Queue, entry: _Entry, taken: dict[_Message, None]):
        self.body = entry.body
        self.attempts = entry.attempts
        self._room = room
        self._queue = queue
        self._entry = entry
        self._taken = taken
        taken[self] = None

    def _speak(self) -> bool:
        return self._taken.pop(self, 0) is None

    async def ack(self, report: bytes = b"") -> None:
        if self._speak():
            self._report(True, report)

    async def reject(self, report: bytes = b"") -> None:
        if self._speak():
            self._report(False, report)

    def _report(self, good: bool, report: bytes) -> None:
        if self._entry.reported is not None:
            _on_loop_of(self._entry.loop, self._entry.reported, good, report)

    async def again(self, delay_s: float = 0.0) -> None:
        if self._speak():
            with self._room.lock:
                self._queue.give_back(self._entry, delay_s)

    async def release(self) -> None:
        if self._speak():
            with self._room.lock:
                self._entry.attempts -= 1
                self._queue.give_back(self._entry)


class _Subscription:
    """What one subscriber has not read yet."""

    def __init__(
        self,
        room: _Room,
        channels: tuple[str, ...],
        prefix: bool,
        policy: Loss,
        ended: Callable[[_Subscription], None],
    ):
        self.policy = policy
        self.dropped = 0
        self.replayed = 0
        self.unread: deque[tuple[str, bytes]] = deque()
        self.changed = _Signal()
        self._names = frozenset(channels)
        self._beginnings = channels if prefix else None
        self._room = room
        self._ended = ended
        self._closed = False

    @property
    def lost(self) -> int:
        return self.dropped

    def wants(self, channel: str) -> bool:
        return channel in self._names if self._beginnings is None else channel.startswith(self._beginnings)

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while True:
            with self._room.lock:
                if self.unread:
                    item = self.unread.popleft()
                    self.changed.wake()
                elif self._closed:
                    return
                else:
                    waiting = self.changed.wait()
                    item = None
            if item is None:
                await waiting
            else:
                yield item

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ended(self)
        with self._room.lock:
            self._room.subscriptions = [one for one in self._room.subscriptions if one is not self]
            self.changed.wake()
