"""A route that leaves the process: events go through a transport as bytes, and their fates come back.

The near side holds the events' shares open until the far side has reported what became of each (SEMANTICS.md, stage
over ipc). The far side admits them again, under an origin of its own and with the same ids.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable

import msgspec

from furcula.codecs import decode_events, encode_events
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch, Consumer
from furcula.errors import FurculaError, InputError, Stopped
from furcula.event import Failure
from furcula.receipt import Carrier, Fate, Origin, Receipt, Slot, Tracked
from furcula.transport import Message, Transport

__all__ = ["Crossing"]


class _Report(msgspec.Struct, array_like=True):
    fate: str
    reason: str = ""
    failure: Failure | None = None


_reports = msgspec.msgpack.Decoder(list[_Report])


class Crossing:
    """Both sides of one route over a transport.

    Args:
        transport: What carries.
        channel: The channel of its work queue.
        entry: What takes events on the far side.
        outcomes: Of the module there: what cannot be said in bytes fails there.
        origin: Under whose name the far side admits.
        target: The name of the module there.
        limit: Bodies that may be on their way before the near side waits.
    """

    def __init__(
        self,
        transport: Transport,
        channel: str,
        entry: Consumer,
        outcomes: Outcomes,
        origin: Origin,
        target: str,
        limit: int = 16,
    ):
        self.target = target
        self._transport = transport
        self._channel = channel
        self._entry = entry
        self._outcomes = outcomes
        self._origin = origin
        self._limit = limit
        self._next = 0
        #: Bodies sent and not yet accepted by the far side's module.
        self._in_transit = 0
        self._under_way: dict[int, list[Carrier | None]] = {}
        # Bodies arrive in the order in which they are sent, so a number says which have.
        self._arrived_up_to = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._previous: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------ the near side

    def push(self, batch: Batch) -> Awaitable[None] | None:
        sendable, body = self._encoded(batch)
        if not sendable:
            return None
        number = self._next
        self._next += 1
        self._under_way[number] = [event.carrier() for event in sendable]
        task = asyncio.get_running_loop().create_task(self._send(number, body, sendable, self._previous))
        self._previous = task
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        self._in_transit += 1
        if self._in_transit < self._limit:
            return None
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._room)

    def _encoded(self, batch: Batch) -> tuple[Batch, bytes]:
        try:
            return batch, encode_events(batch)
        except (ValueError, TypeError, RecursionError):
            pass
        sendable: Batch = []
        counters = self._outcomes.counters
        for event in batch:
            try:
                encode_events([event])
            except (ValueError, TypeError, RecursionError) as error:
                counters.received += 1
                cannot = InputError(f"the event cannot leave the process: {error}")
                self._outcomes.fail([(event, Failed(cannot, touched=False))])
            else:
                sendable.append(event)
        return sendable, encode_events(sendable) if sendable else b""

    async def _send(self, number: int, body: bytes, events: Batch, previous: asyncio.Task[None] | None) -> None:
        if previous is not None and not previous.done():
            await asyncio.wait([previous])
        try:
            await self._transport.put(self._channel, body, lambda done, report: self._reported(number, done, report))
        except FurculaError as error:
            if self._under_way.pop(number, None) is not None:
                self._outcomes.counters.received += len(events)
                self._outcomes.fail([(event, Failed(error, touched=False)) for event in events])
            self._arrived_up_to += 1
            self._made_room()

    def _reported(self, number: int, done: bool, report: bytes) -> None:
        carriers = self._under_way.pop(number, None)
        if carriers is None:
            return
        if done:
            reports = _reports.decode(report)
        else:
            reports = [_Report("failed", "rejected")] * len(carriers)
        for carrier, one in zip(carriers, reports, strict=True):
            if carrier is not None:
                fate: Fate = one.fate  # type: ignore[assignment]
                carrier.settle(fate, 1, one.reason, one.failure)

    # ------------------------------------------------------------------ the far side

    async def receive(self) -> None:
        """Take what comes and hand it on, until cancelled."""
        while True:
            try:
                message = await self._transport.take(self._channel)
            except Stopped:
                return
            wait = self._arrived(message)
            self._arrived_up_to += 1
            if wait is not None:
                await wait
            self._made_room()

    def _made_room(self) -> None:
        self._in_transit -= 1
        if self._in_transit < self._limit:
            self._let_go()

    def _let_go(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def _arrived(self, message: Message) -> Awaitable[None] | None:
        loop = asyncio.get_running_loop()
        try:
            events = decode_events(message.body)
        except InputError:
            task = loop.create_task(message.reject())
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)
            return None
        reports: list[_Report] = [_Report("open")] * len(events)
        left = len(events)

        def settled(index: int, slot: Slot) -> None:
            nonlocal left
            failure = slot.failure if isinstance(slot.failure, Failure) else None
            reports[index] = _Report(slot.fate or "dropped", slot.reason, failure)
            left -= 1
            if not left:
                task = loop.create_task(message.ack(msgspec.msgpack.encode(reports)))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

        for index, event in enumerate(events):
            event._receipt = Tracked((Receipt(self._origin, 1),), 1, functools.partial(settled, index), event.created)
        return self._entry.push(events)

    # ------------------------------------------------------------------ its end

    def idle(self) -> bool:
        """Has everything that was sent been accepted on the far side?"""
        return not self._in_transit

    def settled(self) -> bool:
        """Has the far side reported on everything?"""
        return not self._under_way

    def abandon(self) -> int:
        """The deadline has passed: whatever has not been reported fails. Returns how many had not arrived."""
        left = 0
        for number, carriers in self._under_way.items():
            if number >= self._arrived_up_to:
                left += len(carriers)
            for carrier in carriers:
                if carrier is not None:
                    carrier.settle("failed", 1, "abandoned")
        self._under_way.clear()
        self._let_go()
        for task in self._sending:
            task.cancel()
        return left
