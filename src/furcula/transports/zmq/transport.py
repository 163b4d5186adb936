"""The client of a hub, which is what users of 0mq see of it.

It keeps what the hub has not settled: bodies published and not accepted, the last ones that were, bodies put and not
acknowledged, what it has in hand, what it waits for. When the hub dies, whoever can bind the address holds the next
one, and each client tells it all that. Subscribers know the sender and the number of what they had, so they get nothing
twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec
import zmq

from furcula.errors import FurculaError, InputError, Stopped
from furcula.options import Duration, Size
from furcula.transport import Loss, Message, Promises, Subscription
from furcula.transports.asked import check_body, check_channel, check_subscription
from furcula.transports.zmq import frames
from furcula.transports.zmq.address import HubAddress
from furcula.transports.zmq.frames import (
    Accepted,
    Bye,
    Credit,
    Deliver,
    Done,
    Frame,
    Gone,
    Hello,
    Hold,
    Ping,
    Publish,
    Put,
    Said,
    Subscribe,
    Subscribed,
    Take,
    Taken,
    Unknown,
    Unsubscribe,
    Welcome,
)
from furcula.transports.zmq.holder import INSIDE, Held, aside, failures, hold, let_go
from furcula.transports.zmq.hub import MANY, WINDOW, Hub
from furcula.transports.zmq.keys import Keys
from furcula.transports.zmq.line import Line

__all__ = ["ZmqTransport"]

log = logging.getLogger("furcula.transports.zmq")

CONNECT_TIMEOUT: Final = Duration(10)
MAX_BODY: Final = Size("64MiB")
#: What was accepted is kept for the next hub, should this one die with it: so many bodies, and so many bytes.
RETAINED = 2 * WINDOW
RETAINED_BYTES = 32 * 1024 * 1024
#: A subscriber tells the hub what it has read at the latest when it is so many bytes.
CREDIT_BYTES = 1024 * 1024
#: So long one try at a connection takes, and so long closing waits for the hub to have heard the last word.
TRY_S = 1.0
#: Between connections that break at once, at most so many seconds.
LONGEST_PAUSE_S = 2.0

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


class ZmqTransport:
    """Carries over 0mq, by a hub that whoever comes first holds.

    Args:
        address: `tcp://host:port`, `ipc://path` or `inproc://name`. A port on another host is waited for, never held.
        size: Bodies that a work queue holds, and that are under way to a subscriber, before senders wait.
        history: Bodies of each channel that are kept for `replay`.
        max_body: Bytes that a body may have.
        connect_timeout: So long a hub is looked for, at the beginning and when one has died. Then: FurculaError.
        keys: CURVE keys. Without, whoever reaches the address may use it.

    `size` (for queues) and `history` are those of whoever holds the hub, `max_body` is the smaller of both. What was
    put and is not settled is kept by the hub and by the transport that put it. When both are gone, so is it: `sqlite`
    and `nats` keep more. Attempts, and what there is to replay, are the hub's, so they begin anew with the next one.
    """

    def __init__(
        self,
        address: str,
        *,
        size: int = 64,
        history: int = 256,
        max_body: Size = MAX_BODY,
        connect_timeout: Duration = CONNECT_TIMEOUT,
        keys: Keys | None = None,
    ):
        self.promises = Promises(order=True, replay=True, loss=("block", "drop"), reports=True, max_body=int(max_body))
        self._max_body = int(max_body)
        self.address = HubAddress.of(address)
        self._size = size
        self._history = history
        self._connect_timeout = connect_timeout
        self._keys = keys
        self._name = os.urandom(frames.NAME_BYTES)
        self._pid = os.getpid()
        self._held: Held | None = None
        self._line: Line | None = None
        #: The hub has heard Hello and all that comes with it.
        self._up = False
        self._known = False
        self._up_at = 0.0
        #: Connections, one after the other, that broke soon after they had been made.
        self._short = 0
        self._error: FurculaError | None = None
        self._closed = False
        self._welcome: asyncio.Future[None] | None = None
        self._gone: asyncio.Future[None] | None = None
        self._again: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._ids = itertools.count(1)
        self._publish_room = asyncio.Semaphore(WINDOW)
        self._put_room = asyncio.Semaphore(WINDOW)
        self._published: dict[int, _Published] = {}
        self._retained: deque[_Published] = deque()
        self._retained_bytes = 0
        self._puts: dict[int, _Put] = {}
        self._subscriptions: dict[int, _Subscription] = {}
        self._waiting: dict[str, deque[asyncio.Future[Message]]] = {}
        self._hand: dict[tuple[bytes, int], _Message] = {}
        self._unsaid: list[Said] = []
        self._said: deque[Said] = deque(maxlen=256)
        self._refused: Counter[str] = Counter()

    # ------------------------------------------------------------------ its beginning

    async def open(self) -> None:
        self._check_open()
        if self._line is None:
            reason = self.address.hopeless()
            if reason is not None:
                raise FurculaError(f"no hub can be on {self.address}: {reason}")
            try:
                await self._dial()
            except BaseException:
                if self._line is not None and not self._up:
                    self._line.close()
                    self._line = None
                raise

    async def _dial(self) -> None:
        """Reach a hub: hold one if nobody does, else connect."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_timeout
        denied = False
        while True:
            if self._held is None:
                await self._try_to_hold()
            self._welcome = loop.create_future()
            try:
                self._line = self._connected()
            except zmq.ZMQError:  # a name that nothing is known of, yet
                self._line = None
            if self._line is not None:
                kept = [*self._hand, *((said.putter, said.number) for said in (*self._said, *self._unsaid))]
                holds = [Hold(*key) for key in dict.fromkeys(kept)]
                self._line.send(Hello(self._name, self._known, holds, self._max_body))
                done, _ = await asyncio.wait([self._welcome], timeout=min(TRY_S, max(0.05, deadline - loop.time())))
                if done:
                    self._tell_all()
                    return
                denied = denied or self._line.denied
                self._line.close()
                self._line = None
            if loop.time() >= deadline:
                raise self._not_reached(denied)
            await asyncio.sleep(random.uniform(0.01, 0.05))

    async def _try_to_hold(self) -> None:
        """Who is cancelled here has the hub all the same: the thread that makes it cannot be stopped."""
        holding = asyncio.ensure_future(aside(hold, self.address, self._make_hub, self._keys, self._max_body))
        try:
            await asyncio.wait([holding])
        except asyncio.CancelledError:
            await asyncio.wait([holding])
            self._held = holding.result()
            raise
        self._held = holding.result()

    def _not_reached(self, denied: bool) -> FurculaError:
        waited = f"within {float(self._connect_timeout):g} s"
        if denied:
            return FurculaError(f"the hub on {self.address} does not let us in; check the CURVE keys of both")
        if self.address.kind == "tcp":
            return FurculaError(
                f"no hub answers on {self.address} {waited}, and the address cannot be held here; start what holds it, "
                f"or see what else listens there"
            )
        reason = self.address.hopeless() or failures.get(str(self.address))
        why = f": {reason}" if reason else ""
        return FurculaError(f"no hub answers on {self.address} {waited}, and it cannot be held here{why}")

    def _make_hub(self, now: float) -> Hub:
        return Hub(size=self._size, history=self._history, max_body=self._max_body, now=now)

    def _connected(self) -> Line:
        # Inside a process nobody asks for keys, so the short way is for those who would be let in anyway.
        held, inside = self._held, None
        if held is not None and (held.keys is None or held.keys is self._keys or self.address.kind == "inproc"):
            context, inside = held.context, INSIDE
        else:
            context = _contexts.get(os.getpid()) or _contexts.setdefault(os.getpid(), zmq.Context())
        return Line(context, self.address, self._keys, inside, self._max_body, self._receive, self._lost)

    def _tell_all(self) -> None:
        """The first things that a hub hears from us after Hello: all that it may not know."""
        assert self._line is not None
        send = self._line.send
        again, self._known, self._up = self._known, True, True
        self._up_at = asyncio.get_running_loop().time()
        for subscription in self._subscriptions.values():
            subscription.moved()
            send(subscription.frame())
        for said in self._said if again else ():
            send(said)
        unsaid, self._unsaid = self._unsaid, []
        for said in unsaid:
            send(said)
        for channel, waiting in self._waiting.items():
            if waiting:
                send(Take(channel, len(waiting)))
        for number, put in list(self._puts.items()):
            send(Put(number, put.channel, put.body, again))
        for published in self._retained if again else ():
            send(Publish(published.number, published.channel, published.body, 2))
        for published in self._published.values():
            send(Publish(published.number, published.channel, published.body, 1 if again else 0))

    def _send(self, frame: Frame) -> None:
        """To the hub, if there is one; what it does not hear now, `_tell_all` tells the next."""
        if self._up and self._line is not None:
            self._line.send(frame)

    def _lost(self) -> None:
        """The connection has broken: the hub has died, or the network did."""
        if not self._up or self._closed or self._line is None:
            return
        self._up = False
        self._line.close()
        self._line = None
        log.info("the hub on %s has gone; looking for the next", self.address)
        self._again = asyncio.get_running_loop().create_task(self._dial_again())

    async def _dial_again(self) -> None:
        if self._held is not None:  # it was our own, and its thread has ended
            held, self._held = self._held, None
            await aside(let_go, held)
        loop = asyncio.get_running_loop()
        self._short = self._short + 1 if loop.time() - self._up_at < TRY_S else 0
        if self._short > 1:  # something is wrong with what we say to each other: not as fast as we can
            await asyncio.sleep(min(0.02 * 2**self._short, LONGEST_PAUSE_S))
        try:
            await self._dial()
        except FurculaError as error:
            self._error = error
            log.error("%s", error)
            self._end_all(error)

    # ------------------------------------------------------------------ its end

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._again is not None:
            self._again.cancel()
            await asyncio.wait([self._again])
        self._end_all(Stopped(f"the transport to {self.address} is closed"))
        if self._pid != os.getpid():
            return
        if self._up and self._line is not None:
            self._gone = asyncio.get_running_loop().create_future()
            self._line.send(Bye())
            await asyncio.wait([self._gone], timeout=TRY_S)
        if self._line is not None:
            self._line.close()
        held, self._held = self._held, None
        if held is not None:
            await aside(let_go, held)

    def _end_all(self, error: FurculaError) -> None:
        for subscription in list(self._subscriptions.values()):
            subscription.end(None if isinstance(error, Stopped) else error)
        self._subscriptions.clear()
        futures: list[asyncio.Future[Any]] = [one.accepted for one in self._published.values()]
        futures += [put.accepted for put in self._puts.values()]
        futures += [one for waiting in self._waiting.values() for one in waiting]
        for future in futures:
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waited for it may have gone
        self._published.clear()
        self._puts.clear()
        self._waiting.clear()
        for _ in range(WINDOW):  # those who wait for room find that it is closed
            self._publish_room.release()
            self._put_room.release()

    def _check_open(self) -> None:
        if self._closed:
            raise Stopped(f"the transport to {self.address} is closed")
        if self._error is not None:
            raise self._error
        if self._pid != os.getpid():
            raise FurculaError(
                f"the transport to {self.address} was made before a fork; make a new one in this process"
            )

    # ------------------------------------------------------------------ to every subscriber

    async def publish(self, channel: str, body: bytes) -> None:
        self._check_open()
        check_body(body, self.promises)
        check_channel(channel)
        await self._publish_room.acquire()
        self._check_open()
        number = next(self._numbers)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._published[number] = _Published(number, channel, body, accepted)
        self._send(Publish(number, channel, body))
        await accepted

    async def subscribe(
        self, *channels: str, prefix: bool = False, replay: int = 0, when_slow: Loss | None = None
    ) -> Subscription:
        self._check_open()
        policy = check_subscription(channels, replay, when_slow, self.promises, "zmq")
        size = sum(len(channel.encode()) + 3 for channel in channels)
        if len(channels) > frames.CHANNELS or size > frames.OVERHEAD // 4 + self.promises.max_body:
            raise InputError(
                f"{len(channels)} channels are too many for one subscription; make several, or use a prefix"
            )
        if len(self._subscriptions) >= MANY:
            raise FurculaError(f"a hub allows {MANY} subscriptions for one transport; close some")
        subscription = _Subscription(
            next(self._ids), channels, prefix, replay, policy == "block", self._size, self._send, self._forget
        )
        self._subscriptions[subscription.id] = subscription
        self._send(subscription.frame())
        try:
            await subscription.effective
        except asyncio.CancelledError:
            await subscription.close()
            raise
        return subscription

    def _forget(self, subscription: _Subscription) -> None:
        if self._subscriptions.pop(subscription.id, None) is not None:
            self._send(Unsubscribe(subscription.id))

    # ------------------------------------------------------------------ to one worker

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        self._check_open()
        check_body(body, self.promises)
        check_channel(channel)
        await self._put_room.acquire()
        self._check_open()
        number = next(self._numbers)
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._puts[number] = _Put(channel, body, reported, accepted)
        self._send(Put(number, channel, body))
        await accepted

    async def take(self, channel: str) -> Message:
        self._check_open()
        check_channel(channel)
        taken: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(channel, deque())
        waiting.append(taken)
        self._send(Take(channel, 1))
        try:
            return await taken
        except asyncio.CancelledError:
            if taken.done() and not taken.cancelled() and taken.exception() is None:
                await taken.result().release()
            elif taken in waiting:
                waiting.remove(taken)
                self._send(Take(channel, -1))
            raise

    def say(self, said: Said) -> None:
        """Tell the hub what became of a message; only the first word counts."""
        if self._hand.pop((said.putter, said.number), None) is None:
            return
        if not self._up:
            self._unsaid.append(said)
            return
        if said.word in ("ack", "reject"):
            self._said.append(said)
        self._send(said)

    # ------------------------------------------------------------------ what the hub says

    @property
    def refused(self) -> dict[str, int]:
        """Frames that were refused, by reason: from the hub, and by the hub where it is held in this process."""
        return dict(self._refused + Counter(self._held.refused if self._held is not None else {}))

    @property
    def holds_the_hub(self) -> bool:
        """Is the hub held in this process?"""
        return self._held is not None

    def _receive(self, raw: bytes) -> None:
        try:
            frame = frames.from_hub(raw)
        except InputError as error:
            self._refused[str(error)] += 1
            return
        match frame:
            case Deliver():
                subscription = self._subscriptions.get(frame.id)
                if subscription is not None:
                    subscription.delivered(frame)
            case Accepted():
                for number in frame.numbers:
                    self._accepted(number)
            case Taken():
                self._taken(frame)
            case Done():
                self._done(frame)
            case Ping():
                for identifier, dropped in frame.dropped.items():
                    if identifier in self._subscriptions:
                        self._subscriptions[identifier].dropped = dropped
            case Subscribed():
                if frame.id in self._subscriptions:
                    self._subscriptions[frame.id].is_effective(frame.replayed)
            case Welcome():
                self._limit_bodies(frame.max_body)
                if self._welcome is not None and not self._welcome.done():
                    self._welcome.set_result(None)
            case Unknown():
                self._lost()
            case Gone():
                if self._gone is not None and not self._gone.done():
                    self._gone.set_result(None)

    def _limit_bodies(self, max_body: int) -> None:
        """The hub takes no larger bodies, whatever was said to us."""
        self.promises = msgspec.structs.replace(self.promises, max_body=min(self._max_body, max_body))
        waiting: list[tuple[int, _Published | _Put]] = [*self._published.items(), *self._puts.items()]
        for number, one in waiting:
            try:
                check_body(one.body, self.promises)
            except InputError as error:  # the hub before this one would have taken it
                if not one.accepted.done():
                    one.accepted.set_exception(error)
                else:
                    log.error("what was put to %s is lost with its hub: %s", self.address, error)
                if isinstance(one, _Put):
                    del self._puts[number]
                    self._stored(one)
                else:
                    del self._published[number]
                    self._publish_room.release()
        kept = [one for one in self._retained if len(one.body) <= self.promises.max_body]
        if len(kept) < len(self._retained):
            log.error(
                "the hub on %s takes bodies of %d bytes; %d larger ones that the hub before it had accepted are not "
                "published again, so who has not got them does not",
                self.address,
                self.promises.max_body,
                len(self._retained) - len(kept),
            )
            self._retained = deque(kept)
            self._retained_bytes = sum(len(one.body) for one in kept)

    def _accepted(self, number: int) -> None:
        published = self._published.pop(number, None)
        if published is not None:
            self._publish_room.release()
            self._retain(published)
            if not published.accepted.done():
                published.accepted.set_result(None)
            return
        put = self._puts.get(number)
        if put is not None:
            self._stored(put)

    def _retain(self, published: _Published) -> None:
        if self._held is not None:  # a hub of our own does not die before us
            return
        self._retained.append(published)
        self._retained_bytes += len(published.body)
        while len(self._retained) > RETAINED or self._retained_bytes > RETAINED_BYTES:
            self._retained_bytes -= len(self._retained.popleft().body)

    def _stored(self, put: _Put) -> None:
        if not put.stored:
            put.stored = True
            self._put_room.release()
            if not put.accepted.done():
                put.accepted.set_result(None)

    def _done(self, done: Done) -> None:
        put = self._puts.pop(done.number, None)
        if put is None:
            return
        self._stored(put)
        if put.reported is not None:
            put.reported(done.good, done.report)

    def _taken(self, taken: Taken) -> None:
        message = _Message(taken, self.say)
        self._hand[(taken.putter, taken.number)] = message
        waiting = self._waiting.get(taken.channel, ())
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result(message)
                return
        self.say(Said(taken.putter, taken.number, "release"))


