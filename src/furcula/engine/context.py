"""What a class module is given when it starts: its place in the running flow."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from furcula.asking import Asker
from furcula.engine.assembly import ModuleRun
from furcula.event import Event
from furcula.receipt import Slot

__all__ = ["ModuleContext"]


class ModuleContext:
    """What a class module's `start` is given. See `furcula.module.Context`.

    Args:
        run: The module.
        flow: The flow's name.
        folder: What relative paths are relative to.
        now: The flow's clock.
        ended: Told when the module says that its source has ended, with the error if it is not as it should be.
    """

    def __init__(
        self,
        run: ModuleRun,
        *,
        flow: str,
        folder: Path,
        now: Callable[[], float],
        ended: Callable[[BaseException | None], None],
    ):
        self._run = run
        self._ended = ended
        self.name = run.name
        self.flow = flow
        self.folder = folder
        self.now = now
        self.log = logging.LoggerAdapter(
            logging.getLogger(f"furcula.module.{run.name}"), {"flow": flow, "furcula_module": run.name}
        )

    def admit(
        self, events: Iterable[Any], outbox: str = "outbox", *, settled: Callable[[Slot], None] | None = None
    ) -> Awaitable[None] | None:
        entrance = self._run.entrance
        if entrance is None:
            raise TypeError(f"{self.name} is not a source: derive its class from Source, or use context.emit")
        return entrance.admit(events, outbox, settled=settled)

    def ask(self, event: Event[Any], asker: Asker, outbox: str = "outbox") -> Awaitable[None] | None:
        entrance = self._run.entrance
        if entrance is None:
            raise TypeError(f"{self.name} is not a source: only a source can ask")
        return entrance.ask(event, asker, outbox)

    def emit(self, events: Iterable[Any], outbox: str = "outbox") -> Awaitable[None] | None:
        entrance = self._run.emission or self._run.entrance
        assert entrance is not None
        return entrance.emit(events, outbox)

    def finished(self, error: BaseException | None = None) -> None:
        self._ended(error)
