"""The Broker itself: a Flow with one source, `put`, and a sink for every profile."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

import msgspec

from furcula import errors as furcula_errors
from furcula.broker.ingress import KINDS, Sink, check_ingress, entry_points, providers_of
from furcula.broker.internal import InternalQueues
from furcula.broker.profiles import Profile, Profiles, Redactor
from furcula.broker.serializers import Serializer
from furcula.broker.serializers import serializer as serializer_named
from furcula.engine.director import Director
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, FurculaError, QueueFull, Stopped, nearest
from furcula.event import Event, Failure
from furcula.graph import Place
from furcula.module import Context, Source
from furcula.options import Duration, Options, Retry
from furcula.run import Flow

__all__ = ["Broker", "BrokerStatistics", "SinkStatistics", "Unmatched"]

_log = logging.getLogger("furcula.broker")

#: How a sink is run, unless said otherwise. A full queue fails what comes, so that no sink holds up another.
OPTIONS = Options(queue=1024, overflow="fail", timeout=Duration(30), retry=Retry(attempts=3))
#: Events that may wait for the Broker to start, or for its loop to take them from another thread.
WAITING = 10_000
#: Puts after which the sinks get a turn of the loop.
TURN = 32
#: Exceptions remembered until the error callback has been called.
REMEMBERED = 1000

#: Told of each event that a sink has given up on: `on_error(exception, plugin, profile, body)`. Plain or async.
OnError = Callable[[BaseException, str, str, Any], Any]


class Unmatched(FurculaError):
    """A strict Broker was given an event for which no profile is configured."""


class SinkStatistics(msgspec.Struct, frozen=True):
    """What one sink did: events delivered, given up on, and dropped because its queue was full; and waiting now."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    retried: int = 0
    waiting: int = 0


class BrokerStatistics(msgspec.Struct, frozen=True):
    """The figures of a Broker, at one moment.

    Attributes:
        put: Events that were taken.
        unmatched: Events for which no sink is configured. They are not among those taken.
        sinks: By `provider/profile`.
        disabled: By `provider/profile`, why it delivers nothing.
        flow: The figures of the flow underneath.
    """

    put: int
    unmatched: int
    sinks: dict[str, SinkStatistics]
    disabled: dict[str, str]
    flow: Statistics


