"""Three servers that all store what they are given: one goes, and nobody downstream sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.cluster.harness import Proxy, Servers

from furcula import Event, Flow, Options
from furcula.cluster.client import Access, Client, tried
from furcula.cluster.layout import Layout
from furcula.cluster.operating import operating
from furcula.cluster.worker import StageDirector

COUNT = 3000
ROOM = "10MB"
LIMIT_S = 60


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    proxy = Proxy()
    three = Servers(tmp_path_factory.mktemp("three") / "servers", proxy)
    yield three
    three.close()
    proxy.close()


async def until(claim: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            while not claim():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"it does not come to pass: {what}") from None


def flow_of(name: str, got: list[tuple[int, int]], **cluster: Any) -> Flow:
    """From an inlet to another stage, by key."""
    flow = Flow(name, cluster={"partitions": 4, "max_bytes": ROOM, **cluster})

    def note(event: Event[Any]) -> None:
        got.append((event.data["k"], event.data["n"]))

    flow.use("inlet", "inlet") >> flow.use(note, "note", options=Options(stage="work", key="data.k"))
    return flow


async def put(main: StageDirector, first: int, end: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        for n in range(first, end):
            await main.put("inlet", {"n": n, "k": n % 8})
            await asyncio.sleep(0)


async def stored_by(access: Access, stream: str, count: int) -> list[int]:
    """The servers that have all of this stream, its leader first; waits until they are so many."""
    client = Client(access, "test")
    await client.open()
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                group = (await tried(client, lambda: client.js.stream_info(stream))).cluster
                if group is not None and group.leader:
                    found = [group.leader, *(one.name for one in group.replicas or () if one.current)]
                    if len(found) == count:
                        return [int(name.removeprefix("n")) for name in found]
                await asyncio.sleep(0.05)
    finally:
        await client.close()


async def test_events_flow_on_and_none_is_lost_when_one_of_three_servers_goes(servers: Servers, flow_name: str) -> None:
    got: list[tuple[int, int]] = []
    flow = flow_of(flow_name, got, replicas=3)
    access = Access(servers.direct())
    loop = asyncio.get_running_loop()
    async with StageDirector(flow, "work", access), StageDirector(flow, "main", access) as main:
        await put(main, 0, COUNT // 3)
        await until(lambda: len(got) >= COUNT // 3, "the first third comes")
        putting = asyncio.create_task(put(main, COUNT // 3, 2 * COUNT // 3))
        leader, *_ = await stored_by(access, Layout(flow).stream("work"), 3)
        victim = servers.nodes[leader]
        await loop.run_in_executor(None, victim.kill)
        try:
            await putting
            await put(main, 2 * COUNT // 3, COUNT)
            await until(lambda: {n for _, n in got} == set(range(COUNT)), "all come, with two servers")
            await until(lambda: not main.statistics().total.open, "and the sender has heard that they are stored")
            assert main.statistics().total.delivered == COUNT
        finally:
            await loop.run_in_executor(None, victim.start)
    first = list(dict.fromkeys(got))
    for key in range(8):
        numbers = [n for k, n in first if k == key]
        assert numbers == sorted(numbers)


async def test_plan_tells_of_a_change_of_replicas_and_apply_makes_it(servers: Servers, flow_name: str) -> None:
    access = Access(servers.direct())
    async with operating(flow_of(flow_name, [], replicas=1), access) as operator:
        await operator.apply()
    async with operating(flow_of(flow_name, [], replicas=3), access) as operator:
        stream, dead = operator.layout.stream("work"), operator.layout.dead
        changes = sorted(map(str, await operator.changes()))
        assert changes == sorted(f"{name}: num_replicas from 1 to 3" for name in (stream, dead))
        await operator.apply()
        assert await operator.changes() == []
        assert sorted(await stored_by(access, stream, 3)) == [0, 1, 2]
    # What nobody says does not lower it; what somebody says does.
    async with operating(flow_of(flow_name, []), access) as operator:
        assert await operator.changes() == []
    async with operating(flow_of(flow_name, [], replicas=1), access) as operator:
        assert f"{stream}: num_replicas from 3 to 1" in map(str, await operator.changes())
