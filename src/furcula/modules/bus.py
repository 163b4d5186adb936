"""The bus in a flow: publish events on its channels, and receive what others publish."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

from furcula.bus import Bus, Subscription
from furcula.bus.bus import channel_names
from furcula.bus.messages import encode_message
from furcula.errors import DeliveryError, FurculaError, InputError, Stopped
from furcula.event import Event
from furcula.module import BatchFailed, Context, Module, Source
from furcula.options import Duration, Retry, Secret
from furcula.transport import Loss

__all__ = ["BusPublish", "BusSubscribe"]

log = logging.getLogger("furcula.modules.bus")

#: Waits between tries to reach the transport again.
BACK_OFF = Retry(delay=Duration(0.1), max_delay=Duration(10))
#: What still waits to be published when the module stops has so many seconds.
STOP_S: Final = 5.0


def _bus(url: str, sender: str | None, secrets: Mapping[str, Secret | None], options: Mapping[str, Any]) -> Bus:
    known: dict[str, Any] = {name: secret for name, secret in secrets.items() if secret is not None}
    return Bus(url, sender=sender, **known, **options)


class BusPublish(Module):
    """Publish each event's data on a channel of a bus.

    An event is delivered when the transport has accepted it. A message that JSON cannot say fails; so does everything
    while the transport is away: give the module a `retry` to wait for it.

    Args:
        url: Of the transport: `tcp://127.0.0.1:5555`, `ipc:///run/my.ipc`, `memory://name`, `nats://127.0.0.1:4222`.
        channel: Where to publish.
        channel_from: Or a dotted path to the channel, or to a list of channels, such as `data.room`.
        sender: The name that subscribers see. Unset: host and process.
        password: For NATS.
        token: For NATS.
        secret_key: For CURVE, with the others in `options` (`server_key`, `public_key`).
        options: More options of the transport.
    """

    def __init__(
        self,
        *,
        url: str,
        channel: str | None = None,
        channel_from: str | None = None,
        sender: str | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        secret_key: Secret | None = None,
        options: dict[str, Any] | None = None,
    ):
        if (channel is None) == (channel_from is None):
            raise ValueError("give `channel` or `channel_from`, and not both")
        if channel is not None:
            channel_names(channel)
        self._channel = channel
        self._path = channel_from
        secrets = {"password": password, "token": token, "secret_key": secret_key}
        self._made: Callable[[], Bus] = lambda: _bus(url, sender, secrets, options or {})
        self._made()  # what is wrong with the URL is said when the flow is checked
        self._bus: Bus | None = None
        self._reason = "not started"
        self._opening = asyncio.Lock()

    async def start(self, context: Context) -> None:
        self._bus = await self._made().open()

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        errors: dict[int, BaseException] = {}
        lines: list[tuple[int, str | tuple[str, ...], bytes]] = []
        for index, event in enumerate(events):
            try:
                lines.append((index, self._channels(event), encode_message(event.data)))
            except (TypeError, ValueError, KeyError) as error:
                errors[index] = error
        try:
            bus = await self._opened()
            for place, (index, channels, raw) in enumerate(lines):
                try:
                    bus.append(channels, raw)
                except InputError as error:  # too large
                    errors[index] = error
                if place % 1000 == 999:
                    await bus.room()
            await bus.flush()
        except InputError as error:  # the limit sank while they were in line, and for which is not known from here
            raise BatchFailed(dict.fromkeys(range(len(events)), error)) from error
        except FurculaError as error:
            await self._forget(error)
            raise DeliveryError(str(error)) from error
        if errors:
            raise BatchFailed(errors)
        return events

    def _channels(self, event: Event[Any]) -> str | tuple[str, ...]:
        if self._path is None:
            assert self._channel is not None
            return self._channel
        found = event.get(self._path)
        if not isinstance(found, str | list | tuple) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"{self._path} is no channel, and no list of channels")
        return channel_names(found)

    async def _opened(self) -> Bus:
        async with self._opening:
            if self._bus is None:
                self._bus = await self._made().open()
            return self._bus

    async def _forget(self, error: FurculaError) -> None:
        """The transport has failed for good: the next batch tries a new one."""
        self._reason = str(error)
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close(drain=False)

    def unready(self) -> str | None:
        """Why nothing can be published now, or None."""
        return self._reason if self._bus is None else None

    async def stop(self) -> None:
        if self._bus is not None:
            bus, self._bus, self._reason = self._bus, None, "stopped"
            try:
                async with asyncio.timeout(STOP_S):
                    await bus.flush()
            except (TimeoutError, FurculaError) as error:
                log.warning("what waited to be published is dropped: %s", str(error) or f"not sent within {STOP_S:g} s")
            finally:
                await bus.close(drain=False)


class BusSubscribe(Source):
    """Make an event of each message that others publish on some channels of a bus.

    The subscription is effective when the flow has started. When the flow has no room, reading stops, and `when_slow`
    says what that does to publishers. Headers: `channel`, `sender`.

    Args:
        url: Of the transport: `tcp://127.0.0.1:5555`, `ipc:///run/my.ipc`, `memory://name`, `nats://127.0.0.1:4222`.
        channels: A name, or a list of names, which match exactly. "" means every channel.
        prefix: The names are beginnings.
        replay: Begin with the last so many messages of each channel. 1: the last value.
        when_slow: `block` (publishers wait) or `drop` (losses are counted and logged). Unset: as the transport does.
        password: For NATS.
        token: For NATS.
        secret_key: For CURVE, with the others in `options` (`server_key`, `public_key`).
        options: More options of the transport.
    """

    acknowledges: ClassVar[str] = "none"

    def __init__(
        self,
        *,
        url: str,
        channels: str | list[str] = "",
        prefix: bool = False,
        replay: int = 0,
        when_slow: Loss | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        secret_key: Secret | None = None,
        options: dict[str, Any] | None = None,
    ):
        if channels == []:
            raise ValueError("`channels` is empty; '' means every channel")
        self._asked: dict[str, Any] = {
            "channels": channels,
            "prefix": prefix,
            "replay": replay,
            "when_slow": when_slow,
        }
        secrets = {"password": password, "token": token, "secret_key": secret_key}
        self._made: Callable[[], Bus] = lambda: _bus(url, None, secrets, options or {})
        self._made()
        self._bus: Bus | None = None
        self._subscription: Subscription | None = None
        self._lost_before = 0
        self._reason = "not started"
        self._task: asyncio.Task[None] | None = None

    @property
    def lost(self) -> int:
        """Messages that did not come."""
        return self._lost_before + (self._subscription.lost if self._subscription is not None else 0)

    async def start(self, context: Context) -> None:
        subscription = await self._subscribe()
        self._task = asyncio.ensure_future(self._receive(context, subscription))

    async def _subscribe(self) -> Subscription:
        bus = self._made()
        try:
            await bus.open()
            subscription = await bus.subscribe(**self._asked)
        except BaseException:
            await bus.close(drain=False)
            raise
        self._bus, self._subscription = bus, subscription
        return subscription

    async def _receive(self, context: Context, subscription: Subscription) -> None:
        tried = 0
        while True:
            try:
                await self._admit(context, subscription)
                context.finished()
                return
            except Stopped:
                context.finished()
                return
            except FurculaError as error:
                self._reason = str(error)
                context.log.warning("%s; trying again, less and less often", error)
            await self._hang_up()
            while self._bus is None:
                tried += 1
                await asyncio.sleep(BACK_OFF.delay_s(tried))
                try:
                    subscription = await self._subscribe()
                except FurculaError as error:
                    self._reason = str(error)
            tried = 0
            context.log.info("subscribed again")

    async def _admit(self, context: Context, subscription: Subscription) -> None:
        while True:
            found = await subscription.next_run()
            if found is None:
                return
            channel, run = found
            waits = context.admit(
                [Event(message, {"channel": channel, "sender": run.sender}) for message in run.messages]
            )
            if waits is not None:
                await waits

    async def _hang_up(self) -> None:
        bus, self._bus = self._bus, None
        self._lost_before, self._subscription = self.lost, None
        if bus is not None:
            await bus.close(drain=False)

    def unready(self) -> str | None:
        """Why nothing can come now, or None."""
        return self._reason if self._bus is None else None

    async def cease(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._subscription is not None:
            await self._subscription.close()

    async def stop(self) -> None:
        await self.cease()
        await self._hang_up()
        self._reason = "stopped"