class Broker:
    """Takes events from anywhere, and delivers each to every sink whose profile matches.

    `put` and `put_nowait` may be called before `start`, and `put_nowait` from any thread: what waits then is delivered
    once the Broker runs. Each sink has its own queue, retries and time limit, so one that fails or hangs leaves the
    others at full speed. A body is serialised when it is put: a later change to it is not seen, and what cannot be
    serialised raises there.

    Args:
        profiles: `{provider: {profile_name: data}}`; see `profiles_of_file` and `profiles_of_environment`.
        ingress: Plugins (see `Ingress`): by name, or a list of objects and Python modules. Providers not among them are
            looked for among the entry points `furcula.ingress` and the library's own sinks (amqp, kafka, nats, ...).
        serializer: `json`, `msgpack`, `str`, or a function that makes bytes or text of a body.
        aliases: Further names of providers: `{"rabbit": "amqp"}`.
        options: How every sink is run.
        sink_options: How single ones are run, by `provider/profile` or provider: Options, or a dict of them that
            changes the common ones.
        dead_letter: A store's path, in which is kept what a sink gives up on (see `furcula dlq`).
        strict: Refuse an event that no profile matches; else it is counted.
        on_error: Called with exception, plugin, profile and body of each event that a sink gives up on. What it raises
            is logged.

    Attributes:
        internal: The queues of the provider `internal`.
        disabled: By `provider/profile`, why it delivers nothing: a plugin that is none, or arguments that are wrong.

    Raises:
        ConfigurationError: Profiles of the wrong form, or of a provider that nobody offers.
    """

    def __init__(
        self,
        profiles: Mapping[str, Any],
        *,
        ingress: Mapping[str, Any] | Iterable[Any] = (),
        serializer: str | Serializer = "json",
        aliases: Mapping[str, str] | None = None,
        options: Options = OPTIONS,
        sink_options: Mapping[str, Options | Mapping[str, Any]] | None = None,
        dead_letter: str | None = None,
        strict: bool = False,
        on_error: OnError | None = None,
    ):
        self.internal = InternalQueues()
        self.disabled: dict[str, str] = {}
        self._profiles = Profiles(profiles)
        self._redact = Redactor(self._profiles)
        self._serialize = serializer_named(serializer)
        self._strict = strict
        self._on_error = on_error
        self._sinks: dict[int, Place] = {}
        #: By sink and number of the event, what a plugin raised last.
        self._errors: OrderedDict[tuple[str, int], BaseException] = OrderedDict()
        self._flow = Flow("broker")
        self._source = _Puts()
        self._put = self._flow.source(self._source, "put")
        self._build(_named(ingress), aliases or {}, options, sink_options or {}, dead_letter)
        self._numbers = itertools.count(1)
        self._names: dict[str, tuple[str, ...]] = {}
        self._told_unmatched: set[str] = set()
        self._unmatched = 0
        self._director: Director | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Event[Any]]] = deque()
        self._flushing = False
        self._since_turn = 0
        self._pressure: asyncio.Future[None] | None = None
        self._stopping: asyncio.Task[BrokerStatistics] | None = None
        self._stopped = False

    # ------------------------------------------------------------------ building

    def _build(
        self,
        plugins: dict[str, Any],
        aliases: Mapping[str, str],
        options: Options,
        sink_options: Mapping[str, Options | Mapping[str, Any]],
        dead_letter: str | None,
    ) -> None:
        flow = self._flow
        offered = self._offered(plugins)
        points: dict[str, Callable[[], Any]] | None = None
        for number, profile in enumerate(self._profiles):
            provider = aliases.get(profile.provider, profile.provider)
            plugin = offered.get(provider)
            if plugin is None and provider not in KINDS:
                points = dict(entry_points()) if points is None else points
                if provider not in points:
                    known = {*offered, *KINDS, *points, *aliases}
                    raise ConfigurationError(
                        f"profiles: nobody offers the provider {profile.provider!r}{nearest(profile.provider, known)}"
                    )
                plugin = offered[provider] = _loaded(provider, points[provider])
            how = sink_options.get(profile.title, sink_options.get(profile.provider, options))
            how = how if isinstance(how, Options) else Options.of(options, **how)
            place = self._sink(number, profile, provider, plugin, how)
            if place is not None:
                self._sinks[number] = place
        unknown = [name for name in sink_options if not any(name in (p.title, p.provider) for p in self._profiles)]
        if unknown:
            titles = [title for p in self._profiles for title in (p.title, p.provider)]
            raise ConfigurationError(f"sink_options: there is no sink {unknown[0]!r}{nearest(unknown[0], titles)}")
        route = flow.module(self._route, "route", outboxes=[place.name for place in self._sinks.values()])
        self._put >> route
        failures = None
        if self._on_error is not None or dead_letter is not None:
            failures = flow.module(self._failed, "failures")
            if dead_letter is not None:
                failures >> flow.use("dead_letter.write", "dead_letter", store=dead_letter)
        for place in self._sinks.values():
            self._put[place.name] >> place
            route[place.name] >> place
            if failures is not None:
                place.failed >> failures
        if not self._sinks:
            route >> flow.module(lambda event: None, "nothing")

    def _offered(self, plugins: dict[str, Any]) -> dict[str, Any]:
        """The plugins by provider; one that is none by its reason."""
        offered: dict[str, Any] = {"internal": self.internal}
        for name, plugin in plugins.items():
            reason = check_ingress(plugin, name)
            if reason:
                _log.error("%s; it is disabled", reason)
            try:
                providers = providers_of(plugin, name) if not reason else (name,)
            except TypeError:
                providers = (name,)
            for provider in providers:
                offered[provider] = _Unusable(reason) if reason else plugin
        return offered

    def _sink(self, number: int, profile: Profile, provider: str, plugin: Any, options: Options) -> Place | None:
        name = f"sink{number}"
        if isinstance(plugin, _Unusable):
            self.disabled[profile.title] = plugin.reason
            return None
        if plugin is not None:
            return self._flow.use(
                Sink,
                name,
                options=options,
                plugin=plugin,
                profile=profile,
                redact=self._redact,
                raised=functools.partial(self._raised, name),
                threads=options.concurrency,
            )
        kind, destination = KINDS[provider]
        try:
            arguments = dict(profile.data)
            if destination and destination not in arguments:
                arguments[f"{destination}_from"] = "headers.routing_key"
            return self._flow.use(
                kind, name, options=_for_kind(options), **_with_codec(kind, arguments, self._serialize)
            )
        except (ConfigurationError, TypeError, ValueError) as error:
            self.disabled[profile.title] = self._redact(str(error))
            _log.error("%s is disabled: %s", profile.title, self.disabled[profile.title])
            return None

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Broker:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the sinks, then deliver what was put so far.

        Raises:
            StartFailed: A sink of the library cannot start. (A plugin that cannot be opened is tried again later.)
        """
        if self._director is not None:
            raise RuntimeError("a Broker is started once")
        director = self._director = Director(self._flow)
        await director.start()
        self._thread = threading.get_ident()
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._flushing = True
        self._flush()

    async def join(self) -> None:
        """Wait until everything that was put so far is delivered or given up on."""
        pause = 0.0
        while self._waiting or (self._director is not None and self._director.statistics().open):
            await asyncio.sleep(pause)
            pause = min(pause + 0.0005, 0.02)
            if self._director is None or self._director.phase in ("assembled", "stopped"):
                return

    async def stop(self, drain: bool = True, timeout: str | float = "10s") -> BrokerStatistics:
        """Take nothing more; deliver what was put; close the sinks. May be called again; each call gets the figures.

        Args:
            drain: Deliver what waits; else it is given up at once, and counted.
            timeout: Seconds that this may take. What is left then is given up, counted and named in the log.
        """
        if self._stopping is None:
            with self._lock:
                self._stopped = True
            self._stopping = asyncio.get_running_loop().create_task(self._stop(drain, float(Duration(timeout))))
        return await asyncio.shield(self._stopping)

    async def _stop(self, drain: bool, limit_s: float) -> BrokerStatistics:
        director = self._director
        if director is None:  # it never ran
            director = self._director = Director(self._flow)
            if self._waiting and drain:
                await director.start()
                self._loop = asyncio.get_running_loop()
        ends = asyncio.get_running_loop().time() + limit_s
        if director.phase == "running":
            try:
                async with asyncio.timeout(limit_s if drain else 0):
                    while self._waiting:
                        self._flush()
                        await asyncio.sleep(0)
            except TimeoutError:
                pass
        if self._waiting:
            _log.error("the broker stops with %d event(s) that it had not begun with", len(self._waiting))
        left_s = max(0.0, ends - asyncio.get_running_loop().time())
        await director.stop(left_s if drain else 0)
        self.internal.shut()
        return self.statistics()

    def statistics(self) -> BrokerStatistics:
        """The figures now."""
        director = self._director or Director(self._flow)
        flow = director.statistics()
        sinks = {}
        for number, profile in enumerate(self._profiles):
            place = self._sinks.get(number)
            if place is not None:
                figures = flow.modules[place.name]
                sinks[profile.title] = SinkStatistics(
                    figures.delivered, figures.failed, figures.dropped, figures.retried, figures.held
                )
        return BrokerStatistics(
            flow.origins["put"].admitted + len(self._waiting), self._unmatched, sinks, dict(self.disabled), flow
        )

    # ------------------------------------------------------------------ putting

    async def put(self, routing_key: str, body: Any, profile: str = "default") -> None:
        """Put an event. Returns when the queues of its sinks have taken it, which with `overflow: block` may take time.

        Raises:
            InputError: The body cannot be serialised.
            Unmatched: The Broker is strict, and no profile matches.
            Stopped: The Broker has stopped.
            QueueFull: The Broker does not run yet, and too many events wait for it.
        """
        found = self._event(routing_key, body, profile)
        if found is None:
            return
        if self._loop is None or self._waiting:
            self._wait(*found)
            if self._loop is not None:
                await self._taken()
            return
        if self._pressure is not None:
            await asyncio.shield(self._pressure)
        wait = self._admit(*found)
        if wait is not None:
            await wait
        self._since_turn += 1
        if self._since_turn >= TURN:  # who puts in a loop that never waits would fill the queues of the quickest sinks
            self._since_turn = 0
            await asyncio.sleep(0)

    async def _taken(self) -> None:
        """Wait until the Broker has begun with everything that was handed over so far."""
        while self._waiting and not self._stopped:  # noqa: ASYNC110 -- it is taken in the next turns of the loop
            await asyncio.sleep(0)

    def put_nowait(self, routing_key: str, body: Any, profile: str = "default") -> None:
        """Put an event without waiting. May be called before the Broker runs, and from any thread.

        Raises:
            InputError: The body cannot be serialised.
            Unmatched: The Broker is strict, and no profile matches.
            Stopped: The Broker has stopped.
            QueueFull: Too many events wait.
        """
        found = self._event(routing_key, body, profile)
        if found is not None:
            self._put_event(*found)

    def put_log(self, routing_key: str, body: Any, profile: str = "default") -> None:
        """As `put_nowait`, for a record of the log: what plugins log while they deliver it is told apart."""
        found = self._event(routing_key, body, profile)
        if found is not None:
            found[1].headers["log"] = True
            self._put_event(*found)

    def _put_event(self, port: str, event: Event[Any]) -> None:
        if self._loop is None or self._waiting or threading.get_ident() != self._thread:
            self._wait(port, event)
            return
        if self._pressure is not None and not self._pressure.done():
            raise QueueFull("a sink of the broker is full")
        self._press(self._admit(port, event))

    def _event(self, routing_key: str, body: Any, profile: str) -> tuple[str, Event[Any]] | None:
        """The event, and the outbox it leaves by; None if it is for nobody."""
        if self._stopped:
            raise Stopped("the broker has stopped")
        if not isinstance(routing_key, str):
            raise TypeError(f"a routing key is a str, not {type(routing_key).__name__}")
        raw = self._serialize(body)
        names = self._names.get(profile)
        if names is None:
            names = tuple(self._sinks[n].name for n in self._profiles.matching(profile) if n in self._sinks)
            if len(self._names) < 10_000:
                self._names[profile] = names
        if not names:
            self._nobody(profile)
            return None
        headers = {"routing_key": routing_key, "profile": profile, "number": next(self._numbers)}
        event = Event(raw, headers)
        if len(names) == 1:
            return names[0], event
        event.headers["sinks"] = names
        return "outbox", event

    def _nobody(self, profile: str) -> None:
        disabled = [title for title in self.disabled if title.endswith(f"/{profile}")]
        why = f" ({', '.join(disabled)} is disabled)" if disabled else ""
        message = f"no profile matches {profile!r}{nearest(profile, [one.name for one in self._profiles])}{why}"
        if self._strict:
            raise Unmatched(message)
        self._unmatched += 1
        if profile not in self._told_unmatched and len(self._told_unmatched) < 100:
            self._told_unmatched.add(profile)
            _log.warning("%s; such events are counted and go nowhere", message)

    def _admit(self, port: str, event: Event[Any]) -> Awaitable[None] | None:
        return self._source.context.admit([event], port)

    def _press(self, wait: Awaitable[None] | None) -> None:
        if wait is not None:
            self._pressure = asyncio.ensure_future(_awaited(wait))

    def _wait(self, port: str, event: Event[Any]) -> None:
        """Hand an event over to the Broker's loop, or keep it until there is one."""
        with self._lock:
            if self._stopped:
                raise Stopped("the broker has stopped")
            if len(self._waiting) >= WAITING:
                raise QueueFull(f"{WAITING} events wait for the broker")
            self._waiting.append((port, event))
            if self._loop is None or self._flushing:
                return
            self._flushing = True
        self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        """Admit what was handed over, as long as there is room."""
        while True:
            if self._pressure is not None and not self._pressure.done():
                self._pressure.add_done_callback(lambda _: self._flush())
                return
            with self._lock:
                if not self._waiting:
                    self._flushing = False
                    return
                port, event = self._waiting.popleft()
            try:
                self._press(self._admit(port, event))
            except Stopped:
                with self._lock:
                    self._waiting.appendleft((port, event))
                    self._flushing = False
                return

    @staticmethod
    def _route(event: Event[Any]) -> Any:
        names = event.headers.pop("sinks")
        for name in names:
            yield event.to(name)

    # ------------------------------------------------------------------ failures

    def _raised(self, sink: str, number: int, error: BaseException) -> None:
        self._errors[sink, number] = error
        if len(self._errors) > REMEMBERED:
            self._errors.popitem(last=False)

    async def _failed(self, event: Event[Any]) -> Event[Any]:
        """Tell the callback of an event that a sink has given up on."""
        failure = event.failures[-1]
        error = self._errors.pop((failure.module, event.headers["number"]), None)
        if self._on_error is None:
            return event
        profile = self._profiles[int(failure.module.removeprefix("sink"))]
        if error is None or type(error).__name__ != failure.type:
            error = _rebuilt(failure)
        try:
            answer = self._on_error(error, profile.provider, profile.name, event.data)
            if inspect.isawaitable(answer):
                await answer
        except Exception:
            _log.exception("the broker's on_error raised on a failure of %s", profile.title)
        return event


