"""`furcula run --cluster` and `furcula cluster`, as people type them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services import free_port
from tests.transports.nats_server import NatsServer
from tests.workers.running import LIMIT_S, wait_until
from tests.workers.test_rolling import Client
from tests.workers.test_stage_processes import SHOP, first_times, noted

CHAIN = """\
flow: {name}
cluster: {{partitions: 4, lease: 2s, delay: 10ms, max_deliveries: 2}}
modules:
  numbers: {{use: "shop:endless"}}
  handled: {{use: "shop:handled", stage: work, key: data.k, concurrency: 16}}
  note: {{use: "shop:note", stage: out, key: data.k}}
"""
WEB = """\
flow: {name}
modules:
  http: {{use: http.listen, with: {{port: {port}}}}}
  pid: {{use: "shop:pid", stage: work, order: none}}
routes: [http -> pid -> http]
"""
WRONG = """

async def stuck(event: Event) -> Event:
    open("stuck", "w").close()
    await asyncio.sleep(3600)
    return event


def refuses(event: Event) -> Event:
    if event.data["n"] % 50 == 7 and not os.path.exists("mended"):
        raise ValueError(f"not {event.data['n']}")
    return event
"""


def shop(folder: Path, text: str, **words: Any) -> str:
    (folder / "shop.py").write_text(SHOP.replace("sleep(0.0005)  # a pause", "sleep(0.005)") + WRONG)
    (folder / "flow.yaml").write_text(text.format(**words))
    return "flow.yaml"


class Operator:
    """`furcula cluster`, to its end."""

    def __init__(self, folder: Path, url: str):
        self._folder = folder
        self._environment = {**os.environ, "FURCULA_CLUSTER": url}

    def __call__(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "furcula", "cluster", *arguments]
        ran = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == code, ran.stdout + ran.stderr
        return ran.stdout + (ran.stderr if code else "")

    def status(self) -> Any:
        return json.loads(self("status", "flow.yaml", "--format", "json"))


@pytest.fixture
def operator(tmp_path: Path, nats: NatsServer) -> Operator:
    return Operator(tmp_path, nats.url)


def test_workers_on_a_cluster_are_seen_paused_drained_and_resumed(
    furcula: Any,
    tmp_path: Path,
    nats: NatsServer,
    flow_name: str,
    operator: Operator,
) -> None:
    file = shop(tmp_path, CHAIN, name=flow_name)
    assert "make the stream" in operator("plan", file)
    runs = [
        furcula("run", file, "--cluster", nats.url, "--stage", stage, "--processes", count, "--label", "v1")
        for stage, count in (("work", "2"), ("out", "1"), ("main", "1"))
    ]
    wait_until(lambda: len(noted(tmp_path)) > 500, "events come")
    assert operator("plan", file) == ""
    status = operator.status()
    stages = {stage["name"]: stage for stage in status["stages"]}
    assert {name: len(stage["workers"]) for name, stage in stages.items()} == {"main": 1, "work": 2, "out": 1}
    assert sum(worker["has"]["handled"] for worker in stages["work"]["workers"]) == 4
    assert {worker["version"] for worker in stages["work"]["workers"]} == {"v1"}
    assert [worker["runs"] for worker in stages["main"]["workers"]] == [["numbers"]]
    assert "work: 2 worker(s)" in operator("status", file)
    prometheus = operator("status", file, "--format", "prometheus")
    assert f'furcula_stage_workers{{flow="{flow_name}",stage="work"}} 2' in prometheus

    operator("pause", file, "work")
    wait_until(lambda: operator.status()["stages"][1]["lag"]["handled"] > 20, "events wait for the stage")
    assert "PAUSED" in operator("status", file)
    operator("resume", file, "work")
    wait_until(lambda: operator.status()["stages"][1]["lag"]["handled"] < 20, "they are handled")

    operator("drain", file, "--within", "30s")
    found = noted(tmp_path)
    assert sorted(one["n"] for one in found) == list(range(len(found)))
    operator("resume", file)
    wait_until(lambda: len(noted(tmp_path)) > len(found) + 100, "the source goes on")
    for run in reversed(runs):
        assert run.end(signal.SIGTERM) == 0, run.text
    assert all(by_key == sorted(by_key) for by_key in first_times(noted(tmp_path)).values())


def test_dead_letters_of_a_cluster_are_listed_shown_replayed_and_thrown_away(
    furcula: Any,
    tmp_path: Path,
    nats: NatsServer,
    flow_name: str,
    operator: Operator,
) -> None:
    chain = CHAIN.replace("shop:handled", "shop:refuses").replace("shop:endless", "shop:numbers")
    chain = chain.replace(", concurrency: 16", "")
    file = shop(tmp_path, chain, name=flow_name)
    run = furcula("run", file, "--cluster", nats.url)
    wait_until(lambda: len(noted(tmp_path)) == 980, "all others come")
    wait_until(lambda: operator.status()["dead_letters"] == 20, "they are dead letters")
    lines = operator("dlq", "list", file).splitlines()
    assert len(lines) == 20
    assert "handled  ValueError: not 7" in lines[0]
    number = lines[0].split()[0]
    shown = json.loads(operator("dlq", "show", file, number, "--json"))
    assert (shown["data"], shown["module"], shown["attempts"]) == ({"n": 7, "k": 7}, "handled", 1)
    assert "refuses" in shown["traceback"]

    operator("dlq", "discard", file, lines[1].split()[0])
    (tmp_path / "mended").touch()
    operator("dlq", "replay", file, "--all")
    wait_until(lambda: len(noted(tmp_path)) == 999, "the others come after all")
    assert operator("dlq", "list", file) == ""
    assert "there is no dead letter 1" in operator("dlq", "show", file, "1", code=1)
    assert run.end(signal.SIGTERM) == 0, run.text


def test_requests_come_back_over_an_embedded_cluster(furcula: Any, tmp_path: Path, flow_name: str) -> None:
    port = free_port()
    file = shop(tmp_path, WEB, name=flow_name, port=port)
    run = furcula("run", file, "--cluster", "embedded", "--data", "data", "--processes", "2")
    run.workers(4)
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    run.until("listening on", 2)
    client = Client(port)
    try:
        wait_until(lambda: sum(client.answered.values()) > 50, "requests are answered")
        run.send(signal.SIGHUP)
        run.until("all workers have been restarted")
        answered = sum(client.answered.values())
        wait_until(lambda: sum(client.answered.values()) > answered + 20, "requests are answered")
    finally:
        client.end()
    assert client.errors == []
    second = Operator(tmp_path, "embedded")
    assert "2 worker(s)" in second("status", file, "--data", "data")
    assert run.end(signal.SIGTERM) == 0, run.text
    assert "no embedded cluster runs in data" in second("status", file, "--data", "data", code=1)


def test_a_request_whose_worker_dies_is_answered_so_that_it_is_tried_again(
    furcula: Any,
    tmp_path: Path,
    nats: NatsServer,
    flow_name: str,
) -> None:
    port = free_port()
    web = WEB.replace("modules:", "cluster: {{lease: 1s}}\nmodules:").replace("shop:pid", "shop:stuck")
    file = shop(tmp_path, web, name=flow_name, port=port)
    work = furcula("run", file, "--cluster", nats.url, "--stage", "work", "--pid-file", "pid")
    main = furcula("run", file, "--cluster", nats.url, "--stage", "main")
    main.until("listening on")
    (worker,) = work.workers(1)
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        wait_until(lambda: (tmp_path / "stuck").exists(), "a worker is at it")
        os.kill(worker, signal.SIGKILL)
        answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 503 "), answer
    assert b"retry-after:" in answer.lower()
    assert main.end(signal.SIGTERM) == 0, main.text
    work.end(signal.SIGTERM)


def test_a_changed_flow_says_what_it_would_change_and_is_not_run_before(
    furcula: Any,
    tmp_path: Path,
    nats: NatsServer,
    flow_name: str,
    operator: Operator,
) -> None:
    file = shop(tmp_path, CHAIN, name=flow_name)
    operator("apply", file)
    changed = CHAIN.replace("partitions: 4", "partitions: 8, max_messages: 500")
    shop(tmp_path, changed, name=flow_name)
    plan = operator("plan", file)
    assert "handled: from work (keyed, 4 partitions) to work (keyed, 8 partitions)" in plan
    assert "max_msgs from 100000 to 500" in plan
    run = furcula("run", file, "--cluster", nats.url, "--stage", "out")
    assert run.end() == 1
    assert "`furcula cluster apply`" in run.text
    operator("apply", file)
    assert operator("plan", file) == ""


@pytest.mark.parametrize("command", ["status", "plan", "drain"])
def test_whoever_asks_a_server_that_is_away_is_told_what_is_waited_for(
    furcula: Any, tmp_path: Path, flow_name: str, command: str
) -> None:
    file, port = shop(tmp_path, CHAIN, name=flow_name), free_port()
    run = furcula("cluster", command, file, "--cluster", f"nats://me:hidden@127.0.0.1:{port}")
    assert run.until("waiting for .*") == [f"waiting for nats://127.0.0.1:{port}"]
    assert run.process.poll() is None


def test_what_cannot_be_is_refused_with_the_next_step(tmp_path: Path, flow_name: str) -> None:
    file = shop(tmp_path, CHAIN, name=flow_name)

    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "furcula", *arguments]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
        assert ran.returncode == 2, ran.stderr
        return ran.stderr

    assert "--stage needs --cluster" in told("run", file, "--stage", "work")
    assert "it has main, work, out" in told("run", file, "--stage", "wrok", "--cluster", "nats://127.0.0.1:1")
    assert "neither a number nor one of main=N, work=N, out=N" in told("run", file, "--processes", "wrok=2")
    assert "a cluster is nats://host:port" in told("run", file, "--cluster", "http://localhost", "--stage", "out")
    assert "say where the cluster is" in told("cluster", "status", file)
