"""evbus' hub over a `furcula.Broker`.

The Broker is made when `init.start` is told the profiles; what was put before that waits here, serialised already.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from furcula.broker import Broker, BrokerStatistics, InternalQueues, profiles_of_file
from furcula.broker.serializers import serializer
from furcula.errors import FurculaError, QueueFull, Stopped

__all__ = ["Hub", "attach"]

_log = logging.getLogger("furcula.broker")

#: Events that may wait for `init.start`.
WAITING = 10_000


class Hub:
    """A hub that has `evbus`, `ingress` and `serialize`.

    Args:
        ingress: Plugins: objects or modules with `publish(hub, ctx, routing_key, body)`, with or without `hub`, and
            `ACCT`, the list of the providers they serve.
        settings: Further settings of the `Broker`: `on_error`, `strict`, `options`, `dead_letter`, ...
    """

    evbus: Any
    ingress: Any
    serialize: Any

    def __init__(self, ingress: Iterable[Any] = (), **settings: Any):
        attach(self, ingress, **settings)


def attach(hub: Any, ingress: Iterable[Any] = (), **settings: Any) -> Any:
    """Give an existing object `evbus`, `ingress` and `serialize`. Returns it. See `Hub`."""
    bus = _Bus(hub, settings)
    for plugin in ingress:
        bus.add(plugin)
    hub.serialize = SimpleNamespace(PLUGIN="json")
    hub.ingress = SimpleNamespace(internal=bus.internal, add=bus.add)
    hub.evbus = SimpleNamespace(
        broker=SimpleNamespace(put=bus.put, put_nowait=bus.put_nowait),
        init=SimpleNamespace(start=bus.start, join=bus.join, stop=bus.stop),
    )
    return hub


class _Bus:
    """What stands behind the hub."""

    def __init__(self, hub: Any, settings: dict[str, Any]):
        self.internal = InternalQueues()
        self._hub = hub
        self._settings = settings
        self._plugins: dict[str, Any] = {}
        self._broker: Broker | None = None
        self._waiting: deque[tuple[str, Any, str]] = deque()
        self._lock = threading.Lock()
        self._started: asyncio.Event | None = None
        self._starting = False
        self._stopped = False

    def add(self, plugin: Any, name: str | None = None) -> None:
        """Add an ingress plugin. Before `init.start`."""
        name = name or str(getattr(plugin, "__name__", type(plugin).__name__)).rpartition(".")[2]
        self._plugins[name] = _with_hub(plugin, self._hub)

    # ------------------------------------------------------------------ putting

    async def put(self, routing_key: str, body: Any, profile: str = "default") -> None:
        """Put an event. The body is serialised at once."""
        raw = self._serialized(body)
        if not self._kept(routing_key, raw, profile):
            assert self._broker is not None
            await self._broker.put(routing_key, raw, profile)

    def put_nowait(self, routing_key: str, body: Any, profile: str = "default") -> None:
        """As `put`, without waiting: before a loop runs, and from any thread."""
        raw = self._serialized(body)
        if not self._kept(routing_key, raw, profile):
            assert self._broker is not None
            self._broker.put_nowait(routing_key, raw, profile)

    def _serialized(self, body: Any) -> Any:
        plugin = self._hub.serialize.PLUGIN
        return serializer(getattr(plugin, "apply", plugin))(body)

    def _kept(self, routing_key: str, raw: Any, profile: str) -> bool:
        """Was it kept for a broker that is still to come?"""
        with self._lock:
            if self._stopped:
                raise Stopped("the event bus has stopped")
            if self._broker is not None:
                return False
            if len(self._waiting) >= WAITING:
                raise QueueFull(f"{WAITING} events wait for init.start")
            self._waiting.append((routing_key, raw, profile))
            return True

    # ------------------------------------------------------------------ life

    async def start(self, contexts: Mapping[str, Any] | str | Path) -> None:
        """Start delivering. Returns when it has begun.

        Args:
            contexts: The profiles, `{provider: {profile_name: data}}`, or the path of a YAML file with them.
        """
        if self._starting or self._stopped:
            raise RuntimeError("the event bus is started once")
        self._starting = True
        try:
            profiles = contexts if isinstance(contexts, Mapping) else profiles_of_file(contexts)
            plugins = {"internal": self.internal, **self._plugins}
            broker = Broker(profiles, ingress=plugins, serializer=_as_it_is, **self._settings)
            await broker.start()
        except BaseException:
            self._starting = False  # with other profiles it may be tried again; what was put still waits
            raise
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
            for routing_key, raw, profile in waiting:
                try:
                    broker.put_nowait(routing_key, raw, profile)
                except FurculaError as error:
                    _log.error("an event that was put before the start is refused: %s", error)
            self._broker = broker
        self._begun().set()

    def _begun(self) -> asyncio.Event:
        if self._started is None:
            self._started = asyncio.Event()
        return self._started

    async def join(self) -> None:
        """Wait until the bus has started, and all that was put so far is delivered or given up on."""
        await self._begun().wait()
        if self._broker is not None:
            await self._broker.join()

    async def stop(self, drain: bool = True, timeout: str | float = "10s") -> BrokerStatistics | None:
        """Take nothing more, deliver what was put, and end. May be called again. See `Broker.stop`."""
        with self._lock:
            self._stopped = True
        self._begun().set()
        if self._broker is None and self._waiting:
            _log.error("the event bus stops before it was started; %d event(s) are lost", len(self._waiting))
        statistics = None if self._broker is None else await self._broker.stop(drain, timeout)
        self.internal.shut()
        return statistics


def _as_it_is(raw: Any) -> Any:
    return raw


def _with_hub(plugin: Any, hub: Any) -> Any:
    """The plugin with `hub` bound where its functions take one."""
    publish = getattr(plugin, "publish", None)
    if not callable(publish):
        return plugin  # the Broker says what is wrong with it
    bound = SimpleNamespace(publish=_bound(publish, hub, 4))
    for name in ("open", "close"):
        hook = getattr(plugin, name, None)
        if callable(hook):
            setattr(bound, name, _bound(hook, hub, 2))
    acct = getattr(plugin, "ACCT", None)
    if acct is not None:
        bound.ACCT = acct
    return bound


def _bound(function: Callable[..., Any], hub: Any, count: int) -> Callable[..., Any]:
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return function
    if inspect.iscoroutinefunction(function):

        async def wait(*arguments: Any) -> Any:
            return await function(hub, *arguments)

        return wait

    def call(*arguments: Any) -> Any:
        return function(hub, *arguments)

    return call
