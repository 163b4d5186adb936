"""Stages as processes of `furcula run`, joined by 0mq over ipc: killed, restarted one by one, drained."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.services import free_port
from tests.workers.running import is_worker, wait_until
from tests.workers.test_rolling import Client

SHOP = """
import asyncio
import itertools
import json
import os
import time

from furcula import Event, Source


def numbers(count: int = 1000, pause: float = 0.0):
    for n in range(count):
        yield {"n": n, "k": n % 20}
        if pause and n % 20 == 0:
            time.sleep(pause)


async def endless():
    for n in itertools.count():
        yield {"n": n, "k": n % 20, "source": os.getpid()}
        await asyncio.sleep(0.0005)  # a pause


async def handled(event: Event) -> Event:
    await asyncio.sleep(0.0005)
    event.data = {**event.data, "pid": os.getpid()}
    return event


def note(event: Event) -> None:
    # In one write, and as a line of its own: other processes write to this file too.
    file = os.open("out.ndjson", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps(event.data).encode() + b"\\n")
    os.close(file)


def pid(event: Event) -> Event:
    event.data = {"pid": os.getpid()}
    return event
"""

CHAIN = """
  numbers: {{{source}}}
  handled: {{use: "shop:handled", stage: work, key: data.k, concurrency: 16}}
  note: {{use: "shop:note", stage: out, key: data.k}}
"""


def chain(folder: Path, flow: Any, source: str) -> str:
    (folder / "shop.py").write_text(SHOP)
    return str(flow(CHAIN.format(source=source)))


def noted(folder: Path) -> list[dict[str, int]]:
    path = folder / "out.ndjson"
    # A line that is being written may be seen in part.
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def first_times(found: list[dict[str, int]]) -> dict[int, list[int]]:
    """By key, the numbers in the order in which they came first."""
    by_key: dict[int, list[int]] = defaultdict(list)
    for one in found:
        if one["n"] not in by_key[one["k"]]:
            by_key[one["k"]].append(one["n"])
    return by_key


def test_stages_in_processes_deliver_what_one_process_does(furcula: Any, flow: Any, tmp_path: Path) -> None:
    file = chain(tmp_path, flow, 'use: "shop:numbers", with: {count: 3000}')
    for processes in (None, "1", "main=1,work=3,out=2"):
        (tmp_path / "out.ndjson").unlink(missing_ok=True)
        run = furcula("run", file, *(["--processes", processes] if processes else []))
        assert run.end() == 0, run.text
        found = noted(tmp_path)
        assert sorted(one["n"] for one in found) == list(range(3000))
        assert all(numbers == sorted(numbers) for numbers in first_times(found).values())
        if processes is not None:
            assert "in flight 0" in run.text
            assert len({one["pid"] for one in found}) == (3 if "work=3" in processes else 1)


def test_workers_of_a_stage_that_are_killed_lose_nothing_and_keep_the_order(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    file = chain(tmp_path, flow, 'use: "shop:numbers", thread: true, with: {count: 4000, pause: 0.01}')
    run = furcula("run", file, "--processes", "main=1,work=2,out=1")
    run.workers(4)
    victims = 0
    for already in (300, 900, 1500, 2100):
        wait_until(lambda already=already: len(noted(tmp_path)) > already, "events come")  # type: ignore[misc]
        working = run.until(r"work/\d started as process (\d+)", 2 + victims)
        os.kill(int(working[-1]), signal.SIGKILL)
        victims += 1
        started = run.workers(4 + victims)
    assert run.end() == 0, run.text
    found = noted(tmp_path)
    assert {one["n"] for one in found} == set(range(4000))
    assert all(numbers == sorted(numbers) for numbers in first_times(found).values())
    assert len(started) == 8
    # What was not reported when a worker died is handled a second time, and no more than that.
    assert len(found) - 4000 <= victims * 16 * 512


def test_the_folder_of_a_run_whose_supervisor_was_killed_is_removed_by_the_next_run(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    file = chain(tmp_path, flow, 'use: "shop:endless"')
    with tempfile.TemporaryDirectory() as place:  # the names of sockets must be short

        def folders() -> set[str]:
            return {path.name for path in Path(place).iterdir()}

        runs = [furcula("run", file, "--processes", "1", environment={"TMPDIR": place}) for _ in range(2)]
        first, second = (set(run.workers(3)) for run in runs)
        assert len(folders()) == 2
        runs[0].process.kill()
        wait_until(lambda: not any(map(is_worker, first)), "its workers end")
        assert len(folders()) == 2
        third = furcula("run", file, "--processes", "1", environment={"TMPDIR": place})
        third.workers(3)
        assert len(folders()) == 2  # that of the second, and that of the third
        assert all(map(is_worker, second))
        assert runs[1].end(signal.SIGTERM) == 0
        assert third.end(signal.SIGTERM) == 0
        assert not folders()


def test_a_restart_one_by_one_of_all_stages_keeps_everything_in_order(furcula: Any, flow: Any, tmp_path: Path) -> None:
    file = chain(tmp_path, flow, 'use: "shop:endless"')
    run = furcula("run", file, "--processes", "main=1,work=2,out=1")
    run.workers(4)
    wait_until(lambda: len(noted(tmp_path)) > 200, "events come")
    run.send(signal.SIGHUP)
    run.until("all workers have been restarted")
    before = len(noted(tmp_path))
    wait_until(lambda: len(noted(tmp_path)) > before + 100, "events come")
    assert run.end(signal.SIGTERM) == 0, run.text
    assert "failed 0 + in flight 0" in run.text
    # The source begins anew in the worker that replaces its own.
    runs: dict[int, list[dict[str, int]]] = defaultdict(list)
    for one in noted(tmp_path):
        runs[one["source"]].append(one)
    assert len(runs) == 2
    for found in runs.values():
        numbers = [one["n"] for one in found]
        assert sorted(numbers) == list(range(len(numbers)))
        assert all(by_key == sorted(by_key) for by_key in first_times(found).values())


WEB = """
  http: {{use: http.listen, with: {{port: {port}}}}}
  pid: {{use: "shop:pid", stage: work, order: none}}
routes: [http -> pid -> http]
"""


def test_requests_cross_processes_and_come_back_while_workers_are_restarted_and_killed(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    port = free_port()
    run = furcula("run", flow(WEB.format(port=port)), "--processes", "2", "--deadline", "20s")
    run.workers(4)
    run.until("listening on", 2)
    clients = [Client(port) for _ in range(4)]
    try:
        wait_until(lambda: sum(sum(client.answered.values()) for client in clients) > 100, "requests are answered")
        answering = {pid for client in clients for pid in client.answered}
        os.kill(next(iter(answering)), signal.SIGKILL)  # what it had is sent to the one that takes its place
        run.workers(5)
        run.send(signal.SIGHUP)
        run.until("all workers have been restarted")
        wait_until(
            lambda: any(pid not in answering for client in clients for pid in client.answered), "the new ones answer"
        )
    finally:
        for client in clients:
            client.end()
    assert [error for client in clients for error in client.errors] == []
    assert run.end(signal.SIGTERM) == 0, run.text
