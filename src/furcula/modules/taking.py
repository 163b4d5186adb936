"""What sources of brokers share: how many messages may be unsettled, and what the broker is told of each.

A message is *taken* from the broker, admitted as an event, and *told* once the event is settled. What is told is one of
the words of `furcula.verdict`; what each word means to a broker is its source's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, Literal

import msgspec

from furcula.codecs import BadFrame
from furcula.errors import InputError, Stopped
from furcula.event import MISSING, Event
from furcula.module import Context
from furcula.modules.connecting import meant
from furcula.modules.received import invalid
from furcula.options import Duration, Retry
from furcula.receipt import Slot
from furcula.verdict import MAX_DELIVERIES, Verdict, verdict

__all__ = ["AGAIN_AFTER", "MAX_DELIVERIES", "PREFETCH", "Message", "Taken", "Told", "Tries"]

PREFETCH: Final = 1000
AGAIN_AFTER: Final = Duration("1s")
#: No wait before another delivery is longer.
LONGEST_WAIT: Final = Duration("30s")


class Message(msgspec.Struct, eq=False):
    """What came from a broker, in the same form for all of them.

    Attributes:
        headers: Of the event that it becomes.
        deliveries: How often it has been delivered, this time included.
        token: What its source needs to tell the broker of it.
        decoded: Its data, where that is not what the codec makes of `body`.
    """

    body: bytes
    headers: dict[str, Any]
    token: Any
    deliveries: int = 1
    key: Any = None
    decoded: Any = MISSING


class Told(msgspec.Struct, frozen=True):
    """A message, and what the broker is to be told of it. `why` says what the event failed with, or nothing."""

    message: Message
    verdict: Verdict
    delay_s: float = 0.0
    why: str = ""


class Taken:
    """The messages of one source that are not settled, or settled and not told yet: `prefetch` at most.

    Args:
        context: Where events are admitted.
        decode: Makes data of bytes; what it refuses with InputError leaves by `invalid`.
        prefetch: See above.
        max_deliveries: So often a message may fail in a way that is worth another try.
        again_after: Seconds before the second delivery; each further wait is twice as long.
        tell: Tells the broker. It is handed what has been settled since the last time, in the order of settling; what
            it raises is logged, and the messages are forgotten: their broker delivers them again.
        again: `hold`: keep the message for its delay, then tell. `tell`: the broker keeps it. `admit`: the broker
            cannot deliver again, so keep it here and admit it again.

    Attributes:
        refused: Messages that were rejected.
    """

    def __init__(
        self,
        context: Context,
        *,
        decode: Callable[[bytes], Any],
        prefetch: int,
        max_deliveries: int,
        again_after: Duration,
        tell: Callable[[list[Told]], Awaitable[None]],
        again: Literal["hold", "tell", "admit"] = "hold",
    ):
        self.refused = 0
        self._context = context
        self._decode = decode
        self._prefetch = prefetch
        self._max_deliveries = max_deliveries
        self._waits = Retry(delay=again_after, max_delay=LONGEST_WAIT, jitter=0)
        self._tell = tell
        self._again = again
        self._open: dict[Message, None] = {}  # a set that keeps the order of coming
        self._held: dict[Message, asyncio.TimerHandle] = {}
        self._settled: list[Told] = []
        self._news = asyncio.Event()
        self._less = asyncio.Event()
        self._telling = False
        self._ended = False
        self._task = asyncio.ensure_future(self._tell_again_and_again())

    @property
    def open(self) -> list[Message]:
        """Taken, and not told yet."""
        return list(self._open)

    async def room(self) -> int:
        """How many more may be taken: waits until there is room for one."""
        while len(self._open) >= self._prefetch:
            self._less.clear()
            await self._less.wait()
        return self._prefetch - len(self._open)

    async def take(self, messages: list[Message]) -> None:
        """Admit these; returns when the flow has room for more. Those that it will not have any more are released."""
        self._open.update(dict.fromkeys(messages))
        for index, message in enumerate(messages):
            if message not in self._open:  # forgotten while the flow had no room
                continue
            try:
                wait = self._admit(message)
            except Stopped:
                for left in messages[index:]:
                    self._note(Told(left, "release"))
                return
            if wait is not None:
                await wait

    async def release(self, messages: list[Message]) -> None:
        """These were taken, and will not be admitted."""
        self._open.update(dict.fromkeys(messages))
        for message in messages:
            self._note(Told(message, "release"))

    def _admit(self, message: Message) -> Awaitable[None] | None:
        def settled(slot: Slot) -> None:
            self._settle(message, slot)

        headers = message.headers.copy()
        if message.decoded is not MISSING:
            return self._context.admit([Event(message.decoded, headers, key=message.key)], settled=settled)
        try:
            data = self._decode(message.body)
        except InputError as error:
            bad = invalid(BadFrame.of(str(error), message.body), headers)
            return self._context.admit(
                [bad], "invalid", settled=lambda slot: self._note(Told(message, _unreadable(slot)))
            )
        return self._context.admit([Event(data, headers, key=message.key)], settled=settled)

    def _settle(self, message: Message, slot: Slot) -> None:
        if message not in self._open:  # forgotten, because its connection was lost
            return
        word = verdict(slot, message.deliveries, self._max_deliveries)
        failure: Any = slot.failure
        why = "" if word == "ack" else f"{failure.type}: {failure.message}" if failure is not None else slot.reason
        if word == "reject":
            self.refused += 1
            self._context.log.warning(
                "a message is rejected after %d deliver%s: %s",
                message.deliveries,
                "y" if message.deliveries == 1 else "ies",
                why,
            )
        delay_s = self._waits.delay_s(message.deliveries) if word == "again" else 0.0
        told = Told(message, word, delay_s, why)
        if word != "again" or self._again == "tell" or self._ended:
            self._note(told)
        else:
            later = asyncio.get_running_loop().call_later(delay_s, self._held_long_enough, told)
            self._held[message] = later

    def _held_long_enough(self, told: Told) -> None:
        message = told.message
        self._held.pop(message, None)
        if message not in self._open:
            return
        if self._again == "hold" or self._ended:
            self._note(told)
            return
        message.deliveries += 1
        try:
            self._admit(message)  # it has its place already, so nobody has to wait for more
        except Stopped:
            self._note(Told(message, "release"))

    def _note(self, told: Told) -> None:
        if told.message in self._open:
            self._settled.append(told)
            self._news.set()

    def forget(self, mine: Callable[[Message], bool] = bool) -> None:
        """The connection was lost, and the broker will deliver these again: nothing can be told of them."""
        for message in [message for message in self._open if mine(message)]:
            self._open.pop(message, None)
            held = self._held.pop(message, None)
            if held is not None:
                held.cancel()
        self._settled = [told for told in self._settled if told.message in self._open]
        self._less.set()

    # ------------------------------------------------------------------ telling

    async def _tell_again_and_again(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            batch, self._settled = self._settled, []
            batch = [told for told in batch if told.message in self._open]
            if not batch:
                continue
            self._telling = True
            try:
                await self._tell(batch)
            except asyncio.CancelledError:
                if meant():
                    raise
            except Exception as error:  # the broker has not heard of it, so it will deliver again
                self._context.log.warning("%d messages could not be settled, and come again: %s", len(batch), error)
            finally:
                self._telling = False
                for told in batch:
                    self._open.pop(told.message, None)
                self._less.set()

    async def end(self, within_s: float) -> None:
        """Tell what is settled, release what is not, and stop. Called once the flow has drained."""
        self._ended = True
        await asyncio.sleep(0)  # the last settlements are told from the loop
        for message, held in list(self._held.items()):
            held.cancel()
            self._note(Told(message, "again"))
        self._held.clear()
        known = {told.message for told in self._settled}
        if not self._telling:
            for message in self._open:
                if message not in known:
                    self._note(Told(message, "release"))
        try:
            async with asyncio.timeout(within_s):
                while self._settled or self._telling:
                    self._less.clear()
                    await self._less.wait()
                for message in list(self._open):
                    self._note(Told(message, "release"))
                while self._settled or self._telling:
                    self._less.clear()
                    await self._less.wait()
        except TimeoutError:
            self._context.log.warning("%d messages could not be settled in time; they come again", len(self._open))
        self._task.cancel()
        await asyncio.wait([self._task])


class Tries:
    """How often messages have failed here, for brokers that do not count: by what tells a message from others.

    The oldest are forgotten when there are more than `most`: those that another process took.
    """

    def __init__(self, most: int = 10_000):
        self._most = most
        self._counts: dict[Hashable, int] = {}

    def deliveries(self, identity: Hashable) -> int:
        """Which delivery the next one is."""
        return self._counts.get(identity, 0) + 1

    def note(self, identity: Hashable, told: Told) -> None:
        if told.verdict == "again":
            self._counts.pop(identity, None)
            self._counts[identity] = told.message.deliveries
            if len(self._counts) > self._most:
                del self._counts[next(iter(self._counts))]
        elif told.verdict != "release":
            self._counts.pop(identity, None)


def _unreadable(slot: Slot) -> Verdict:
    """A message that cannot be read is never delivered again, unless the flow stopped before it was looked at."""
    return "release" if verdict(slot, 1, 1) == "release" else "ack"
