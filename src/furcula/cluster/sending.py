"""The near end of a cut over JetStream: events become messages, and are delivered once those are stored.

**Twice is once.** What came in one message leaves in messages whose ids are made of that message's id, the cut, and its
events' ids: the same each time it is handled, and another where an event comes by another way. So what a worker
published, and died before it could say so, is published a second time by whoever takes its place, and the server
recognises it for as long as the stream's duplicate window. To that end the outputs of a message are kept until all of
its events have come so far (as long as the option `together` says: one slow event must not hold the others for ever).

**In order.** Into a partition whose order is kept, each writer sends one message at a time: of two under way, the
second might be stored where the first was refused.

**Only by who may.** What leaves in the name of a partition that another worker has taken must not be stored after what
that worker stores. So each such writer has a *fence* in the stream it writes to: a subject with one message, that the
next owner replaces before it writes anything. Every message says which fence it expects, and the server refuses it
where that has been replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec
from nats.js.api import Header
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from furcula.cluster.client import BROKEN, Client
from furcula.cluster.layout import Entry, Layout
from furcula.codecs import encode_events
from furcula.engine.crossed import Parcel, sendable
from furcula.engine.outlets import Batch, settle
from furcula.engine.parts import Cut, Refuse, key_of, share_of
from furcula.errors import InputError, QueueFull
from furcula.event import Event, shallow
from furcula.receipt import Carrier, Receipt, origin_of, settle_all

__all__ = ["Epoch", "FencedOut", "Leaving", "Outputs"]

log = logging.getLogger("furcula.cluster")

#: Events in a message.
MOST = 512
#: Events of one cut that wait to be stored before their sender has to wait.
AHEAD = 4096
#: A cut that closes a cycle never waits; it fails events beyond so many.
TURNING = 2560
#: Messages under way at once where the order is not kept.
PIPELINED = 32
#: Keys whose partition is remembered.
KNOWN_KEYS = 10_000
#: Waits before a full stream is tried again: the first, and the longest.
FULL_S = (0.01, 0.5)
#: So long the server's word is waited for.
ANSWER_S = 5.0

#: The server's words for a stream that is full: of messages, or of bytes.
_FULL = (10077, 10054, 10122)
_WRONG_FENCE, _FENCE_BUSY = 10071, 10164


class FencedOut(Exception):
    """Another worker has the partition in whose name this would have been stored."""


class Epoch(Protocol):
    """In whose name events leave: a partition or a single source, and how often it has passed to another worker."""

    @property
    def module(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def number(self) -> int: ...

    def lost(self) -> None:
        """It has passed to another worker."""


class Outputs(Protocol):
    """What an event came in, where that has outputs of its own to keep together."""

    @property
    def epoch(self) -> Epoch | None: ...

    def keep(self, leaving: Leaving, partition: int, event: Event[Any], carrier: Carrier) -> None:
        """An output of one of its events."""


class Load(msgspec.Struct, gc=False, eq=False):
    """One message to be stored."""

    id: str
    body: bytes
    carriers: list[Carrier | None]


class Leaving:
    """The near end of one cut.

    Args:
        outputs: Says what an event's carrier came in; None: nothing that has outputs to keep together.
        singles: The sources that run in one worker at a time, and since when in this one.
    """

    def __init__(
        self,
        cut: Cut,
        entry: Entry,
        layout: Layout,
        client: Client,
        refuse: Refuse,
        outputs: Callable[[Carrier | None], Outputs | None],
        ask: Callable[[Cut, Entry, list[tuple[Event[Any], Carrier]]], None],
        asked: Callable[[Carrier | None], bool],
        singles: Mapping[str, Epoch],
    ):
        self.cut = cut
        self.entry = entry
        self.refuse = refuse
        self._layout = layout
        self._client = client
        self._outputs = outputs
        self._ask = ask
        self._asked = asked
        self._singles = singles
        self._key = key_of(cut) if entry.mode == "keyed" else None
        self._parts: dict[str, int] = {}
        self._lanes: dict[tuple[int, str, int, int], Lane] = {}
        #: Events without outputs to be kept together with, by partition and by whose they are.
        self._direct: dict[tuple[int, Epoch | None], Batch] = {}
        self._flushing = False
        self._room: asyncio.Future[None] | None = None
        #: Events that are not stored.
        self.waiting = 0
        #: It was said that the stream this leads to is gone.
        self.is_gone_told = False
        #: The stream this leads to is nearly full, and this cut leads into a cycle.
        self.behind = False

    def push(self, batch: Batch) -> Awaitable[None] | None:
        overflow = self.cut.overflow
        if self.cut.back and self.waiting + len(batch) > TURNING:
            room = max(0, TURNING - self.waiting)
            batch, beyond = batch[:room], batch[room:]
            error = QueueFull(f"the cycle through {self.cut.target} has {TURNING} events under way")
            self.refuse([(event, error) for event in beyond])
        elif overflow != "block" and self.waiting >= AHEAD:
            if overflow == "fail":
                full = QueueFull(f"{self.cut.target} is behind, and {self.cut.name} says overflow: fail")
                self.refuse([(event, full) for event in batch])
            else:
                settle(batch, "dropped", "overflow")
            return None
        asked: list[tuple[Event[Any], Carrier]] = []
        last: Carrier | None = None
        whose: Epoch | None = None
        for event in batch:
            carrier = event.carrier()
            # Most events of a source share one receipt, and nobody waits for those.
            if type(carrier) is not Receipt and carrier is not None and self._asked(carrier):
                asked.append((event, carrier))
                continue
            try:
                partition = self._partition(event)
            except Exception as error:
                self.refuse([(event, error)])
                continue
            outputs = self._outputs(carrier)
            self.waiting += 1
            if outputs is not None:
                assert carrier is not None
                outputs.keep(self, partition, event, carrier)
                continue
            if carrier is not last:
                last, whose = carrier, self._whose(carrier)
            to = (partition, whose)
            if to in self._direct:
                self._direct[to].append(event)
            else:
                self._direct[to] = [event]
        if asked:
            self._ask(self.cut, self.entry, asked)
        if self._direct and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        if self.cut.back or overflow != "block" or (self.waiting < AHEAD and not self.behind):
            return None
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        return asyncio.shield(self._room)

    def _partition(self, event: Event[Any]) -> int:
        """Where an event goes. Raises what the key's function raises."""
        if self._key is None:
            return 0
        key = self._key(event)
        if type(key) is not str:  # others may be equal and be said otherwise: 1, 1.0, True
            return share_of(key, self.entry.partitions)
        found = self._parts.get(key)
        if found is None:
            if len(self._parts) >= KNOWN_KEYS:
                self._parts.clear()
            found = self._parts[key] = share_of(key, self.entry.partitions)
        return found

    def _whose(self, carrier: Carrier | None) -> Epoch | None:
        """In whose name an event leaves that is kept with no others: of what a pack was made from, the first one's."""
        if self.entry.mode == "shared":
            return None
        one: Any = carrier
        while one is not None:
            outputs = self._outputs(one)
            if outputs is not None:
                return outputs.epoch
            parents = getattr(one, "parents", None)
            one = parents[0] if parents else None
        origin = origin_of(carrier) if self._singles else None
        return None if origin is None else self._singles.get(origin.name)

    def _flush(self) -> None:
        """Send what has come since the last turn of the loop: together, as far as its lane is free."""
        self._flushing = False
        direct, self._direct = self._direct, {}
        for (partition, epoch), events in direct.items():
            self._lane(partition, epoch).gather(events)

    def send(
        self, partition: int, events: list[tuple[Event[Any], str, Carrier]], epoch: Epoch | None, came: str
    ) -> None:
        """Store these, which came in one message, as one, or as few.

        Args:
            events: With the id under which each goes on, and what it is reported to.
            came: The id of the message they came in. One event may come this way several times: by two branches that
                meet again, or round a cycle; and each time it came in another message.
        """
        batch: Batch = []
        for event, id, _ in events:
            if event._id != id:
                event = shallow(event)
                event._id = id
            batch.append(event)
        lane = self._lane(partition, epoch)
        # Of what has become several events, the next time another may come first: then it is known by what it says.
        ambiguous = any(getattr(carrier, "shared", False) for _, _, carrier in events)
        way = f"{came}\x00{self.cut.name}\x00{partition}\x00".encode()

        def id_of(ids: list[str], body: bytes) -> str:
            """The same for the same events on the same way."""
            said = hashlib.blake2b(way, digest_size=18)
            said.update(body if ambiguous else "\x00".join(ids).encode())
            return said.hexdigest()

        for load in self._loads(batch, [carrier for _, _, carrier in events], id_of):
            lane.put(load)

    def loads(self, batch: Batch) -> list[Load]:
        """Messages of events that came in none: they are sent once, and the id is for asking again."""
        return self._loads(batch, [event.carrier() for event in batch], lambda _, __: os.urandom(12).hex())

    def _loads(
        self, batch: Batch, carriers: list[Carrier | None], id_of: Callable[[list[str], bytes], str]
    ) -> list[Load]:
        try:
            body = msgspec.msgpack.encode(Parcel(self.cut.name, encode_events(batch)))
        except (ValueError, TypeError, RecursionError):
            return self._without_unsendable(batch, carriers, id_of)
        most = min(self._client.max_body, int(self._layout.options.max_bytes) - 4096)
        if len(body) <= most:
            return [Load(id_of([event.id for event in batch], body), body, carriers)]
        if len(batch) == 1:
            error = InputError(f"the event has {len(body)} bytes, and a message of the cluster at most {most}")
            self.refused(batch, carriers, [error])
            return []
        half = len(batch) // 2
        return self._loads(batch[:half], carriers[:half], id_of) + self._loads(batch[half:], carriers[half:], id_of)

    def _without_unsendable(
        self, batch: Batch, carriers: list[Carrier | None], id_of: Callable[[list[str], bytes], str]
    ) -> list[Load]:
        good, _, refused = sendable(batch)

        bad = {id(event): error for event, error in refused}
        kept = [carrier for event, carrier in zip(batch, carriers, strict=True) if id(event) not in bad]
        gone = [(event, carrier) for event, carrier in zip(batch, carriers, strict=True) if id(event) in bad]
        self.refused([event for event, _ in gone], [c for _, c in gone], [bad[id(event)] for event, _ in gone])
        return self._loads(good, kept, id_of) if good else []

    def refused(self, batch: Batch, carriers: list[Carrier | None], errors: list[Exception]) -> None:
        """These cannot leave: they fail where they came from."""
        self.left(len(batch))
        for event, carrier, error in zip(batch, carriers, errors, strict=True):
            returned(carrier)
            event._receipt = carrier
            self.refuse([(event, error)])

    def _lane(self, partition: int, epoch: Epoch | None) -> Lane:
        key = (partition, epoch.module, epoch.partition, epoch.number) if epoch is not None else (partition, "", 0, 0)
        lane = self._lanes.get(key)
        if lane is None:
            layout, entry = self._layout, self.entry
            fence = layout.fence(entry, partition, epoch.module, epoch.partition) if epoch is not None else None
            lane = self._lanes[key] = Lane(
                self, self._client, layout.to(entry, partition), fence, layout.stream(entry.stage), epoch
            )
        return lane

    def stored(self, load: Load) -> None:
        """The server has it."""
        self.is_gone_told = False
        for carrier in load.carriers:
            returned(carrier, self.cut.name)
        carriers = [carrier for carrier in load.carriers if carrier is not None]
        if carriers:
            settle_all(carriers, "delivered", "stored")
        self.left(len(load.carriers))

    def failed(self, load: Load, reason: str) -> None:
        carriers = [carrier for carrier in load.carriers if carrier is not None]
        if carriers:
            settle_all(carriers, "failed", reason)
        self.left(len(load.carriers))

    def left(self, count: int) -> None:
        self.waiting -= count
        if self.waiting < AHEAD and not self.behind and self._room is not None:
            room, self._room = self._room, None
            if not room.done():
                room.set_result(None)

    def forget(self, epoch: Epoch) -> None:
        """It has passed to another worker: what waits in its name is not sent, and goes back where it came from."""
        for key in [key for key in self._lanes if key[1:] == (epoch.module, epoch.partition, epoch.number)]:
            self._lanes.pop(key).end("abandoned")

    def settled(self) -> bool:
        return not self.waiting

    def abandon(self) -> int:
        left = self.waiting
        for events in self._direct.values():
            settle(events, "failed", "abandoned")
            self.waiting -= len(events)
        self._direct.clear()
        for lane in self._lanes.values():
            lane.end("abandoned")
        self._lanes.clear()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return left


