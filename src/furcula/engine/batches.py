"""Batch functions that wait, or are retried: one batch at a time, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

from furcula.engine.attempts import is_stop
from furcula.engine.batch_answers import Tried, tries_outcome
from furcula.engine.caught import CAUGHT, abandon, keep_originals
from furcula.engine.counters import TimeSlice
from furcula.engine.outcome import Outcomes
from furcula.engine.outlets import Batch
from furcula.engine.queue import QueueStep
from furcula.errors import ModuleTimeout
from furcula.event import Routed, copy_data
from furcula.module import BatchFailed
from furcula.options import Options

__all__ = ["BatchPool"]


class BatchPool(QueueStep):
    """A queue and one worker that hands whole batches to a function and awaits it.

    `retry` and `timeout` are the batch's: after a failure the whole batch is handed over again. Where the function
    failed members by index (`BatchFailed`) only those are handed over again whose error `retry` names, unless the error
    itself says that another try is in vain (`retryable = False`). The others keep their answers, and all leave
    together, in the order in which they came.

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
        left = Tried(batch, None, originals, 1)
        tries: list[Tried] = []
        while True:
            left.answer = await self._once(left.batch)
            again = self._worth_another(left)
            if not again:
                tries.append(left)
                break
            if len(again) < len(left.batch):
                tries.append(_without(left, again))
            left = Tried(
                [left.batch[index] for index in again],
                None,
                [left.originals[index] for index in again],
                left.attempts + 1,
            )
            for event, (data, headers) in zip(left.batch, left.originals, strict=True):
                event.data, event.headers = copy_data(data), copy_data(headers)
            assert self._retry is not None
            self.counters.retried += len(again)
            await asyncio.sleep(self._retry.delay_s(left.attempts - 1))
        if self._current is not batch:  # abandoned meanwhile: it caught its cancellation and went on
            return
        self._current = []
        self.counters.held -= len(batch)
        self.counters.waited((perf_counter() - began) / len(batch))
        wait = tries_outcome(self.outcomes, batch, tries)
        if self.after is not None:
            self.after()
        if wait is not None:
            await wait

    def _worth_another(self, tried: Tried) -> list[int]:
        """The places of those that are handed over once more."""
        retry, answer = self._retry, tried.answer
        if retry is None or tried.attempts >= retry.attempts or not isinstance(answer, BaseException):
            return []
        if not isinstance(answer, BatchFailed):
            return list(range(len(tried.batch))) if isinstance(answer, retry.errors) else []
        if any(type(index) is not int or not 0 <= index < len(tried.batch) for index in answer.errors):
            return []
        return sorted(
            index
            for index, error in answer.errors.items()
            if isinstance(error, retry.errors) and getattr(error, "retryable", True)
        )

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


def _without(tried: Tried, again: list[int]) -> Tried:
    """A try, without the members that are tried again and what they had answered."""
    failed: BatchFailed = tried.answer
    gone = set(again)
    stay = [index for index in range(len(tried.batch)) if index not in gone]
    errors = {place: failed.errors[index] for place, index in enumerate(stay) if index in failed.errors}
    result = failed.result
    if isinstance(result, list | tuple):
        retried = {id(tried.batch[index]) for index in again}
        result = [item for item in result if id(item.target if type(item) is Routed else item) not in retried]
    return Tried(
        [tried.batch[index] for index in stay],
        BatchFailed(errors, result),
        [tried.originals[index] for index in stay],
        tried.attempts,
    )
