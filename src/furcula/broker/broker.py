"""The Broker itself: a Flow with one source, `put`, and a sink for every profile."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import itertools
import logging
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from furcula import errors as furcula_errors
from furcula.broker.ingress import INSIDE, KINDS, Sink
from furcula.broker.internal import InternalQueues
from furcula.broker.offers import Offers, Unusable
from furcula.broker.profiles import Profile, Profiles, Redactor
from furcula.broker.serializers import Serializer
from furcula.broker.serializers import serializer as serializer_named
from furcula.engine.counters import Counters
from furcula.engine.director import Director
from furcula.engine.outcome import Failed, make_failure
from furcula.engine.statistics import Statistics
from furcula.engine.threads import Threads
from furcula.errors import ConfigurationError, FurculaError, QueueFull, Stopped, nearest
from furcula.event import Event, Failure
from furcula.graph import Place
from furcula.module import Context, Source
from furcula.modules.dead_letter import letter_of
from furcula.options import Duration, Options, Retry
from furcula.receipt import origin_of
from furcula.run import Flow
from furcula.store import Store

__all__ = ["Broker", "BrokerStatistics", "SinkStatistics", "Unmatched"]

_log = logging.getLogger("furcula.broker")

#: How a sink is run, unless said otherwise. A full queue fails what comes, so that no sink holds up another.
OPTIONS = Options(queue=1024, overflow="fail", timeout=Duration(30), retry=Retry(attempts=3))
#: Events that may wait for the Broker to start, or for its loop to take them from another thread.
WAITING = 10_000
#: Puts after which the sinks get a turn of the loop.
TURN = 32
#: Seconds that a sink which is nearly full may hold up who puts, each time, or as many turns of the loop as above.
PATIENCE_S = 0.005
#: Seconds that the error callback has, and that closing a plugin may take, unless a stop says less.
CALLBACK_S = 30
CLOSE_S = 10.0
#: Names of the modules that are the Broker's own.
_OWN = frozenset(("put", "route", "dead_letter", "again", "route_again", "given_up", "on_error"))
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
        dead_letter: A store's path, in which is kept what a sink gives up on. `furcula dlq replay` puts it to that sink
            again while the Broker runs. What a stop leaves is kept there too.
        strict: Refuse an event that no profile matches; else it is counted.
        on_error: Called with exception, plugin, profile and body of each event that a sink gives up on; a plain
            function in a thread. It has 30 s and a queue of its own; what it raises is logged. No sink waits for it.
            It is not called for what a stop leaves.
        name: Under which dead letters are kept.

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
        name: str = "broker",
    ):
        self.internal = InternalQueues()
        self.disabled: dict[str, str] = {}
        self._profiles = Profiles(profiles)
        self._redact = Redactor(self._profiles)
        self._serialize = serializer_named(serializer)
        self._strict = strict
        self._on_error = on_error
        self._sinks: dict[int, Place] = {}
        self._by_name: dict[str, Profile] = {}
        #: By sink that makes nobody wait: the places in its queue; and what it had handled when it got nowhere.
        self._places: dict[str, int] = {}
        self._stuck: dict[str, int] = {}
        self._going_on: asyncio.Task[None] | None = None
        self._ends: float | None = None
        self._callback = Threads(1, "furcula broker on_error")
        #: By sink and number of the event, what a plugin raised last.
        self._errors: OrderedDict[tuple[str, int], BaseException] = OrderedDict()
        self._flow = Flow(name)
        self._source = _Puts()
        self._put = self._flow.source(self._source, "put")
        self._build(Offers(ingress, self.internal, aliases or {}), options, sink_options or {}, dead_letter)
        self._numbers = itertools.count(1)
        self._names: dict[str, tuple[str, ...]] = {}
        self._told_unmatched: set[str] = set()
        self._unmatched = 0
        self._director: Director | None = None
        #: Where it is kept what sinks give up on; and once the Broker starts, the hold on it.
        self._dead_letter = dead_letter
        self._store: Store | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Event[Any]]] = deque()
        self._flushing = False
        #: Of those that were handed over, how many there were, and how many were begun with.
        self._handed_over = 0
        self._begun_with = 0
        self._never_begun = 0
        self._since_turn = 0
        self._pressure: asyncio.Future[None] | None = None
        self._stopping: asyncio.Task[BrokerStatistics] | None = None
        self._stopped = False

    # ------------------------------------------------------------------ building

    def _build(
        self,
        offers: Offers,
        options: Options,
        sink_options: Mapping[str, Options | Mapping[str, Any]],
        dead_letter: str | None,
    ) -> None:
        flow = self._flow
        for number, profile in enumerate(self._profiles):
            provider, plugin = offers.of(profile)
            how = sink_options.get(profile.title, sink_options.get(profile.provider, options))
            how = how if isinstance(how, Options) else Options.of(options, **how)
            place = self._sink(profile, provider, plugin, how)
            if place is not None:
                self._sinks[number] = place
                self._by_name[place.name] = profile
                if how.overflow != "block":
                    self._places[place.name] = how.queue if isinstance(how.queue, int) else 1024
        unknown = [name for name in sink_options if not any(name in (p.title, p.provider) for p in self._profiles)]
        if unknown:
            titles = [title for p in self._profiles for title in (p.title, p.provider)]
            raise ConfigurationError(f"sink_options: there is no sink {unknown[0]!r}{nearest(unknown[0], titles)}")
        route = flow.module(self._route, "route", outboxes=[place.name for place in self._sinks.values()])
        self._put >> route
        # Where an event ends that a sink gives up on. The callback hears of a copy, and holds up nobody.
        if dead_letter is not None:
            given_up = flow.use("dead_letter.write", "dead_letter", store=dead_letter)
            again = flow.module(self._route_again, "route_again", outboxes=route.outboxes)
            flow.use("dead_letter.replay", "again", store=dead_letter) >> again
        else:
            given_up = flow.use("null", "given_up")
        self._given_up = given_up.name
        told = None if self._on_error is None else flow.module(self._failed, "on_error", timeout=CALLBACK_S)
        for place in self._sinks.values():
            self._put[place.name] >> place
            route[place.name] >> place
            if dead_letter is not None:
                again[place.name] >> place
            place.failed >> given_up
            if told is not None:
                flow.connect(place.failed, told, branch="best-effort", queue=WAITING)
        if not self._sinks:
            route >> given_up
            if dead_letter is not None:
                again >> given_up

    def _name(self, profile: Profile) -> str:
        """The name of a profile's module: as it is, but for signs that a name cannot have."""
        plain = re.sub(r"[^A-Za-z0-9_/-]+", "_", profile.title).strip("_/") or "sink"
        name, number = plain, 1
        while name in self._by_name or name in _OWN:
            number += 1
            name = f"{plain}-{number}"
        return name

    def _sink(self, profile: Profile, provider: str, plugin: Any, options: Options) -> Place | None:
        name = self._name(profile)
        if isinstance(plugin, Unusable):
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
                left_s=self._left_s,
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
        director = self._director = self._made_director()
        # All that runs in the Broker's flow runs in this context, and so do its plugins' and their libraries' tasks:
        # what they log is not put on the Broker again.
        token = INSIDE.set(True)
        try:
            await director.start()
        finally:
            INSIDE.reset(token)
        self._thread = threading.get_ident()
        with self._lock:
            self._loop = asyncio.get_running_loop()
            self._flushing = True
        self._flush()

    async def join(self) -> None:
        """Wait until everything that was put so far is delivered or given up on, and not for what is put meanwhile.

        (Of a sink with `order: none`, so many events are waited for as it had, whichever they are.)
        """
        handed_over = self._handed_over
        await self._until(lambda: self._begun_with >= handed_over)
        director = self._director
        if director is None:
            return
        # The sinks, then where that goes which they give up on.
        for names in (list(self._by_name), [self._given_up]):
            counters = [director.modules[name].counters for name in names]
            received = [one.received for one in counters]
            await self._until(functools.partial(_have_handled, counters, received))

    async def _until(self, holds: Callable[[], bool]) -> None:
        pause = 0.0
        while not holds():
            if self._director is not None and self._director.phase == "stopped":
                return
            await asyncio.sleep(pause)
            pause = min(pause + 0.0005, 0.02)

    def _left_s(self) -> float:
        """What is left of the time that a stop may take."""
        return CLOSE_S if self._ends is None else max(0.1, self._ends - time.monotonic())

    async def stop(self, drain: bool = True, timeout: str | float = "10s") -> BrokerStatistics:
        """Take nothing more; deliver what was put; close the sinks. May be called again; each call gets the figures.

        Args:
            drain: Deliver what waits; else it is given up at once.
            timeout: Seconds that this may take. What is left then is given up.

        What is given up here is counted, named in the log, and with `dead_letter` kept: a letter for each sink that
        had it in hand or in its queue, to be put to it again by `furcula dlq replay` when a Broker runs.
        """
        if self._stopping is None:
            with self._lock:
                self._stopped = True
            self._stopping = asyncio.get_running_loop().create_task(self._stop(drain, float(Duration(timeout))))
        return await asyncio.shield(self._stopping)

    async def _stop(self, drain: bool, limit_s: float) -> BrokerStatistics:
        if self._director is None:  # it never ran
            if self._waiting and drain:
                await self.start()
            else:
                self._director = self._made_director()
        director = self._director
        assert director is not None
        self._ends = time.monotonic() + (limit_s if drain else 0)
        if director.phase == "running":
            await self._until(lambda: not self._waiting or time.monotonic() >= (self._ends or 0))
        with self._lock:
            never_begun = list(self._waiting)
            self._waiting.clear()
            self._never_begun = len(never_begun)
        if never_begun:
            _log.error("the broker stops with %d event(s) that it had not begun with", len(never_begun))
            await self._keep([copy for port, event in never_begun for copy in self._for_each_sink(port, event)])
        await director.stop(self._left_s() if drain else 0)
        self._callback.shutdown(wait=False)
        self.internal.shut()
        return self.statistics()

    def _made_director(self) -> Director:
        if self._dead_letter is None:
            return Director(self._flow)
        self._store = Store(self._dead_letter)
        return Director(self._flow, abandoned=self._keep_abandoned)

    async def _keep_abandoned(self, left: list[tuple[Event[Any], Failure]]) -> None:
        """Keep what the sinks still held at the deadline, and what they had given up on and was not yet a letter."""
        assert self._director is not None
        written = {id(event) for event in self._director.modules[self._given_up].instance.in_hand}
        kept = []
        for event, failure in left:
            origin = origin_of(event.carrier())
            if origin is not None and origin.name == "again":
                continue  # it is a letter still
            if failure.module in self._by_name:
                event.failures = (*event.failures, failure)
                kept.append(event)
            elif failure.module == self._given_up and id(event) not in written:
                kept.append(event)
        kept.sort(key=lambda event: event.headers["number"])  # as they were put: what is in hand is told last
        await self._keep(kept)

    @staticmethod
    def _for_each_sink(port: str, event: Event[Any]) -> Iterator[Event[Any]]:
        """For each sink its own copy of an event that was never begun with."""
        for name in event.headers.pop("sinks", (port,)):
            copy = event.duplicate(None)
            error = Stopped(f"the broker stopped before {name} was given it")
            copy.failures = (make_failure(name, Failed(error, attempts=0)),)
            yield copy

    async def _keep(self, events: list[Event[Any]]) -> None:
        """Make dead letters of these, if there is a store for them."""
        if self._store is None or not events:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                letters = [letter_of(event, flow=self._flow.name, now=time.time()) for event in events]
                await self._store.open()
                try:
                    await self._store.bury(letters)
                finally:
                    await self._store.close()
        except (FurculaError, TimeoutError) as error:
            _log.error("%d event(s) are not kept as dead letters: %s", len(events), error or "the store is too slow")
        else:
            _log.warning("%d event(s) are kept as dead letters in %s", len(events), self._store.path)

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
            flow.origins["put"].admitted + len(self._waiting) + self._never_begun,
            self._unmatched,
            sinks,
            dict(self.disabled),
            flow,
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
        elsewhere = threading.get_ident() != self._thread
        if self._loop is None or self._waiting or elsewhere:
            number = self._wait(*found)
            if self._loop is not None:
                while self._begun_with < number and not self._stopped:  # noqa: ASYNC110 -- the Broker has its own loop
                    await asyncio.sleep(0.001 if elsewhere else 0)
            return
        if self._pressure is not None:
            await asyncio.shield(self._pressure)
        wait = self._admit(*found)
        if wait is not None:
            await wait
        self._since_turn += 1
        if self._since_turn >= TURN:  # who puts in a loop that never waits would fill the queues of the quickest sinks
            self._since_turn = 0
            await self._give_turns()

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

    def _wait(self, port: str, event: Event[Any]) -> int:
        """Hand an event over to the Broker's loop, or keep it until there is one. Returns its number among those."""
        with self._lock:
            if self._stopped:
                raise Stopped("the broker has stopped")
            if len(self._waiting) >= WAITING:
                raise QueueFull(f"{WAITING} events wait for the broker")
            self._waiting.append((port, event))
            self._handed_over += 1
            number = self._handed_over
            if self._loop is None or self._flushing:
                return number
            self._flushing = True
        self._loop.call_soon_threadsafe(self._flush)
        return number

    def _flush(self) -> None:
        """Admit what was handed over, as long as there is room; the sinks get a turn of the loop now and then."""
        for _ in range(TURN):
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
            self._begun_with += 1
        assert self._loop is not None
        self._going_on = self._loop.create_task(self._flush_on())

    async def _flush_on(self) -> None:
        await self._give_turns()
        self._flush()

    async def _give_turns(self) -> None:
        """Let the sinks work off what they have, as long as that helps those that are nearly full, and not for long.

        A sink that gets nowhere meanwhile is not waited for again before it does.
        """
        await asyncio.sleep(0)
        director = self._director
        if director is None:
            return
        crowded = self._crowded(director)
        if not crowded:
            return
        ends = time.monotonic() + PATIENCE_S
        turns = 0
        # By turns too: where the machine is busy, the time may pass without a single one.
        while self._crowded(director) and (turns < TURN or time.monotonic() < ends):
            await asyncio.sleep(0)
            turns += 1
        for name, handled in crowded.items():
            counters = director.modules[name].counters
            if counters.received - counters.held == handled:
                self._stuck[name] = handled

    def _crowded(self, director: Director) -> dict[str, int]:
        """The sinks that have hardly any room and may soon have some, each with how many events it has handled."""
        found = {}
        for name, places in self._places.items():
            counters = director.modules[name].counters
            if counters.held > places - 2 * TURN and self._stuck.get(name) != counters.received - counters.held:
                found[name] = counters.received - counters.held
        return found

    @staticmethod
    def _route(event: Event[Any]) -> Any:
        names = event.headers.pop("sinks")
        for name in names:
            yield event.to(name)

    @staticmethod
    def _route_again(event: Event[Any]) -> Event[Any]:
        """A dead letter, to the sink that gave up on it."""
        return event.to(event.failures[-1].module)

    # ------------------------------------------------------------------ failures

    def _raised(self, sink: str, number: int, error: BaseException) -> None:
        self._errors[sink, number] = error
        if len(self._errors) > REMEMBERED:
            self._errors.popitem(last=False)

    async def _failed(self, event: Event[Any]) -> None:
        """Tell the callback of an event that a sink has given up on."""
        failure = event.failures[-1]
        error = self._errors.pop((failure.module, event.headers["number"]), None)
        profile = self._by_name[failure.module]
        if error is None or type(error).__name__ != failure.type:
            error = _rebuilt(failure)
        on_error = self._on_error
        assert on_error is not None
        arguments = (error, profile.provider, profile.name, event.data)
        try:
            if inspect.iscoroutinefunction(on_error):
                await on_error(*arguments)
                return
            call = functools.partial(contextvars.copy_context().run, on_error, *arguments)
            answer = await asyncio.get_running_loop().run_in_executor(self._callback, call)
            if inspect.isawaitable(answer):
                await answer
        except (Exception, SystemExit):
            _log.exception("the broker's on_error raised on a failure of %s", profile.title)


def _have_handled(counters: list[Counters], received: list[int]) -> bool:
    return all(one.received - one.held >= count for one, count in zip(counters, received, strict=True))


class _Puts(Source):
    """Where what was put is admitted."""

    outboxes: ClassVar[tuple[str, ...] | None] = None

    context: Context

    def start(self, context: Context) -> None:
        self.context = context


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
