"""Messages of one partition as they come from the server: asked for, checked, acknowledged.

**Nothing in between is missed.** What the server has handed out may be lost on its way here: a connection breaks, or a
server dies. Where the order is kept, the server would hand it out again only after its successors, so it never does by
itself. Instead we count: each message has the number of its handing out, and where one is missing, all that come after
it are let go, and the consumer is made anew: it begins with the first message that is not acknowledged. Those that are
in hand already are known by their number in the stream.

**Acknowledged is when the server says so.** An acknowledgement may be lost as well, and then the message would stand in
the stream for ever. So the server is asked to confirm each, and told again until it does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError

from furcula.cluster.client import ANSWER_S, BROKEN, Client, tried
from furcula.cluster.layout import Entry, Layout
from furcula.engine.parts import Spawn
from furcula.errors import FurculaError

__all__ = ["Intake"]

log = logging.getLogger("furcula.cluster")

#: A request for messages stands so long; then the next is made.
PULL_S = 30.0
#: While it stands and nothing comes, the server says so as often; silence of more than twice that is looked into.
HEARTBEAT_S = 1.0
#: Messages that one request asks for.
MOST_ASKED = 64
#: After so long an acknowledgement that was not confirmed is said again.
SAID_AGAIN_S = 1.0
#: Between two tries to get hold of a consumer.
AGAIN_S = 0.2
#: Who has a partition has all the time it needs: only who takes its place has its messages handed out again.
FOR_EVER_S = 365 * 24 * 3600.0

#: The server's words for consumers that overlap, or are being made and unmade by another at this moment.
_OVERLAP = 10100
_BUSY = (_OVERLAP, 10012, 10013, 10148)


class _Names(msgspec.Struct):
    """One page of the server's answer."""

    consumers: list[str] | None = None
    total: int = 0
    error: dict[str, Any] | None = None


