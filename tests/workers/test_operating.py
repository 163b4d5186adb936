"""Pid files, the background, log files, systemd's words, and `furcula stop`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.workers.running import is_worker, wait_until

from furcula.errors import FurculaError
from furcula.workers import systemd
from furcula.workers.pid_file import PidFile, is_alive, read_pid, running_pid

TICKS = '  t: {use: "work:ticks"}\n  note: {use: "work:note"}\n  out: {use: "null"}\n'


# ------------------------------------------------------------------ pid files


def test_the_pid_file_names_the_supervisor_while_it_runs(furcula: Any, flow: Any, tmp_path: Path) -> None:
    run = furcula("run", flow(TICKS), "--pid-file", "run.pid")
    run.until("main/0 is ready")
    assert read_pid(tmp_path / "run.pid") == run.process.pid
    second = furcula("run", "flow.yaml", "--pid-file", "run.pid")
    assert second.end() == 1
    assert f"run.pid says that it runs already, as process {run.process.pid}" in second.text
    assert run.end(signal.SIGTERM) == 0
    assert not (tmp_path / "run.pid").exists()


def test_a_pid_file_whose_process_is_dead_is_replaced(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    path = tmp_path / "run.pid"
    path.write_text(f"{dead.pid}\n")
    with PidFile(path):
        assert read_pid(path) == os.getpid()
    assert not path.exists()


def test_a_pid_file_that_somebody_has_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.pid"
    with PidFile(path):
        with pytest.raises(FurculaError, match=f"as process {os.getpid()}; end that with `furcula stop"), PidFile(path):
            pass
        assert running_pid(path) == os.getpid()
    assert not path.exists()


def test_a_pid_file_that_nobody_has_is_replaced_though_its_number_is_another_process_s_by_now(tmp_path: Path) -> None:
    path = tmp_path / "run.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(FurculaError, match=rf"run.pid is stale: the run .* has ended, and process {os.getppid()}"):
        running_pid(path)
    with PidFile(path):
        assert running_pid(path) == os.getpid()


@pytest.mark.parametrize("text", ["", "soon", "-4", "99999999999"])
def test_a_pid_file_with_nonsense_in_it_is_replaced_and_names_nobody(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.pid"
    path.write_text(text)
    with pytest.raises(FurculaError, match="has no process number in it"):
        read_pid(path)
    with PidFile(path):
        assert read_pid(path) == os.getpid()


def test_a_pid_file_that_another_has_taken_over_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "run.pid"
    with PidFile(path):
        path.unlink()
        path.write_text("1\n")
    assert path.read_text() == "1\n"


def test_a_pid_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = tmp_path / "no" / "run.pid"
    with pytest.raises(FurculaError, match="cannot be written: No such file or directory"), PidFile(path):
        pass


# ------------------------------------------------------------------ the background


def test_in_the_background_it_returns_when_all_are_ready_and_goes_on(furcula: Any, flow: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = furcula(
        *("run", flow(TICKS), "--processes", "2", "--background", "--pid-file", "run.pid", "--log-file", "log")
    )
    try:
        assert run.end() == 0
        assert run.text == ""
        pid = read_pid(tmp_path / "run.pid")
        assert pid != run.process.pid
        assert log.read_text().count("is ready") == 2
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert stat[3] != str(pid), "it leads a session, so a terminal could become its own"
        assert (stat[1], stat[4]) != (str(os.getpid()), "0")
        wait_until(lambda: (tmp_path / "seen").exists(), "it works")
        stopping = furcula("stop", "run.pid")
        assert stopping.end() == 0
        assert not is_alive(pid)
        assert re.search(r"admitted (\d+) = delivered \1 \+ dropped 0", log.read_text())
    finally:
        _end_all(log)


def test_what_does_not_start_in_the_background_is_told_where_it_was_started(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    file = flow('  t: {use: "work:ticks"}\n  out: {use: "work:Unwilling"}\n')
    run = furcula("run", file, "--processes", "2", "--background", "--log-file", "log", "--pid-file", "run.pid")
    try:
        assert run.end() == 1
        assert "could not start: " in run.text
        assert "OSError: no such device" in run.text
        wait_until(lambda: not (tmp_path / "run.pid").exists(), "nothing stays")
    finally:
        _end_all(tmp_path / "log")


def test_a_log_file_that_cannot_be_opened_is_told(furcula: Any, flow: Any) -> None:
    run = furcula("run", flow(TICKS), "--background", "--log-file", "no/log")
    assert run.end() == 1
    assert "the log file no/log cannot be opened: No such file or directory" in run.text


def test_a_log_file_that_was_moved_away_is_begun_anew_with_a_restart(furcula: Any, flow: Any, tmp_path: Path) -> None:
    run = furcula("run", flow(TICKS), "--log-file", "log")
    wait_until(lambda: (tmp_path / "log").exists() and "is ready" in (tmp_path / "log").read_text(), "it runs")
    (tmp_path / "log").rename(tmp_path / "log.1")
    run.send(signal.SIGHUP)
    new = tmp_path / "log"
    wait_until(lambda: new.exists() and "all workers have been restarted" in new.read_text(), "it is restarted")
    assert run.end(signal.SIGTERM) == 0
    assert "admitted" in new.read_text()
    assert "admitted" not in (tmp_path / "log.1").read_text()


def test_a_log_file_that_cannot_be_begun_anew_stops_neither_the_restart_nor_the_log(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    (tmp_path / "logs").mkdir()
    run = furcula("run", flow(TICKS), "--log-file", "logs/log")
    log = tmp_path / "logs" / "log"
    wait_until(lambda: log.exists() and "is ready" in log.read_text(), "it runs")
    (tmp_path / "logs").rename(tmp_path / "gone")
    run.send(signal.SIGHUP)
    moved = tmp_path / "gone" / "log"
    wait_until(lambda: "all workers have been restarted" in moved.read_text(), "it is restarted")
    assert "the log file logs/log cannot be opened: No such file or directory; the log goes on" in moved.read_text()
    assert run.end(signal.SIGTERM) == 0


def _end_all(log: Path) -> None:
    """The run in the background, if a test has failed."""
    try:
        os.kill(read_pid(log.with_name("run.pid")), signal.SIGKILL)
    except (FurculaError, ProcessLookupError):  # as it should be
        pass
    text = log.read_text() if log.exists() else ""
    for pid in map(int, re.findall(r"started as process (\d+)", text)):
        if is_worker(pid):
            os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------ furcula stop


def test_stop_says_when_the_end_does_not_come_in_time(furcula: Any, flow: Any) -> None:
    file = flow('  t: {use: "work:ticks"}\n  stuck: {use: "work:stuck"}\n')
    run = furcula("run", file, "--pid-file", "run.pid", "--deadline", "1h")
    run.until("^stuck")
    late = furcula("stop", "run.pid", "--within", "300ms")
    assert late.end() == 1
    assert f"process {run.process.pid} has not ended within 300ms; --force ends it at once" in late.text
    run.until("draining 1 worker")
    assert run.end(signal.SIGTERM) == 130


def test_stop_with_force_does_not_wait_for_what_is_under_way(furcula: Any, flow: Any) -> None:
    file = flow('  t: {use: "work:ticks"}\n  stuck: {use: "work:stuck"}\n')
    run = furcula("run", file, "--pid-file", "run.pid", "--deadline", "1h")
    run.until("^stuck")
    assert furcula("stop", "run.pid", "--force").end() == 0
    assert run.end() == 130


def test_stop_tells_when_there_is_nothing_to_stop(furcula: Any, tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "run.pid").write_text(f"{dead.pid}\n")
    assert furcula("stop", "run.pid").end() == 1
    assert furcula("stop", "other.pid").end() == 1


def test_stop_signals_nobody_if_the_run_that_wrote_the_file_has_gone(furcula: Any, tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        (tmp_path / "run.pid").write_text(f"{other.pid}\n")
        stopping = furcula("stop", "run.pid")
        assert stopping.end() == 1
        assert "run.pid is stale" in stopping.text
    finally:
        other.communicate(b"\n", timeout=30)
    assert other.returncode == 0


# ------------------------------------------------------------------ systemd


class Systemd:
    """The socket that systemd would listen on."""

    def __init__(self, folder: Path, *, abstract: bool = False):
        self.name = f"@furcula-{os.getpid()}-{folder.name}" if abstract else str(folder / "notify")
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._line.bind(self.name.replace("@", "\0", 1) if abstract else self.name)
        self._line.settimeout(45)
        self.told: list[dict[str, str]] = []

    def next(self, field: str) -> dict[str, str]:
        """The next word that has this field."""
        while True:
            text = self._line.recv(4096).decode()
            self.told.append(dict(line.split("=", 1) for line in text.splitlines()))
            if field in self.told[-1]:
                return self.told[-1]

    def close(self) -> None:
        self._line.close()


@pytest.mark.parametrize("abstract", [False, True])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_systemd_is_told_when_it_runs_that_it_lives_and_when_it_ends(
    furcula: Any, flow: Any, tmp_path: Path, processes: str, abstract: bool
) -> None:
    listener = Systemd(tmp_path, abstract=abstract)
    try:
        environment = {"NOTIFY_SOCKET": listener.name, "WATCHDOG_USEC": "500000"}
        run = furcula("run", flow(TICKS), "--processes", processes, environment=environment)
        assert listener.next("READY")["READY"] == "1"
        for _ in range(3):
            assert listener.next("WATCHDOG")["WATCHDOG"] == "1"
        if processes == "2":
            run.send(signal.SIGHUP)
            reloading = listener.next("RELOADING")
            assert int(reloading["MONOTONIC_USEC"]) > 0
            assert listener.next("READY")["READY"] == "1"
        run.send(signal.SIGTERM)
        assert listener.next("STOPPING")["STOPPING"] == "1"
        assert run.end() == 0
        assert any("admitted" in told.get("STATUS", "") for told in listener.told)
    finally:
        listener.close()


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.notify(READY=1) is False
    assert systemd.watchdog_s() is None
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert systemd.notify(READY=1) is False


def test_a_watchdog_that_was_meant_for_another_process_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@furcula")
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert systemd.watchdog_s() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_s() is None
