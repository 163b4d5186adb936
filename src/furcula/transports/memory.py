"""The transport inside one process: the plainest keeper of the contract, and the one that others are compared with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from furcula.errors import FurculaError, InputError, Stopped
from furcula.transport import Message, Promises, Subscription

__all__ = ["MemoryTransport"]


class MemoryTransport:
    """Channels in memory.

    Args:
        size: Bodies that may wait in one channel, for a worker or for one subscriber, before senders wait.
    """

    def __init__(self, size: int = 64):
        self.promises = Promises(order=True, reports=True, loss="block")
        self._size = size
        self._queues: dict[str, _Queue] = {}
        self._subscriptions: dict[str, list[_Subscription]] = {}
        self._closed = False

    async def open(self) -> None:
        if self._closed:
            raise FurculaError("this transport was closed; make a new one")

    async def close(self) -> None:
        self._closed = True
        for subscriptions in list(self._subscriptions.values()):
            for subscription in list(subscriptions):
                await subscription.close()
        for queue in self._queues.values():
            queue.close()

    async def publish(self, channel: str, body: bytes) -> None:
        self._check(body)
        for subscription in list(self._subscriptions.get(channel, ())):
            await subscription.offer(channel, body)

    async def subscribe(self, *channels: str) -> Subscription:
        self._check(b"")
        subscription = _Subscription(self._size, lambda ended: self._forget(ended, channels))
        for channel in channels:
            self._subscriptions.setdefault(channel, []).append(subscription)
        return subscription

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        self._check(body)
        await self._queue(channel).put(_Message(self._queue(channel), body, reported))

    async def take(self, channel: str) -> Message:
        self._check(b"")
        return await self._queue(channel).take()

    def _queue(self, channel: str) -> _Queue:
        return self._queues.setdefault(channel, _Queue(self._size))

    def _check(self, body: bytes) -> None:
        if self._closed:
            raise Stopped("the transport is closed")
        if len(body) > self.promises.max_body:
            raise InputError(f"a body of {len(body)} bytes is over the limit of {self.promises.max_body}")

    def _forget(self, ended: _Subscription, channels: tuple[str, ...]) -> None:
        for channel in channels:
            rest = [one for one in self._subscriptions.get(channel, ()) if one is not ended]
            if rest:
                self._subscriptions[channel] = rest
            else:
                self._subscriptions.pop(channel, None)


class _Queue:
    """A work queue: first in, first out; what comes back goes to the head."""

    def __init__(self, size: int):
        self.size = size
        self.ready: deque[_Message] = deque()
        self.changed = asyncio.Condition()
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def put(self, message: _Message) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or len(self.ready) < self.size)
            if self.closed:
                raise Stopped("the transport was closed while a sender waited")
            self.ready.append(message)
            self.changed.notify_all()

    async def take(self) -> _Message:
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or bool(self.ready))
            if not self.ready:
                raise Stopped("the transport was closed while a taker waited")
            message = self.ready.popleft()
            message.attempts += 1
            message.spoken = False
            self.changed.notify_all()
            return message

    async def back(self, message: _Message) -> None:
        async with self.changed:
            self.ready.appendleft(message)
            self.changed.notify_all()

    def close(self) -> None:
        self.closed = True

        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.get_running_loop().create_task(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Message:
    def __init__(self, queue: _Queue, body: bytes, reported: Callable[[bool, bytes], None] | None):
        self.body = body
        self.attempts = 0
        self.spoken = False
        self._queue = queue
        self._reported = reported

    def _speak(self) -> bool:
        first, self.spoken = not self.spoken, True
        return first

    async def ack(self, report: bytes = b"") -> None:
        if self._speak() and self._reported is not None:
            self._reported(True, report)

    async def reject(self, report: bytes = b"") -> None:
        if self._speak() and self._reported is not None:
            self._reported(False, report)

    async def again(self, delay_s: float = 0.0) -> None:
        if self._speak():
            if delay_s:
                loop = asyncio.get_running_loop()
                loop.call_later(delay_s, lambda: loop.create_task(self._queue.back(self)))
            else:
                await self._queue.back(self)

    async def release(self) -> None:
        if self._speak():
            self.attempts -= 1
            await self._queue.back(self)


class _Subscription:
    """What one subscriber has not read yet. A full one makes publishers wait until it is read or closed."""

    def __init__(self, size: int, ended: Callable[[_Subscription], None]):
        self.lost = 0
        self._size = size
        self._unread: deque[tuple[str, bytes]] = deque()
        self._changed = asyncio.Condition()
        self._ended = ended
        self._closed = False

    async def offer(self, channel: str, body: bytes) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or len(self._unread) < self._size)
            if not self._closed:
                self._unread.append((channel, body))
                self._changed.notify_all()

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._closed or bool(self._unread))
                if not self._unread:
                    return
                item = self._unread.popleft()
                self._changed.notify_all()
            yield item

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ended(self)
            async with self._changed:
                self._changed.notify_all()
