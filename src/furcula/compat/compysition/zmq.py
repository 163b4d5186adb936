"""Compysition's way between processes: push and pull, by furcula's `zmq.push` and `zmq.pull`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from furcula.compat.compysition.actor import Actor, SourceActor
from furcula.compat.compysition.event import Event
from furcula.event import Event as Carried
from furcula.module import BatchFailed, Context, Source
from furcula.modules.zmq.pipes import Pull, Push

__all__ = ["ZMQPull", "ZMQPush"]


class ZMQPush(Actor):
    """Push each event's data, as JSON, to whoever pulls, and send it on.

    Args:
        name: As registered.
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        settings: Further ones of `zmq.push`: `bind`, `codec`, `timeout`, `curve`.
    """

    def __init__(self, name: str, address: str, **settings: Any):
        super().__init__(name)
        self._push = Push(address=address, **settings)

    def opened(self, context: Context) -> None:
        self._push.start()
        super().opened(context)

    async def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        try:
            await self._push.process_batch([Carried(event.data)])
        except BatchFailed as failed:
            raise failed.errors[0] from None
        self.send_event(event)

    def closed(self) -> None:
        super().closed()
        self._push.stop()


class ZMQPull(SourceActor):
    """Make an event of each value that others push.

    Args:
        name: As registered.
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        settings: Further ones of `zmq.pull`: `bind`, `codec`, `curve`.
    """

    def __init__(self, name: str, address: str, **settings: Any):
        super().__init__(name)
        self.settings: Mapping[str, Any] = {"address": address, **settings}

    def source(self) -> type[Source]:
        attributes = {"subject": self, "ports": staticmethod(lambda: {"outboxes": None})}
        return type(type(self).__name__, (_Pulling,), attributes)


class _Pulling(Pull):
    subject: ZMQPull

    def __init__(self) -> None:
        super().__init__(**self.subject.settings)

    def start(self, context: Context) -> None:
        super().start(context)
        self.subject.opened(context)

    def _event(self, data: Any, headers: dict[str, Any]) -> Carried[Any]:
        return self.subject.signed(Event(data))

    def stop(self) -> None:
        self.subject.closed()
