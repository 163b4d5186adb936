"""Request and reply in memory: what `Director.ask` and, later, HTTP stand on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from furcula.errors import Unanswered
from furcula.event import Event
from furcula.receipt import Origin, Receipt, Slot, Tracked

__all__ = ["Request"]


class Request(Tracked, gc=False, eq=False):
    """The slot of an event that somebody waits for.

    The first descendant that reaches the inbox of the module that was asked is the answer. When the slot settles and
    none has, nothing can answer any more, and whoever asked is told so at once.

    Attributes:
        future: Gets the answer, or Unanswered.
        gather: Wait for the settlement, and give all that came back.
        on_settled: Called when the slot has settled.
    """

    future: Any = None
    gather: bool = False
    on_settled: Callable[[Slot], None] | None = None
    replies: list[Event[Any]] = []

    @classmethod
    def of(
        cls, origin: Origin, future: asyncio.Future[Any], *, gather: bool = False, created: float | None = None
    ) -> Request:
        """Admit one request."""
        receipt = Receipt(origin, 1, created)
        return cls((receipt,), created=receipt.created, future=future, gather=gather)

    def answer(self, reply: object) -> bool | None:
        assert isinstance(reply, Event)
        if self.future.done() or (self.replies and not self.gather):
            return False
        self.replies.append(reply)
        if not self.gather:
            self.future.set_result(reply)
        return True

    def close(self) -> None:
        super().close()
        if not self.future.done():
            if self.gather and (self.replies or self.fate != "failed"):
                self.future.set_result(self.replies)
            else:
                self.future.set_exception(Unanswered(self.fate or "dropped", self.reason, self.failure))
        if self.on_settled is not None:
            self.on_settled(self)
