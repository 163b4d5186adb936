"""Ingress plugins: what delivers an event to one provider, and the module that runs it."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib.metadata
import inspect
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from furcula.broker.profiles import Profile, Redactor
from furcula.engine.threads import Threads
from furcula.errors import DeliveryError
from furcula.event import Event
from furcula.module import Module

__all__ = [
    "ENTRY_POINTS",
    "INSIDE",
    "KINDS",
    "DeliveryFailed",
    "Ingress",
    "IngressContext",
    "Sink",
    "check_ingress",
    "entry_points",
    "providers_of",
]

_log = logging.getLogger("furcula.broker")

#: The group under which an installed package offers ingress plugins: `[project.entry-points."furcula.ingress"]`.
ENTRY_POINTS = "furcula.ingress"

#: Providers that are modules of the library: the kind, and the argument that the routing key is for ("": none).
KINDS: dict[str, tuple[str, str]] = {
    "amqp": ("amqp.publish", "routing_key"),
    "file": ("file.write", ""),
    "jetstream": ("jetstream.publish", "subject"),
    "kafka": ("kafka.produce", "topic"),
    "mqtt": ("mqtt.publish", "topic"),
    "nats": ("nats.publish", "subject"),
    "postgres": ("postgres.notify", "channel"),
    "redis": ("redis.publish", "channel"),
    "redis_list": ("redis.push", "list"),
    "redis_stream": ("redis.append", "stream"),
    "tcp": ("tcp.send", ""),
    "udp": ("udp.send", ""),
    "zmq": ("zmq.publish", "topic"),
}

#: Set in everything that runs inside a Broker: what is logged there is not put on a Broker again.
INSIDE: contextvars.ContextVar[bool] = contextvars.ContextVar("furcula_inside_broker", default=False)


class IngressContext(msgspec.Struct, frozen=True):
    """What a plugin is told of the profile it delivers for.

    Attributes:
        acct: The profile's data.
        profile: The profile's name as configured.
        provider: The provider's name as configured.
    """

    acct: Any
    profile: str
    provider: str


class Ingress(Protocol):
    """An ingress plugin: an object, a class or a Python module with these functions.

    It may have `ACCT`, the list of the provider names it serves (default: the name it was given or found under), and
    hooks `open(ctx)` and `close(ctx)`, each plain or async, called once for each profile. Plain functions run in
    threads, so they may block.
    """

    def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> Any:
        """Deliver one event. Plain or async. It is delivered when this has returned; what it raises is a failure.

        Args:
            body: The body as serialised: bytes or str.
        """


class DeliveryFailed(DeliveryError):
    """A plugin raised, and the message of what it raised had a secret in it, which is struck out here."""


def check_ingress(plugin: Any, name: str) -> str:
    """Why this is no ingress plugin; empty if it is one."""
    publish = getattr(plugin, "publish", None)
    if publish is None:
        return f"the ingress plugin {name} has no function `publish`"
    if not callable(publish):
        return f"the ingress plugin {name} has a `publish` that cannot be called"
    try:
        signature = inspect.signature(publish)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind("ctx", "routing_key", "body")
    except TypeError as error:
        return (
            f"the ingress plugin {name} has `publish{signature}`, which cannot be called as "
            f"publish(ctx, routing_key, body): {error}"
        )
    for hook in ("open", "close"):
        if (found := getattr(plugin, hook, None)) is not None and not callable(found):
            return f"the ingress plugin {name} has an `{hook}` that cannot be called"
    acct = getattr(plugin, "ACCT", None)
    if acct is not None and not (isinstance(acct, list | tuple) and all(isinstance(one, str) for one in acct)):
        return f"the ingress plugin {name} has an ACCT that is no list of provider names"
    return ""


def providers_of(plugin: Any, name: str) -> tuple[str, ...]:
    """The providers that a plugin serves, or would serve if it were one."""
    acct = getattr(plugin, "ACCT", None)
    if isinstance(acct, list | tuple) and acct and all(isinstance(one, str) for one in acct):
        return tuple(acct)
    return (name,)


def entry_points() -> Iterator[tuple[str, Any]]:
    """The plugins that installed packages offer: name, and how to load it."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        yield point.name, point.load


