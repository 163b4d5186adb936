"""The built-in ingress `internal`: queues in memory, one for each routing key."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from furcula.broker.ingress import IngressContext
from furcula.errors import Stopped

__all__ = ["InternalQueues"]

#: Bodies that wait under one routing key, and routing keys there may be, unless the profile says `size` and `keys`.
SIZE = 1024
KEYS = 10_000


class InternalQueues:
    """What was put for the provider `internal`, by routing key. All methods belong to the Broker's event loop.

    A full queue drops its oldest body, and counts that: nobody may be reading.
    """

    ACCT = ["internal"]

    def __init__(self) -> None:
        self._queues: dict[str, deque[Any]] = {}
        self._readers: dict[str, deque[asyncio.Future[Any]]] = {}
        self._closed = False
        #: Bodies that were dropped because nobody read them.
        self.dropped = 0

    async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
        if self._handed(routing_key, body):
            return
        data = ctx.acct if isinstance(ctx.acct, dict) else {}
        if routing_key not in self._queues and len(self._queues) >= int(data.get("keys", KEYS)):
            oldest = next(iter(self._queues))
            self.dropped += len(self._queues.pop(oldest))
        queue = self._queues.setdefault(routing_key, deque())
        queue.append(body)
        if len(queue) > int(data.get("size", SIZE)):
            queue.popleft()
            self.dropped += 1

    def _handed(self, routing_key: str, body: Any) -> bool:
        """Give it to one who waits, if there is one."""
        readers = self._readers.get(routing_key)
        while readers:
            reader = readers.popleft()
            if not reader.done():
                reader.set_result(body)
                return True
        return False

    async def get(self, routing_key: str) -> Any:
        """The next body under a routing key. Waits for one. Cancelling loses none.

        Raises:
            Stopped: The Broker has stopped, and nothing is left under this key.
        """
        queue = self._queues.get(routing_key)
        if queue:
            return self._taken(routing_key, queue)
        if self._closed:
            raise Stopped("the broker has stopped")
        reader: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._readers.setdefault(routing_key, deque()).append(reader)
        try:
            return await reader
        except asyncio.CancelledError:
            if reader.done() and not reader.cancelled() and reader.exception() is None:
                body = reader.result()
                if not self._handed(routing_key, body):
                    self._queues.setdefault(routing_key, deque()).appendleft(body)
            raise
        finally:
            waiting = self._readers.get(routing_key)
            if waiting is not None:
                if reader in waiting:
                    waiting.remove(reader)
                if not waiting:
                    del self._readers[routing_key]

    def get_nowait(self, routing_key: str, default: Any = None) -> Any:
        """The next body under a routing key, or `default`."""
        queue = self._queues.get(routing_key)
        return self._taken(routing_key, queue) if queue else default

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def _taken(self, routing_key: str, queue: deque[Any]) -> Any:
        body = queue.popleft()
        if not queue:
            del self._queues[routing_key]
        return body

    def shut(self) -> None:
        """No more is coming: those who wait are told so."""
        self._closed = True
        for readers in self._readers.values():
            for reader in readers:
                if not reader.done():
                    reader.set_exception(Stopped("the broker has stopped"))
