"""The base of Compysition's modules, and the log that each of them has."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, ClassVar, Self

from furcula.compat.compysition.event import Event
from furcula.compat.outgoing import Outgoing, Sent
from furcula.event import Event as Carried
from furcula.module import Context, Source

__all__ = ["Actor", "ActorLog", "SourceActor"]

#: Notes on an event between two modules: who sent it, after how many failures; and that it is a line of a log.
_SENT_BY = "compysition.sent_by"
LOG_LINE = "compysition.log_line"

_handles_log_line: ContextVar[bool] = ContextVar("furcula_compysition_handles_log_line", default=False)


class ActorLog(logging.LoggerAdapter[logging.Logger]):
    """An actor's log: `self.logger.info("text", event=event)`. Goes to Python's logging and a connected log queue."""

    def __init__(self, name: str):
        super().__init__(logging.getLogger(f"furcula.module.{name}"), {})
        self._name = name
        #: Takes what is to become an event; set while the flow runs and a log queue is connected.
        self.forward: Callable[[dict[str, Any]], None] | None = None

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        event = kwargs.pop("event", None)
        ids = {"event_id": event.event_id, "meta_id": event.meta_id} if isinstance(event, Event) else {}
        # What is logged about a line of the log would be logged again, and so for ever.
        if self.forward is not None and not _handles_log_line.get():
            text = str(msg) % args if args else str(msg)
            line = {"level": logging.getLevelName(level), "name": self._name, "message": text, "time": time.time()}
            self.forward({**line, **ids})
        super().log(level, msg, *args, extra=ids, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs


class Actor:
    """Base of modules. Derive from it, and define `consume`, as a plain method or a coroutine.

    `consume` runs on the flow's event loop, one event after the other, so it must not block: one that does says
    `options = {"thread": True}` in its class, or is a coroutine.

    Attributes:
        options: furcula's options for this class: `thread`, `concurrency`, `retry`, `timeout`, `queue` and so on.
        name: As registered.
        logger: See `ActorLog`.
    """

    options: ClassVar[Mapping[str, Any]] = {}

    name: str
    outgoing: Outgoing
    logger: ActorLog
    #: By sender, the name of the inbox through which its events come, where one was given.
    origins: dict[str, str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Here, and not in __init__, so that a class which does not call ours still works.
        self = super().__new__(cls)
        self.name = str(args[0]) if args else cls.__name__.lower()
        self.outgoing = Outgoing()
        self.logger = ActorLog(self.name)
        self.origins = {}
        return self

    def __init__(self, name: str, *args: Any, **kwargs: Any):
        self.name = name

    def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> Any:
        """Handle one event.

        What is sent meanwhile is what became of it; if nothing is, it was dropped on purpose (or, where no outbox is
        connected, delivered). If this raises, the event goes to the error queue.

        Args:
            origin: The inbox by which it came: the name of the module that sent it, unless another was given.
        """
        raise NotImplementedError(f"{type(self).__name__} has no consume")

    def send_event(self, event: Event, queues: str | Iterable[str] | None = None) -> Sent:
        """Send a copy of the event as it is now to all outboxes, or to these only.

        Args:
            queues: Names of outboxes, or of modules that were connected without a name for the outbox.
        """
        sent = Sent()
        names = ("outbox",) if queues is None else (queues,) if isinstance(queues, str) else tuple(queues)
        for name in names:
            sent = self.outgoing.send(self.signed(event), name)
        return sent

    def send_error(self, event: Event) -> Sent:
        """Send a copy of the event as it is now to the error queue: it counts as failed here."""
        return self.outgoing.send(self.signed(event), "failed")

    # ------------------------------------------------------------------ what the flow calls

    def signed(self, event: Event) -> Carried[Any]:
        """A copy to be sent, with a note of who sends it."""
        carried = event.carried()
        carried.scratch[_SENT_BY] = (self.name, len(carried.failures))
        return carried

    def accept(self, carried: Carried[Any], inbox: str) -> Any:
        event = Event.of(carried)
        keywords = {"origin": self._origin(carried)} if _takes_origin(type(self).consume) else {}
        if LOG_LINE not in carried.scratch:
            return self.consume(event, **keywords)
        mark = _handles_log_line.set(True)
        try:
            answer = self.consume(event, **keywords)
        finally:
            _handles_log_line.reset(mark)
        return _quietly(answer) if inspect.isawaitable(answer) else answer

    def _origin(self, carried: Carried[Any]) -> str | None:
        sender: str | None
        sender, failures = carried.scratch.get(_SENT_BY, (None, 0))
        if len(carried.failures) > failures:  # it failed since then, and so comes from where it failed
            sender = carried.failures[-1].module
        return None if sender is None else self.origins.get(sender, sender)

    def opened(self, context: Context) -> None:
        self.outgoing.open(context)
        self.pre_hook()

    def closed(self) -> None:
        self.post_hook()

    def pre_hook(self) -> None:
        """Called when the flow starts, before the first event."""

    def post_hook(self) -> None:
        """Called when the flow has drained."""


class SourceActor(Actor):
    """Base of modules that make events."""

    def source(self) -> type[Source]:
        """What stands for it in a flow."""
        raise NotImplementedError(f"{type(self).__name__} has no source")

    def sign(self, carried: Carried[Any]) -> Carried[Any]:
        """Note on an event that it comes from here. Returns the event."""
        carried.scratch[_SENT_BY] = (self.name, len(carried.failures))
        return carried


async def _quietly(work: Awaitable[Any]) -> Any:
    mark = _handles_log_line.set(True)
    try:
        return await work
    finally:
        _handles_log_line.reset(mark)


def _takes_origin(consume: Any) -> bool:
    parameters = inspect.signature(consume).parameters
    return "origin" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
