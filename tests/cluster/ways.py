"""The ways to run one flow: as it is; its stages joined by 0mq; its stages joined by JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.transports.nats_server import NatsServer
from tests.workers.staged import at_rest, run_over_lines

from furcula import Flow
from furcula.cluster.client import Access
from furcula.cluster.operating import operating
from furcula.cluster.worker import StageDirector
from furcula.engine.director import Director
from furcula.engine.statistics import Statistics, summed

__all__ = ["WAYS", "Running", "run_over_jetstream", "run_this_way"]

WAYS = ("one", "lines", "jetstream")

Running = dict[str, list[Director]]
Meanwhile = Callable[[Running], Any]


async def run_this_way(
    way: str,
    flow: Flow,
    nats: NatsServer,
    counts: Mapping[str, int] | None = None,
    meanwhile: Meanwhile | None = None,
) -> Statistics:
    """Run it until its sources have ended and all is settled; the sum of what its parts counted."""
    async with asyncio.timeout(60):
        if way == "one":
            async with Director(flow) as director:
                if meanwhile is not None:
                    await meanwhile({key: [director] for key in {place.stage for place in flow.places.values()}})
                if any(place.single for place in flow.places.values()):
                    await director.wait()
                return await director.drain()
        if way == "lines":
            found = await run_over_lines(flow, counts, meanwhile)
            return summed([one for statistics in found.values() for one in statistics], once=True)
        return await run_over_jetstream(flow, nats.url, counts, meanwhile)


@asynccontextmanager
async def over_jetstream(flow: Flow, url: str, counts: Mapping[str, int] | None = None) -> AsyncIterator[Running]:
    running: Running = {}
    async with AsyncExitStack() as stack:
        for stage in dict.fromkeys(place.stage for place in flow.places.values()):
            for _ in range((counts or {}).get(stage, 1)):
                director = StageDirector(flow, stage, Access(url))
                await stack.enter_async_context(director)
                running.setdefault(stage, []).append(director)
        yield running


async def run_over_jetstream(
    flow: Flow, url: str, counts: Mapping[str, int] | None = None, meanwhile: Meanwhile | None = None
) -> Statistics:
    async with over_jetstream(flow, url, counts) as running:
        if meanwhile is not None:
            await meanwhile(running)
        directors = [director for found in running.values() for director in found]
        singles = {name for name, place in flow.places.items() if place.single}
        async with operating(flow, Access(url)) as operator:
            while True:
                ended = {name for one in directors for name in one.sources_ended}
                lags = [await operator.layout.lags(operator._client, stage) for stage in running]
                if singles <= ended and not sum(sum(lag.values()) for lag in lags):
                    await at_rest(directors)
                    if not any(director.cluster.settled() is False for director in directors):
                        break
                await asyncio.sleep(0.05)
        return summed([await director.stop() for director in directors])
