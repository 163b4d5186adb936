"""Who asks: the contract between a source that answers (`http.listen`) and the engine that brings the answer back.

A source admits a request with `context.ask(event, asker)`. Whatever descends from that event and reaches the source's
own inbox is given to `asker.take`; when nothing can come any more `asker.settled` is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from furcula.event import Event
from furcula.receipt import Slot

__all__ = ["Asker"]


class Asker:
    """One who asks. Derive from it. All calls are made on the loop's thread, and none of them may wait.

    Attributes:
        many: Take every answer, until all is settled. Else the first one only; later ones are dropped(answered).
        gone: Whoever asked has left. Set by `leave`.
        over: It has been answered otherwise (a deadline passed): what comes now is late, and dropped(answered).
    """

    __slots__ = ("_running", "gone", "over")

    many: bool = False

    def __init__(self) -> None:
        self.gone = False
        self.over = False
        self._running: list[asyncio.Task[Any]] | None = None

    @property
    def notes(self) -> Mapping[str, str]:
        """What log lines say of this request: `{"request_id": ...}`."""
        return {}

    def take(self, reply: Event[Any]) -> bool:
        """Here is an answer. What this raises, the event fails with, at the module that was answering.

        Returns:
            True: it was taken for the answer. False: it was taken, and the answer is still to come.
        """
        raise NotImplementedError

    def settled(self, slot: Slot) -> None:
        """Every event of the request is settled; no further answer can come."""
        raise NotImplementedError

    # ------------------------------------------------------------------ leaving

    def leave(self) -> None:
        """Nobody waits for the answer any more: drop what waits, cancel the coroutines that are at it.

        What runs in a thread, in a synchronous module, or behind a join goes on to its end.
        """
        self.gone = True
        running, self._running = self._running, None
        if not running:
            return
        current = asyncio.current_task()
        for task in running:
            if task is current:  # it would be struck at its next wait, which may be one for another request
                self.enter(task)
            else:
                task.cancel()

    def enter(self, task: asyncio.Task[Any]) -> None:
        """For the engine: a coroutine in this task has begun to handle an event of this request."""
        if self._running is None:
            self._running = [task]
        else:
            self._running.append(task)

    def exit(self, task: asyncio.Task[Any]) -> bool:
        """For the engine: it has ended.

        Returns:
            Was it cancelled by `leave`? Once, however often that was called; whoever gets True takes this one back.
        """
        if self._running is None or task not in self._running:
            return True
        self._running.remove(task)
        return False
