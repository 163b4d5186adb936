"""Runs an object of an old kind, one that consumes and sends, as a module of a flow."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Protocol

from furcula.compat.outgoing import Outgoing
from furcula.event import Event
from furcula.module import Context, Module

__all__ = ["Consumer", "handler"]


class Consumer(Protocol):
    """What a module class of an old kind offers to us."""

    outgoing: Outgoing

    def accept(self, event: Event[Any], inbox: str) -> Any:
        """Let the user's `consume` have the event. An awaitable if that is a coroutine."""

    def opened(self, context: Context) -> None:
        """The flow starts; called on its loop, sinks first."""

    def closed(self) -> None:
        """The flow has drained; called on its loop."""


class _Handler(Module):
    subject: Consumer

    def __init__(self) -> None:
        for inbox in self.inboxes[1:]:
            # An inbox of another name is told apart by the engine if there is a method of its name.
            setattr(self, f"process_{inbox}", self._for(inbox))

    def start(self, context: Context) -> None:
        self.subject.opened(context)

    def stop(self) -> None:
        self.subject.closed()
        self.subject.outgoing.close()

    def _for(self, inbox: str) -> Any:
        raise NotImplementedError


class _Plain(_Handler):
    def process(self, event: Event[Any]) -> Any:
        return self._handle(event, self.inboxes[0])

    def _handle(self, event: Event[Any], inbox: str) -> Any:
        subject = self.subject
        return subject.outgoing.handle(event, lambda: subject.accept(event, inbox))

    def _for(self, inbox: str) -> Any:
        def process(event: Event[Any]) -> Any:
            return self._handle(event, inbox)

        return process


class _Async(_Handler):
    async def process(self, event: Event[Any]) -> Any:
        return await self._handle(event, self.inboxes[0])

    async def _handle(self, event: Event[Any], inbox: str) -> Any:
        subject = self.subject
        return await subject.outgoing.handle_async(event, lambda: subject.accept(event, inbox))

    def _for(self, inbox: str) -> Any:
        async def process(event: Event[Any]) -> Any:
            return await self._handle(event, inbox)

        return process


def handler(
    subject: Consumer,
    consume: Any,
    inboxes: Iterable[str] = ("inbox",),
    outboxes: Iterable[str] | None = None,
    optional: Iterable[str] = (),
) -> type[Module]:
    """The module class that stands for `subject` in a flow.

    Args:
        consume: The user's method: is it a coroutine?
        outboxes: Those that may be wired; None: any.
        optional: Those of which nobody needs to be told that they are not.
    """
    parent = _Async if inspect.iscoroutinefunction(consume) else _Plain
    names = None if outboxes is None else tuple(outboxes)
    ports = {"inboxes": tuple(inboxes), "outboxes": names, "optional": tuple(optional)}
    attributes = {"subject": subject, "inboxes": tuple(inboxes), "ports": staticmethod(lambda: ports)}
    return type(type(subject).__name__, (parent,), attributes)
