"""The sources of a flow while it runs: they begin, are held and begin again elsewhere, fail, and come to their end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Any

from furcula.engine.assembly import ModuleRun
from furcula.engine.attempts import is_stop
from furcula.engine.counters import TimeSlice
from furcula.engine.deadline import Deadline
from furcula.engine.hooks import Hooks, in_words
from furcula.engine.sources import Entrance, drive_async, drive_sync, drive_thread
from furcula.errors import FurculaError, SourceFailed

__all__ = ["RunningSources"]

_log = logging.getLogger("furcula.flow")


class RunningSources:
    """Those of one flow, or of the part of it that runs here.

    Args:
        modules: All modules.
        held: Those that are not to begin. Nobody waits for them to end, unless all are held: then others may begin
            later, and the end is for whoever holds them to say.
        start: Starts a module.
        hooks: Calls the others.
        deadline: Of the flow's stop.
        all_ended: Called when no source that was begun is left.

    Attributes:
        held: Those that do not run here.
        ended: Those that have come to their end.
        unfinished: Those that the flow waits for.
        failure: The first that one ended with.
        tasks: What asks a source for its next event, by its name. Listeners have none.
    """

    def __init__(
        self,
        modules: Iterable[ModuleRun],
        *,
        held: Iterable[str],
        start: Callable[[ModuleRun], Awaitable[None]],
        hooks: Hooks,
        deadline: Deadline,
        all_ended: Callable[[], None],
        time_slice: TimeSlice,
        batch_limit: int,
    ):
        self._runs = {run.name: run for run in modules if run.entrance is not None}
        self._start = start
        self._hooks = hooks
        self._deadline = deadline
        self._all_ended = all_ended
        self._slice = time_slice
        self._batch_limit = batch_limit
        self._ceased = False
        self.held = self._runs.keys() & set(held)
        self.ended: set[str] = set()
        self.unfinished = (self._runs.keys() - self.held) or set(self._runs)
        self.failure: SourceFailed | None = None
        self.tasks: dict[str, asyncio.Task[Any]] = {}

    # ------------------------------------------------------------------ their beginning

    def begin_all(self) -> None:
        """Let those begin that are not held. They have been started."""
        for run in self._runs.values():
            if run.name not in self.held:
                self._begin(run)

    async def begin(self, run: ModuleRun) -> None:
        """Let one begin that was held."""
        if run.name not in self.held:
            return
        self.held.discard(run.name)
        self.unfinished.add(run.name)
        await self._start(run)
        if not self._ceased:
            self._begin(run)

    def _begin(self, run: ModuleRun) -> None:
        assert run.entrance is not None
        subject = run.place.subject if run.instance is None else getattr(run.instance, "events", None)
        if subject is None:  # it admits by itself, through its context
            return
        self.tasks[run.name] = asyncio.get_running_loop().create_task(
            self._drive(run, run.entrance, subject), name=f"furcula source {run.name}"
        )

    async def _drive(self, run: ModuleRun, entrance: Entrance, subject: Any) -> None:
        arguments = run.place.bound if run.instance is None else {}
        error: BaseException | None = None
        try:
            supply = subject(**arguments) if callable(subject) else subject
            if isinstance(supply, Awaitable):
                supply = await supply
            if isinstance(supply, AsyncIterable):
                try:
                    error = await drive_async(entrance, supply, self._slice, self._batch_limit)
                finally:
                    await _close(supply)
            elif isinstance(supply, Iterable):
                iterator = iter(supply)
                if run.place.options.thread:
                    error = await drive_thread(entrance, iterator, self._batch_limit)
                else:
                    error = await drive_sync(entrance, iterator, self._slice, self._batch_limit)
                    close = getattr(iterator, "close", None)
                    if close is not None:
                        close()
            else:
                error = TypeError(f"it gave {type(supply).__name__}, which cannot be iterated")
        except (Exception, asyncio.CancelledError, SystemExit) as raised:
            if is_stop(raised):
                if not entrance.ceasing:
                    raise
            else:
                error = raised
        self.finish(run.name, error)

    # ------------------------------------------------------------------ their end

    def finish(self, name: str, error: BaseException | None = None) -> None:
        """A source has come to its end, with `error` if that is not as it should be."""
        if error is not None:
            own = isinstance(error, FurculaError)
            said = f"the source {name} failed and has ended: {in_words(error)}"
            _log.error("%s", said, exc_info=None if own else error)
            if self.failure is None:
                self.failure = SourceFailed(said)
                self.failure.__cause__ = error
        self.ended.add(name)
        self.unfinished.discard(name)
        if not self.unfinished:
            self._all_ended()

    async def hold(self, run: ModuleRun) -> None:
        """Let one end, and be as if it had never begun. What it gave goes on."""
        entrance = run.entrance
        if entrance is None or run.name in self.held:
            return
        self.held.add(run.name)
        entrance.ceasing = True
        await self._hooks.cease(run)
        task = self.tasks.pop(run.name, None)
        if task is not None and not task.done():
            task.cancel()
            await self._deadline.unless_passed(asyncio.wait([task]))
        await self._hooks.stop(run)
        self._hooks.forget(run)
        if isinstance(run.place.subject, type):
            _make_again(run.instance, run.place.bound)
        if not self._ceased:
            entrance.ceasing = False

    async def cease(self) -> None:
        """Let every source end. What it has given is admitted; then nothing more is. May be repeated."""
        if self._ceased:
            return
        self._ceased = True
        for run in self._runs.values():
            assert run.entrance is not None
            run.entrance.ceasing = True
            await self._hooks.cease(run)
        tasks = [task for task in self.tasks.values() if not task.done()]
        if tasks:
            # A generator that is waiting for its own next event will not look; one that waits for room soon does.
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await self._deadline.unless_passed(asyncio.wait(tasks))
        for run in self._runs.values():
            assert run.entrance is not None
            run.entrance.closed = True


def _make_again(instance: Any, arguments: Mapping[str, Any]) -> None:
    """Make an object as new, in its place: what handles its events, and what is told of them, are methods of it.

    What `start` made stays until it is made again, as some of its events may still be under way.
    """
    type(instance).__init__(instance, **arguments)


async def _close(supply: Any) -> None:
    close = getattr(supply, "aclose", None)
    if close is not None:
        try:
            await close()
        except Exception:
            _log.exception("a source raised while it was closed")
