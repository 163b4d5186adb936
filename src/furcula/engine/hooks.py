"""The hooks of modules' instances, `start`, `cease`, `flush` and `stop`: called in time, and what they raise told."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any

from furcula.engine.assembly import ModuleRun
from furcula.engine.attempts import is_stop
from furcula.engine.context import ModuleContext
from furcula.engine.deadline import Deadline
from furcula.errors import FurculaError, StartFailed, Stopped

__all__ = ["Hooks", "in_words"]

_log = logging.getLogger("furcula.flow")


class Hooks:
    """Calls them.

    Args:
        deadline: Of the flow's stop.

    Attributes:
        started: The modules whose `start` was called, so that their other hooks may be.
    """

    def __init__(self, deadline: Deadline):
        self._deadline = deadline
        self.started: list[ModuleRun] = []

    async def start(self, run: ModuleRun, context: ModuleContext) -> None:
        """Let a module open what it needs.

        Raises:
            StartFailed: It raised.
            Stopped: The deadline of a stop passed meanwhile.
        """
        self.started.append(run)
        hook = getattr(run.instance, "start", None)
        if hook is None:
            return
        try:
            takes = len(inspect.signature(hook).parameters)
            answer = hook(context) if takes else hook()
            if inspect.isawaitable(answer):
                starting = asyncio.ensure_future(answer)
                await self._deadline.unless_passed(starting)
                if starting.cancelled() and self._deadline.passed:
                    raise Stopped(f"the flow was stopped while {run.name} was starting")
                try:
                    starting.result()
                except asyncio.CancelledError as error:
                    if is_stop(error):
                        raise
                    raise RuntimeError("something that it awaited was cancelled") from error
        except (asyncio.CancelledError, KeyboardInterrupt, Stopped):
            raise
        except Exception as error:
            place = run.place.location
            where = f" ({place})" if place else ""
            raise StartFailed(f"{run.name}{where} could not start: {in_words(error)}") from error

    async def cease(self, run: ModuleRun) -> None:
        """Let a source bring what it has to its end."""
        hook = getattr(run.instance, "cease", None)
        if hook is not None and run in self.started:
            await self._deadline.unless_passed(_called(run, hook, "cease"))

    async def flush(self, run: ModuleRun) -> list[Any]:
        """What a module kept back, and gives now that nothing more comes to it."""
        hook = getattr(run.instance, "flush", None)
        if hook is None:
            return []
        flushing = asyncio.ensure_future(_called(run, hook, "flush"))
        await self._deadline.unless_passed(flushing)
        events = None if flushing.cancelled() else flushing.result()
        if not events:
            return []
        if not isinstance(events, list | tuple):
            _log.error("%s gave %s from flush, where a list is expected", run.name, type(events).__name__)
            return []
        return list(events)

    async def stop(self, run: ModuleRun) -> None:
        """Let a module close what it opened. Only a second signal cuts that short."""
        hook = getattr(run.instance, "stop", None)
        if hook is not None and run in self.started:
            await self._deadline.unless_forced(_called(run, hook, "stop"))

    def forget(self, run: ModuleRun) -> None:
        """It is as if the module had never been started."""
        if run in self.started:
            self.started.remove(run)


async def _called(run: ModuleRun, hook: Callable[[], Any], name: str) -> Any:
    try:
        answer = hook()
        return await answer if inspect.isawaitable(answer) else answer
    except (Exception, asyncio.CancelledError, SystemExit) as error:
        if is_stop(error):
            raise
        _log.exception("%s raised in %s: %s", run.name, name, in_words(error))
        return None


def in_words(error: BaseException) -> str:
    """The error for a log or a message: its type, and what it says if it says anything. Ours say all themselves."""
    text = str(error)
    if text and isinstance(error, FurculaError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