class Lane:
    """One writer's messages into one partition."""

    def __init__(
        self, leaving: Leaving, client: Client, subject: str, fence: str | None, stream: str, epoch: Epoch | None
    ):
        self._leaving = leaving
        self._client = client
        self._subject = subject
        self._fence = fence
        self._stream = stream
        self._epoch = epoch
        self._fenced = 0
        self._gathered: Batch = []
        self._queue: deque[Load] = deque()
        self._under: set[Load] = set()
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = ""

    def gather(self, events: Batch) -> None:
        """These go together with whatever else comes before they can be sent."""
        self._gathered += events
        self._start()

    def put(self, load: Load) -> None:
        self._queue.append(load)
        self._start()

    def _start(self) -> None:
        self._more.set()
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), name=f"furcula sends to {self._leaving.cut.target}")

    async def _run(self) -> None:
        """Ends when there is nothing to send."""
        try:
            most = PIPELINED if self._leaving.entry.mode == "shared" and self._fence is None else 1
            while True:
                load = self._next()
                if load is None:
                    if self._tasks:
                        self._more.clear()
                        more = asyncio.ensure_future(self._more.wait())
                        await asyncio.wait([more, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
                        more.cancel()
                        continue
                    return
                self._under.add(load)
                if most == 1:
                    await self._store(load)
                    continue
                task = asyncio.get_running_loop().create_task(self._store(load))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                if len(self._tasks) >= most:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except FencedOut:
            log.warning("%s has passed to another worker; what was under way here is left to it", self._subject)
            if self._epoch is not None:
                self._epoch.lost()
        finally:
            self._task = None
            if (self._queue or self._gathered) and not self._ended and asyncio.current_task() is not None:
                self._start()

    def _next(self) -> Load | None:
        if self._queue:
            return self._queue.popleft()
        if self._gathered:
            batch, self._gathered = self._gathered[:MOST], self._gathered[MOST:]
            self._queue.extend(self._leaving.loads(batch))
            return self._queue.popleft() if self._queue else self._next()
        return None

    async def _store(self, load: Load) -> None:
        """Returns when it is stored. Tried again for as long as it takes."""
        wait_s = FULL_S[0]
        told = False
        while not self._ended:
            headers: dict[str, Any] = {str(Header.MSG_ID.value): load.id}
            try:
                if self._fence is not None:
                    if not self._fenced:
                        self._fenced = await self._set_fence()
                    headers["Nats-Expected-Last-Subject-Sequence"] = str(self._fenced)
                    headers["Nats-Expected-Last-Subject-Sequence-Subject"] = self._fence
                await self._client.js.publish(self._subject, load.body, timeout=ANSWER_S, headers=headers)
                self._under.discard(load)
                if not self._ended:
                    self._leaving.stored(load)
                return
            except APIError as error:
                if error.err_code == _WRONG_FENCE:
                    self._fenced = 0
                    continue
                if error.err_code == _FENCE_BUSY:
                    await asyncio.sleep(0.002)
                    continue
                full = error.err_code in _FULL
                if not told and (not full or wait_s >= FULL_S[1]):
                    told = True
                    why = f"{self._stream} is full, and whoever sends to it waits" if full else str(error)
                    log.warning("%s cannot be written, and is tried again: %s", self._subject, why)
            except BROKEN as error:
                log.debug("%s: %s", self._subject, error)
                if isinstance(error, NoStreamResponseError) and wait_s >= FULL_S[1]:
                    await self._tell_if_gone()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, FULL_S[1])

    async def _tell_if_gone(self) -> None:
        """Nobody takes what is sent: is a leader being chosen, or has somebody removed the stream?"""
        if self._leaving.is_gone_told:
            return
        try:
            await self._client.js.stream_info(self._stream)
        except NotFoundError:
            if self._leaving.is_gone_told:  # another lane has said so meanwhile
                return
            self._leaving.is_gone_told = True
            text = "the stream %s is gone, and what is sent to %s waits: see `furcula cluster plan`"
            log.error(text, self._stream, self._leaving.entry.module)
        except (APIError, *BROKEN) as error:
            log.debug("%s: %s", self._stream, error)

    async def _set_fence(self) -> int:
        """Replace the fence of the last epoch by ours. Returns its number in the stream.

        Raises:
            FencedOut: There is a later epoch.
        """
        assert self._fence is not None
        assert self._epoch is not None
        js = self._client.js
        try:
            there = await js.get_last_msg(self._stream, self._fence)
            number, last = int((there.data or b"0").decode()), there.seq or 0
        except NotFoundError:
            number, last = 0, 0
        if number > self._epoch.number:
            raise FencedOut
        if number == self._epoch.number:
            return last
        try:
            stored = await js.publish(
                self._fence,
                str(self._epoch.number).encode(),
                timeout=ANSWER_S,
                headers={"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(last)},
            )
        except APIError as error:
            if error.err_code in (_WRONG_FENCE, _FENCE_BUSY):  # somebody was quicker: look again
                await asyncio.sleep(0.002)
                return await self._set_fence()
            raise
        return stored.seq

    def end(self, reason: str) -> None:
        """Send nothing more; what is not known to be stored fails. It may be stored all the same."""
        self._ended = reason
        loads = [*self._under, *self._queue]
        self._under.clear()
        self._queue.clear()
        if self._gathered:
            loads += [Load("", b"", [event.carrier() for event in self._gathered])]
            self._gathered = []
        for task in (self._task, *self._tasks):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
        for load in loads:
            self._leaving.failed(load, reason)


def returned(carrier: Carrier | None, stored: str = "") -> None:
    """An output is not kept any more; `stored`: it was stored, over this cut."""
    back = getattr(carrier, "back", None)
    if back is not None:
        back(stored)
