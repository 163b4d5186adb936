"""A processor: a coroutine, what it is called with, and (by hand) the queues it reads from and writes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from furcula.compat.pipelines.spec import OnError
from furcula.event import copy_data

__all__ = ["Processor"]

_log = logging.getLogger("furcula.compat.pipelines")

Queue = asyncio.Queue[Any]


class Processor:
    """Runs a coroutine over what arrives. It is the `self` of `async def f(self, elt, **args)`.

    The Plumber makes one for each node. By hand it is built on queues and run by itself::

        processor = Processor(reverse, queue_in, queue_out)
        task = processor.start()

    With no input queue it is an input rig: `async def f(self, output_q, **args)` is called once.

    Args:
        coro: The coroutine function.
        input_queues: One queue or several.
        output_queues: One queue or several; each gets every result (copies, where there are several).
        name: For logs; default: the name of the coroutine.
        args: Its keyword arguments. They go to nobody else, so they may have any names.
        env_vars: The context, as `self.env_vars`.
        aggregate_inputs: Take one item of each queue together (default), or each by itself as it arrives.
        on_error: What follows an exception: `drop` (logged; the others go on) or `stop` (`run` raises it).
    """

    def __init__(
        self,
        coro: Callable[..., Any],
        input_queues: Queue | Sequence[Queue] = (),
        output_queues: Queue | Sequence[Queue] = (),
        *,
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        env_vars: Any = None,
        aggregate_inputs: bool = True,
        on_error: OnError = "drop",
    ):
        self.coro = coro
        self.name = name or getattr(coro, "__name__", type(coro).__name__)
        self.args = dict(args or {})
        self.env_vars = {} if env_vars is None else env_vars
        self.input_queues = _several(input_queues)
        self.output_queues = _several(output_queues)
        self.aggregate_inputs = aggregate_inputs
        self.on_error: OnError = on_error
        self._task: asyncio.Task[None] | None = None

    async def handle(self, elt: Any) -> Any:
        """Call the coroutine: with the tuple of what arrived, or for a rig with the queue it puts into."""
        return await self.coro(self, elt, **self.args)

    # ------------------------------------------------------------------ by hand

    def start(self) -> asyncio.Task[None]:
        """Run in a task of the running loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self.run(), name=f"processor {self.name}")
        return self._task

    async def cancel(self) -> None:
        """End the task that `start` made, and wait for its end. May be repeated."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def run(self) -> None:
        """Handle what comes, one after the other, until cancelled. A rig: until its coroutine ends."""
        if not self.input_queues:
            await self.handle(_Everywhere(self.output_queues))
            return
        turn = asyncio.Lock()
        groups = [self.input_queues] if self.aggregate_inputs else [[queue] for queue in self.input_queues]
        readers = [asyncio.ensure_future(self._read(group, turn)) for group in groups]
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()

    async def _read(self, queues: Sequence[Queue], turn: asyncio.Lock) -> None:
        while True:
            elt = tuple([await queue.get() for queue in queues])
            async with turn:
                try:
                    result = await self.handle(elt)
                except Exception:
                    if self.on_error == "stop":
                        raise
                    _log.exception("%s failed on %r; the others go on", self.name, elt)
                else:
                    await _Everywhere(self.output_queues).put(result)
                finally:
                    for queue in queues:
                        queue.task_done()


class _Everywhere:
    """Several queues as one: each gets what is put, as a copy of its own."""

    def __init__(self, queues: Sequence[Queue]):
        self._queues = queues

    async def put(self, item: Any) -> None:
        items = [item, *(copy_data(item) for _ in self._queues[1:])]
        for queue, one in zip(self._queues, items, strict=False):
            await queue.put(one)


def _several(queues: Queue | Sequence[Queue]) -> list[Queue]:
    return list(queues) if isinstance(queues, list | tuple) else [queues]  # type: ignore[list-item]