class _Puts(Source):
    """Where what was put is admitted."""

    outboxes: ClassVar[tuple[str, ...] | None] = None

    context: Context

    def start(self, context: Context) -> None:
        self.context = context


class _Unusable:
    """Stands for a plugin that is none."""

    def __init__(self, reason: str):
        self.reason = reason


def _named(ingress: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(ingress, Mapping):
        return dict(ingress)
    return {
        str(getattr(plugin, "name", None) or getattr(plugin, "__name__", type(plugin).__name__)).rpartition(".")[
            2
        ]: plugin
        for plugin in ingress
    }


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        plugin = load()
        plugin = plugin() if isinstance(plugin, type) else plugin
        reason = check_ingress(plugin, name)
    except Exception as error:
        reason = f"the ingress plugin {name} cannot be loaded: {type(error).__name__}: {error}"
    if reason:
        _log.error("%s; it is disabled", reason)
        return _Unusable(reason)
    return plugin


def _for_kind(options: Options) -> Options:
    """A module of the library takes whole batches and limits its own time."""
    return msgspec.structs.replace(options, timeout=None)


def _with_codec(kind: str, arguments: dict[str, Any], serialize: Serializer) -> dict[str, Any]:
    """Bodies are serialised already: text stays text, bytes stay bytes."""
    if "codec" not in arguments:
        arguments["codec"] = "binary" if isinstance(serialize(""), bytes) else "text"
    return arguments


def _rebuilt(failure: Failure) -> BaseException:
    """An exception that says what the failure says, where the one that was raised is not at hand."""
    kind = getattr(furcula_errors, failure.type, None)
    if isinstance(kind, type) and issubclass(kind, FurculaError):
        try:
            return kind(failure.message)
        except TypeError:
            pass
    return FurculaError(f"{failure.type}: {failure.message}")


async def _awaited(wait: Awaitable[None]) -> None:
    await wait
