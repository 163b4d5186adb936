"""One flow, its stages run by Directors of their own in one loop: over 0mq, or over JetStream."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from furcula import Flow, Options
from furcula.engine.director import Director
from furcula.engine.parts import stage_order
from furcula.engine.plan import plan
from furcula.engine.statistics import Statistics
from furcula.workers.lines import Lines


def put_into_stages(flow: Flow, stages: Mapping[str, str]) -> None:
    for name, stage in stages.items():
        place = flow.places[name]
        # What waits for a sibling that never comes holds the whole run, for its stage does not know that no more comes.
        place.options = Options.of(place.options, stage=stage, join_timeout="2s")


async def run_over_lines(
    flow: Flow,
    counts: Mapping[str, int] | None = None,
    meanwhile: Callable[[dict[str, list[Director]]], Any] | None = None,
) -> dict[str, list[Statistics]]:
    """Run a flow whose sources end; each stage by its Directors, joined by 0mq. Returns their statistics."""
    order = [stage for group in stage_order(flow, plan(flow)) for stage in group]
    counts = {stage: (counts or {}).get(stage, 1) for stage in order}
    with tempfile.TemporaryDirectory(prefix="furcula") as folder:
        directors = {
            stage: [
                Director(
                    flow,
                    stage=stage,
                    joints=Lines(Path(folder), stage, index, counts),
                    held=[name for name, place in flow.places.items() if place.single] if index else [],
                )
                for index in range(count)
            ]
            for stage, count in counts.items()
        }
        async with AsyncExitStack() as stack:
            for stage in reversed(order):
                for director in directors[stage]:
                    await stack.enter_async_context(director)
            if meanwhile is not None:
                await meanwhile(directors)
            found: dict[str, list[Statistics]] = {}
            for group in stage_order(flow, plan(flow)):
                together = [director for stage in group for director in directors[stage]]
                for stage in group:
                    singles = {name for name, place in flow.places.items() if place.single and place.stage == stage}
                    while not singles <= directors[stage][0].sources_ended:
                        await asyncio.sleep(0.005)
                if len(group) > 1:  # they send to each other: none may end before all have come to rest
                    for director in together:
                        await director.cease()
                    await at_rest(together)
                ended = await asyncio.gather(*(director.drain() for director in together))
                for director, statistics in zip(together, ended, strict=True):
                    found.setdefault(next(s for s in group if director in directors[s]), []).append(statistics)
            return found


async def at_rest(directors: Sequence[Director]) -> None:
    """Wait until nothing is open in any of them, nor comes to be."""
    before: list[int] = []
    while True:
        totals = [director.statistics().total for director in directors]
        now = [total.admitted for total in totals]
        if now == before and not any(total.open for total in totals):
            return
        before = now
        await asyncio.sleep(0.01)


def module_counts(statistics: Sequence[Statistics], name: str, what: str) -> int:
    return sum(getattr(one.modules[name], what) for one in statistics if name in one.modules)
