"""Work queues in an SQLite file: durable, for any number of processes on one machine, with no server to run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from furcula.errors import FurculaError, Stopped
from furcula.store import Letter, Store, StoreFile, Taken
from furcula.transport import Loss, Message, Promises, Subscription
from furcula.transports.asked import check_body, check_carries, check_channel

__all__ = ["SqliteTransport"]

#: Bodies that one process puts before it counts again what is in the queue.
COUNT_EVERY = 1000


class SqliteTransport:
    """Carries to one worker. What `put` has returned for survives the process and, by `fsync`, the machine.

    A taker whose process dies gives back what it had in hand, at once for others on this machine; the attempt is
    charged. Nobody is told reports: the one who put may have gone long ago. What is rejected stays in the file as a
    dead letter (`furcula dlq`).

    Args:
        path: The file; made if it is not there. Not on a network file system.
        size: Bodies that may be in one queue before senders wait. Each further process that puts may exceed it by up
            to a thousand, since none counts each time.
    """

    def __init__(self, path: str | Path, size: int = 100_000):
        self.promises = Promises(order=True, durable=True, reports=False, carries=("one",))
        self._store = Store(path)
        self._size = size
        #: By channel, how many bodies may be put before the queue is counted again.
        self._rooms: dict[str, int] = {}
        self._hand: set[_Message] = set()
        self._closed = False
        self._opened = False

    async def open(self) -> None:
        if self._closed:
            raise FurculaError("this transport was closed; make a new one")
        await self._store.open()
        self._opened = True

    async def close(self) -> None:
        self._closed = True
        # Others of this process may go on with the same store, so nobody but us knows what is in our hand.
        for message in list(self._hand):
            await message.release()
        await self._store.close()

    async def publish(self, channel: str, body: bytes) -> None:
        check_carries("all", self.promises, "sqlite")
        raise AssertionError

    async def subscribe(
        self, *channels: str, prefix: bool = False, replay: int = 0, when_slow: Loss | None = None
    ) -> Subscription:
        check_carries("all", self.promises, "sqlite")
        raise AssertionError

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        self._check(channel)
        check_body(body, self.promises)
        while not await self._store.do(lambda file: self._put_if_room(file, channel, body)):
            await self._store.changed(channel)
        self._store.arrived(channel)

    def _put_if_room(self, file: StoreFile, channel: str, body: bytes) -> bool:
        """In the writer's thread. To count takes a while in a long queue, so only now and then it is done anew."""
        room = self._rooms.get(channel, 0)
        if room <= 0:
            room = min(self._size - file.count(channel), COUNT_EVERY)
            if room <= 0:
                return False
        file.put(channel, [body])
        self._rooms[channel] = room - 1
        return True

    async def take(self, channel: str) -> Message:
        self._check(channel)
        (taken,) = await self._store.take(channel, 1)
        self._store.begun(channel, taken.id)
        message = _Message(self._store, channel, taken, self._hand)
        self._hand.add(message)
        return message

    def _check(self, channel: str) -> None:
        check_channel(channel)
        if self._closed or not self._opened:
            raise Stopped("the transport is closed" if self._closed else "the transport is not open yet")


class _Message:
    def __init__(self, store: Store, channel: str, taken: Taken, hand: set[_Message]):
        self._hand = hand
        self.body = taken.body
        self.attempts = taken.attempts
        self._store = store
        self._channel = channel
        self._id = taken.id
        self._spoken = False

    async def _say(self, word: Callable[[], asyncio.Future[Any]]) -> None:
        first, self._spoken = not self._spoken, True
        if first:
            self._hand.discard(self)
            await asyncio.shield(word())
            self._store.arrived(self._channel)

    async def ack(self, report: bytes = b"") -> None:
        await self._say(lambda: self._store.done(self._channel, [self._id]))

    async def reject(self, report: bytes = b"") -> None:
        def letter(body: bytes) -> Letter:
            text = report.decode("utf-8", "backslashreplace")
            path = (self._channel,)
            return Letter(
                time.time(), "", self._channel, path, "Rejected", text, "", self.attempts, body, self._channel
            )

        await self._say(
            lambda: self._store.do(lambda file: file.reject(self._channel, self._id, letter), stubborn=True)
        )

    async def again(self, delay_s: float = 0.0) -> None:
        await self._say(lambda: self._store.back(self._channel, [self._id], delay_s=delay_s))

    async def release(self) -> None:
        await self._say(lambda: self._store.back(self._channel, [self._id], charged=False))
