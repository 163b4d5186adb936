"""`furcula run`: run a flow until its sources end or a signal stops it."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from furcula.cli.cluster import access_options, reached
from furcula.cli.command import FAILED, INTERRUPTED, REFUSED, Command, ending, say
from furcula.cli.target import open_flow

if TYPE_CHECKING:
    from collections.abc import Callable

    from furcula.cluster.client import Access
    from furcula.engine.director import Director
    from furcula.engine.statistics import Statistics
    from furcula.run import Flow

__all__ = ["run"]

#: Seconds between two looks at a running flow.
REFRESH_S = 0.25
#: Seconds between two words to systemd on how many events there were.
STATUS_S = 10.0
#: The least for --hung-after: workers speak once a second, and a busy one may be late.
LEAST_SILENCE_S = 3.0


@click.command(cls=Command)
@click.argument("flow", metavar="FLOW")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="modules.listen.with.port=5514")
@click.option("--deadline", default="10s", show_default=True, help="How long draining may take after a signal.")
@click.option("--profile", type=click.Path(dir_okay=False, writable=True), help="Write a cProfile of the run here.")
@click.option("--live/--no-live", default=None, help="Show rates while it runs. Default: on a terminal.")
@click.option("--processes", metavar="N|STAGE=N,...", help="Run so many workers, of each stage. Default: one process.")
@click.option("--stage", metavar="STAGE", help="With --cluster: run workers of this stage only. Default: of all.")
@access_options
@click.option(
    "--label", default="", metavar="TEXT", help="With --cluster: which version this is, for `cluster status`."
)
@click.option("--pid-file", type=click.Path(dir_okay=False), help="Write the number of the process here.")
@click.option("--background", is_flag=True, help="Return when it runs; it goes on. Needs --log-file.")
@click.option("--log-file", type=click.Path(dir_okay=False), help="Log into this file.")
@click.option(
    "--hung-after", metavar="TIME", help="Kill a worker that is silent for so long: 3s or more. Default: 30s."
)
def run(
    flow: str,
    overrides: tuple[str, ...],
    deadline: str,
    profile: str | None,
    live: bool | None,
    processes: str | None,
    stage: str | None,
    label: str,
    pid_file: str | None,
    background: bool,
    log_file: str | None,
    hung_after: str | None,
    **place: Any,
) -> None:
    """Run a flow. Ctrl-C (or SIGTERM) drains it; a second one ends it at once (the same within 0.2 s is no second one).

    With any of --processes, --pid-file, --background, --log-file and --hung-after it is run by workers under a
    supervisor, which restarts those that die; SIGHUP restarts them one by one. The stages of a flow that has some are
    then processes of their own. With --cluster they are joined by NATS JetStream, and any number of workers of a stage,
    on any machines, share its work; `embedded` starts a server of our own on this one.

    Exit code 0: it ran to its end or was stopped. 1: a source failed, a module could not start, or a worker died too
    often. 2: the flow as written cannot run. 130: it was ended by a second signal.
    """
    deadline_s = _seconds("--deadline", deadline)
    hung_after_s = _seconds("--hung-after", "30s" if hung_after is None else hung_after)
    if hung_after_s < LEAST_SILENCE_S:
        least = f"{LEAST_SILENCE_S:g}s"
        reason = f"workers speak once a second, so healthy ones would be killed; give {least} or more"
        raise ending(f"--hung-after: {hung_after} is too short: {reason}", REFUSED)
    if background and log_file is None:
        raise ending("--background needs --log-file: nobody would see what is logged", REFUSED)
    if background and live:
        raise ending("--live shows a table on the terminal, which --background leaves", REFUSED)
    found = open_flow(flow, overrides)
    stages = list(dict.fromkeys(module.stage for module in found.places.values()))
    if stage is not None and place["url"] is None:
        raise ending("--stage needs --cluster: the other stages have to be reached", REFUSED)
    if stage is not None and stage not in stages:
        raise ending(f"{found.name} has no stage {stage!r}; it has {', '.join(stages)}", REFUSED)
    if stage is not None or processes is not None:
        for warning in found.warnings() if len(stages) > 1 else ():
            logging.getLogger("furcula.flow").warning("%s: %s", found.name, warning)
    in_stages = place["url"] is not None or (processes is not None and len(stages) > 1)
    counts = _counts(processes, [stage] if stage is not None else stages if in_stages else stages[:1])
    if sum(counts.values()) > 1 or pid_file or background or log_file or hung_after is not None:
        from furcula.cli.workers import Supervision, settings_of, supervised

        supervised(
            Supervision(
                flow=flow,
                name=found.name,
                settings={**settings_of(flow, overrides, deadline_s, profile), "version": label},
                workers=counts,
                stages=in_stages,
                place=place,
                deadline_s=deadline_s,
                hung_after_s=hung_after_s,
                pid_file=pid_file,
                background=background,
                log_file=log_file,
                live=bool(live),
            ),
            found,
        )
        return
    shows = _shows_live(found) if live is None else live
    if place["url"] is None:
        statistics, forced = _run(lambda: _director(found, deadline_s), profile, shows)
    else:
        with reached(place) as access:
            statistics, forced = _run(
                lambda: _stage_director(found, stage or stages[0], access, label, deadline_s), profile, shows
            )
    _say_how(statistics)
    if forced:
        raise ending("ended at once by a second signal", INTERRUPTED)


def _counts(processes: str | None, stages: list[str]) -> dict[str, int]:
    """How many workers of each stage: `4`, or `main=1,enrich=4`."""
    said = "1" if processes is None else processes.strip()
    if not said or said.isdecimal():
        return dict.fromkeys(stages, _count(said))
    counts = dict.fromkeys(stages, 1)
    seen: set[str] = set()
    for part in said.split(","):
        name, equals, number = part.strip().partition("=")
        if not equals or name not in counts:
            known = ", ".join(f"{one}=N" for one in stages)
            raise ending(f"--processes: {part.strip()!r} is neither a number nor one of {known}", REFUSED)
        if name in seen:
            raise ending(f"--processes: {name} is given twice", REFUSED)
        seen.add(name)
        counts[name] = _count(number)
    return counts


def _count(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= 1024:
        raise ending(f"--processes: {said!r} is not a number from 1 to 1024", REFUSED)
    return int(said)


def _director(flow: Flow, deadline_s: float) -> Director:
    from furcula.engine.director import Director

    return Director(flow, deadline=deadline_s)


def _stage_director(flow: Flow, stage: str, access: Access, label: str, deadline_s: float) -> Director:
    from furcula.cluster.worker import StageDirector

    return StageDirector(flow, stage, access, version=label, deadline=deadline_s)


def _seconds(option: str, given: str) -> float:
    from furcula.options import Duration

    try:
        return float(Duration(given))
    except ValueError as error:
        raise ending(f"{option}: {error}", REFUSED) from None


def _shows_live(flow: Flow) -> bool:
    """A table is shown on a terminal, unless the flow writes to that terminal itself."""
    if not sys.stderr.isatty():
        return False
    printed = sys.stdout is not None and sys.stdout.isatty()
    return not (printed and any(place.use in ("stdout", "log") for place in flow.places.values()))


def _run(make: Callable[[], Director], profile: str | None, live: bool) -> tuple[Statistics, bool]:
    import cProfile

    from furcula.engine.loop import run_in_new_loop
    from furcula.errors import SourceFailed

    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.enable()
    try:
        return run_in_new_loop(_run_watched(make, live))
    except SourceFailed as error:
        if error.statistics is not None:
            _say_how(error.statistics)
        raise ending(f"{error}{_place_of(error)}", FAILED) from error
    finally:
        if profiler is not None:
            profiler.disable()
            profiler.dump_stats(str(profile))


def _place_of(error: BaseException) -> str:
    """` (shop.py:12)`: the line that raised."""
    import traceback

    frames = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ is not None else []
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


async def _run_watched(make: Callable[[], Director], live: bool) -> tuple[Statistics, bool]:
    import asyncio

    from furcula.workers import systemd

    director = make()
    watching = [asyncio.create_task(_watch(director))] if live else []
    if systemd.is_there():
        watching.append(asyncio.create_task(_tell_systemd(director)))
    try:
        statistics = await director.run(signals=True)
    finally:
        for task in watching:
            task.cancel()
        if watching:
            await asyncio.wait(watching)
    # The exit code must tell an end by force from a drained one, and the statistics alone do not.
    return statistics, director.forced


async def _watch(director: Director) -> None:
    import asyncio

    from furcula.cli.figures import LiveTable

    with LiveTable() as table:
        while True:
            await asyncio.sleep(REFRESH_S)
            table.update(director.statistics())


async def _tell_systemd(director: Director) -> None:
    """Tell when the flow runs, that its loop turns, and when it drains."""
    import asyncio
    import time

    from furcula.workers import systemd

    watchdog_s, told, barked, said = systemd.watchdog_s(), "", 0.0, 0.0
    try:
        while True:
            now = time.monotonic()
            if director.phase == "running" and told != "running":
                systemd.ready("running")
            if director.phase == "draining" and told != "draining":
                systemd.stopping("draining")
            told = director.phase
            if watchdog_s is not None and now - barked >= watchdog_s:
                barked = now
                systemd.notify(WATCHDOG=1)
            if told == "running" and now - said >= STATUS_S:
                said = now
                systemd.notify(STATUS=str(director.statistics()))
            # While it starts, systemd and whatever depends on it wait.
            await asyncio.sleep(0.02 if told in ("assembled", "starting") else min(REFRESH_S, (watchdog_s or 1) / 2))
    finally:
        if told != "draining":  # it drained between two looks
            systemd.stopping("ending")


def _say_how(statistics: Statistics) -> None:
    from furcula.cli.figures import report

    say(report(statistics))
