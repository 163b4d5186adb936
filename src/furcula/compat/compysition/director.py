"""Compysition's Director: registers and connects modules, and runs them in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import signal
import threading
from typing import Any, TypeVar

from furcula.compat.compysition.actor import LOG_LINE, Actor, SourceActor
from furcula.compat.handler import handler
from furcula.engine.director import Director as Engine
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, Stopped
from furcula.event import Event as Carried
from furcula.flow import FlowGraph
from furcula.module import Context, Source
from furcula.options import Options

__all__ = ["Director"]

A = TypeVar("A", bound=Actor)

#: So many turns may an event make through a cycle; then it fails.
TURNS = 1000
#: So many lines wait for a log module that is slow; more are dropped and counted, because a log stalls nobody.
LOG_QUEUE = 1000
#: A flow whose sources have ended drains as long as it needs.
_ENDLESS_S = 10 * 365 * 86400.0


class Director:
    """Registers modules, connects them, runs them.

    An end of a connection is a module as `register_module` returned it, a pair `(module, "queue")`, or a list of those.

    Args:
        name: For logs and statistics.
        deadline: Seconds that draining may take when the flow is stopped.

    Attributes:
        flow: The same as a furcula flow, to be checked, drawn and explained.
    """

    def __init__(self, name: str = "compysition", *, deadline: str | float = "10s"):
        self.flow = FlowGraph(name, ttl=TURNS)
        self._deadline = deadline
        self._actors: dict[str, Actor] = {}
        self._log_actors: list[Actor] = []
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._stop_asked = False

    # ------------------------------------------------------------------ modules

    def register_module(self, kind: type[A], name: str, *args: Any, **kwargs: Any) -> A:
        """Make a module, `kind(name, *args, **kwargs)`, and return it: it is its own handle.

        Raises:
            ConfigurationError: It is no class of ours, or the name is taken.
        """
        if not (isinstance(kind, type) and issubclass(kind, Actor)):
            raise ConfigurationError(f"{kind!r} cannot be registered: derive it from furcula.compat.compysition.Actor")
        actor = kind(name, *args, **kwargs)
        actor.name = name
        options = Options.of(**actor.options)
        if isinstance(actor, SourceActor):
            self.flow.put(actor.source(), name, options=options)
        else:
            self.flow.put(handler(actor, actor.consume), name, options=options)
        self._actors[name] = actor
        return actor

    register_actor = register_module

    def register_error_actor(self, kind: type[A], name: str, *args: Any, **kwargs: Any) -> A:
        """Make a module that gets every event which failed and for which no error queue is connected."""
        actor = self.register_module(kind, name, *args, **kwargs)
        self.flow.dead_letter = name
        return actor

    def register_log_actor(self, kind: type[A], name: str, *args: Any, **kwargs: Any) -> A:
        """Make a module that gets what every other module logs with `self.logger`."""
        actor = self.register_module(kind, name, *args, **kwargs)
        self._log_actors.append(actor)
        return actor

    # ------------------------------------------------------------------ connections

    def connect(self, source: Any, destination: Any) -> None:
        """Connect outboxes with inboxes.

        An outbox without a name is called like the destination, so that `send_event(event, queues=["out"])` finds it.
        """
        for sender, outbox in _ends(source):
            for receiver, inbox in _ends(destination):
                if inbox is not None:
                    receiver.origins[sender.name] = inbox
                # What goes to all outboxes is copied by the engine, so that it stays one event; hence two routes.
                self._route(sender, "outbox", receiver)
                self._route(sender, outbox or receiver.name, receiver)

    connect_queue = connect

    def connect_error(self, source: Any, destination: Any) -> None:
        """Send what fails in the source, or is sent with `send_error`, to the destination."""
        for sender, _ in _ends(source):
            for receiver, inbox in _ends(destination):
                if inbox is not None:
                    receiver.origins[sender.name] = inbox
                self._route(sender, "failed", receiver)

    connect_error_queue = connect_error

    def connect_log_queue(self, source: Any, destination: Any) -> None:
        """Send what the source logs to the destination. A slow destination loses lines, and holds up nobody."""
        for sender, _ in _ends(source):
            for receiver, _ in _ends(destination):
                self._connect_log(sender, receiver)

    def _route(self, sender: Actor, outbox: str, receiver: Actor) -> None:
        known = any(
            r.source == sender.name and r.outbox == outbox and r.target == receiver.name for r in self.flow.routes
        )
        if not known:
            self.flow.connect(f"{sender.name}.{outbox}", receiver.name)

    def _connect_log(self, sender: Actor, receiver: Actor) -> None:
        name = f"{sender.name}/log"
        if name not in self.flow:
            lines = type("Log", (_Lines,), {"subject": sender})
            self.flow.put(lines, name)
        if not any(route.source == name and route.target == receiver.name for route in self.flow.routes):
            self.flow.connect(name, receiver.name, queue=LOG_QUEUE, overflow="drop-newest")

    # ------------------------------------------------------------------ running

    def start(self) -> None:
        """Start everything, in a thread with an event loop of its own. Returns when it runs.

        Raises:
            ConfigurationError: All that is wrong with the connections.
            StartFailed: A module raised in `pre_hook`.
        """
        if self._thread is not None:
            raise RuntimeError("a Director starts once; make a new one to start again")
        for receiver in self._log_actors:
            for sender in self._actors.values():
                if sender not in self._log_actors:
                    self._connect_log(sender, receiver)
        self._engine = Engine(self.flow, deadline=self._deadline)
        running: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon, because a program that does not block() ends when its own work does, as it always did.
        self._thread = threading.Thread(
            target=self._run, args=(self._engine, running), name=f"furcula {self.flow.name}", daemon=True
        )
        self._thread.start()
        running.result()

    def block(self) -> None:
        """Wait until the flow ends. In the main thread Ctrl-C and SIGTERM stop it: it drains; a second ends at once.

        Raises:
            BaseException: What broke the flow, if anything did.
        """
        thread = self._thread
        if thread is None:
            raise RuntimeError("start the Director first")
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous: dict[int, Any] = {}
        try:
            if threading.current_thread() is threading.main_thread():
                previous = {number: signal.signal(number, lambda *_: self._on_signal()) for number in numbers}
            thread.join()
        finally:
            for number, old in previous.items():
                signal.signal(number, old)
        if self._error is not None:
            raise self._error

    def stop(self) -> Statistics | None:
        """Stop: generators cease, what is inside drains within the deadline. Returns when it has ended.

        May be repeated, and called from any thread; from inside the flow it returns at once.
        """
        self._ask("request_stop")
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join()
        return self.statistics()

    def statistics(self) -> Statistics | None:
        """The figures now; None before the start."""
        return self._engine.statistics() if self._engine is not None else None

    def _on_signal(self) -> None:
        self._ask("force" if self._stop_asked else "request_stop")
        self._stop_asked = True

    def _ask(self, method: str) -> None:
        loop, engine = self._loop, self._engine
        if loop is not None and engine is not None:
            try:
                loop.call_soon_threadsafe(lambda: getattr(engine, method)() and None)
            except RuntimeError:  # the loop is closed: it has ended already
                pass

    def _run(self, engine: Engine, running: concurrent.futures.Future[None]) -> None:
        async def run() -> None:
            self._loop = asyncio.get_running_loop()
            await engine.start()
            running.set_result(None)
            await engine.wait()
            await engine.stop(_ENDLESS_S)

        try:
            asyncio.run(run())
        except BaseException as error:
            if running.done():
                self._error = error
            else:
                running.set_exception(error)


class _Lines(Source):
    """What one module logs, as events."""

    subject: Actor

    def start(self, context: Context) -> None:
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def admit(line: dict[str, Any]) -> None:
            event: Carried[Any] = Carried(line)
            event.scratch[LOG_LINE] = True
            try:
                context.admit([event])
            except Stopped:  # logged while the flow ends; Python's logging has it
                pass

        def forward(line: dict[str, Any]) -> None:
            if threading.get_ident() == thread:
                admit(line)
            else:
                try:
                    loop.call_soon_threadsafe(admit, line)
                except RuntimeError:  # the loop is closed
                    pass

        self.subject.logger.forward = forward
        context.finished()  # a flow does not go on for the sake of its log

    def cease(self) -> None:
        self.subject.logger.forward = None


def _ends(end: Any) -> list[tuple[Actor, str | None]]:
    if isinstance(end, Actor):
        return [(end, None)]
    if isinstance(end, tuple) and len(end) == 2 and isinstance(end[1], str):
        return [(actor, end[1]) for actor, _ in _ends(end[0])]
    if isinstance(end, list | tuple):
        return [found for one in end for found in _ends(one)]
    raise ConfigurationError(f"{end!r} is not a registered module, a (module, 'queue') pair, or a list of those")
