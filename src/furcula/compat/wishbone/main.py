"""Wishbone: registers modules by name, connects their queues, and runs the flow."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from typing import Any

from furcula.compat.wishbone.module import Module
from furcula.engine.director import Director
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, nearest
from furcula.flow import FlowGraph
from furcula.graph import Place

__all__ = ["Queue", "Registered", "Wishbone"]

#: So many turns may a message make through a cycle; then it fails.
TURNS = 1000


class Queue:
    """One queue of a registered module: `wb.parser.outbox`."""

    def __init__(self, module: Registered, name: str):
        self.module = module
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.module.name}.{self.name}>"


class Registered:
    """A registered module, as `wb.parser`: its queues, and whatever else the object has.

    Attributes:
        name: As registered.
        instance: The object itself.
        places: Its places in the flow.
    """

    def __init__(self, name: str, instance: Module, places: list[Place]):
        self.name = name
        self.instance = instance
        self.places = places

    def __getattr__(self, name: str) -> Any:
        queues = (*self.instance.all_inboxes, *self.instance.all_outboxes)
        if name in queues:
            return Queue(self, name)
        try:
            return getattr(self.instance, name)
        except AttributeError:
            raise AttributeError(
                f"{self.name} has no queue {name!r}{nearest(name, queues) or '; it has ' + ', '.join(queues)}"
            ) from None


class Wishbone:
    """A flow of registered modules.

    Args:
        name: For logs and statistics.
        deadline: Seconds that draining may take when the flow is stopped.

    Attributes:
        flow: The same as a furcula flow, to be checked, drawn and explained.
    """

    def __init__(self, name: str = "wishbone", *, deadline: str | float = "10s"):
        self.flow = FlowGraph(name, ttl=TURNS)
        self._deadline = deadline
        self._modules: dict[str, Registered] = {}
        self._director: Director | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._stop_asked = False

    def registerModule(self, module: tuple[str, str, str], *args: Any, **arguments: Any) -> None:
        """Make a module and give it a name: `registerModule(("package", "ClassName", "name"), **arguments)`.

        Afterwards it is `wb.name`. A class whose first argument is called `name` is given that too.

        Raises:
            ConfigurationError: There is no such package or class, it is no class of ours, or the name is taken.
        """
        package, class_name, name = module
        kind = _found(package, class_name)
        takes = inspect.signature(kind).parameters
        if "name" in takes and "name" not in arguments and next(iter(takes)) == "name":
            args = (name, *args)
        if hasattr(type(self), name) or name in vars(self):
            raise ConfigurationError(f"a module cannot be called {name!r}: that is a name of Wishbone's own")
        try:
            instance = kind(*args, **arguments)
        except TypeError as error:
            raise ConfigurationError(f"{name}: {class_name} cannot be made: {error}") from error
        self._modules[name] = Registered(name, instance, instance.placed(self.flow, name))

    def __getattr__(self, name: str) -> Registered:
        modules = self.__dict__.get("_modules", {})
        try:
            found: Registered = modules[name]
        except KeyError:
            raise AttributeError(f"there is no module {name!r}{nearest(name, modules)}") from None
        return found

    def connect(self, outbox: Queue | str, inbox: Queue | str) -> None:
        """Connect `wb.a.outbox` with `wb.b.inbox` (in text: `"a.outbox"`). One may be connected with several."""
        source, target = self._queue(outbox), self._queue(inbox)
        for place in source.module.places:
            if place.outboxes is None or source.name in (*place.outboxes, "failed"):
                self.flow.connect(f"{place.name}.{source.name}", f"{target.module.places[0].name}.{target.name}")

    def _queue(self, end: Queue | str) -> Queue:
        if isinstance(end, Queue):
            return end
        name, _, queue = str(end).partition(".")
        found = getattr(getattr(self, name), queue) if queue else None
        if not isinstance(found, Queue):
            raise ConfigurationError(f"{end!r} is not a queue: write wb.module.queue")
        return found

    def start(self) -> Statistics:
        """Run until `stop` is called, or all that receives from outside has ended.

        In the main thread SIGINT and SIGTERM stop it too: the first drains within the deadline, a second ends at once.

        Returns:
            The statistics of the run.

        Raises:
            ConfigurationError: All that is wrong with the connections; nothing was started.
            StartFailed: A module could not open what it needs.
            SourceFailed: A `run` raised. What it had sent was settled first.
        """
        if self._director is not None:
            raise RuntimeError("a Wishbone starts once; make a new one to start again")
        director = self._director = Director(self.flow, deadline=self._deadline)
        self._thread = threading.current_thread()

        async def run() -> Statistics:
            self._loop = asyncio.get_running_loop()
            return await director.stop() if self._stop_asked else await director.run(signals=True)

        try:
            return asyncio.run(run())
        finally:
            self._ended.set()

    def stop(self) -> None:
        """Stop: nothing more comes from outside, what is inside drains within the deadline.

        May be repeated, and called from any thread. From another thread than `start`'s it returns when all has ended.
        """
        self._stop_asked = True
        director, loop = self._director, self._loop
        if director is None or loop is None:
            return
        try:
            loop.call_soon_threadsafe(director.request_stop)
        except RuntimeError:  # the loop is closed: it has ended
            return
        if threading.current_thread() is not self._thread:
            self._ended.wait()

    def statistics(self) -> Statistics | None:
        """The figures now; None before the start."""
        return self._director.statistics() if self._director is not None else None


def _found(package: str, class_name: str) -> type[Module]:
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise ConfigurationError(f"{package} cannot be imported: {error}") from error
    kind = getattr(module, class_name, None)
    if kind is None:
        raise ConfigurationError(f"{package} has no {class_name!r}{nearest(class_name, dir(module))}")
    if not (isinstance(kind, type) and issubclass(kind, Module)):
        raise ConfigurationError(
            f"{package}.{class_name} is no module: derive it from Module or IOModule of furcula.compat.wishbone.module"
        )
    return kind
