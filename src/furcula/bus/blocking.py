"""The bus for scripts that have no event loop: `Publisher.put` and `Subscriber.get`.

Both may be used from any thread, and across a fork: each process that uses one has a connection of its own. Both may be
pickled (for `multiprocessing` by spawn); what travels is the URL and the options.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final

from furcula.bus.background import Background, background
from furcula.bus.bus import Bus, channel_names
from furcula.bus.messages import encode_message
from furcula.bus.subscription import Envelope, Subscription
from furcula.errors import FurculaError, InputError, Stopped
from furcula.transport import Loss

__all__ = ["Publisher", "Subscriber"]

log = logging.getLogger("furcula.bus")

#: However little time is left, to disconnect has so many seconds.
DISCONNECT_S: Final = 0.5
#: Runs of messages that a subscriber reads ahead of those who ask it.
AHEAD: Final = 2


class Publisher:
    """Publishes from plain code. Connects when the first message is put, in the process where that is.

    Args:
        url: Of the transport; see `furcula.transports.transport_for`.
        sender: The name that envelopes give; None: host and process.
        limit: Messages that may wait to be sent before `put` waits.
        options: For the transport.

    What was put is sent when the process ends in an orderly way, or the publisher is closed.
    """

    def __init__(self, url: str, *, sender: str | None = None, limit: int = 10_000, **options: Any):
        self._url = url
        self._sender = sender
        self._limit = limit
        self._options = options
        self._made()

    def _made(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waiting: deque[tuple[str | tuple[str, ...], bytes]] = deque()
        self._background: Background | None = None
        self._bus: Bus | None = None
        self._moving = False
        self._error: BaseException | None = None
        self._refused: InputError | None = None
        #: Messages that were put in line, and those of them that have been sent or refused.
        self._put = 0
        self._gone = 0
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "sender": self._sender, "limit": self._limit, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = state.pop("options")
        self.__init__(**state, **options)  # type: ignore[misc]

    def put(self, channels: str | Iterable[str], message: Any, *, timeout: float | None = None) -> None:
        """Publish a message on a channel, or on each of several.

        Returns when it is in line to be sent. Waits while too much is in line, at most `timeout` seconds.

        Raises:
            TypeError, ValueError: JSON cannot say the message, a channel has no name, or the message is too large. The
                limit is known when there is a connection: what was put before and is too large, `flush` tells.
            TimeoutError: There was no room in time; the message is not sent.
            FurculaError: The publisher is closed, or what was put before could not be sent.
        """
        raw = encode_message(message)
        names = channels if type(channels) is str and channels else channel_names(channels)
        self._here()
        with self._changed:
            if len(self._waiting) >= self._limit:
                room = self._changed.wait_for(lambda: len(self._waiting) < self._limit or self._is_over(), timeout)
                if not room:
                    raise TimeoutError(f"no room on {self._url} within {timeout:g} s")
            self._check()
            if self._bus is not None and len(raw) > self._bus.max_message:
                raise InputError(f"a message of {len(raw)} bytes is over the limit of {self._bus.max_message}")
            self._waiting.append((names, raw))
            self._put += 1
            if not self._moving:
                self._moving = True
                self._start().submit(self._move())

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the transport has accepted all that was put before.

        Raises:
            TimeoutError: It has not in time.
            InputError: Some of it is larger than the transport takes. The rest was sent, and the publisher goes on.
            FurculaError: It could not be sent.
        """
        self._here()
        with self._changed:
            until = self._put
            if not self._changed.wait_for(lambda: self._gone >= until or self._error is not None, timeout):
                raise TimeoutError(f"not all was sent to {self._url} within {timeout:g} s")
            if self._error is not None:
                raise self._error
            refused, self._refused = self._refused, None
            if refused is not None:
                raise refused

    def close(self, *, drain: bool = True, timeout: float | None = 30) -> None:
        """Send what was put, unless `drain` is False, and disconnect. May be repeated.

        Raises:
            TimeoutError, FurculaError: Not all could be sent. The publisher is closed all the same.
        """
        self._here()
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if not drain:
                self._waiting.clear()
            self._changed.notify_all()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            if drain:
                self.flush(timeout)
        finally:
            bus, self._bus = self._bus, None
            if bus is not None and self._background is not None:
                left = None if deadline is None else max(DISCONNECT_S, deadline - time.monotonic())
                self._background.result(bus.close(drain=False), left)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ how

    def _here(self) -> None:
        if self._pid != os.getpid():  # a fork: what was in line belongs to the parent
            self._made()

    def _is_over(self) -> bool:
        return self._closed or self._error is not None

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise Stopped(f"the publisher to {self._url} is closed")

    def _start(self) -> Background:
        if self._background is None:
            self._background = background()
            self._background.open.add(self)
        return self._background

    async def _move(self) -> None:
        """Hand over to the bus what is in line. On the background's loop."""
        try:
            if self._bus is None:
                self._bus = await Bus(self._url, sender=self._sender, limit=self._limit, **self._options).open()
            bus = self._bus
            while True:
                with self._changed:
                    if not self._waiting:
                        break
                    batch, self._waiting = self._waiting, deque()
                    self._changed.notify_all()
                try:
                    self._append(bus, batch)
                    await bus.flush()
                except InputError as error:
                    self._refused = error
                with self._changed:
                    self._gone += len(batch)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error if isinstance(error, FurculaError | ValueError) else FurculaError(str(error))
        finally:
            with self._changed:
                # Something may have been put since it was looked for.
                again = bool(self._waiting) and self._error is None
                self._moving = again
                self._changed.notify_all()
            if again:
                self._again = asyncio.ensure_future(self._move())

    def _append(self, bus: Bus, batch: Iterable[tuple[str | tuple[str, ...], bytes]]) -> None:
        for names, raw in batch:
            try:
                bus.append(names, raw)
            except InputError as error:
                log.error("not published on %r: %s", names, error)
                self._refused = error


