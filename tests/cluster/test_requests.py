"""HTTP clients of a flow in stages, while those who are to answer have as much in hand as they may."""

from __future__ import annotations

import asyncio
import inspect
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.services import free_port
from tests.transports.nats_server import NatsServer
from tests.workers.running import LIMIT_S

from furcula import Event, Flow, Options
from furcula.cluster import asking
from furcula.cluster.client import Access
from furcula.cluster.worker import StageDirector
from furcula.modules.http.listen import HttpListen

FULL = 3
STUCK = """
import asyncio
from pathlib import Path

from furcula import Event


async def held(event: Event) -> Event:
    print("in hand", flush=True)
    while not Path("go-on").exists():
        await asyncio.sleep(0.01)
    return event
"""


async def get(port: int) -> tuple[int, str | None]:
    """Its status, and when the client may come again."""
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /x HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        head = (await reader.read()).decode().partition("\r\n\r\n")[0]
        writer.close()
    later = re.search(r"(?im)^retry-after: (\S+)", head)
    return int(head.split()[1]), later and later[1]


async def until(claim: Any, what: str) -> None:
    try:
        async with asyncio.timeout(LIMIT_S):
            while not claim():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"it does not come to pass: {what}") from None


def test_a_worker_has_10_000_requests_in_hand_at_most_and_so_has_a_listener() -> None:
    assert asking.MOST == 10_000
    assert inspect.signature(HttpListen).parameters["concurrent"].default == 10_000


async def test_a_client_is_told_503_and_when_to_come_again_while_all_workers_of_a_cluster_have_their_hands_full(
    nats: NatsServer, flow_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MOST", FULL)
    monkeypatch.setattr(asking, "NOBODY_S", 0.5)
    go_on, port = asyncio.Event(), free_port()

    async def held(event: Event) -> Event:
        await go_on.wait()
        return event

    flow = Flow(flow_name, cluster={"lease": 2, "max_bytes": "10MB"})
    listen = flow.use("http.listen", "http", port=port, retry_after="7s")
    listen >> flow.use(held, "held", options=Options(stage="work", order="none", concurrency=FULL)) >> listen
    access = Access(nats.url)
    async with (
        StageDirector(flow, "work", access) as one,
        StageDirector(flow, "work", access) as two,
        StageDirector(flow, "main", access) as main,
    ):
        first = [asyncio.create_task(get(port)) for _ in range(FULL)]
        workers = [director.cluster._asking for director in (one, two)]
        await until(lambda: sum(len(worker._open) for worker in workers) == FULL, "they are in hand")
        while not all(worker._full for worker in workers):  # which of the two is given one is for the server to say
            before = sum(len(worker._open) for worker in workers)
            first.append(asyncio.create_task(get(port)))
            await until(lambda before=before: sum(len(worker._open) for worker in workers) > before, "one more is")
        await until(lambda: not any(worker._shared for worker in workers), "none is given more")
        assert await get(port) == (503, "7")
        go_on.set()
        assert {status for status, _ in await asyncio.gather(*first)} == {204}
        await until(lambda: all(worker._shared for worker in workers), "they take requests again")
        assert await get(port) == (204, None)
        await until(lambda: not main.statistics().total.open, "nothing is left")


async def test_a_client_is_told_503_while_the_processes_have_as_many_requests_in_hand_as_the_listener_admits(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    port = free_port()
    (tmp_path / "stuck.py").write_text(STUCK)
    file = flow(
        f"  http: {{use: http.listen, with: {{port: {port}, concurrent: {FULL}, retry_after: 7s}}}}\n"
        f'  held: {{use: "stuck:held", stage: work, order: none, concurrency: {FULL}}}\n'
        "routes: [http -> held -> http]\n"
    )
    run = furcula("run", file, "--processes", "main=1,work=2")
    run.workers(3)
    await asyncio.to_thread(run.until, "listening on")
    first = [asyncio.create_task(get(port)) for _ in range(FULL)]
    await asyncio.to_thread(run.until, "in hand", FULL)
    assert await get(port) == (503, "7")
    (tmp_path / "go-on").touch()
    assert [status for status, _ in await asyncio.gather(*first)] == [204] * FULL
    assert await get(port) == (204, None)
    assert await asyncio.to_thread(run.end, signal.SIGTERM) == 0, run.text
