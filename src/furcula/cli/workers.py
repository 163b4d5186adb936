"""`furcula run` with a supervisor: several processes, a pid file, in the background."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from furcula.cli.cluster import reached
from furcula.cli.command import FAILED, INTERRUPTED, REFUSED, ending, say
from furcula.errors import FurculaError

if TYPE_CHECKING:
    from furcula.run import Flow
    from furcula.workers.supervisor import Outcome, Supervisor
    from furcula.workers.worker import Worker

__all__ = ["Supervision", "settings_of", "supervised"]

_log = logging.getLogger("furcula.workers")

#: Seconds between two looks at the workers' figures. They say them once a second.
_REFRESH_S = 0.5


class Supervision(msgspec.Struct, frozen=True, kw_only=True):
    """What `furcula run` was told.

    Attributes:
        flow: What names it.
        name: Its name.
        settings: For every worker.
        workers: How many of each stage.
        stages: The stages are processes of their own.
        place: Where the cluster is that joins them, as it was given; without one they are joined by 0mq.
        deadline_s: Seconds for draining.
        hung_after_s: Seconds without a beat after which a worker is killed.
        pid_file: Where to write the number of the supervisor's process.
        background: Return when all workers are ready.
        log_file: Where what is logged goes.
        live: Show a table.
    """

    flow: str
    name: str
    settings: dict[str, Any]
    workers: dict[str, int]
    stages: bool
    place: dict[str, Any]
    deadline_s: float
    hung_after_s: float
    pid_file: str | None
    background: bool
    log_file: str | None
    live: bool


def supervised(told: Supervision, flow: Flow) -> None:
    """Run it, and say how it went. Raises what ends the command."""
    from furcula.workers.background import Began, detached, log_into
    from furcula.workers.pid_file import PidFile

    telling = None
    if told.background:
        # The settings name files as seen from here, and the process that stays is here too.
        assert told.log_file is not None
        answer = detached(told.log_file)
        if isinstance(answer, Began):
            raise ending(answer.text, answer.code)
        telling = answer
    elif told.log_file is not None:
        log_into(told.log_file)
    try:
        with PidFile(Path(told.pid_file).absolute()) if told.pid_file else contextlib.nullcontext():
            outcome = _run_joined(told, flow, (lambda: telling.tell(0)) if telling is not None else None)
    except BaseException as error:
        if telling is not None:
            telling.tell(FAILED, str(error))
        raise
    code = REFUSED if outcome.refused else FAILED if outcome.error else 0
    if outcome.ran:
        _say_how(outcome)
    if telling is not None:
        telling.tell(code, outcome.error)
    if outcome.error:
        raise ending(outcome.error, code)
    if outcome.forced:
        raise ending("ended at once by a second signal", INTERRUPTED)


def _run_joined(told: Supervision, flow: Flow, on_ready: Any) -> Outcome:
    """With what joins the stages, where there are several."""
    from furcula.engine.parts import stage_order
    from furcula.engine.plan import plan
    from furcula.workers.child import cut_names
    from furcula.workers.run_folder import run_folder
    from furcula.workers.worker import Worker

    workers = [
        Worker(stage if told.stages else None, index, count)
        for stage, count in told.workers.items()
        for index in range(count)
    ]
    if told.place["url"] is not None:
        with reached(told.place) as access:
            told.settings["cluster"] = msgspec.structs.asdict(access)
            return _run(told, workers, None, on_ready)
    if not told.stages:
        return _run(told, workers, None, on_ready)
    with run_folder() as folder:
        told.settings.update(lines=str(folder), counts=told.workers, cuts=cut_names(flow))
        return _run(told, workers, stage_order(flow, plan(flow)), on_ready)


def _run(told: Supervision, workers: list[Worker], order: list[list[str]] | None, on_ready: Any) -> Outcome:
    import asyncio

    from furcula.workers.background import log_into
    from furcula.workers.launch import Exec
    from furcula.workers.supervisor import Policy, Supervisor

    def reopen() -> None:
        if told.log_file is None:
            return
        try:
            log_into(told.log_file, stdout=told.background)
        except FurculaError as error:
            _log.error("%s; the log goes on where it was", error, extra={"flow": told.name})

    supervisor = Supervisor(
        told.name,
        workers,
        Exec(title=told.flow),
        told.settings,
        Policy(deadline_s=told.deadline_s, hung_after_s=told.hung_after_s, must_start=told.background),
        order=order,
        on_ready=on_ready,
        on_restart=reopen,
    )
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(_watched(supervisor, told.live))


async def _watched(supervisor: Supervisor, live: bool) -> Outcome:
    import asyncio

    if not live:
        return await supervisor.run(signals=True)

    from furcula.cli.figures import LiveTable

    async def watch() -> None:
        with LiveTable() as table:
            while True:
                await asyncio.sleep(_REFRESH_S)
                figures = supervisor.figures()
                table.update(figures.statistics, figures.workers)

    watching = asyncio.create_task(watch())
    try:
        return await supervisor.run(signals=True)
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def _say_how(outcome: Outcome) -> None:
    from furcula.cli.figures import report, worker_lines

    figures = outcome.figures
    lines = [report(figures.statistics), "", *worker_lines(figures.workers)]
    if figures.lost:
        lines += ["", *(f"lost: {lost}; what it admitted after that nobody knows" for lost in figures.lost)]
    say("\n".join(lines))


def settings_of(flow: str, overrides: tuple[str, ...], deadline_s: float, profile: str | None) -> dict[str, Any]:
    """What every worker has to know."""
    return {
        "flow": flow,
        "overrides": list(overrides),
        "deadline_s": deadline_s,
        "profile": os.path.abspath(profile) if profile else None,
        "log_level": logging.getLogger("furcula").level,
    }
