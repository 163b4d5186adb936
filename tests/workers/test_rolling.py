"""Workers are restarted one by one, and whoever talks to them does not notice."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.services import free_port
from tests.workers.running import LIMIT_S, wait_until

from furcula.workers.launch import Exec
from furcula.workers.supervisor import Policy, Supervisor
from furcula.workers.worker import Worker

WEB = """
  http: {{use: http.listen, with: {{port: {port}}}}}
  pid: {{use: "work:pid"}}
routes: [http -> pid -> http]
"""


class Client(threading.Thread):
    """Sends requests one after the other, on a connection as long as the server keeps it. It never tries twice."""

    def __init__(self, port: int, *, pause_s: float = 0.0):
        super().__init__(daemon=True)
        self.port = port
        self.answered: dict[int, int] = {}
        self.errors: list[str] = []
        self.connections = 0
        self.halt = threading.Event()
        self._pause_s = pause_s
        self.start()

    def run(self) -> None:
        while not self.halt.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
                    self.connections += 1
                    self._talk(line)
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")

    def _talk(self, line: socket.socket) -> None:
        while not self.halt.is_set():
            line.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            head, body = self._answer(line)
            if not head.startswith(b"HTTP/1.1 200 "):
                self.errors.append(head.split(b"\r\n")[0].decode())
            pid = json.loads(body)["pid"]
            self.answered[pid] = self.answered.get(pid, 0) + 1
            if b"connection: close" in head.lower():
                return
            if self._pause_s:
                self.halt.wait(self._pause_s)

    def _answer(self, line: socket.socket) -> tuple[bytes, bytes]:
        text = b""
        while b"\r\n\r\n" not in text:
            text += self._more(line)
        head, _, body = text.partition(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head.lower())
        assert found is not None, head
        while len(body) < int(found[1]):
            body += self._more(line)
        return head, body

    @staticmethod
    def _more(line: socket.socket) -> bytes:
        more = line.recv(4096)
        if not more:
            raise ConnectionError("the server closed the connection instead of answering")
        return more

    def end(self) -> None:
        self.halt.set()
        self.join(30)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_request_fails_while_two_workers_under_load_are_restarted(furcula: Any, flow: Any, loop: str) -> None:
    port = free_port()
    run = furcula("run", flow(WEB.format(port=port)), "--processes", "2", environment={"FURCULA_LOOP": loop})
    first = set(run.workers(2))
    run.until("listening on", 2)
    # Some are always under way, some are idle most of the time.
    clients = [Client(port) for _ in range(3)] + [Client(port, pause_s=0.05) for _ in range(3)]
    try:
        wait_until(lambda: sum(sum(client.answered.values()) for client in clients) > 200, "requests are answered")
        for times in (1, 2):
            run.send(signal.SIGHUP)
            run.until("all workers have been restarted", times)
        last = set(run.workers(6)[4:])
        wait_until(lambda: any(last & set(client.answered) for client in clients), "the new workers answer")
    finally:
        for client in clients:
            client.end()
    assert [error for client in clients for error in client.errors] == []
    answered = {pid for client in clients for pid in client.answered}
    assert answered & first
    assert answered & last
    assert run.end(signal.SIGTERM) == 0
    total = sum(sum(client.answered.values()) for client in clients)
    assert f"admitted {total} = delivered {total} + dropped 0 + failed 0 + in flight 0" in run.text


def test_a_client_that_says_nothing_more_is_closed_at_the_end_of_the_grace(furcula: Any, flow: Any) -> None:
    port = free_port()
    run = furcula("run", flow(WEB.format(port=port)), "--processes", "2", "--deadline", "1s")
    run.until("listening on", 2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
        run.send(signal.SIGHUP)
        run.until("all workers have been restarted")
        assert line.recv(4096) == b""
    assert run.end(signal.SIGTERM) == 0


def test_a_flow_file_that_is_broken_by_now_leaves_the_old_workers_at_work(furcula: Any, flow: Any) -> None:
    port = free_port()
    run = furcula("run", flow(WEB.format(port=port)), "--processes", "2")
    pids = run.workers(2)
    run.until("listening on", 2)
    flow("  http: {use: http.listne}\n")
    run.send(signal.SIGHUP)
    told = run.until("could not be replaced: (.*)")
    assert "there is no module kind 'http.listne'" in told[0] or "http.listne" in told[0]
    client = Client(port)
    wait_until(lambda: sum(client.answered.values()) > 10, "the old workers answer")
    client.end()
    assert client.errors == []
    assert set(client.answered) <= set(pids)
    assert run.text.count("no kind of module 'http.listne'") == 1, "what is wrong is told once"
    assert " died " not in run.text
    flow(WEB.format(port=port))  # mended
    run.send(signal.SIGHUP)
    run.until("all workers have been restarted")
    assert run.end(signal.SIGTERM) == 0


def test_changed_code_is_run_by_the_new_workers(furcula: Any, flow: Any, tmp_path: Any) -> None:
    file = flow('  t: {use: "work:ticks"}\n  d: {map: "other:f"}\n  out: {use: stdout}\n')
    (tmp_path / "other.py").write_text("def f(n: int) -> str:\n    return 'as it was'\n")
    run = furcula("run", file, "--processes", "2")
    run.until("as it was")
    (tmp_path / "other.py").write_text("def f(n: int) -> str:\n    return 'as it is'\n")
    run.send(signal.SIGHUP)
    run.until("as it is")
    assert run.end(signal.SIGTERM) == 0


def test_a_source_for_one_process_begins_in_the_new_worker_when_the_old_one_has_gone(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow('  t: {use: "work:announced"}\n  out: {use: "null"}\n'), "--processes", "2")
    run.until("source in")
    run.send(signal.SIGHUP)
    run.until("all workers have been restarted")
    run.until("source in", 2)
    ended = next(index for index, line in enumerate(run.lines) if "main/0 ended" in line)
    begun = [index for index, line in enumerate(run.lines) if line.startswith("source in")]
    started = run.workers(4)
    assert [run.lines[index] for index in begun] == [f"source in {started[0]}", f"source in {started[2]}"]
    assert begun[0] < ended < begun[1]
    assert run.end(signal.SIGTERM) == 0


def test_a_port_that_the_flow_has_left_is_closed(furcula: Any, flow: Any) -> None:
    old, new = free_port(), free_port()
    run = furcula("run", flow(WEB.format(port=old)), "--processes", "1", "--hung-after", "30s")
    run.until("listening on")
    flow(WEB.format(port=new))
    run.send(signal.SIGHUP)
    run.until("all workers have been restarted")
    socket.create_connection(("127.0.0.1", new), timeout=30).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", old), timeout=30)
    assert run.end(signal.SIGTERM) == 0


def test_a_port_of_a_flow_that_was_refused_is_closed_again(furcula: Any, flow: Any) -> None:
    old, new = free_port(), free_port()
    run = furcula("run", flow(WEB.format(port=old)), "--processes", "1", "--hung-after", "30s")
    run.until("listening on")
    # Whichever of the two asks first has it; the other one cannot.
    listening = "".join(f"  {name}: {{use: tcp.listen, with: {{address: {new}}}}}\n" for name in ("one", "two"))
    flow(f'{listening}  out: {{use: "null"}}\nroutes: [one -> out, two -> out]\n')
    run.send(signal.SIGHUP)
    run.until("could not be replaced: .*it is in use")
    socket.create_connection(("127.0.0.1", old), timeout=30).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", new), timeout=30)
    assert run.end(signal.SIGTERM) == 0


def test_a_module_that_listens_may_be_given_another_name(furcula: Any, flow: Any) -> None:
    port = free_port()
    run = furcula("run", flow(WEB.format(port=port)), "--processes", "2")
    run.until("listening on", 2)
    flow(WEB.format(port=port).replace("http:", "web:").replace("http ->", "web ->").replace("-> http", "-> web"))
    client = Client(port)
    try:
        wait_until(lambda: sum(client.answered.values()) > 10, "the old workers answer")
        run.send(signal.SIGHUP)
        run.until("all workers have been restarted")
        new = set(run.workers(4)[2:])
        wait_until(lambda: bool(new & set(client.answered)), "the new workers answer")
    finally:
        client.end()
    assert client.errors == []
    assert run.end(signal.SIGTERM) == 0


# ------------------------------------------------------------------ sources that end

ENDING = """
import asyncio
import pathlib
import sys

