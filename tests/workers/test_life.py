"""Workers start, die, hang, are restarted and end; what is told of it, and what is counted."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.workers.running import FUNCTIONS, LIMIT_S, is_worker, wait_until

from furcula import Director, Event, Flow
from furcula.config.target import opened
from furcula.engine.stop_signals import TOGETHER_S, StopSignals
from furcula.workers.child import _Body, cut_names
from furcula.workers.launch import Exec
from furcula.workers.line import DOWN, Frames
from furcula.workers.supervisor import Policy, Supervisor
from furcula.workers.worker import Drain, Start, Worker

TICKS = '  t: {use: "work:ticks"}\n  note: {use: "work:note"}\n  out: {use: "null"}\n'
LISTEN = '  listen: {use: tcp.listen, with: {address: 0}}\n  out: {use: "null"}\n'


def rows(text: str) -> dict[str, list[str]]:
    """The last report's line of each worker."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if re.match(r"main/\d +", line)}


def test_a_flow_whose_sources_end_is_run_to_its_end_once_and_added_up(furcula: Any, flow: Any) -> None:
    file = flow('  n: {use: "work:numbers"}\n  d: {map: "work:double"}\n  out: {use: stdout}\n')
    run = furcula("run", file, "--processes", "3")
    assert run.end() == 0
    assert sorted(int(line) for line in run.lines if line.isdigit()) == [2 * n for n in range(1000)]
    assert "admitted 1000 = delivered 1000 + dropped 0 + failed 0 + in flight 0" in run.text
    # A source that listens to nobody runs in the first worker only.
    assert {name: row[:4] for name, row in rows(run.text).items()} == {
        "main/0": ["ended", "0", "1000", "1000"],
        "main/1": ["ended", "0", "0", "0"],
        "main/2": ["ended", "0", "0", "0"],
    }


def test_values_put_over_the_files_reach_the_workers(furcula: Any, flow: Any) -> None:
    file = flow('  n: {use: "work:numbers"}\n  out: {use: "null"}\n')
    run = furcula("run", file, "--processes", "2", "--set", "modules.n.with.count=7")
    assert run.end() == 0
    assert "admitted 7 = delivered 7" in run.text


def test_each_worker_writes_a_profile_of_its_own(furcula: Any, flow: Any, tmp_path: Path) -> None:
    file = flow('  n: {use: "work:numbers"}\n  out: {use: "null"}\n')
    assert furcula("run", file, "--processes", "2", "--profile", "out.prof").end() == 0
    assert sorted(path.name for path in tmp_path.glob("out.prof*")) == ["out.prof.main-0", "out.prof.main-1"]


def test_a_flow_that_cannot_run_starts_no_worker(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow("  n: {use: nothing}\n"), "--processes", "2")
    assert run.end() == 2
    assert "started as process" not in run.text


def test_a_killed_worker_is_restarted_its_reason_told_and_its_figures_kept(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow(TICKS), "--processes", "2")
    first = run.workers(2)[0]
    seen = _seen(run)
    wait_until(lambda: seen().count(f"{first} ") >= 300, "the first worker has counted and told it")
    os.kill(first, signal.SIGKILL)
    assert run.until(r"main/0 died \(process \d+\): (.*); it is restarted")[0] == "killed by SIGKILL"
    again = run.workers(3)[2]
    wait_until(lambda: f"{again} " in seen(), "the new one is at work")
    assert run.end(signal.SIGTERM) == 0
    (lost,) = re.findall(r"^lost: main/0 \(process (\d+)\) killed by SIGKILL.* nobody knows$", run.text, re.MULTILINE)
    assert int(lost) == first
    # One line tells of the death, and what it had.
    (told,) = [line for line in run.lines if "killed by SIGKILL" in line and not line.startswith("lost: ")]
    assert re.search(r" ERROR .*; it is restarted in 0.1 s; last known \d+\.\d s before, \d+ open", told)
    row = rows(run.text)["main/0"]
    assert row[:2] == ["ended", "1"]
    assert row[-1] == "incomplete"
    assert "incomplete" not in rows(run.text)["main/1"]
    later = seen().count(f"{again} ")
    # The figures of the dead one are those that it told last, a second or so before; one may have been on its way.
    assert later < int(row[2]) <= later + seen().count(f"{first} ") + 1
    total = re.search(r"admitted (\d+) = delivered (\d+) \+ dropped 0 \+ failed 0 \+ in flight (\d+)", run.text)
    assert total is not None
    assert int(total[1]) == int(row[2]) == int(total[2]) + int(total[3])


def _seen(run: Any) -> Any:
    folder = Path(f"/proc/{run.process.pid}/cwd").resolve()

    def read() -> str:
        file = folder / "seen"
        return file.read_text() if file.exists() else ""

    return read