class _Arrivals:
    """What has come for a Subscriber.

    The task that reads holds this and not the Subscriber, so that one which nobody has any more can be collected.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.runs: deque[tuple[str, Any]] = deque()
        self.room: asyncio.Event | None = None
        self.ended = False
        self.closed = False
        self.error: BaseException | None = None

    async def read(self, subscription: Subscription, room: asyncio.Event) -> None:
        """Keep a little ahead of those who ask. What is beyond that stays in the transport, which makes others wait."""
        try:
            while True:
                found = await subscription.next_run()
                if found is None:
                    break
                with self.changed:
                    self.runs.append(found)
                    self.changed.notify_all()
                    full = len(self.runs) >= AHEAD and not self.closed
                    room.clear()
                if full:
                    await room.wait()
        except FurculaError as error:
            self.error = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()


def _abandon(pid: int, background: Background, bus: Bus, arrivals: _Arrivals) -> None:
    """Nobody has the Subscriber any more, and nobody closed it: end what it had, on its loop."""
    if pid != os.getpid():
        return

    def end() -> None:
        arrivals.closed = True
        if arrivals.room is not None:
            arrivals.room.set()
        _ending.add(task := asyncio.ensure_future(bus.close(drain=False)))
        task.add_done_callback(_ending.discard)

    with contextlib.suppress(RuntimeError):  # the process is ending
        background.loop.call_soon_threadsafe(end)


_ending: set[asyncio.Future[None]] = set()


class Subscriber:
    """Receives in plain code. It is subscribed when it has been made.

    In another process, after a fork or having been pickled, it is subscribed anew when it is first used there.

    Args:
        url: Of the transport; see `furcula.transports.transport_for`.
        channels: A name, or several, which match exactly. `""` alone means every channel.
        prefix: The names are beginnings.
        replay: Begin with the last so many messages of each channel. 1: the last value.
        when_slow: `block` or `drop`; None: what the transport does by default.
        options: For the transport.

    One that nobody has any more is closed, so that publishers do not wait for it.

    Raises:
        FurculaError: The address cannot be reached.
    """

    def __init__(
        self,
        url: str,
        channels: str | Iterable[str],
        *,
        prefix: bool = False,
        replay: int = 0,
        when_slow: Loss | None = None,
        **options: Any,
    ):
        names = channels if isinstance(channels, str) else tuple(channels)
        self._asked = {"channels": names, "prefix": prefix, "replay": replay, "when_slow": when_slow}
        self._url = url
        self._options = options
        self._made()
        self._subscribe()

    def _made(self) -> None:
        self._pid = os.getpid()
        self._arrivals = _Arrivals()
        self._place = 0
        self._background: Background | None = None
        self._bus: Bus | None = None
        self._subscription: Subscription | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self._url, "asked": self._asked, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._url, self._asked, self._options = state["url"], state["asked"], state["options"]
        self._made()

    @property
    def lost(self) -> int:
        """Messages that did not come, as far as is known by what came."""
        return self._subscription.lost if self._subscription is not None else 0

    def get(
        self, block: bool = False, timeout: float | None = None, *, envelope: bool = False, default: Any = None
    ) -> Any:
        """The next message.

        Args:
            block: Wait for one. `close`, from any thread, and Ctrl-C end the waiting.
            timeout: Wait, but so many seconds at most.
            envelope: Give an Envelope, with channel, id, time and sender.
            default: What is given when there is none. The message null is None: use this, or `envelope`, to tell.

        Raises:
            FurculaError: The transport has failed.
        """
        self._here()
        with self._arrivals.changed:
            if not self._arrivals.runs and not self._arrivals.ended and (block or timeout is not None):
                self._arrivals.changed.wait_for(lambda: bool(self._arrivals.runs) or self._arrivals.ended, timeout)
            if not self._arrivals.runs:
                if self._arrivals.error is not None:
                    raise self._arrivals.error
                return default
            channel, run = self._arrivals.runs[0]
            place, self._place = self._place, self._place + 1
            message = run.messages[place]
            if self._place == len(run.messages):
                self._place = 0
                self._arrivals.runs.popleft()
                self._read_on()
        if not envelope:
            return message
        return Envelope(channel, f"{run.stream}-{run.number + place}", run.time, run.sender, message)

    def __iter__(self) -> Iterator[Any]:
        """The messages, until the subscriber is closed."""
        nothing = object()
        while True:
            message = self.get(block=True, default=nothing)
            if message is nothing:
                return
            yield message

    def close(self, *, timeout: float | None = 30) -> None:
        """Receive nothing more; what had come is still given. Who waits in `get` is woken. May be repeated."""
        self._here()
        with self._arrivals.changed:
            if self._arrivals.closed:
                return
            self._arrivals.closed = self._arrivals.ended = True
            self._arrivals.changed.notify_all()
            self._read_on()
        if self._bus is not None and self._background is not None:
            if self._finalizer is not None:
                self._finalizer.detach()
            left = None if timeout is None else max(DISCONNECT_S, timeout)
            self._background.result(self._bus.close(drain=False), left)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ how

    def _here(self) -> None:
        if self._pid != os.getpid():
            self._made()
        if self._background is None and not self._arrivals.closed:
            self._subscribe()

    def _subscribe(self) -> None:
        self._background = background()
        self._background.open.add(self)
        self._background.result(self._open())

    async def _open(self) -> None:
        bus = Bus(self._url, **self._options)
        try:
            await bus.open()
            asked: dict[str, Any] = self._asked
            self._subscription = await bus.subscribe(**asked)
        except BaseException:
            await bus.close(drain=False)
            self._arrivals.closed = self._arrivals.ended = True
            raise
        self._bus = bus
        arrivals, subscription = self._arrivals, self._subscription
        arrivals.room = asyncio.Event()
        self._pump = asyncio.ensure_future(arrivals.read(subscription, arrivals.room))
        assert self._background is not None
        self._finalizer = weakref.finalize(self, _abandon, self._pid, self._background, bus, arrivals)
        self._finalizer.atexit = False

    def _read_on(self) -> None:
        if self._arrivals.room is not None and self._background is not None:
            with contextlib.suppress(RuntimeError):  # the process is ending
                self._background.loop.call_soon_threadsafe(self._arrivals.room.set)
