"""What one subscriber gets from the bus: messages in order, with what was lost counted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from furcula import transport
from furcula.bus.messages import Run, decode_run
from furcula.errors import InputError

__all__ = ["Envelope", "Subscription"]

log = logging.getLogger("furcula.bus")

#: Senders and channels of which the place is remembered.
STREAMS = 100_000
#: Losses are logged when they begin, and then once in so many seconds.
QUIET_S = 10.0

_ENDED: Any = object()


class Envelope(msgspec.Struct, frozen=True):
    """A message and what is known of it.

    Attributes:
        channel: Where it was published.
        id: No other message on any channel has it.
        time: Unix time in seconds, by the sender's clock, when the run of messages it came in was begun.
        sender: The name of the Bus that published it.
        message: The message itself; null is None.
    """

    channel: str
    id: str
    time: float
    sender: str
    message: Any


class Subscription:
    """The receiving side of some channels. Made by `Bus.subscribe`, effective from then on.

    `async for message in subscription` gives the messages (envelopes, if that was asked for), those of one sender on
    one channel in its order, and ends when the subscription or the bus is closed. Each subscription gets copies of its
    own.

    Attributes:
        refused: Bodies that were no frames of a bus, by reason.
    """

    def __init__(
        self,
        source: transport.Subscription,
        *,
        envelope: bool,
        replay: int,
        ended: Callable[[Subscription], None],
    ):
        self._gaps = 0
        self.refused: Counter[str] = Counter()
        self._source = source
        self._frames: AsyncIterator[tuple[str, bytes]] | None = None
        self._reading = asyncio.Lock()
        self._envelope = envelope
        self._replay = replay
        self._replayed = 0
        self._ended = ended
        self._closed = False
        #: Runs that wait, and the messages of the first of them that have not been given.
        self._runs: deque[tuple[str, Run]] = deque()
        self._channel = ""
        self._run: Run | None = None
        self._messages: deque[Any] = deque()
        self._next: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._logged_at = float("-inf")

    @property
    def lost(self) -> int:
        """Messages that did not come, found by gaps in what one sender published on one channel.

        What the transport dropped before the first that came leaves no gap; so it is at least the number of bodies,
        each of one message or more, that the transport says it dropped.
        """
        return max(self._gaps, self._source.lost)

    async def __aiter__(self) -> AsyncIterator[Any]:
        messages = self._messages
        while True:
            # Others may read as well, so what is left is looked at anew after each message.
            while self._messages is messages and messages:
                yield self._enveloped() if self._envelope else messages.popleft()
            if not self._messages and not await self._more():
                return
            messages = self._messages

    async def get(self, timeout: float | None = None, *, default: Any = None, envelope: bool | None = None) -> Any:
        """The next message.

        Args:
            timeout: Wait so many seconds at most. None: as long as it takes. 0: do not wait.
            default: What is given when none has come in time, or the subscription has ended.
            envelope: Give an Envelope; None: as was said when subscribing.
        """
        if not self._messages:
            try:
                async with asyncio.timeout(timeout):
                    if not await self._more():
                        return default
            except TimeoutError:
                return default
        wants_envelope = self._envelope if envelope is None else envelope
        return self._enveloped() if wants_envelope else self._messages.popleft()

    def _enveloped(self) -> Envelope:
        run = self._run
        assert run is not None
        place = run.number + len(run.messages) - len(self._messages)
        return Envelope(self._channel, f"{run.stream}-{place}", run.time, run.sender, self._messages.popleft())

    async def next_run(self) -> tuple[str, Run] | None:
        """The next channel and run as they came, None at the end. For those who count messages themselves."""
        if not self._messages and not await self._more():
            return None
        run, channel = self._run, self._channel
        assert run is not None
        left = len(self._messages)
        self._messages = deque()
        if left < len(run.messages):
            skipped = len(run.messages) - left
            run = msgspec.structs.replace(run, number=run.number + skipped, messages=run.messages[skipped:])
        return channel, run

    # ------------------------------------------------------------------ reading

    async def _more(self) -> bool:
        """Read on until there are messages. Returns False at the end."""
        async with self._reading:
            while not self._messages:
                if not self._runs:
                    if not await self._read():
                        return False
                    continue
                self._channel, self._run = self._runs.popleft()
                self._messages = deque(self._run.messages)
            return True

    async def _read(self) -> bool:
        if self._replay:
            await self._read_replay(self._replay)
            self._replay = 0
            return True
        item = await self._frame()
        if item is _ENDED:
            return False
        self._came(*item)
        return True

    async def _frame(self) -> Any:
        if self._frames is None:
            self._frames = self._source.__aiter__()
        try:
            return await anext(self._frames)
        except StopAsyncIteration:
            return _ENDED
        except BaseException:
            self._frames = None  # a generator that was cancelled is finished; the next reader makes a new one
            raise

    async def _read_replay(self, wanted: int) -> None:
        """The keeper replays bodies, of many messages each: keep the last `wanted` messages of each channel."""
        while self._replayed < self._source.replayed:  # who is cancelled here goes on here
            item = await self._frame()
            if item is _ENDED:
                break
            self._replayed += 1
            self._came(*item)
        counts: Counter[str] = Counter()
        kept: deque[tuple[str, Run]] = deque()
        for channel, run in reversed(self._runs):
            left = wanted - counts[channel]
            counts[channel] += len(run.messages)
            skipped = max(0, len(run.messages) - left)
            if skipped < len(run.messages):
                messages = run.messages[skipped:]
                kept.appendleft((channel, msgspec.structs.replace(run, number=run.number + skipped, messages=messages)))
        self._runs = kept

    def _came(self, channel: str, body: bytes) -> None:
        try:
            run = decode_run(body)
        except InputError as error:
            self.refused[str(error).partition(":")[0]] += 1
            return
        key = (run.stream, channel)
        expected = self._next.get(key)
        end = run.sequence + len(run.messages)
        if expected is not None and not run.begins and run.sequence != expected:
            if end <= expected:
                return  # it came before
            if run.sequence < expected:
                skipped = expected - run.sequence
                run = msgspec.structs.replace(run, number=run.number + skipped, messages=run.messages[skipped:])
            else:
                self._missed(run.sequence - expected, channel, run.sender)
        self._next[key] = end
        if expected is None and len(self._next) > STREAMS:
            self._next.popitem(last=False)
        self._runs.append((channel, run))

    def _missed(self, count: int, channel: str, sender: str) -> None:
        self._gaps += count
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= QUIET_S:
            self._logged_at = now
            log.warning("%d messages of %s on %r were lost; %d in all", count, sender, channel, self.lost)

    async def close(self) -> None:
        """Receive nothing more; what had come is still given. Publishers that waited for this one go on."""
        if not self._closed:
            self._closed = True
            self._ended(self)
            await self._source.close()
