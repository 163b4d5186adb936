"""shellbot's Bus, Publisher and Subscriber over `furcula.bus`."""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import multiprocessing
import os
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from multiprocessing import connection
from typing import Any, Protocol

from furcula import bus
from furcula.bus.bus import channel_names
from furcula.errors import InputError, QueueFull, Stopped

__all__ = ["DEFAULT_ADDRESS", "Bus", "Context", "Publisher", "Subscriber"]

DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"
_log = logging.getLogger("furcula.compat.shellbot")

#: Messages that may wait for the publishing process.
WAITING = 30_000


class Context(Protocol):
    """What holds the settings: `bus.address`, and `general.switch`, which stops everything when it is `off`."""

    def get(self, key: str, default: Any = None) -> Any: ...

    def set(self, key: str, value: Any) -> None: ...


class Bus:
    """A bus between publishers and subscribers.

    Args:
        context: Its settings.
    """

    DEFAULT_ADDRESS = DEFAULT_ADDRESS

    def __init__(self, context: Context):
        self.context = context

    def check(self) -> None:
        """Write `bus.address` into the context, if it is not there."""
        if not self.context.get("bus.address"):
            self.context.set("bus.address", self.DEFAULT_ADDRESS)

    def publish(self) -> Publisher:
        """A publisher. Start it, then put messages; messages may be put before it is started."""
        self.check()
        return Publisher(self.context)

    def subscribe(self, channels: str | Iterable[str]) -> Subscriber:
        """A subscriber to one or several channels; `""` alone means all. It is subscribed when this returns."""
        self.check()
        return Subscriber(self.context, channels)


def _address(context: Context | str) -> str:
    if isinstance(context, str):
        return context
    return str(context.get("bus.address") or DEFAULT_ADDRESS)


def _is_off(context: Context | None) -> bool:
    return context is not None and context.get("general.switch", "on") == "off"


class Publisher(multiprocessing.Process):
    """Publishes from a process of its own.

    It ends, having sent all that was put, when `None` is put on `fan`, when `general.switch` is `off`, by `close`, and
    when the process that started it has gone. What is put on `fan` otherwise and is no item is logged, and passed over.

    Args:
        context: The settings, or the address itself.
    """

    #: Seconds between two looks at the switch.
    DEFER_DURATION = 0.3
    #: Seconds that an empty queue is waited at once more, when the end has been asked for.
    EMPTY_DELAY = 0.005

    def __init__(self, context: Context | str):
        super().__init__(daemon=True)
        self.context: Context | None = None if isinstance(context, str) else context
        self.address = _address(context)
        self.fan: Any = multiprocessing.Queue(WAITING)
        self.started_by = os.getpid()
        # In memory that all processes share: has the end begun?
        self._over: Any = multiprocessing.RawValue("b", 0)
        self._running = False
        self._publisher: bus.Publisher | None = None
        self._watch: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        # By spawn. The context stays behind: it may hold anything, and its copy would never change.
        return {**self.__dict__, "context": None, "_publisher": None, "_watch": None}

    def start(self) -> None:
        """Start the process."""
        self.started_by = os.getpid()
        super().start()
        # A script that just ends has sent what it had put.
        atexit.register(_close_at_exit, weakref.ref(self))
        if self.context is not None:
            self._watch = threading.Thread(target=self._watch_switch, name="furcula shellbot switch", daemon=True)
            self._watch.start()

    def _watch_switch(self) -> None:
        # Not by `join`: of two threads that wait for a child, one is told nothing.
        while not connection.wait([self.sentinel], self.DEFER_DURATION):
            if _is_off(self.context):
                self.fan.put(None)
                return

    def put(self, channels: str | Iterable[str], message: Any) -> None:
        """Put a message for one or several channels. May be called before the process runs, and from any process.

        Raises:
            TypeError, ValueError: JSON cannot say the message, or a channel is none.
            Stopped: The publisher has ended; make another.
            QueueFull: Too many messages wait.
        """
        if self._over.value or self._died():
            raise Stopped(f"the publisher to {self.address} has ended; make another one")
        names = channel_names(channels)
        text = json.dumps(message, allow_nan=False)
        for channel in (names,) if isinstance(names, str) else names:
            item = f"[{json.dumps(channel)}, {text}]"
            try:
                self.fan.put(item, block=self.pid is not None, timeout=30)
            except queue.Full:
                raise QueueFull(f"{WAITING} messages wait for the publisher to {self.address}") from None

    def _died(self) -> bool:
        """Only the process that started it is told."""
        if self.pid is None or os.getpid() != self.started_by:
            return False
        return bool(connection.wait([self.sentinel], 0))

    def run(self) -> None:
        """Publish what is put, until the end. In the publisher's process, or in a thread of yours."""
        self._running = True
        try:
            while (items := self._next()) is not None:
                for item in items:
                    self._try(item)
            self._over.value = 1  # what is put from here on might come too late
            for item in self._rest():
                self._try(item)
        finally:
            self._over.value = 1
            self._running = False
            if self._publisher is not None:
                self._publisher.close()

    def _try(self, item: str) -> None:
        try:
            self.process(item)
        except (InputError, TypeError, ValueError) as error:  # one who puts nonsense does not end it for all others
            _log.warning("not published: %s", error)

    def _next(self) -> list[str] | None:
        """What waits; nothing for a while; or None at the end."""
        parent = multiprocessing.parent_process()
        try:
            item = self.fan.get(timeout=self.DEFER_DURATION)
        except queue.Empty:
            gone = parent is not None and not parent.is_alive()
            return None if gone or _is_off(self.context) else []
        return None if item is None else [item]

    def _rest(self) -> Iterator[str]:
        """What other processes had put before the end, and is still on its way through the queue."""
        ends = time.monotonic() + self.DEFER_DURATION
        while True:
            try:
                item = self.fan.get(timeout=self.EMPTY_DELAY)
            except queue.Empty:
                return
            if item is not None:
                yield item
            elif time.monotonic() > ends:
                return

    def process(self, item: str) -> None:
        """Publish one item: the serialised pair of channel and message."""
        if self._publisher is None:
            self._publisher = bus.Publisher(self.address)
        try:
            channel, message = json.loads(item)
        except (ValueError, TypeError) as error:
            raise InputError(f"an item is a channel and a message in JSON: {error}") from None
        self._publisher.put(channel, message)

    def _waits(self) -> bool:
        try:
            return bool(self.fan.qsize() > 0)
        except NotImplementedError:  # macOS
            return True

    def close(self, *, drain: bool = True, timeout: float | None = 30) -> None:
        """Send what was put, unless `drain` is False, and end the process. May be repeated.

        One that was never started is started for what was put.
        """
        if self._running:  # in a thread of this process
            self.fan.put(None)
            return
        if self.pid is None and not self._over.value:
            if drain and self._waits():
                self.start()
            else:
                self.fan.cancel_join_thread()
        self._over.value = 1
        if self.pid is None or not self.is_alive():
            return
        if drain:
            self.fan.put(None)
            self.join(timeout)
        else:
            self.terminate()
            self.join(timeout)


