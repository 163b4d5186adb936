"""Named channels to publish on and to subscribe to, over any transport."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final

from furcula.bus.messages import OVERHEAD, encode_message, encode_run
from furcula.bus.subscription import STREAMS, Subscription
from furcula.errors import FurculaError, InputError, Stopped
from furcula.transport import Loss, Transport
from furcula.transports.asked import check_channel
from furcula.transports.urls import transport_for

__all__ = ["Bus", "channel_names"]

log = logging.getLogger("furcula.bus")

#: A frame is closed when it has so many bytes or messages, so that readers get on while more is being sent.
FRAME_BYTES: Final = 256 * 1024
FRAME_MESSAGES: Final = 4096
#: So much may wait to be sent, beside what is on its way.
WAITING_BYTES: Final = 8 * 1024 * 1024


class Bus:
    """Publish and subscribe on named channels.

    ::

        async with Bus("tcp://127.0.0.1:5555") as bus:
            subscription = await bus.subscribe("room1")
            await bus.publish("room1", {"text": "hello"})
            async for message in subscription:
                ...

    A message is any value that JSON can say. It is encoded when it is published, so changes to it after that are not
    seen, and every subscriber gets a copy of its own. Messages that wait leave together, in as few frames as the
    transport is ready for; nothing waits for a frame to fill.

    A Bus belongs to one event loop. For scripts without one there are `Publisher` and `Subscriber`.

    Args:
        transport: A URL (see `furcula.transports.transport_for`), or a transport, which then is yours to close.
        sender: The name that envelopes give; None: host and process.
        limit: Messages that may wait to be sent before `publish` waits.
        options: For the transport of a URL: `size`, `history`, keys and so on.
    """

    def __init__(self, transport: str | Transport, *, sender: str | None = None, limit: int = 10_000, **options: Any):
        if isinstance(transport, str):
            self._transport, self._own = transport_for(transport, **options), True
        elif options:
            raise TypeError(f"options ({', '.join(options)}) are for the transport of a URL")
        else:
            self._transport, self._own = transport, False
        if limit < 1:
            raise ValueError("limit must be 1 or more")
        self.sender = sender or f"{socket.gethostname()}:{os.getpid()}"
        self._stream = os.urandom(9).hex()
        self._limit = limit
        self._measure()
        #: Runs that wait: the channel, when its first message came, the messages.
        self._waiting: deque[_Run] = deque()
        self._waiting_messages = 0
        self._waiting_bytes = 0
        #: Messages that were put in line, and those of them that have been sent or refused.
        self._appended = 0
        self._gone = 0
        #: Who waits in `flush`, and until how many have gone.
        self._flushing: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._refused: InputError | None = None
        self._sending: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._error: FurculaError | None = None
        self._number = 0
        self._sequences: OrderedDict[str, int] = OrderedDict()
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    # ------------------------------------------------------------------ its beginning and end

    async def open(self) -> Bus:
        """Connect. Raises a FurculaError that names the address if that is not possible."""
        if self._closed:
            raise Stopped("the bus is closed; make a new one")
        if self._own:
            await self._transport.open()
        return self

    async def close(self, *, drain: bool = True) -> None:
        """Close all subscriptions, and the transport if it was made from a URL. May be repeated.

        Args:
            drain: First send what waits. Without, it is dropped.

        Raises:
            FurculaError: What waited could not be sent. The bus is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if drain:
                await self.flush()
        finally:
            if self._sending is not None and not self._sending.done():
                self._sending.cancel()
                await asyncio.wait([self._sending])
            self._let_go()
            for _, sent in self._flushing:
                if not sent.done():
                    sent.set_exception(Stopped("the bus was closed before all was sent"))
            for subscription in list(self._subscriptions):
                await subscription.close()
            if self._own:
                await self._transport.close()

    async def __aenter__(self) -> Bus:
        try:
            return await self.open()
        except BaseException:
            await self.close(drain=False)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ publishing

    @property
    def max_message(self) -> int:
        """Bytes that a message may have when it is encoded. The transport may lower it, as when it connects."""
        if self._promises is not self._transport.promises:
            self._measure()
        return self._max_message

    def _measure(self) -> None:
        self._promises = self._transport.promises
        self._max_message = max(0, self._promises.max_body - OVERHEAD - 4 * len(self.sender))
        self._frame_bytes = min(FRAME_BYTES, self._max_message)

    async def publish(self, channels: str | Iterable[str], message: Any) -> None:
        """Publish a message on a channel, or on each of several.

        Returns when it is in line to be sent; `flush` waits until it has been. Waits while too much is in line.

        Raises:
            TypeError, ValueError: JSON cannot say the message, or a channel has no name, or it is too large.
            FurculaError: The transport could not send what was published before.
        """
        self.append(channels, encode_message(message))
        if self._waiting_messages >= self._limit or self._waiting_bytes >= WAITING_BYTES:
            await self.room()

    def append(self, channels: str | Iterable[str], raw: bytes) -> None:
        """Put a message that `encode_message` has made in line. For those who wait for `room` themselves."""
        if self._closed or self._error is not None:
            self._refuse()
        size = len(raw)
        if size > self.max_message:
            raise self._too_large(size)
        if type(channels) is str:
            last = self._waiting[-1] if self._waiting else None
            if last is not None and last.channel == channels and last.size + size <= self._frame_bytes:
                last.messages.append(raw)
                last.size += size
                self._appended += 1
                self._waiting_messages += 1
                self._waiting_bytes += size
                return
        for channel in channel_names(channels):
            self._begin_run(channel, raw)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.get_running_loop().create_task(self._send())

    def _begin_run(self, channel: str, raw: bytes) -> None:
        last = self._waiting[-1] if self._waiting else None
        if last is None or last.channel != channel or last.size + len(raw) > self._frame_bytes:
            last = _Run(channel, time.time())
            self._waiting.append(last)
        last.messages.append(raw)
        last.size += len(raw)
        self._appended += 1
        self._waiting_messages += 1
        self._waiting_bytes += len(raw)

    def _too_large(self, size: int) -> InputError:
        return InputError(f"a message of {size} bytes is over the limit of {self._max_message}")

    def _refuse(self) -> None:
        if self._error is not None:
            raise self._error
        raise Stopped("the bus is closed")

    async def room(self) -> None:
        """Wait until there is room in line."""
        while (self._waiting_messages >= self._limit or self._waiting_bytes >= WAITING_BYTES) and self._error is None:
            if self._closed:
                raise Stopped("the bus was closed while a publisher waited")
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)
        if self._error is not None:
            raise self._error

    async def flush(self) -> None:
        """Wait until the transport has accepted all that was published before.

        Raises:
            InputError: Some of it is larger than the transport, whose limit has sunk meanwhile, takes. The rest was
                sent, and the bus goes on.
            FurculaError: It could not be sent.
        """
        if self._gone < self._appended and self._error is None:
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushing.append((self._appended, sent))
            await sent
        if self._error is not None:
            raise self._error
        refused, self._refused = self._refused, None
        if refused is not None:
            raise refused

    async def _send(self) -> None:
        """Send what waits, run by run, until nothing waits."""
        try:
            while self._waiting:
                run = self._waiting.popleft()
                self._waiting_messages -= len(run.messages)
                self._waiting_bytes -= run.size
                self._let_go()
                await self._send_run(run)
        except FurculaError as error:
            self._error = error
            self._waiting.clear()
            self._let_go()
            self._went(self._appended - self._gone)

    async def _send_run(self, run: _Run) -> None:
        """In frames of the size that the transport takes now, which may be less than when the run was begun."""
        begin, messages = 0, run.messages
        while begin < len(messages):
            limit = self.max_message
            count = self._fitting(messages, begin)
            if not count:
                self._refused = self._too_large(len(messages[begin]))
                log.error("not published on %r: %s", run.channel, self._refused)
                count = 1
            else:
                try:
                    await self._send_frame(run, messages[begin : begin + count])
                except InputError as error:
                    if self.max_message < limit:  # it sank while this was under way
                        continue
                    self._refused = error
                    log.error("not published on %r: %s", run.channel, error)
            begin += count
            self._went(count)

    def _fitting(self, messages: list[bytes], begin: int) -> int:
        """How many of the messages, from this one on, fit into one frame."""
        size = 0
        for place in range(begin, min(begin + FRAME_MESSAGES, len(messages))):
            size += len(messages[place])
            if size > self._frame_bytes and (size > self._max_message or place > begin):
                return place - begin
        return min(FRAME_MESSAGES, len(messages) - begin)

    async def _send_frame(self, run: _Run, messages: list[bytes]) -> None:
        sequence = self._sequences.get(run.channel)
        head = (self._stream, self.sender, sequence is None, sequence or 0, self._number, run.time)
        await self._transport.publish(run.channel, encode_run(head, messages))
        self._sequences[run.channel] = (sequence or 0) + len(messages)
        if sequence is None and len(self._sequences) > STREAMS:
            self._sequences.popitem(last=False)
        self._number += len(messages)

    def _went(self, count: int) -> None:
        self._gone += count
        while self._flushing and self._flushing[0][0] <= self._gone:
            sent = self._flushing.popleft()[1]
            if not sent.done():
                sent.set_result(None)

    def _let_go(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # ------------------------------------------------------------------ subscribing

    async def subscribe(
        self,
        channels: str | Iterable[str],
        *,
        prefix: bool = False,
        envelope: bool = False,
        replay: int = 0,
        when_slow: Loss | None = None,
    ) -> Subscription:
        """Subscribe to channels. What is published from the moment this returns is received.

        Args:
            channels: A name, or several, which match exactly. `""` alone means every channel.
            prefix: The names are beginnings.
            envelope: Give Envelopes, not bare messages.
            replay: Begin with the last so many messages of each channel, as far as the transport has them. 1: the last
                value.
            when_slow: When this subscriber is too slow: `block`, publishers wait; `drop`, messages are lost, and
                counted in `lost`. None: what the transport does by default.

        Raises:
            FurculaError: The transport has no replay, or not this policy; or it is not connected.
        """
        names = (channels,) if isinstance(channels, str) else tuple(channels)
        if not names:
            raise InputError("name a channel to subscribe to; '' alone means all")
        if "" in names:
            if len(names) > 1:
                raise InputError("'' means every channel, and stands alone")
            prefix = True
        if self._closed:
            raise Stopped("the bus is closed")
        source = await self._transport.subscribe(*names, prefix=prefix, replay=replay, when_slow=when_slow)
        subscription = Subscription(source, envelope=envelope, replay=replay, ended=self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription


class _Run:
    """Messages in line that one frame will hold."""

    __slots__ = ("channel", "messages", "size", "time")

    def __init__(self, channel: str, now: float):
        self.channel = channel
        self.messages: list[bytes] = []
        self.size = 0
        self.time = now


def channel_names(channels: str | Iterable[str]) -> tuple[str, ...]:
    """The channels to publish on. Raises InputError where one has no name, or there is none."""
    names = (channels,) if isinstance(channels, str) else tuple(channels)
    if not names:
        raise InputError("name a channel to publish on")
    for name in names:
        check_channel(name)
        if not name:
            raise InputError("a channel to publish on has a name; '' means every channel when subscribing")
    return names
