"""Compysition's ready-made modules.

Those for HTTP, XML and 0mq need libraries of their own, and are loaded when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from furcula.compat.compysition.actor import Actor, SourceActor
from furcula.compat.compysition.event import Event
from furcula.compat.printed import print_line
from furcula.event import Event as Carried
from furcula.module import Context, Source
from furcula.modules.timing import Interval
from furcula.options import Duration

if TYPE_CHECKING:
    from furcula.compat.compysition.basic_auth import BasicAuth
    from furcula.compat.compysition.transformer import Transformer
    from furcula.compat.compysition.wsgi import WSGI, WSGIServer
    from furcula.compat.compysition.zmq import ZMQPull, ZMQPush

__all__ = [
    "STDOUT",
    "WSGI",
    "BasicAuth",
    "EventGenerator",
    "TestEvent",
    "Transformer",
    "WSGIServer",
    "ZMQPull",
    "ZMQPush",
]


class EventGenerator(SourceActor):
    """Make an event every so often, the first at once. Does not drift.

    Override `generate` to say what stands in it.

    Args:
        name: As registered.
        interval: Seconds between two events.
        data: The data of every event.
        count: End after so many; default: never.
    """

    def __init__(self, name: str, *args: Any, interval: float = 5, data: Any = "test", count: int | None = None):
        super().__init__(name)
        self.interval = interval
        self.data = data
        self.count = count

    def generate(self) -> Event | None:
        """The next event; None leaves this time out. A generator that raises ends."""
        return Event(self.data)

    def source(self) -> type[Source]:
        attributes = {"subject": self, "ports": staticmethod(lambda: {"outboxes": None})}
        return type(type(self).__name__, (_Generating,), attributes)


class TestEvent(EventGenerator):
    """Make a test event every so often."""

    __test__ = False  # pytest: it only sounds like one of yours


class STDOUT(Actor):
    """Print the data of each event: `[2015-02-13 16:56:35.850659] I am number two: test`, and send it on.

    Args:
        name: As registered.
        prefix: Stands before the data, as it is.
        timestamp: Begin each line with the local time.
    """

    def __init__(self, name: str, *args: Any, prefix: str = "", timestamp: bool = False):
        super().__init__(name)
        self.prefix = prefix
        self.timestamp = timestamp

    def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        print_line(event.data, prefix=self.prefix, timestamp=self.timestamp)
        self.send_event(event)


class _Generating(Source):
    subject: EventGenerator

    def __init__(self) -> None:
        subject = self.subject
        self._clock = Interval(every=Duration(subject.interval), data="", count=subject.count, immediately=True)

    def start(self, context: Context) -> None:
        self._clock.start(context)
        self.subject.opened(context)

    async def events(self) -> AsyncIterator[Carried[Any]]:
        async for _ in self._clock.events():
            event = self.subject.generate()
            if event is not None:
                yield self.subject.signed(event)

    def stop(self) -> None:
        self.subject.closed()


#: Those that need more than furcula itself -> where they are.
_ELSEWHERE = {
    "BasicAuth": "basic_auth",
    "Transformer": "transformer",
    "WSGI": "wsgi",
    "WSGIServer": "wsgi",
    "ZMQPull": "zmq",
    "ZMQPush": "zmq",
}


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"furcula.compat.compysition.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