class Subscriber:
    """Receives messages from channels.

    Args:
        context: The settings, or the address itself.
        channels: One or several, which match exactly; `""` alone means all.
        settings: Further ones of `furcula.bus.Subscriber`: `prefix`, `replay`, `when_slow`.
    """

    #: Seconds between two looks at the switch, for one who waits.
    SWITCH_DURATION = 0.2

    def __init__(self, context: Context | str, channels: str | Iterable[str], **settings: Any):
        if channels is None or (not isinstance(channels, str) and not (channels := list(channels))):
            raise ValueError("name a channel, or several; '' alone means all")
        self.context = None if isinstance(context, str) else context
        self.address = _address(context)
        self._subscriber = bus.Subscriber(self.address, channels, **settings)
        self._closed = False

    @property
    def lost(self) -> int:
        """Messages that did not come, as far as is known."""
        return self._subscriber.lost

    def get(
        self, block: bool = False, timeout: float | None = None, *, envelope: bool = False, default: Any = None
    ) -> Any:
        """The next message, or None if there is none.

        Args:
            block: Wait for one, until the switch is off or the subscriber is closed.
            timeout: Wait, but so many seconds at most.
            envelope: Give channel, id, time and sender too.
            default: What is given when there is none.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        while True:
            wait: float | None = None
            if block or ends is not None:
                wait = self.SWITCH_DURATION if ends is None else min(self.SWITCH_DURATION, ends - time.monotonic())
                wait = max(wait, 0.0)
            found = self._subscriber.get(timeout=wait, envelope=envelope, default=_NOTHING)
            if found is not _NOTHING:
                return found
            over = ends is not None and time.monotonic() >= ends
            if wait is None or over or self._closed or _is_off(self.context):
                return default

    def __iter__(self) -> Iterator[Any]:
        """The messages, until the switch is off or the subscriber is closed."""
        while (message := self.get(block=True, default=_NOTHING)) is not _NOTHING:
            yield message

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await asyncio.to_thread(self.get, True, default=_NOTHING)) is not _NOTHING:
            yield message

    def close(self) -> None:
        """Receive nothing more. May be repeated."""
        self._closed = True
        self._subscriber.close()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _close_at_exit(reference: weakref.ref[Publisher]) -> None:
    publisher = reference()
    if publisher is not None and multiprocessing.current_process().pid == publisher.started_by:
        publisher.close()


_NOTHING: Any = object()
