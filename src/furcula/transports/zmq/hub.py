"""The hub: everything that a forwarder decides, as a state machine that touches no socket and no clock.

It is told what came from whom, and answers with frames for whom; `holder.py` moves both. So all of it can be tested,
and fuzzed, with plain calls.

Publishing. A client's bodies are dealt with in its order. One that a full subscription with `block` should have waits,
with all that this client published after it, and is accepted when it has been sent to everybody. A full subscription
with `drop` is passed over, and what it misses is counted.

Work queues. What is put is kept until its taker has said what became of it; its putter keeps it as long, and puts it
again at the next hub. What a client had in hand that has gone goes to the next taker, an attempt charged.

The next hub. Clients come from a dead hub with all they had, each at its own time. So what they had sent before waits
for `settle_s` after the hub's beginning, until the subscribers and takers have had time to come as well. A subscriber
that comes later still, because it was busy or asleep, says what it has had of whom; what was published since is sent
from the history, and what that has forgotten is counted.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable

from furcula.errors import InputError
from furcula.transports.asked import check_channel
from furcula.transports.history import History
from furcula.transports.zmq import frames
from furcula.transports.zmq.frames import (
    Accepted,
    Bye,
    Credit,
    Deliver,
    Done,
    Frame,
    Gone,
    Hello,
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

__all__ = ["WINDOW", "Hub"]

#: Bodies that a client may have published, and as many it may have put, without their having been accepted.
WINDOW = 64
#: Bodies of this size together are under way to a subscription, and no more, however much room it has.
IN_FLIGHT_BYTES = 64 * 1024 * 1024
#: Subscriptions of one client, and queues it waits at.
MANY = 100_000
#: Bytes that all work queues together hold before putters wait.
STORED_BYTES = 512 * 1024 * 1024

_Key = tuple[bytes, int]


class Hub:
    """What all clients of one address share.

    Args:
        size: Bodies that a work queue holds before putters wait.
        history: Bodies of each channel that are kept for late subscribers.
        max_body: Bytes that a body may have.
        now: The time, in seconds of any clock that does not go back; also given to each call.
        settle_s: So long after its beginning a hub waits with what an earlier hub had.
        ping_s: Every client is sent something this often.
    """

    def __init__(
        self, *, size: int, history: int, max_body: int, now: float, settle_s: float = 0.5, ping_s: float = 1.0
    ):
        #: Frames to be sent, in this order: to whom, and what.
        self.out: list[tuple[bytes, bytes]] = []
        #: Frames that were refused, by reason.
        self.refused: Counter[str] = Counter()
        self._size = size
        self._max_body = max_body
        self._settles_at = now + settle_s
        self._settled = False
        self._ping_s = ping_s
        self._next_ping = now + ping_s
        self._history = History(history)
        self._clients: dict[bytes, _Client] = {}
        self._names: dict[bytes, _Client] = {}
        self._exact: dict[str, list[_Subscription]] = {}
        self._beginnings: list[_Subscription] = []
        self._published: OrderedDict[bytes, int] = OrderedDict()
        self._queues: dict[str, _Queue] = {}
        self._entries: dict[_Key, _Entry] = {}
        self._stored_bytes = 0
        self._settled_entries: OrderedDict[_Key, tuple[bool, bytes]] = OrderedDict()
        #: Said to be in hand by clients that came before the one who put it.
        self._held_early: dict[_Key, _Client] = {}
        self._due: list[tuple[float, int, _Entry]] = []
        self._ticket = itertools.count()
        self._touched: dict[bytes, _Client] = {}
        #: Subscriptions of clients that have gone without a farewell -> the place in the history where they began.
        self._left: OrderedDict[tuple[bytes, int], int] = OrderedDict()
        #: Who has been told that it is unknown, and when.
        self._strangers: OrderedDict[bytes, float] = OrderedDict()

    # ------------------------------------------------------------------ what is told to it

    def handle(self, identity: bytes, raw: bytes, now: float) -> None:
        """Deal with one frame. Never raises for what is in it."""
        try:
            frame = frames.from_client(raw)
            channel = getattr(frame, "channel", None)
            if channel is not None:
                check_channel(channel)
        except InputError as error:
            self.refuse("channel" if "channel" in str(error) else str(error))
            return
        client = self._clients.get(identity)
        if type(frame) is Hello:
            self._hello(identity, frame)
        elif client is None:
            self.refuse("unknown client")
            self._turn_away(identity, now)
        else:
            self._dispatch(client, frame, now)

    def _turn_away(self, identity: bytes, now: float) -> None:
        """At most once a second each: who sends rubbish and reads nothing shall not fill our memory with answers."""
        if now - self._strangers.get(identity, float("-inf")) >= 1.0:
            self._strangers[identity] = now
            self._strangers.move_to_end(identity)
            if len(self._strangers) > 4096:
                self._strangers.popitem(last=False)
            self._send(identity, Unknown())

    def refuse(self, reason: str) -> None:
        self.refused[reason] += 1

    def _dispatch(self, client: _Client, frame: frames.FromClient, now: float) -> None:
        match frame:
            case Publish():
                self._publish(client, frame)
            case Credit():
                self._credit(client, frame)
            case Put():
                self._put(client, frame)
            case Take():
                self._take(client, frame)
            case Said():
                self._said(client, frame, now)
            case Subscribe():
                self._subscribe(client, frame)
            case Unsubscribe():
                subscription = client.subscriptions.pop(frame.id, None)
                if subscription is not None:
                    self._end(subscription)
            case Bye():
                self._leave(client, charge=False)
                self._send(client.identity, Gone())

    def gone(self, identity: bytes) -> None:
        """Nothing can be sent to this client any more."""
        client = self._clients.get(identity)
        if client is not None:
            self._leave(client, charge=True)

    def tick(self, now: float) -> float:
        """What is due by now. Returns the seconds until this has to be called again, unless something comes before."""
        if not self._settled and now >= self._settles_at:
            self._settled = True
            for client in list(self._clients.values()):
                self._pump(client)
            self._held_early.clear()
            for queue in list(self._queues.values()):
                self._deal(queue)
        while self._due and self._due[0][0] <= now:
            entry = heapq.heappop(self._due)[2]
            entry.queue.later -= 1
            entry.queue.ready.appendleft(entry)
            self._deal(entry.queue)
        if now >= self._next_ping:
            self._next_ping = now + self._ping_s
            for client in list(self._clients.values()):
                self._send(client.identity, Ping(client.news()))
        times = [self._next_ping]
        if not self._settled:
            times.append(self._settles_at)
        if self._due:
            times.append(self._due[0][0])
        return max(0.0, min(times) - now)

    def collect(self) -> list[tuple[bytes, bytes]]:
        """The frames to be sent now. What was accepted since the last call is told in one frame a client."""
        for client in self._touched.values():
            if client.accepted:
                self._send(client.identity, Accepted(client.accepted))
                client.accepted = []
        self._touched.clear()
        out, self.out = self.out, []
        return out

    @property
    def orphans(self) -> int:
        """Messages in work queues that nobody will put again at the next hub: whoever put them has gone."""
        return sum(1 for putter, _ in self._entries if putter not in self._names)

    # ------------------------------------------------------------------ clients

    def _hello(self, identity: bytes, hello: Hello) -> None:
        before = self._clients.get(identity)
        if before is not None and before.name != hello.name:  # another client speaks from there now
            self._leave(before, charge=True)
        old = self._names.get(hello.name)
        kept = {(hold.putter, hold.number) for hold in hello.holds}
        in_hand: dict[_Key, _Entry] = {}
        if old is not None:
            in_hand = {key: entry for key, entry in old.hand.items() if key in kept}
            for key in in_hand:
                del old.hand[key]
            self._leave(old, charge=True)
        client = _Client(hello.name, identity, hello.again, hello.max_body)
        self._strangers.pop(identity, None)
        self._clients[identity] = self._names[hello.name] = client
        client.hand.update(in_hand)
        for key in kept - in_hand.keys():
            known = self._entries.get(key)
            if known is None:
                self._held_early[key] = client
            elif known in known.queue.ready:  # it was taken from this client, but nobody has got it since
                known.queue.ready.remove(known)
                self._hand(known, client)
        self._send(identity, Welcome(self._max_body))

    def _leave(self, client: _Client, *, charge: bool) -> None:
        self._clients.pop(client.identity, None)
        if self._names.get(client.name) is client:
            del self._names[client.name]
        self._touched.pop(client.identity, None)
        client.outgoing.clear()
        for subscription in list(client.subscriptions.values()):
            if charge:
                self._left[(client.name, subscription.asked.id)] = subscription.since
                if len(self._left) > MANY:
                    self._left.popitem(last=False)
            self._end(subscription)
        client.subscriptions.clear()
        for channel in client.waits | client.puts_wait:
            queue = self._queues.get(channel)
            if queue is not None:
                queue.takers.pop(client, None)
                if channel in client.puts_wait:
                    queue.waiting = deque(one for one in queue.waiting if one[0] is not client)
                self._forget_if_empty(queue)
        # Backwards: each goes to the head of its queue, and they shall stand there as they did.
        hand, client.hand = list(client.hand.values()), {}
        for entry in reversed(hand):
            entry.queue.in_hand -= 1
            entry.attempts -= 0 if charge else 1
            entry.queue.ready.appendleft(entry)
        for queue in {entry.queue for entry in hand}:
            self._deal(queue)

    def _send(self, identity: bytes, frame: Frame) -> None:
        self.out.append((identity, frames.encode(frame)))

    def _accept(self, client: _Client, number: int) -> None:
        client.accepted.append(number)
        self._touched[client.identity] = client

    # ------------------------------------------------------------------ to every subscriber

    def _subscribe(self, client: _Client, asked: Subscribe) -> None:
        if len(client.subscriptions) >= MANY:
            self.refuse("too many subscriptions")
            return
        try:
            for channel in asked.channels:
                check_channel(channel)
        except InputError:
            self.refuse("channel")
            return
        old = client.subscriptions.pop(asked.id, None)
        if old is not None:
            self._end(old)
        place = self._left.pop((client.name, asked.id), 0 if asked.again else self._history.place)
        subscription = _Subscription(client, asked, place)
        client.subscriptions[asked.id] = subscription
        if asked.prefix:
            self._beginnings.append(subscription)
        else:
            for channel in set(asked.channels):
                self._exact.setdefault(channel, []).append(subscription)
        replay = self._history.last(asked.channels, asked.prefix, asked.replay)
        self._send(client.identity, Subscribed(asked.id, len(replay)))
        for channel, body in replay:
            self._offer(subscription, b"", 0, channel, body)
        if asked.again:
            missed, forgotten = self._history.missed(asked.channels, asked.prefix, place, asked.last)
            if forgotten:
                self._drop(subscription, forgotten)
            for channel, body, sender, number in missed:
                self._offer(subscription, sender, number, channel, body)

    def _end(self, subscription: _Subscription) -> None:
        if subscription.asked.prefix:
            self._beginnings.remove(subscription)
        else:
            for channel in set(subscription.asked.channels):
                rest = self._exact[channel]
                rest.remove(subscription)
                if not rest:
                    del self._exact[channel]
        self._release(subscription)

    def _publish(self, client: _Client, frame: Publish) -> None:
        if len(client.outgoing) >= 4 * WINDOW:
            self.refuse("over the window")
            return
        if len(frame.body) > self._max_body:
            self.refuse("body")
            return
        client.outgoing.append(frame)
        if len(client.outgoing) == 1:
            self._pump(client)

    def _pump(self, client: _Client) -> None:
        """Deal with what the client published, until something has to wait."""
        if client.again and not self._settled:
            return
        outgoing = client.outgoing
        while outgoing:
            frame = outgoing[0]
            if frame.number > self._published.get(client.name, -1):
                full = self._fan_out(client, frame)
                if full is not None:
                    full.holds_up[client] = None
                    return
                self._published[client.name] = frame.number
                self._published.move_to_end(client.name)
                if len(self._published) > MANY:
                    self._published.popitem(last=False)
                self._history.add(frame.channel, frame.body, client.name, frame.number)
            outgoing.popleft()
            self._accept(client, frame.number)

    def _fan_out(self, client: _Client, frame: Publish) -> _Subscription | None:
        wanted: Iterable[_Subscription] = self._exact.get(frame.channel, ())
        if self._beginnings:
            wanted = [*wanted, *(one for one in self._beginnings if frame.channel.startswith(one.asked.channels))]
        if frame.fate == 2:  # the earlier hub gave it to all who were there: only they may have missed it
            wanted = [one for one in wanted if one.asked.again]
        for subscription in wanted:
            if subscription.asked.block and subscription.full:
                return subscription
        for subscription in wanted:
            if subscription.full:
                self._drop(subscription, 1)
            else:
                self._offer(subscription, client.name, frame.number, frame.channel, frame.body)
        return None

    def _drop(self, subscription: _Subscription, count: int) -> None:
        subscription.dropped += count
        subscription.client.untold[subscription.asked.id] = subscription.dropped

    def _offer(self, subscription: _Subscription, sender: bytes, number: int, channel: str, body: bytes) -> None:
        """Deliver, or count it as dropped where it is more than the client takes: libzmq would hang up there."""
        if len(body) > subscription.client.max_body:
            self._drop(subscription, 1)
        else:
            self._deliver(subscription, sender, number, channel, body)

    def _deliver(self, subscription: _Subscription, sender: bytes, number: int, channel: str, body: bytes) -> None:
        subscription.in_flight.append(len(body))
        subscription.in_flight_bytes += len(body)
        identifier = subscription.asked.id
        if subscription.client.untold:
            subscription.client.untold.pop(identifier, None)
        self._send(
            subscription.client.identity, Deliver(identifier, sender, number, subscription.dropped, channel, body)
        )

    def _credit(self, client: _Client, credit: Credit) -> None:
        subscription = client.subscriptions.get(credit.id)
        if subscription is None:
            return
        while subscription.read < credit.read and subscription.in_flight:
            subscription.read += 1
            subscription.in_flight_bytes -= subscription.in_flight.popleft()
        if not subscription.full:
            told = client.untold.pop(credit.id, None)
            if told is not None:
                self._send(client.identity, Ping({credit.id: told}))
            self._release(subscription)

    def _release(self, subscription: _Subscription) -> None:
        held_up, subscription.holds_up = subscription.holds_up, {}
        for client in held_up:
            self._pump(client)

    # ------------------------------------------------------------------ to one worker

    def _put(self, client: _Client, put: Put) -> None:
        if len(put.body) > self._max_body:
            self.refuse("body")
            return
        key = (client.name, put.number)
        settled = self._settled_entries.get(key)
        if settled is not None:
            self._accept(client, put.number)
            self._send(client.identity, Done(put.number, *settled))
            return
        if key in self._entries:
            self._accept(client, put.number)
            return
        queue = self._queue(put.channel)
        entry = _Entry(key, queue, put.body)
        holder = self._held_early.pop(key, None)
        if holder is not None and self._names.get(holder.name) is holder:
            entry.attempts = 1
            self._keep(entry)
            self._hand(entry, holder)
            self._accept(client, put.number)
        elif put.again or self._has_room(queue):
            queue.restored = queue.restored or (put.again and not self._settled)
            self._store(client, entry)
        elif client.waiting_puts >= 4 * WINDOW:
            self.refuse("over the window")
        else:
            client.waiting_puts += 1
            client.puts_wait.add(put.channel)
            queue.waiting.append((client, entry))

    def _has_room(self, queue: _Queue) -> bool:
        return len(queue.ready) + queue.later < self._size and self._stored_bytes < STORED_BYTES

    def _keep(self, entry: _Entry) -> None:
        self._entries[entry.key] = entry
        self._stored_bytes += len(entry.body)

    def _hand(self, entry: _Entry, client: _Client) -> None:
        entry.queue.in_hand += 1
        client.hand[entry.key] = entry

    def _store(self, client: _Client, entry: _Entry) -> None:
        self._keep(entry)
        entry.queue.ready.append(entry)
        self._accept(client, entry.key[1])
        self._deal(entry.queue)

    def _queue(self, channel: str) -> _Queue:
        queue = self._queues.get(channel)
        if queue is None:
            queue = self._queues[channel] = _Queue(channel)
        return queue

    def _take(self, client: _Client, take: Take) -> None:
        queue = self._queue(take.channel)
        wanted = min(queue.takers.get(client, 0) + take.more, MANY)
        if wanted > 0:
            if len(client.waits) >= MANY:
                self.refuse("too many takes")
                return
            client.waits.add(take.channel)
            queue.takers[client] = wanted
            self._deal(queue)
        else:
            client.waits.discard(take.channel)
            queue.takers.pop(client, None)
            self._forget_if_empty(queue)

    def _deal(self, queue: _Queue) -> None:
        """Hand out what is ready, to each taker in turn, and let in what waits for room."""
        if queue.restored and not self._settled:
            return
        self._let_in(queue)
        passed_over: list[_Entry] = []
        while queue.ready and queue.takers:
            entry = queue.ready.popleft()
            client = next((one for one in queue.takers if len(entry.body) <= one.max_body), None)
            if client is None:  # larger than anybody who waits takes
                passed_over.append(entry)
                continue
            wanted = queue.takers.pop(client)
            if wanted > 1:
                queue.takers[client] = wanted - 1
            else:
                client.waits.discard(queue.channel)
            entry.attempts += 1
            self._hand(entry, client)
            self._send(client.identity, Taken(*entry.key, entry.attempts, queue.channel, entry.body))
            self._let_in(queue)
        queue.ready.extendleft(reversed(passed_over))
        self._forget_if_empty(queue)

    def _let_in(self, queue: _Queue) -> None:
        while queue.waiting and self._has_room(queue):
            client, entry = queue.waiting.popleft()
            client.waiting_puts -= 1
            if not client.waiting_puts:
                client.puts_wait.clear()
            if self._names.get(client.name) is client:
                self._keep(entry)
                queue.ready.append(entry)
                self._accept(client, entry.key[1])

    def _forget_if_empty(self, queue: _Queue) -> None:
        if not (queue.ready or queue.later or queue.in_hand or queue.takers or queue.waiting):
            self._queues.pop(queue.channel, None)

    def _said(self, client: _Client, said: Said, now: float) -> None:
        key = (said.putter, said.number)
        entry = client.hand.pop(key, None)
        if entry is None:
            if self._held_early.pop(key, None) is client and said.word in ("ack", "reject"):
                self._settle(key, said.word == "ack", said.report)
            return
        queue = entry.queue
        queue.in_hand -= 1
        if said.word in ("ack", "reject"):
            del self._entries[key]
            was_full = self._stored_bytes >= STORED_BYTES
            self._stored_bytes -= len(entry.body)
            self._settle(key, said.word == "ack", said.report)
            if was_full:
                for other in list(self._queues.values()):
                    self._deal(other)
        elif said.word == "again" and said.delay_s:
            queue.later += 1
            heapq.heappush(self._due, (now + said.delay_s, next(self._ticket), entry))
        else:
            entry.attempts -= 1 if said.word == "release" else 0
            queue.ready.appendleft(entry)
        self._deal(queue)

    def _settle(self, key: _Key, good: bool, report: bytes) -> None:
        self._settled_entries[key] = (good, report if len(report) <= 4096 else b"")
        if len(self._settled_entries) > 4096:
            self._settled_entries.popitem(last=False)
        putter = self._names.get(key[0])
        if putter is not None:
            self._send(putter.identity, Done(key[1], good, report))


class _Client:
    """One client, on one connection."""

    def __init__(self, name: bytes, identity: bytes, again: bool, max_body: int):
        self.name = name
        self.identity = identity
        self.again = again
        self.max_body = max_body
        self.subscriptions: dict[int, _Subscription] = {}
        #: What it published and what has not been accepted.
        self.outgoing: deque[Publish] = deque()
        #: Numbers that have been accepted, and that it has not been told.
        self.accepted: list[int] = []
        #: Losses of its subscriptions that it has not been told.
        self.untold: dict[int, int] = {}
        self.waiting_puts = 0
        #: Channels of the queues where something it put waits, or did.
        self.puts_wait: set[str] = set()
        #: Channels of the queues where it waits.
        self.waits: set[str] = set()
        self.hand: dict[_Key, _Entry] = {}

    def news(self) -> dict[int, int]:
        untold, self.untold = self.untold, {}
        return untold


class _Subscription:
    def __init__(self, client: _Client, asked: Subscribe, since: int):
        self.client = client
        self.asked = asked
        #: The place in the history where it began.
        self.since = since
        self.dropped = 0
        self.read = 0
        #: The sizes of what it has been sent and has not read.
        self.in_flight: deque[int] = deque()
        self.in_flight_bytes = 0
        #: Clients whose next body waits for room here.
        self.holds_up: dict[_Client, None] = {}

    @property
    def full(self) -> bool:
        return len(self.in_flight) >= self.asked.room or self.in_flight_bytes >= IN_FLIGHT_BYTES


class _Queue:
    def __init__(self, channel: str):
        self.channel = channel
        self.ready: deque[_Entry] = deque()
        #: How many come back later.
        self.later = 0
        #: How many takers have in hand.
        self.in_hand = 0
        self.takers: OrderedDict[_Client, int] = OrderedDict()
        #: What waits for room.
        self.waiting: deque[tuple[_Client, _Entry]] = deque()
        #: It has messages of an earlier hub, some of which may be in somebody's hand.
        self.restored = False


class _Entry:
    """One body in a work queue."""

    __slots__ = ("attempts", "body", "key", "queue")

    def __init__(self, key: _Key, queue: _Queue, body: bytes):
        self.key = key
        self.queue = queue
        self.body = body
        self.attempts = 0