class Intake:
    """Where the messages of one partition come in.

    Args:
        epoch: Of our claim to it; None: all workers of the stage take from it.
        in_hand: Subjects on which the server waits for word of us, where others would get a message otherwise.
        wanted: How many messages there is room for now.
        news: Told when a message has come, or one is confirmed.
        lost: Told when the partition is another worker's.
        holds: Asks whether it is still ours.
        after_a_death: Told the numbers of the first and the last message that the last owner had in hand.

    Attributes:
        came: What has come and is not taken from here yet, in order.
    """

    def __init__(
        self,
        entry: Entry,
        number: int,
        *,
        layout: Layout,
        client: Client,
        epoch: int | None,
        in_hand: set[str],
        wanted: Callable[[], int],
        news: Callable[[], None],
        lost: Callable[[], None],
        holds: Callable[[], Awaitable[bool]],
        after_a_death: Callable[[int, int], Awaitable[None]] | None,
    ):
        self.came: deque[Msg] = deque()
        self._stream = layout.stream(entry.stage)
        self._subject = layout.to(entry, number)
        self._ack_wait_s = float(layout.options.ack_wait) if epoch is None else FOR_EVER_S
        self._names: Callable[[int], str] = lambda life: layout.consumer(
            entry, number, "shared" if epoch is None else f"{epoch}-{life}"
        )
        self._client = client
        self._epoch = epoch
        self._owned = epoch is not None
        self._in_hand = in_hand
        self._room = wanted
        self._tell = news
        self._lost = lost
        self._holds = holds
        self._after_a_death = after_a_death
        #: How often the consumer was made, and its name.
        self._life = 0
        self._consumer = self._names(0)
        self._inbox = ""
        self._confirmed_at = ""
        self._subscription: Any = None
        self._confirmations: Any = None
        #: The number of its handing out that the next message must have.
        self._next = 1
        #: By its number in the stream, where the server waits for word of a message that is in hand.
        self._replies: dict[int, str] = {}
        #: Acknowledged and not confirmed: since when.
        self._unconfirmed: dict[int, float] = {}
        #: Acknowledged to a consumer that is no more, which may not have heard it.
        self._orphans: set[int] = set()
        self._asked = 0
        self._asked_at = 0.0
        self._heard_at = 0.0
        self._not_before = 0.0
        #: The consumer may not be there, or may have handed out what has not come.
        self._doubtful = False
        self._broken = False
        self._more = asyncio.Event()
        self._ceased = False
        self._ended = False

    # ------------------------------------------------------------------ the consumer

    async def open(self, spawn: Spawn) -> asyncio.Task[None]:
        self._confirmed_at = self._client.nats.new_inbox()

        async def confirmed(msg: Msg) -> None:
            self._confirm(msg)

        self._confirmations = await self._client.nats.subscribe(f"{self._confirmed_at}.*", cb=confirmed)
        await self._make()
        await self._listen()
        self._client.reconnected.append(self._reconnected)
        task: asyncio.Task[None] = spawn(self._until_ended(), f"pulls {self._subject}")
        return task

    async def _make(self) -> None:
        js = self._client.js
        config = ConsumerConfig(
            durable_name=self._consumer,
            filter_subject=self._subject,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait_s,
            max_deliver=-1,
            max_ack_pending=-1,
        )
        for attempt in range(50):
            if self._owned and not await self._end_others():
                self._lost()
                return
            try:
                await tried(self._client, lambda: js.add_consumer(self._stream, config))
                return
            except BadRequestError as error:
                if error.err_code not in _BUSY or attempt == 49:
                    raise
            await asyncio.sleep(0.05)

    async def _end_others(self) -> bool:
        """End the consumers of past epochs. Returns False where there is one of a later epoch."""
        assert self._epoch is not None
        for name in await tried(self._client, self._consumers):
            if name == self._consumer:
                continue
            if _epoch_of(name) > self._epoch and not await self._holds():
                return False
            if self._after_a_death is not None:
                await self._look_back(name)
            await self._delete(name)
        return True

    async def _consumers(self) -> list[str]:
        """The names of this partition's consumers. Their names only: to say more, the server would have to ask all."""
        mine = self._consumer.rsplit("-", 2)[0] + "-"
        names: list[str] = []
        while True:
            request = msgspec.json.encode({"offset": len(names)})
            subject = f"$JS.API.CONSUMER.NAMES.{self._stream}"
            answer = await self._client.nats.request(subject, request, timeout=ANSWER_S)
            page = msgspec.json.decode(answer.data, type=_Names)
            if page.error is not None:
                raise ServiceUnavailableError(code=503, description=str(page.error.get("description")))
            names += page.consumers or []
            if not page.consumers or len(names) >= page.total:
                return [name for name in names if name.startswith(mine)]

    async def _look_back(self, name: str) -> None:
        """What had the last owner in hand, when it died?"""
        assert self._after_a_death is not None
        try:
            info = await tried(self._client, lambda: self._client.js.consumer_info(self._stream, name), for_s=ANSWER_S)
        except (APIError, FurculaError) as error:
            log.warning("%s: what was in hand when its worker died is not known: %s", self._subject, error)
            return
        if info.ack_floor is not None and info.delivered is not None:
            tell, self._after_a_death = self._after_a_death, None
            await tell(info.ack_floor.stream_seq, info.delivered.stream_seq)

    async def _delete(self, name: str) -> None:
        try:
            await tried(self._client, lambda: self._client.js.delete_consumer(self._stream, name))
        except NotFoundError:
            pass

    async def _listen(self) -> None:
        life = self._life
        self._inbox = self._client.nats.new_inbox()

        async def arrived(msg: Msg) -> None:
            if life == self._life and not self._ended:
                self._arrived(msg)

        self._subscription = await self._client.nats.subscribe(
            self._inbox, cb=arrived, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._next, self._asked = 1, 0

    async def _anew(self) -> None:
        """Begin with the first message that is not acknowledged, or see that the partition is not ours any more."""
        if not await self._holds():
            self._lost()
            return
        old = self._consumer
        self._life += 1
        self._consumer = self._names(self._life)
        self._orphans.update(self._unconfirmed)
        for sequence in self._unconfirmed:
            self._replies.pop(sequence, None)
        self._unconfirmed.clear()
        await self._unsubscribe()
        await self._delete(old)
        await self._make()
        await self._listen()
        self._broken = self._doubtful = False
        log.info("%s: messages may have been lost on their way; pulled anew from the first in hand", self._subject)

    async def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except BROKEN:
                pass

    # ------------------------------------------------------------------ asking, and what comes

    async def _until_ended(self) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            if not self._ended:
                raise

    async def _run(self) -> None:
        while not self._ended:
            self._more.clear()
            try:
                await self._look()
                await self._ask()
            except (*BROKEN, APIError, FurculaError) as error:
                log.debug("%s: %s", self._subject, error)
                self._not_before = time.monotonic() + AGAIN_S
            try:
                async with asyncio.timeout(AGAIN_S if self._doubtful or self._broken else HEARTBEAT_S):
                    await self._more.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        now = time.monotonic()
        if self._asked and now - self._heard_at > 2 * HEARTBEAT_S + 0.5:
            self._asked, self._doubtful = 0, True
        if (self._broken or self._doubtful) and now >= self._not_before and not self._ended:
            self._not_before = now + AGAIN_S
            if not self._broken:
                await self._check()
            if self._broken and self._ceased:
                self._unconfirmed.clear()  # whoever takes the partition next finds out
                self._broken = False
                self._tell()
            elif self._broken:
                await (self._anew() if self._owned else self._made_again())
        now = time.monotonic()
        for sequence, said in list(self._unconfirmed.items())[:256]:
            if now - said > SAID_AGAIN_S:
                await self._say_ack(sequence)

    async def _check(self) -> None:
        """Is the consumer there, and has all come that it has handed out?"""
        try:
            info = await self._client.js.consumer_info(self._stream, self._consumer)
        except NotFoundError:
            self._broken = True
            return
        delivered = info.delivered.consumer_seq if info.delivered is not None else 0
        if self._owned and delivered != self._next - 1:
            self._broken = True
        self._doubtful = False

    async def _made_again(self) -> None:
        await self._make()
        self._broken = False

    async def _ask(self) -> None:
        now = time.monotonic()
        if self._ceased or self._broken or self._doubtful or now < self._not_before:
            return
        if self._asked and now - self._asked_at < PULL_S + 1:
            return
        count = min(MOST_ASKED, self._room())
        if count <= 0:
            return
        self._asked, self._asked_at, self._heard_at = count, now, now
        request = {"batch": count, "expires": int(PULL_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        await self._client.say(subject, msgspec.json.encode(request), self._inbox)

    def more(self) -> None:
        """There may be room again."""
        if not self._asked:
            self._more.set()

    def _reconnected(self) -> None:
        self._asked = 0
        self._doubtful = True
        self._unconfirmed = dict.fromkeys(self._unconfirmed, 0.0)
        self._more.set()

    def _arrived(self, msg: Msg) -> None:
        self._heard_at = time.monotonic()
        headers = msg.headers
        if headers is not None and not msg.data and (status := headers.get("Status")) is not None:
            if status == "100":  # nothing new
                return
            self._asked = 0
            why = headers.get("Description", "").lower()
            if status == "503" or "deleted" in why or "leadership" in why:
                self._doubtful = True
            self._more.set()
            return
        self._asked = max(0, self._asked - 1)
        if self._broken:
            return
        at = msg.metadata.sequence
        if self._owned:
            if at.consumer != self._next:
                self._broken = True
                self._more.set()
                return
            self._next += 1
            if self._orphans:
                self._orphans = {one for one in self._orphans if one >= at.stream}
        sequence = at.stream
        known = sequence in self._replies
        if known and not self._owned:
            self._in_hand.discard(self._replies[sequence])
        if known or sequence in self._orphans:
            self._replies[sequence] = msg.reply
            if sequence in self._unconfirmed or sequence in self._orphans:
                self._orphans.discard(sequence)
                self._unconfirmed[sequence] = 0.0
            elif not self._owned:
                self._in_hand.add(msg.reply)
            self._more.set()
            return
        if self._ceased:
            return
        self._replies[sequence] = msg.reply
        if not self._owned:
            self._in_hand.add(msg.reply)
        self.came.append(msg)
        if not self._asked:
            self._more.set()
        self._tell()

    # ------------------------------------------------------------------ what the server is told

    async def acknowledge(self, sequence: int) -> None:
        """All that a message holds is done."""
        self.done(sequence)
        await self._say_ack(sequence)

    def done(self, sequence: int) -> None:
        """It is to be acknowledged: from now on, and not only once that is said, something is left to do."""
        self._unconfirmed[sequence] = 0.0
        self._in_hand.discard(self._replies.get(sequence, ""))

    async def _say_ack(self, sequence: int) -> None:
        reply = self._replies.get(sequence)
        if reply is None:
            self._unconfirmed.pop(sequence, None)
            return
        self._unconfirmed.pop(sequence, None)
        self._unconfirmed[sequence] = time.monotonic()  # at the end: they stand in the order of when they were said
        await self._client.say(reply, b"+ACK", f"{self._confirmed_at}.{sequence}")

    def _confirm(self, msg: Msg) -> None:
        if (msg.headers or {}).get("Status") is not None:
            self._doubtful = True
            self._more.set()
            return
        sequence = int(msg.subject.rpartition(".")[2])
        if self._unconfirmed.pop(sequence, None) is not None:
            self._replies.pop(sequence, None)
            if not self._unconfirmed:
                self._tell()

    async def give_up(self, sequence: int) -> None:
        """A message goes back as it came."""
        reply = self._replies.pop(sequence, None)
        if reply is not None and not self._owned:
            self._in_hand.discard(reply)
            await self._client.say(reply, b"-NAK")

    @property
    def confirmed(self) -> bool:
        """Has the server confirmed all acknowledgements?"""
        return not self._unconfirmed

    # ------------------------------------------------------------------ its end

    async def cease(self) -> None:
        """Take nothing more; what has not been taken from here goes back."""
        self._ceased = True
        came = list(self.came)
        self.came.clear()  # whoever takes from it sees that
        for msg in came:
            await self.give_up(msg.metadata.sequence.stream)
        if self._owned:
            # A message that is known is still heard of, so that its acknowledgement reaches the consumer there is.
            self._more.set()
        else:
            await self._unsubscribe()

    def end(self) -> None:
        """Say nothing more."""
        self._ended = self._ceased = True
        self.came.clear()
        for reply in self._replies.values():
            self._in_hand.discard(reply)
        self._replies.clear()
        self._unconfirmed.clear()
        self._more.set()

    async def close(self) -> None:
        for sequence in list(self._replies):
            if sequence not in self._unconfirmed:
                await self.give_up(sequence)
        self.end()
        if self._reconnected in self._client.reconnected:
            self._client.reconnected.remove(self._reconnected)
        await self._unsubscribe()
        if self._confirmations is not None:
            try:
                await self._confirmations.unsubscribe()
            except BROKEN:
                pass


def _epoch_of(consumer: str) -> int:
    """The epoch in the name of a consumer; 0: it has none."""
    parts = consumer.rsplit("-", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0