class _Published:
    """What was published and may have to be published again."""

    __slots__ = ("accepted", "body", "channel", "number")

    def __init__(self, number: int, channel: str, body: bytes, accepted: asyncio.Future[None]):
        self.number = number
        self.channel = channel
        self.body = body
        self.accepted = accepted


class _Put:
    """What was put and nobody has spoken of yet."""

    __slots__ = ("accepted", "body", "channel", "reported", "stored")

    def __init__(
        self,
        channel: str,
        body: bytes,
        reported: Callable[[bool, bytes], None] | None,
        accepted: asyncio.Future[None],
    ):
        self.channel = channel
        self.body = body
        self.reported = reported
        self.accepted = accepted
        self.stored = False


class _Message:
    def __init__(self, taken: Taken, say: Callable[[Said], None]):
        self.body = taken.body
        self.attempts = taken.attempts
        self._key = (taken.putter, taken.number)
        self._say = say

    async def ack(self, report: bytes = b"") -> None:
        self._say(Said(*self._key, "ack", report=report))

    async def again(self, delay_s: float = 0.0) -> None:
        self._say(Said(*self._key, "again", delay_s=max(0.0, float(delay_s))))

    async def reject(self, report: bytes = b"") -> None:
        self._say(Said(*self._key, "reject", report=report))

    async def release(self) -> None:
        self._say(Said(*self._key, "release"))


