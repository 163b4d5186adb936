"""Request and reply in memory: what `Director.ask` and, later, HTTP stand on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from furcula.errors import Unanswered
from furcula.event import Event
from furcula.receipt import Origin, Receipt, Slot, Tracked

__all__ = ["Request"]


class Request(Tracked):
    """The slot of an event that somebody waits for.

    The first descendant that reaches the inbox of the module that was asked is the answer. When the slot settles and
    none has, nothing can answer any more, and whoever asked is told so at once.

    Args:
        origin: Under whose name the request is admitted.
        future: Gets the answer, or Unanswered.
        gather: Wait for the settlement, and give all that came back.
        settled: Called when the slot has settled.
    """

    __slots__ = ("_future", "_gather", "_on_settled", "replies")

    def __init__(
        self,
        origin: Origin,
        future: asyncio.Future[Any],
        *,
        gather: bool = False,
        created: float | None = None,
        settled: Callable[[Slot], None] | None = None,
    ):
        super().__init__(Receipt(origin, 1, created), settled=self._ended)
        self._future = future
        self._gather = gather
        self._on_settled = settled
        self.replies: list[Event[Any]] = []

    def answer(self, reply: object) -> bool:
        assert isinstance(reply, Event)
        if self._future.done() or (self.replies and not self._gather):
            return False
        self.replies.append(reply)
        if not self._gather:
            self._future.set_result(reply)
        return True

    def _ended(self, slot: Slot) -> None:
        if not self._future.done():
            if self._gather and (self.replies or self.fate != "failed"):
                self._future.set_result(self.replies)
            else:
                self._future.set_exception(Unanswered(self.fate or "dropped", self.reason, self.failure))
        if self._on_settled is not None:
            self._on_settled(slot)
