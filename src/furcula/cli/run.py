"""`furcula run`: run a flow until its sources end or a signal stops it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from furcula.cli.command import FAILED, INTERRUPTED, REFUSED, Command, ending, say
from furcula.cli.target import open_flow

if TYPE_CHECKING:
    from furcula.engine.director import Director
    from furcula.engine.statistics import Statistics
    from furcula.run import Flow

__all__ = ["run"]

#: Seconds between two looks at a running flow.
REFRESH_S = 0.25


@click.command(cls=Command)
@click.argument("flow", metavar="FLOW")
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE", help="modules.listen.with.port=5514")
@click.option("--deadline", default="10s", show_default=True, help="How long draining may take after a signal.")
@click.option("--profile", type=click.Path(dir_okay=False, writable=True), help="Write a cProfile of the run here.")
@click.option("--live/--no-live", default=None, help="Show rates while it runs. Default: on a terminal.")
def run(flow: str, overrides: tuple[str, ...], deadline: str, profile: str | None, live: bool | None) -> None:
    """Run a flow. Ctrl-C (or SIGTERM) drains it; a second one ends it at once.

    Exit code 0: it ran to its end or was stopped. 1: a source failed, or a module could not start. 2: the flow as
    written cannot run. 130: it was ended by a second signal.
    """
    found = open_flow(flow, overrides)
    statistics, forced = _run(found, _seconds(deadline), profile, _shows_live(found) if live is None else live)
    say(_report(statistics))
    if forced:
        raise ending("ended at once by a second signal", INTERRUPTED)


def _seconds(deadline: str) -> float:
    from furcula.options import Duration

    try:
        return float(Duration(deadline))
    except ValueError as error:
        raise ending(f"--deadline: {error}", REFUSED) from None


def _shows_live(flow: Flow) -> bool:
    """A table is shown on a terminal, unless the flow writes to that terminal itself."""
    if not sys.stderr.isatty():
        return False
    return not (sys.stdout.isatty() and any(place.use in ("stdout", "log") for place in flow.places.values()))


def _run(flow: Flow, deadline_s: float, profile: str | None, live: bool) -> tuple[Statistics, bool]:
    import cProfile

    from furcula.engine.loop import run_in_new_loop
    from furcula.errors import SourceFailed

    profiler = cProfile.Profile() if profile else None
    if profiler is not None:
        profiler.enable()
    try:
        return run_in_new_loop(_run_watched(flow, deadline_s, live))
    except SourceFailed as error:
        if error.statistics is not None:
            say(_report(error.statistics))
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


async def _run_watched(flow: Flow, deadline_s: float, live: bool) -> tuple[Statistics, bool]:
    import asyncio

    from furcula.engine.director import Director

    director = Director(flow, deadline=deadline_s)
    watching = asyncio.create_task(_watch(director)) if live else None
    try:
        statistics = await director.run(signals=True)
    finally:
        if watching is not None:
            watching.cancel()
            await asyncio.wait([watching])
    # The exit code must tell an end by force from a drained one, and the statistics alone do not.
    return statistics, director.forced


async def _watch(director: Director) -> None:
    import asyncio

    from furcula.cli.figures import LiveTable

    with LiveTable() as table:
        while True:
            await asyncio.sleep(REFRESH_S)
            table.update(director.statistics())


def _report(statistics: Statistics) -> str:
    from furcula.cli.figures import report

    return report(statistics)
