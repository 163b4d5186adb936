"""The far end of the cuts to one module: messages become events, and are acknowledged when those are settled.

A *partition* is taken from by one worker at a time (but for a module whose order is not kept: there by all). Of the
events of one key, the next is admitted only when the one before it can no longer fail: it is settled, or all it has
become waits to be stored elsewhere. So one that has to be tried again holds up its key, and nothing else.

**When a worker dies** whoever takes its partition deletes the consumer it pulled by, and makes another: that begins
with the first message that is not acknowledged, in order, and what the dead one may still say is refused.

**What kills workers.** When two in a row have died with the same messages in hand, these are handed out one event
at a time, and noted in the bucket before it begins. So the culprit is known when the next one dies, and after
`max_deliveries` of that it is a dead letter. A worker handles one such event at a time, of whatever partition it is: so
none is blamed for another's deed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

import msgspec
from nats.aio.msg import Msg
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError
from nats.js.kv import KeyValue

from furcula.cluster.claims import Row
from furcula.cluster.client import Client, tried
from furcula.cluster.in_hand import NO_KEY, InHand, Taken
from furcula.cluster.layout import Entry, Layout
from furcula.cluster.letters import Letters
from furcula.cluster.pulling import Intake
from furcula.cluster.sending import Leaving
from furcula.codecs import decode_events, encode_events, split_events
from furcula.engine.crossed import Parcel
from furcula.engine.outlets import Batch
from furcula.engine.parts import Arrivals, Spawn, key_of
from furcula.errors import FurculaError, InputError
from furcula.event import Event, Failure
from furcula.receipt import Slot

__all__ = ["Partition"]

log = logging.getLogger("furcula.cluster")

#: Messages that may be in hand, at most.
MOST_IN_HAND = 512
#: Events that are handed on together.
TOGETHER = 512
#: Between two looks whether what was handed out alone is over.
LOOK_S = 0.1
#: Deaths with the same messages in hand after which those are handed out one by one.
SUSPECT_AFTER = 2


def _split(raw: bytes) -> list[bytes]:
    try:
        return split_events(raw)
    except InputError:
        return [raw]


def _readable(raw: bytes) -> tuple[Batch, list[bytes]]:
    """The events that can be read, and the bytes of the others."""
    events: Batch = []
    bad: list[bytes] = []
    for one in _split(raw):
        try:
            events += decode_events(one)
        except InputError:
            bad.append(one)
    return events, bad


_parcel = msgspec.msgpack.Decoder(Parcel).decode


class Epoch:
    """In whose name what leaves here is stored."""

    def __init__(self, partition: Partition, number: int):
        self._partition = partition
        self.module = partition.entry.module
        self.partition = partition.number
        self.number = number

    def lost(self) -> None:
        self._partition.lose()


class Hands(Protocol):
    """What the partitions of one worker share."""

    #: Subjects on which the server waits for word.
    in_hand: set[str]
    #: Held while something is handled that may kill the worker.
    alone: asyncio.Lock


class Partition:
    """One partition of one module, while this worker takes from it.

    Args:
        row: Our row of the table; None: it is shared by all workers of the stage.
        died: The last owner died.
        note: Notes how many have died in a row, and the last message that may be to blame.
        holds: Asks whether the row is still ours.
        leavings: The near ends of cuts, to be told when the partition has passed to another.
    """

    def __init__(
        self,
        entry: Entry,
        number: int,
        *,
        arrivals: Mapping[str, Arrivals],
        layout: Layout,
        client: Client,
        bucket: KeyValue,
        hands: Hands,
        row: Row | None,
        died: bool,
        note: Callable[[int, int], Awaitable[None]],
        holds: Callable[[], Awaitable[bool]],
        leavings: list[Leaving],
    ):
        options = layout.options
        self.entry = entry
        self.number = number
        self.max_deliveries = options.max_deliveries
        self.epoch = Epoch(self, row.epoch) if row is not None else None
        #: Events that were handed on and are not settled.
        self.open = 0
        self.handled = 0
        self._arrivals = arrivals
        self._client = client
        self._bucket = bucket
        self._hands = hands
        self._row = row
        self._note = note
        self._leavings = leavings
        self._letters = Letters(entry, layout, client, lambda: self._lost)
        self._options = options
        self._strict = entry.mode == "keyed"
        self._key = next((key_of(one.cut) for one in arrivals.values()), None) if self._strict else None
        self._suspects_to = 0
        self._in_hand: dict[int, InHand] = {}
        #: By key: an event of it is under way, and those that wait for it.
        self._lanes: dict[Any, deque[tuple[InHand, int]] | None] = {}
        self._ready: deque[tuple[InHand, int]] = deque()
        #: Where the order is kept without a key: an event that is to be tried again holds up the others.
        self._holding = 0
        #: The message whose events are handed out one by one: what was noted of it before the one that is under way.
        self._suspect: tuple[int, str, dict[str, int]] | None = None
        self._news = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed.set()
        #: Events of a message, on average.
        self._average = 1.0
        self._handing = False
        self._ceased = False
        self._lost = False
        self._ended = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._holder: asyncio.TimerHandle | None = None
        self._intake = Intake(
            entry,
            number,
            layout=layout,
            client=client,
            epoch=row.epoch if row is not None else None,
            in_hand=hands.in_hand,
            wanted=self._room,
            news=self._news.set,
            lost=self.lose,
            holds=holds,
            after_a_death=self._after_a_death if died else None,
        )

    # ------------------------------------------------------------------ its beginning

    async def open_(self, spawn: Spawn) -> None:
        self._tasks.add(await self._intake.open(spawn))
        self._spawned(spawn(self._until_ended(), f"takes for {self.entry.module}.{self.number}"))

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _after_a_death(self, floor: int, delivered: int) -> None:
        assert self._row is not None
        if delivered <= floor:
            return
        deaths, last = 1, delivered
        if floor < self._row.last:  # of what the one before it had in hand when it died, some is left
            deaths, last = self._row.deaths + 1, min(delivered, self._row.last)
        await self._note(deaths, last)
        if deaths >= SUSPECT_AFTER:
            self._suspects_to = last
            log.warning(
                "%s.%d: %d workers have died over what comes now; it is handed out one by one",
                self.entry.module,
                self.number,
                deaths,
            )

    # ------------------------------------------------------------------ messages

    def _room(self) -> int:
        """How many messages more may come now."""
        came = len(self._intake.came)
        room = self._options.prefetch - sum(held.left for held in self._in_hand.values()) - came * self._average
        if room <= 0 or not self._resumed.is_set() or len(self._in_hand) + came >= MOST_IN_HAND:
            return 0
        return max(1, int(room / max(1.0, self._average)))

    async def _until_ended(self) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            if not self._ended:
                raise

    async def _run(self) -> None:
        # What has begun goes on to its end, also when no more is taken.
        came = self._intake.came
        while not (self._ceased and not self._in_hand) and not self._lost:
            await self._resumed.wait()
            self._news.clear()
            if came or (self._ready and not self._holding):
                self._handing = True
                while came and self._resumed.is_set() and not self._lost:
                    await self._take(came.popleft())
                    if len(self._ready) >= TOGETHER:
                        await self._hand_on()
                await self._hand_on()
                self._handing = False
            else:
                self._intake.more()
                await self._news.wait()

    async def _take(self, msg: Msg) -> None:
        held = await self._held(msg)
        if held is None:
            return
        often = self._row is None and (msg.metadata.num_delivered or 1) > SUSPECT_AFTER
        if often or held.sequence <= self._suspects_to:
            await self._one_by_one(held)
        else:
            for index in range(len(held.events)):
                self._line_up(held, index)

    async def _held(self, msg: Msg) -> InHand | None:
        sequence = msg.metadata.sequence.stream
        try:
            parcel = _parcel(msg.data)
        except (ValueError, TypeError, RecursionError) as error:
            await self._letters.unreadable(sequence, [msg.data], str(error), "")
            await self._intake.acknowledge(sequence)
            return None
        arrivals = self._arrivals.get(parcel.cut)
        if arrivals is None:
            why = f"there is no route {parcel.cut!r} in this version of the flow"
            await self._letters.unreadable(sequence, _split(parcel.events), why, parcel.cut)
            await self._intake.acknowledge(sequence)
            return None
        try:
            events = decode_events(parcel.events)
        except InputError as error:  # what cannot be read is buried, the others go on
            events, bad = _readable(parcel.events)
            await self._letters.unreadable(sequence, bad, str(error), parcel.cut)
            parcel = Parcel(parcel.cut, encode_events(events))
        if not events:
            await self._intake.acknowledge(sequence)
            return None
        held = InHand(self, msg, parcel, events, arrivals)
        self._in_hand[sequence] = held
        self._average += (len(events) - self._average) / 8
        return held

    # ------------------------------------------------------------------ handing on

    def _line_up(self, held: InHand, index: int) -> None:
        """It is the event's turn when no other of its key is under way."""
        if self._key is None:
            self._ready.append((held, index))
            return
        lanes = self._lanes
        try:
            key = self._key(held.events[index])
            under_way = key in lanes
        except Exception as error:  # no key, or one that cannot be hashed: those are kept in order with each other
            key = f"{type(error).__name__} in the key"
            under_way = key in lanes
        if not under_way:
            lanes[key] = None
            held.keys[index] = key
            self._ready.append((held, index))
            return
        lane = lanes[key]
        if lane is None:
            lane = lanes[key] = deque()
        lane.append((held, index))

    async def _hand_on(self) -> None:
        while self._ready and not self._lost and not self._holding:
            held, index = self._ready.popleft()
            batch = [self._admitted(held, index)]
            arrivals = held.arrivals
            while self._ready and len(batch) < TOGETHER and self._ready[0][0].arrivals is arrivals:
                held, index = self._ready.popleft()
                batch.append(self._admitted(held, index))
            wait = arrivals.entry.push(batch)
            if wait is not None:
                await wait

    def _admitted(self, held: InHand, index: int) -> Event[Any]:
        held.begun = True
        event = held.events[index]
        held.events[index] = None  # type: ignore[call-overload]
        if event is None:  # it was handed on before, and is to be as it came
            event = decode_events(held.parcel.events)[index]
        origin = held.arrivals.origin
        event._receipt = Taken(
            (), created=event.created, origin=origin, held=held, index=index, event_id=held.ids[index]
        )
        origin.admit(1)
        self.open += 1
        self.handled += 1
        return event

    async def _one_by_one(self, held: InHand) -> None:
        """One of its events may be what kills workers: note which is at it before each begins."""
        over: set[int] = set()
        held.over = over
        while (self._ready or self._lanes) and not self._lost:  # what came before it has its turn first
            await self._hand_on()
            await self._something_new()
        async with self._hands.alone:
            key = f"suspect.{self.entry.stage}.{held.sequence}"
            counts = await self._noted(key)
            for index in range(len(held.events)):
                noted = counts.get(str(index), 0)
                died = noted + SUSPECT_AFTER
                if self._lost:
                    return
                if noted and died >= self.max_deliveries:
                    text = f"{died} workers died while it was handled"
                    failure = Failure(self.entry.module, "WorkerDied", text, attempts=died)
                    self.bury(held, index, Slot((), 0, fate="failed", reason="lost", failure=failure))
                else:
                    self._suspect = (held.sequence, key, dict(counts))
                    counts[str(index)] = noted + 1
                    await self._note_down(key, counts)
                    self._ready.append((held, index))
                await self._is_over(held, index)
                counts.pop(str(index), None)
                self._suspect = None
            await self._note_down(key, None)

    async def _noted(self, key: str) -> dict[str, int]:
        """How often a worker died over each event of a message."""
        while not self._lost:
            try:
                entry = await tried(self._client, lambda: self._bucket.get(key))
                found: dict[str, int] = msgspec.json.decode(entry.value or b"{}")
                return found
            except (KeyNotFoundError, KeyDeletedError):
                break
            except (APIError, FurculaError) as error:
                log.debug("%s cannot be read: %s", key, error)
        return {}

    async def _note_down(self, key: str, counts: dict[str, int] | None) -> None:
        while not self._lost:
            try:
                if counts is None:
                    await tried(self._client, lambda: self._bucket.delete(key))
                else:
                    await tried(self._client, lambda: self._bucket.put(key, msgspec.json.encode(counts)))
                return
            except (APIError, FurculaError) as error:
                log.debug("%s cannot be written: %s", key, error)

    async def _is_over(self, held: InHand, index: int) -> None:
        """Returns when the event cannot fail any more."""
        assert held.over is not None
        while index not in held.over and not self._lost:
            await self._hand_on()
            if index not in held.over:
                await self._something_new()

    async def _something_new(self) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(LOOK_S):
                await self._news.wait()
        except TimeoutError:
            pass

    # ------------------------------------------------------------------ what becomes of events

    def is_ready(self, held: InHand, index: int) -> None:
        """It cannot fail any more, so the next of its key may come."""
        key = held.keys[index]
        if key is not NO_KEY:
            held.keys[index] = NO_KEY
            lane = self._lanes.get(key)
            if lane:
                following = lane.popleft()
                following[0].keys[following[1]] = key
                self._ready.append(following)
            else:
                self._lanes.pop(key, None)
        if held.over is not None:
            held.over.add(index)
        if not held.unready and held.kept:
            self._send_kept()
        self._news.set()

    def has_kept(self, held: InHand) -> None:
        if not held.unready:
            self._send_kept()
        elif self._holder is None:
            self._holder = asyncio.get_running_loop().call_later(float(self._options.together), self._held_long_enough)

    def _send_kept(self) -> None:
        """Send the outputs of messages that are complete; where the order is kept, not past one that is not."""
        for held in list(self._in_hand.values()):
            if held.unready and held.kept and self._row is not None:
                return
            if not held.unready and held.kept:
                held.send()

    def _held_long_enough(self) -> None:
        self._holder = None
        for held in list(self._in_hand.values()):
            if held.kept:
                held.send()

    def again(self, held: InHand, index: int) -> None:
        """It failed in a way that is worth another try, here: handed back to the server it would lose its place."""
        tries = held.tries[index] = held.tries.get(index, 0) + 1
        if not self._strict and self._row is not None:
            self._holding += 1
        timer: asyncio.TimerHandle

        def now() -> None:
            self._timers.discard(timer)
            if not self._strict and self._row is not None:
                self._holding -= 1
            self._ready.appendleft((held, index))
            self._news.set()

        timer = asyncio.get_running_loop().call_later(self._options.delay_s(tries), now)
        self._timers.add(timer)

    def bury(self, held: InHand, index: int, slot: Slot) -> None:
        """It is refused for good: a dead letter, and then done."""
        self._aside(self._buried(held, index, slot))

    async def _buried(self, held: InHand, index: int, slot: Slot) -> None:
        event = decode_events(held.parcel.events)[index]
        failure = slot.failure if isinstance(slot.failure, Failure) else Failure(self.entry.module, slot.reason, "")
        attempts = held.tries.get(index, 0) + max(1, failure.attempts)
        await self._letters.refused(held.sequence, index, event, failure, attempts, held.parcel.cut)
        held.done(index, False)

    def finished(self, held: InHand) -> None:
        """All its events are settled, and what they became is stored."""
        self._in_hand.pop(held.sequence, None)
        self._send_kept()
        self._intake.done(held.sequence)
        self._aside(self._intake.acknowledge(held.sequence))
        self._news.set()

    def released(self, held: InHand) -> None:
        """The flow ends before it was handled."""
        self._in_hand.pop(held.sequence, None)
        if self._suspect is not None and self._suspect[0] == held.sequence:
            _, key, before = self._suspect
            self._suspect = None
            self._aside(self._note_down(key, before or None))  # we end in good order: nobody has died over it
        self._aside(self._intake.give_up(held.sequence))
        self._news.set()

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        self._spawned(asyncio.get_running_loop().create_task(work))

    # ------------------------------------------------------------------ its end

    def pause(self) -> None:
        self._resumed.clear()

    def resume(self) -> None:
        self._resumed.set()
        self._news.set()

    def lose(self) -> None:
        """Another worker has it: nothing of what is in hand is ours to settle any more."""
        if self._lost:
            return
        self._lost = self._ceased = True
        log.warning("%s.%d has passed to another worker", self.entry.module, self.number)
        for held in self._in_hand.values():
            held.lost = True
            for (leaving, _), events in held.kept.items():
                leaving.left(len(events))
                for _event, _id, carrier in events:
                    carrier.settle("failed", 1, "taken over")
            held.kept.clear()
        self._forget()

    def _forget(self) -> None:
        self._intake.end()
        self._in_hand.clear()
        self._ready.clear()
        self._lanes.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self.epoch is not None:
            for leaving in self._leavings:
                leaving.forget(self.epoch)
        self._resumed.set()
        self._news.set()

    async def cease(self) -> None:
        """Take nothing more; what was not handed on goes back."""
        if self._ceased:
            return
        self._ceased = True
        self._resumed.set()
        self._news.set()
        self._put_back()
        await self._intake.cease()

    def _put_back(self) -> None:
        """What has not begun, and comes after all that has: whoever takes the partition next begins with it."""
        back: set[InHand] = set()
        for held in reversed(self._in_hand.values()):
            if held.begun or held.over is not None:
                break
            back.add(held)
        if not back:
            return
        for held, index in self._ready:
            if held in back:
                self._lanes.pop(held.keys[index], None)
        self._ready = deque(one for one in self._ready if one[0] not in back)
        for lane in self._lanes.values():
            while lane and lane[-1][0] in back:
                lane.pop()
        for held in back:
            del self._in_hand[held.sequence]
            self._aside(self._intake.give_up(held.sequence))

    def idle(self) -> bool:
        """Has everything been handed on that can be, by now?"""
        return not self._handing and not self._intake.came and (not self._ready or self._holding > 0)

    def dry(self) -> bool:
        """Is everything that was taken settled, what it became stored, and has the server been told?"""
        if self._lost:
            return True
        return self._ceased and not (self._in_hand or self._handing or self.open) and self._intake.confirmed

    async def close(self) -> None:
        self._ceased = self._ended = True
        if self._holder is not None:
            self._holder.cancel()
        await self._intake.close()
        self._forget()
        tasks = [task for task in self._tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for task in tasks:
            task.cancel()