from work import say


async def there(name):
    while not pathlib.Path(name).exists():
        await asyncio.sleep(0.01)


async def few():
    say("few begin")
    for n in range(5):
        yield n
    say("few end")


async def long():
    say("long begins")
    yield 0
    await there("end")


async def gated(n: int) -> int:
    await there("go")
    return n


class SlowStop:
    def process(self, n: int) -> int:
        return n

    async def stop(self):
        worker = sys.argv[2]
        if worker != "main/0":
            say("held", worker)
            await there("go." + worker[-1])
"""


def test_a_source_that_has_ended_is_not_begun_again_while_its_last_events_are_under_way(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    file = flow('  few: {use: "ending:few"}\n  gated: {map: "ending:gated"}\n  out: {use: "null"}\n')
    run = furcula("run", file, "--processes", "1", "--hung-after", "60s", "--deadline", "60s")
    run.until("few end")
    run.send(signal.SIGHUP)
    run.until("main/0 is ready", 2)
    (tmp_path / "go").touch()
    assert run.end() == 0
    assert run.text.count("few begin") == 1
    assert re.search(r"^few +5 +5 +0", run.text, re.MULTILINE)


@pytest.mark.parametrize("stage", ["", ", stage: work, order: none"])
def test_of_two_sources_the_one_that_goes_on_is_begun_again(
    furcula: Any, flow: Any, tmp_path: Path, stage: str
) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    modules = f'  few: {{use: "ending:few"}}\n  long: {{use: "ending:long"}}\n  out: {{use: "null"{stage}}}\n'
    processes = "main=1,work=1" if stage else "2"
    run = furcula("run", flow(modules + "routes: [few -> out, long -> out]\n"), "--processes", processes)
    run.until("few end")
    run.until("is ready", 2)
    for times in (2, 3):
        run.send(signal.SIGHUP)
        run.until("long begins", times)
        run.until("all workers have been restarted", times - 1)
    (tmp_path / "end").touch()
    assert run.end() == 0
    assert run.text.count("few begin") == 1
    assert re.search(r"^out +8 +0 +8", run.text, re.MULTILINE)


def test_a_run_whose_sources_end_in_the_middle_of_a_restart_ends(furcula: Any, flow: Any, tmp_path: Path) -> None:
    (tmp_path / "ending.py").write_text(ENDING)
    file = flow('  long: {use: "ending:long"}\n  slow: {use: "ending:SlowStop"}\n  out: {use: "null"}\n')
    run = furcula("run", file, "--processes", "3", "--deadline", "60s")
    run.until("is ready", 3)
    run.until("long begins")
    run.send(signal.SIGHUP)
    run.until("long begins", 2)
    run.until("held main/1")  # it has been replaced, and has not gone yet
    (tmp_path / "end").touch()
    run.until("held main/1", 2)
    run.until("held main/2")
    (tmp_path / "go.1").touch()
    run.until("main/1 ended", 2)
    (tmp_path / "go.2").touch()
    assert run.end() == 0
    assert len(run.workers(5)) == 5


# ------------------------------------------------------------------ restarts that are given up


class _Told(logging.Handler):
    """How often it was said, whatever else listens to the log."""

    def __init__(self, text: str):
        super().__init__()
        self.times = 0
        self._text = text

    def emit(self, record: logging.LogRecord) -> None:
        self.times += self._text in record.getMessage()


async def test_restarts_that_are_given_up_do_not_count_against_the_worker_that_is_well(
    flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = flow('  in: {use: tcp.listen, with: {address: 0}}\n  out: {use: "null"}\n')
    policy = Policy(max_deaths=2, window_s=1000)
    supervisor = Supervisor("shop", [Worker()], Exec(), {"flow": file, "deadline_s": 5.0}, policy)
    told = _Told("could not be replaced")
    logger = logging.getLogger("furcula.workers")
    logger.addHandler(told)
    try:
        running = asyncio.ensure_future(supervisor.run())
        async with asyncio.timeout(2 * LIMIT_S):
            while supervisor.figures().workers[0].state != "running":
                await asyncio.sleep(0.01)
            pid = supervisor.figures().workers[0].pid
            flow("  broken: [\n")
            for times in (1, 2, 3):
                supervisor.restart()
                while told.times < times:
                    await asyncio.sleep(0.01)
            worker = supervisor.figures().workers[0]
            assert (worker.pid, worker.state, worker.restarts) == (pid, "running", 0)
            supervisor.stop()
            outcome = await running
    finally:
        logger.removeHandler(told)
    assert outcome.error == ""


STAGES = """
  t: {{use: "work:ticks"}}
  double: {{map: "work:double"{double}}}
  out: {{use: "null", stage: work, order: none}}
{routes}"""


@pytest.mark.parametrize(
    ("double", "routes", "told"),
    [
        (", stage: more, order: none", "", "the stages have changed"),
        ("", "routes: [t -> double, t -> out, double -> out]\n", "the routes between the stages have changed"),
    ],
)
def test_a_flow_file_with_other_stages_is_refused_by_a_restart(
    furcula: Any, flow: Any, double: str, routes: str, told: str
) -> None:
    run = furcula("run", flow(STAGES.format(double="", routes="")), "--processes", "1", "--hung-after", "30s")
    run.until("is ready", 2)
    flow(STAGES.format(double=double, routes=routes))
    run.send(signal.SIGHUP)
    reason = run.until("could not be replaced: (.*)")[0]
    assert f"{told} since the run was started" in reason
    assert "stop the run and start it anew" in reason
    flow(STAGES.format(double="", routes=""))
    run.send(signal.SIGHUP)
    run.until("all workers have been restarted")
    assert run.end(signal.SIGTERM) == 0