def test_the_other_workers_go_on_while_one_is_restarted(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow(LISTEN), "--processes", "2")
    first, second = run.workers(2)
    os.kill(first, signal.SIGKILL)
    run.workers(3)
    assert is_worker(second)
    assert run.end(signal.SIGTERM) == 0
    assert run.text.count("started as process") == 3


async def test_what_a_killed_worker_had_is_named_by_module(
    flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    file = flow('  n: {use: "work:numbers", with: {count: 3}}\n  stuck: {use: "work:stuck", concurrency: 3}\n')
    settings = {"flow": file, "deadline_s": 1.0}
    supervisor = Supervisor("shop", [Worker()], Exec(), settings, Policy(max_deaths=1))
    running = asyncio.ensure_future(supervisor.run())
    async with asyncio.timeout(LIMIT_S):
        while supervisor.figures().statistics.open < 3:
            await asyncio.sleep(0.01)
        (worker,) = supervisor.figures().workers
        assert worker.state == "running"
        os.kill(worker.pid, signal.SIGKILL)
        outcome = await running
    assert outcome.error == "main/0 died 1 times within 60 s; the last time: killed by SIGKILL"
    (lost,) = outcome.figures.lost
    assert (lost.worker, lost.pid, lost.reason) == ("main/0", worker.pid, "killed by SIGKILL")
    assert (lost.open, lost.held) == (3, {"stuck": 3})
    assert str(lost).endswith("before, 3 open (3 in stuck)")
    assert outcome.figures.statistics.open == 3
    assert outcome.figures.statistics.balanced


def test_a_worker_that_leaves_is_told_with_its_exit_code(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow('  t: {use: "work:ticks"}\n  leave: {use: "work:leave"}\n'), "--processes", "1",
                  "--hung-after", "60s")  # fmt: skip
    assert run.until(r"main/0 died \(process \d+\): (.*); it is restarted")[0] == "exit code 3"
    for pause_s in ("0.2", "0.4"):  # each time twice as long
        run.until(rf"main/0 died again .* for the same reason; it is restarted in {pause_s} s")
    run.end(signal.SIGTERM)


async def test_a_worker_that_dies_too_often_stops_the_run(
    flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    settings = {"flow": flow('  in: {use: tcp.listen, with: {address: 0}}\n  out: {use: "work:Unwilling"}\n')}
    workers = [Worker(index=index, count=2) for index in range(2)]
    policy = Policy(max_deaths=2, window_s=1000, pause_s=0.01)
    supervisor = Supervisor("shop", workers, Exec(), {**settings, "deadline_s": 1.0}, policy)
    async with asyncio.timeout(LIMIT_S):
        outcome = await supervisor.run()
    assert outcome.error in [
        f"main/{index} died 2 times within 1000 s; the last time: exit code 1: out (flow.yaml:4:3) could not start: "
        "OSError: no such device"
        for index in range(2)
    ]
    assert [worker.state for worker in outcome.figures.workers] == ["ended", "ended"]
    assert 1 in [worker.restarts for worker in outcome.figures.workers]


def test_a_worker_that_cannot_start_is_told_once_with_its_reason_and_tried_again(furcula: Any, flow: Any) -> None:
    file = flow('  t: {use: "work:ticks"}\n  out: {use: "work:Unwilling"}\n')
    run = furcula("run", file, "--processes", "2", "--log-file", "log")
    log = _log_of(run)
    wait_until(lambda: log().count("died again") >= 2, "both are tried again")
    reasons = re.findall(r"main/(\d) died \(process \d+\): (.*); it is restarted", log())
    assert sorted(reasons) == [
        (str(index), "exit code 1: out (flow.yaml:4:3) could not start: OSError: no such device") for index in (0, 1)
    ]
    run.end(signal.SIGTERM)


@pytest.mark.parametrize(("early", "code"), [(True, 2), (False, 1)], ids=["as-it-is-made", "as-it-is-started"])
def test_what_is_wrong_with_the_flow_ends_the_run_at_once(furcula: Any, flow: Any, early: bool, code: int) -> None:
    file = flow(f'  t: {{use: "work:ticks"}}\n  out: {{use: "work:Unfit", with: {{early: {str(early).lower()}}}}}\n')
    run = furcula("run", file, "--processes", "2")
    assert run.end() == code
    assert "flow.yaml:4:3" in run.lines[-1]
    assert run.text.count("this cannot be what you want") == 1
    assert run.text.count("started as process") == 2


def _log_of(run: Any) -> Any:
    folder = Path(f"/proc/{run.process.pid}/cwd").resolve()

    def read() -> str:
        return (folder / "log").read_text() if (folder / "log").exists() else ""

    return read


def test_a_worker_whose_loop_stands_still_is_killed_and_restarted(furcula: Any, flow: Any) -> None:
    file = flow('  t: {use: "work:ticks"}\n  hang: {use: "work:hang"}\n')
    run = furcula("run", file, "--processes", "2", "--hung-after", "3s", "--deadline", "1s")
    first = int(run.until(r"hanging (\d+)")[0])
    assert run.until(r"main/0 died \(process \d+\): (.*); it is restarted")[0] == "no beat for 3 s: killed"
    assert not is_worker(first)
    assert int(run.until(r"hanging (\d+)", 2)[1]) != first
    run.send(signal.SIGTERM)
    run.until("draining 2 workers")
    run.send(signal.SIGINT)
    assert run.end() == 130


def test_a_stopped_worker_is_found_out_too(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow(LISTEN), "--processes", "1", "--hung-after", "3500ms")
    first = run.workers(1)[0]
    run.until("main/0 is ready")
    os.kill(first, signal.SIGSTOP)
    run.until("no beat for 3.5 s: killed")
    run.workers(2)
    assert run.end(signal.SIGTERM) == 0


def test_a_worker_that_somebody_else_stops_drains_and_is_replaced(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow(TICKS), "--processes", "1", "--hung-after", "60s")
    first = run.workers(1)[0]
    seen = _seen(run)
    wait_until(lambda: f"{first} " in seen(), "it is at work")
    os.kill(first, signal.SIGTERM)
    run.until("it was stopped by a signal that did not come from its supervisor")
    again = run.workers(2)[1]
    wait_until(lambda: f"{again} " in seen(), "the new one is at work")
    assert run.end(signal.SIGTERM) == 0
    assert re.search(r"admitted (\d+) = delivered \1 \+ dropped 0 \+ failed 0 \+ in flight 0", run.text)
    assert f"received {len(seen().splitlines())}" in _figures(run.text, "note")


def _figures(text: str, module: str) -> str:
    row = next(line.split() for line in text.splitlines() if line.startswith(f"{module} "))
    return f"received {row[1]}"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_all_workers_and_nothing_is_lost(furcula: Any, flow: Any, number: signal.Signals) -> None:
    run = furcula("run", flow(TICKS), "--processes", "2")
    seen = _seen(run)
    wait_until(lambda: seen().count("\n") > 20, "events flow")
    assert run.end(number) == 0
    total = seen().count("\n")
    assert f"admitted {total} = delivered {total} + dropped 0 + failed 0 + in flight 0" in run.text
    assert not any(is_worker(pid) for pid in run.workers(2))


STAGED = """
import asyncio
import os
import pathlib


def numbers():
    yield from range(5)


def same(n: int) -> int:
    return n


class Lingering:
    def process(self, n: int) -> int:
        return n

    async def stop(self):
        pathlib.Path("draining").touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
"""


async def test_a_stage_whose_worker_waits_for_its_restart_when_it_is_to_drain_is_drained_all_the_same(
    flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "staged.py").write_text(STAGED)
    monkeypatch.chdir(tmp_path)
    file = flow(
        '  n: {use: "staged:numbers"}\n  linger: {use: "staged:Lingering"}\n'
        '  work: {map: "staged:same", stage: work, order: none}\n  out: {use: "null", stage: work}\n'
    )
    with opened(file, ()) as found:
        cuts = cut_names(found)
    workers = [Worker("main"), Worker("work")]
    with tempfile.TemporaryDirectory(prefix="furcula") as folder:  # the names of sockets must be short
        counts = {"main": 1, "work": 1}
        settings = {"flow": file, "deadline_s": 1.0, "lines": folder, "counts": counts, "cuts": cuts}
        policy = Policy(pause_s=1.0)
        supervisor = Supervisor("shop", workers, Exec(), settings, policy, order=[["main"], ["work"]])
        running = asyncio.ensure_future(supervisor.run())
        async with asyncio.timeout(2 * LIMIT_S):
            while not (tmp_path / "draining").exists():
                await asyncio.sleep(0.01)
            os.kill(supervisor.figures().workers[1].pid, signal.SIGKILL)
            while supervisor.figures().workers[1].state != "waiting":
                await asyncio.sleep(0.01)
            (tmp_path / "go").touch()
            outcome = await running
    assert outcome.error == ""
    assert [worker.restarts for worker in outcome.figures.workers] == [0, 1]


def test_one_deadline_holds_for_all_and_what_is_left_is_named(furcula: Any, flow: Any) -> None:
    file = flow(
        '  listen: {use: tcp.listen, with: {address: 0}}\n  t: {use: "work:ticks"}\n  stuck: {use: "work:stuck"}\n'
        "routes: [t -> stuck, listen -> stuck]\n"
    )
    run = furcula("run", file, "--processes", "2", "--deadline", "200ms")
    run.until("^stuck")
    assert run.end(signal.SIGTERM) == 0
    assert re.search(r"abandoned at the deadline: stuck \d+", run.text)


def test_a_second_signal_ends_all_at_once(furcula: Any, flow: Any) -> None:
    file = flow('  t: {use: "work:ticks"}\n  stuck: {use: "work:stuck"}\n')
    run = furcula("run", file, "--processes", "2", "--deadline", "1h")
    run.until("^stuck")
    run.send(signal.SIGTERM)
    run.until("draining 2 workers")
    run.send(signal.SIGINT)
    assert run.end() == 130
    assert run.lines[-1] == "ended at once by a second signal"
    assert not any(is_worker(pid) for pid in run.workers(2))


async def test_a_signal_that_comes_twice_in_a_moment_is_one_request_to_the_supervisor(
    flow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    file = flow('  n: {use: "work:numbers", with: {count: 1}}\n  stuck: {use: "work:stuck"}\n')
    now = [0.0]
    supervisor = Supervisor("shop", [Worker()], Exec(), {"flow": file, "deadline_s": 3600.0}, Policy(deadline_s=3600))
    supervisor._signals = StopSignals(lambda: now[0])
    running = asyncio.ensure_future(supervisor.run())
    async with asyncio.timeout(LIMIT_S):
        while supervisor.figures().statistics.open < 1:
            await asyncio.sleep(0.01)
        for now[0] in (0.0, 0.01, TOGETHER_S):  # as `timeout` does: to the process, and to its group
            supervisor._on_stop(signal.SIGTERM)
        assert supervisor.figures().workers[0].state == "draining"
        assert not supervisor._forced
        now[0] = TOGETHER_S + 0.01
        supervisor._on_stop(signal.SIGTERM)
        assert (await running).forced


async def test_a_signal_that_a_worker_gets_beside_its_supervisors_word_is_the_same_request() -> None:
    flow, now, left = Flow("shop"), [0.0], asyncio.Event()

    async def stuck(event: Event) -> Event:
        await left.wait()
        return event

    flow.use("inlet", "in") >> flow.use(stuck, "stuck") >> flow.use("null")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        body = _Body(theirs, Frames(DOWN), Start(Worker(), {"deadline_s": 3600.0}), [])
        body._signals = StopSignals(lambda: now[0])
        async with Director(flow) as director:
            body._director = director
            await director.put("in", 1)
            body._take(Drain(3600.0), [])
            for now[0] in (0.01, TOGETHER_S):
                body._on_signal()
            assert not director.forced
            now[0] = TOGETHER_S + 0.01
            body._on_signal()
            assert director.forced


def test_workers_whose_supervisor_was_killed_drain_and_end(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow(TICKS), "--processes", "2")
    workers = run.workers(2)
    seen = _seen(run)
    wait_until(lambda: seen().count("\n") > 20, "events flow")
    run.process.kill()
    wait_until(lambda: not any(map(is_worker, workers)), "no worker stays")
    run.close()  # all that they said has come
    errors = [line for line in run.lines if "ERROR" in line or "CRITICAL" in line]
    assert len(errors) == 2, run.text
    assert all(line.endswith("the supervisor has gone: draining") for line in errors)
    assert "Traceback" not in run.text


def test_a_source_that_fails_is_tried_again_and_told(furcula: Any, flow: Any, tmp_path: Path) -> None:
    (tmp_path / "feed.py").write_text("def broken():\n    yield 1\n    raise OSError('the line went dead')\n")
    file = flow('  n: {use: "feed:broken"}\n  out: {use: "null"}\n')
    run = furcula("run", file, "--processes", "2")
    told = run.until(r"main/0 died \(process \d+\): (.*); it is restarted")[0]
    assert told == "exit code 1: the source n failed and has ended: OSError: the line went dead"
    run.until("main/0 died again")
    assert run.end(signal.SIGTERM) in (0, 1)  # 1: the next one had failed by then
    # What the dead one had settled was told with its last words, and is in the sum.
    total = re.search(r"admitted (\d+) = delivered \1", run.text)
    assert total is not None
    assert int(total[1]) >= 2


@pytest.mark.parametrize("option", ["--background", "--background --live --log-file log"])
def test_what_makes_no_sense_together_is_refused(furcula: Any, flow: Any, option: str) -> None:
    run = furcula("run", flow(LISTEN), *option.split())
    assert run.end() == 2
