"""Input rigs: what begins a pipeline, and the `output_q` into which it puts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from furcula.compat.pipelines.processor import Processor
from furcula.event import Event
from furcula.module import Context, Source

__all__ = ["InStep", "OutputQueue", "Rig"]

#: A rig that never waits lets others run after so many items.
BREATH = 64


class InStep:
    """Rigs whose items are paired with each other: none gets more than `lead` items ahead of the slowest.

    Without this a fast rig would fill the table in which its items wait for their partners, and lose them.
    """

    def __init__(self, lead: int = 64):
        self._lead = lead
        self._counts: dict[str, int] = {}
        self._moved = asyncio.Event()

    def enter(self, rig: str) -> None:
        self._counts[rig] = 0

    def leave(self, rig: str) -> None:
        """This rig has ended, and nobody waits for it any more."""
        self._counts.pop(rig, None)
        self._moved.set()

    def step(self, rig: str) -> None:
        if rig in self._counts:
            self._counts[rig] += 1
            self._moved.set()

    async def room(self, rig: str) -> None:
        while rig in self._counts and self._counts[rig] - min(self._counts.values()) >= self._lead:
            self._moved.clear()
            await self._moved.wait()


class OutputQueue:
    """What an input rig puts into. `put` waits while there is no room, the rig is paused, or its partners lag."""

    def __init__(self, name: str, number: Callable[[int], str], in_step: InStep | None):
        self._name = name
        self._number = number
        self._in_step = in_step
        self._context: Context | None = None
        self._going = asyncio.Event()
        self._going.set()
        self._waiting: asyncio.Future[None] | None = None
        #: Items put so far.
        self.count = 0
        if in_step is not None:  # before any rig runs: the first to start must wait for the others too
            in_step.enter(name)

    def open(self, context: Context) -> None:
        self._context = context

    def close(self) -> None:
        if self._in_step is not None:
            self._in_step.leave(self._name)

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    async def put(self, item: Any) -> None:
        """Let an item into the pipeline; return when there is room for another.

        Raises:
            Stopped: The pipeline takes nothing more.
        """
        await self._going.wait()
        if self._in_step is not None:
            await self._in_step.room(self._name)
        wait = self._admit(item)
        if wait is not None:
            await wait
        elif not self.count % BREATH:
            await asyncio.sleep(0)

    def put_nowait(self, item: Any) -> None:
        """Let an item in without waiting.

        Raises:
            asyncio.QueueFull: There is still no room since the last one.
        """
        if not self._going.is_set() or (self._waiting is not None and not self._waiting.done()):
            raise asyncio.QueueFull
        wait = self._admit(item)
        self._waiting = None if wait is None else asyncio.ensure_future(_finished(wait))

    def _admit(self, item: Any) -> Awaitable[None] | None:
        assert self._context is not None, "the pipeline has not been started"
        self.count += 1
        if self._in_step is not None:
            self._in_step.step(self._name)
        # The number is the item's lineage; see spec.py.
        return self._context.admit([Event.from_wire({"data": item, "id": self._number(self.count)})])


class Rig(Source):
    """Runs an input rig as a source of the flow.

    Args:
        started: Called when it begins. Rigs begin last, so by then the pipeline stands.
        failed: Called with what the rig raised.
    """

    def __init__(
        self,
        processor: Processor,
        queue: OutputQueue,
        *,
        started: Callable[[], None],
        failed: Callable[[Exception], None],
    ):
        self.processor = processor
        self.queue = queue
        self._started = started
        self._failed = failed
        self._task: asyncio.Task[None] | None = None

    def start(self, context: Context) -> None:
        self.queue.open(context)
        self._task = asyncio.get_running_loop().create_task(self._run(context), name=f"rig {self.processor.name}")
        self._started()

    async def _run(self, context: Context) -> None:
        error: BaseException | None = None
        try:
            await self.processor.handle(self.queue)
        except asyncio.CancelledError:  # the pipeline is stopping
            pass
        except Exception as raised:
            error = raised
            self._failed(raised)
        finally:
            self.queue.close()
            context.finished(error)

    async def cease(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _finished(wait: Awaitable[None]) -> None:
    await wait