class Sink(Module):
    """Runs a plugin for one profile.

    Args:
        plugin: The plugin.
        profile: The profile.
        redact: Strikes secrets out of what is said.
        raised: Told of what the plugin raised, with the event's number: who hears of the failure wants the exception.
        threads: How many calls of a plain `publish` may run at once.
        left_s: The seconds that closing may take now.
    """

    outboxes: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        plugin: Any,
        profile: Profile,
        redact: Redactor,
        raised: Callable[[int, BaseException], None],
        threads: int = 1,
        left_s: Callable[[], float] = lambda: 10.0,
    ):
        self._plugin = plugin
        self._left_s = left_s
        # Its own: a plugin that hangs must not use up the threads of others.
        self._threads = Threads(threads, f"furcula ingress {profile.title}")
        self.profile = profile
        self._redact = redact
        data = profile.data if isinstance(profile.data, Mapping) else {}
        #: A profile may say where its events go, whatever they were put with.
        self._routing_key = data.get("routing_key")
        self._context = IngressContext(profile.data, profile.name, profile.provider)
        self._opened = not callable(getattr(plugin, "open", None))
        self._opening = asyncio.Lock()
        self._first: asyncio.Task[None] | None = None
        self._waits = inspect.iscoroutinefunction(plugin.publish)
        self._raised = raised

    def start(self) -> None:
        """Open the plugin in the background: one that hangs keeps nobody from starting.

        If that fails it is tried again with the first event.
        """
        if not self._opened:
            self._first = asyncio.get_running_loop().create_task(self._open_first(), name=f"open {self.profile.title}")

    async def _open_first(self) -> None:
        try:
            await self._open()
        except Exception as error:
            _log.error(
                "%s could not be opened, and will be with the next event: %s", self.profile.title, self._told(error)
            )

    async def _open(self) -> None:
        async with self._opening:
            if not self._opened:
                await self._call(self._threads, self._plugin.open, self._context)
                self._opened = True

    async def process(self, event: Event[Any]) -> None:
        headers = event.headers
        routing_key = self._routing_key if self._routing_key is not None else headers["routing_key"]
        try:
            if not self._opened:
                await self._open()
            if self._waits:
                await self._plugin.publish(self._context, routing_key, event.data)
            else:
                await self._call(self._threads, self._plugin.publish, self._context, routing_key, event.data)
            return
        except Exception as error:
            told = self._redacted(error)
            self._raised(headers["number"], told)
            if told is error:
                raise
        # Out here, so that it does not remember the one whose message has a secret in it.
        raise told

    @staticmethod
    async def _call(threads: Threads, function: Any, *arguments: Any) -> None:
        if inspect.iscoroutinefunction(function):
            await function(*arguments)
            return
        # In a thread, with the context: it may block, and what it logs must be known as ours.
        context = contextvars.copy_context()
        call = functools.partial(context.run, function, *arguments)
        answer = await asyncio.get_running_loop().run_in_executor(threads, call)
        if inspect.isawaitable(answer):
            await answer

    def _redacted(self, error: Exception) -> Exception:
        """The error, or one that says the same without a secret: in its text, its notes, and what led to it."""
        text = "".join(traceback.format_exception(error))
        if self._redact(text) == text:
            return error
        failed = DeliveryFailed(f"{type(error).__name__}: {self._redact(str(error))}")
        failed.retryable = bool(getattr(error, "retryable", True))
        return failed

    def _told(self, error: BaseException) -> str:
        return f"{type(error).__name__}: {self._redact(str(error))}"

    async def stop(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.cancel()
            await asyncio.wait([self._first])
        close = getattr(self._plugin, "close", None)
        # In a thread of its own: that of `publish` may hang.
        thread = Threads(1, f"furcula ingress {self.profile.title} closes")
        if close is not None and self._opened:
            try:
                async with asyncio.timeout(self._left_s()):
                    await self._call(thread, close, self._context)
            except Exception as error:
                _log.error("%s could not be closed: %s", self.profile.title, self._told(error))
        thread.shutdown(wait=False)
        self._threads.shutdown(wait=False)