class _Subscription:
    """What came for one subscriber and what it has read of that."""

    def __init__(
        self,
        identifier: int,
        channels: tuple[str, ...],
        prefix: bool,
        replay: int,
        block: bool,
        room: int,
        send: Callable[[Frame], None],
        ended: Callable[[_Subscription], None],
    ):
        self.id = identifier
        self.effective: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Bodies that the present hub has dropped.
        self.dropped = 0
        self.replayed = 0
        self._asked = (channels, prefix, replay, block, room)
        self._room = room
        self._send = send
        self._ended = ended
        self._dropped_before = 0
        self._unread: deque[tuple[str, bytes]] = deque()
        #: How many of the unread came from an earlier hub, which gives no more for them.
        self._old = 0
        self._read = 0
        self._credited = 0
        #: Bytes that were read and that the hub has not been told of.
        self._uncredited_bytes = 0
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._arrived: asyncio.Future[None] | None = None
        self._closed = False
        self._error: FurculaError | None = None

    @property
    def lost(self) -> int:
        return self._dropped_before + self.dropped

    def frame(self) -> Subscribe:
        channels, prefix, replay, block, room = self._asked
        again = self.effective.done()
        last = dict(list(self._last.items())[-frames.LAST :])
        return Subscribe(self.id, channels, prefix, 0 if again else replay, block, room, again, last)

    def moved(self) -> None:
        """There is another hub, which counts from the beginning."""
        self._dropped_before += self.dropped
        self.dropped = 0
        self._old = len(self._unread)
        self._read = self._credited = self._uncredited_bytes = 0

    def is_effective(self, replayed: int) -> None:
        if not self.effective.done():
            self.replayed = replayed
            self.effective.set_result(None)

    def delivered(self, frame: Deliver) -> None:
        self.dropped = frame.dropped
        if frame.sender:
            if frame.number <= self._last.get(frame.sender, 0):  # an earlier hub had brought it
                self._was_read(len(frame.body))
                return
            self._last[frame.sender] = frame.number
            self._last.move_to_end(frame.sender)
            if len(self._last) > 65_536:
                self._last.popitem(last=False)
        self._unread.append((frame.channel, frame.body))
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _was_read(self, size: int) -> None:
        if self._old:
            self._old -= 1
            return
        self._read += 1
        self._uncredited_bytes += size
        # Seldom: each credit wakes the hub. Where much is under way, bytes fill its limit before bodies do.
        if self._read - self._credited >= max(1, self._room // 4) or self._uncredited_bytes >= CREDIT_BYTES:
            self._uncredited_bytes = 0
            self._credited = self._read
            self._send(Credit(self.id, self._read))

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while True:
            if self._unread:
                item = self._unread.popleft()
                self._was_read(len(item[1]))
                yield item
            elif self._closed:
                if self._error is not None:
                    raise self._error
                return
            else:
                if self._arrived is None or self._arrived.done():
                    self._arrived = asyncio.get_running_loop().create_future()
                # Shielded, so that one reader of several that gives up does not wake the others as cancelled.
                await asyncio.shield(self._arrived)

    def end(self, error: FurculaError | None) -> None:
        self._closed = True
        self._error = error
        if not self.effective.done():
            self.effective.set_exception(error or Stopped("the transport is closed"))
            self.effective.exception()
        self._wake()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._ended(self)
            self._wake()
