"""Batch functions that wait, or are retried: one batch at a time, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from furcula.engine.attempts import is_stop
from furcula.engine.batch_answers import batch_outcome
from furcula.engine.caught import CAUGHT, abandon, keep_originals
from furcula.engine.counters import TimeSlice
from furcula.engine.outcome import Outcomes
from furcula.engine.outlets import Batch
from furcula.engine.queue import QueueStep
from furcula.errors import ModuleTimeout
from furcula.event import copy_data
from furcula.module import BatchFailed
from furcula.options import Options

__all__ = ["BatchPool"]


class BatchPool(QueueStep):
    """A queue and one worker that hands whole batches to a function and awaits it.

    `retry` and `timeout` are the batch's: after a failure the whole batch is handed over again. Members that the
    function failed by index (`BatchFailed`) are not tried again.

    Args:
        choose: Gives the events of a batch that are still to be handled, and sees to the others.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        outcomes: Outcomes,
        time_slice: TimeSlice,
        *,
        options: Options,
        waits: bool,
        size: int,
        batch_limit: int,
        choose: Callable[[Batch], Batch] | None = None,
    ):
        super().__init__(
            outcomes.name,
            self._handle,
            outcomes,
            time_slice,
            size=size,
            overflow=options.overflow,
            batch_limit=batch_limit,
        )
        self._call = call
        self._waits = waits
        self._retry = options.retry
        self._keep = options.keep == "original" or options.retry is not None
        self._timeout_s = float(options.timeout) if options.timeout is not None else None
        self._choose = choose
        self._current: Batch = []

    def _handle(self, batch: Batch) -> Awaitable[None]:
        return self._tries(batch)

    async def _tries(self, batch: Batch) -> None:
        if self._choose is not None:
            batch = self._choose(batch)
            if not batch:
                return
        self._current = batch
        began = perf_counter()
        originals = None
        if self._keep:
            batch, originals = keep_originals(self.outcomes, batch)
            self._current = batch
            if not batch:
                return
        tried = 0
        while True:
            tried += 1
            answer = await self._once(batch)
            retry = self._retry
            if retry is None or not isinstance(answer, BaseException) or isinstance(answer, BatchFailed):
                break
            if tried >= retry.attempts or not isinstance(answer, retry.errors):
                break
            assert originals is not None
            for event, (data, headers) in zip(batch, originals, strict=True):
                event.data, event.headers = copy_data(data), copy_data(headers)
            self.counters.retried += len(batch)
            await asyncio.sleep(retry.delay_s(tried))
        if self._current is not batch:  # abandoned meanwhile: it caught its cancellation and went on
            return
        self._current = []
        self.counters.held -= len(batch)
        self.counters.waited((perf_counter() - began) / len(batch))
        wait = batch_outcome(self.outcomes, batch, answer, originals, attempts=tried)
        if self.after is not None:
            self.after()
        if wait is not None:
            await wait

    async def _once(self, batch: Batch) -> Any:
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                answer = self._call(list(batch))
                return await answer if self._waits else answer
        except CAUGHT as error:
            if limit.expired():
                return ModuleTimeout(f"{self.name} took longer than {self._timeout_s:g} s")
            if is_stop(error):
                raise
            return error

    def abandon(self) -> int:
        held, self._current = self._current, []
        return abandon(self.outcomes, held) + super().abandon()
