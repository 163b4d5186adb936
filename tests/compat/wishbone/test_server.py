"""ParallelServer runs `setup` in so many processes, and starts again what dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.services import free_port
from tests.workers.running import wait_until

from furcula.compat.wishbone import ParallelServer
from furcula.errors import FurculaError
from furcula.workers.pid_file import is_alive, read_pid

LIMIT_S = 20
ROOT = Path(__file__).parents[3]

PROGRAM = """
import os
import sys
import time

from furcula.compat.wishbone import ParallelServer, Wishbone
from furcula.compat.wishbone.module import IOModule, Module


def note(text):
    with open("seen", "a") as file:
        file.write(f"{{os.getpid()}} {{text}}\\n")


class Ticks(IOModule):
    async def run(self):
        import asyncio

        while self.loop():
            self.sendData({{"headers": {{}}, "data": "tick"}})
            await asyncio.sleep(0.005)


class Note(Module):
    def consume(self, message):
        note(message["data"])


def listening():
    wb = Wishbone()
    wb.registerModule(("furcula.compat.wishbone.module", "UDPServer", "udp"), port={port})
    wb.registerModule(("__main__", "Note", "note"))
    wb.connect(wb.udp.outbox, wb.note.inbox)
    note("begins")
    wb.start()


def ticking():
    wb = Wishbone()
    wb.registerModule(("__main__", "Ticks", "ticks"))
    wb.registerModule(("__main__", "Note", "note"))
    wb.connect(wb.ticks.outbox, wb.note.inbox)
    return wb  # it is started for us, and its figures are told


def plain():
    note("begins")
    time.sleep(3600)


def short():
    note("was here")


def broken():
    raise ValueError("no luck")


setup, *more = sys.argv[1:]
server = ParallelServer(
    instances=2, setup=globals()[setup], name="shop", pidlocation=".", daemonize="daemonize" in more, log_file="log"
)
if "stop" in more:
    server.stop()
else:
    server.start()
    print("after start")
"""


class Shop:
    """The program above, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = free_port()
        (folder / "shop.py").write_text(textwrap.dedent(PROGRAM.format(port=self.port)))
        self.started: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        self.started.append(
            subprocess.Popen(
                [sys.executable, "shop.py", *arguments],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return self.started[-1]

    def seen(self, text: str = "") -> list[int]:
        """Who noted this, in order."""
        file = self.folder / "seen"
        lines = file.read_text().splitlines() if file.exists() else []
        return [int(line.split()[0]) for line in lines if text in line]

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def shop(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Shop(tmp_path)
    yield made
    made.close()


def ended(process: subprocess.Popen[str], number: signal.Signals | None = None) -> str:
    if number is not None:
        process.send_signal(number)
    text, _ = process.communicate(timeout=LIMIT_S)
    return text


def test_setup_runs_in_so_many_processes_and_one_that_dies_is_started_again(shop: Shop) -> None:
    process = shop.run("plain")
    wait_until(lambda: len(shop.seen("begins")) == 2, "two processes have begun")
    first, second = shop.seen("begins")
    assert len({first, second, process.pid}) == 3
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(shop.seen("begins")) == 3, "a third has begun")
    assert is_alive(second)
    text = ended(process, signal.SIGTERM)
    assert process.returncode == 0, text
    assert "died (process" in text
    assert text.endswith("after start\n")
    assert not any(map(is_alive, shop.seen("begins")))


def test_all_of_them_listen_on_the_same_udp_port(shop: Shop) -> None:
    process = shop.run("listening")
    wait_until(lambda: len(shop.seen("begins")) == 2, "two processes have begun")

    def both_have_some() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", ("127.0.0.1", shop.port))
        return len(set(shop.seen("hello"))) == 2

    wait_until(both_have_some, "both are dealt datagrams")
    text = ended(process, signal.SIGINT)
    assert process.returncode == 0, text


def test_a_wishbone_that_is_returned_is_started_and_drains_at_the_end(shop: Shop) -> None:
    process = shop.run("ticking")
    wait_until(lambda: len(set(shop.seen("tick"))) == 2, "both are at work")
    text = ended(process, signal.SIGTERM)
    assert process.returncode == 0, text


def test_stop_in_another_process_finds_it_by_its_pid_file_and_waits(shop: Shop) -> None:
    process = shop.run("plain")
    wait_until(lambda: len(shop.seen("begins")) == 2, "two processes have begun")
    assert read_pid(shop.folder / "shop.pid") == process.pid
    stopping = shop.run("plain", "stop")
    assert ended(stopping) == ""
    assert stopping.returncode == 0
    assert not is_alive(process.pid)
    assert not (shop.folder / "shop.pid").exists()
    assert ended(process).endswith("after start\n")


def test_when_every_setup_has_returned_start_returns(shop: Shop) -> None:
    process = shop.run("short")
    assert ended(process) == "after start\n"
    assert len(set(shop.seen("was here"))) == 2


def test_daemonized_it_goes_on_when_the_process_that_started_it_has_ended(shop: Shop) -> None:
    process = shop.run("plain", "daemonize")
    assert ended(process) == ""
    assert process.returncode == 0
    pid = read_pid(shop.folder / "shop.pid")
    assert pid != process.pid
    wait_until(lambda: len(shop.seen("begins")) == 2, "two processes have begun")
    ended(shop.run("plain", "stop"))
    assert not is_alive(pid)
    assert (shop.folder / "log").read_text().endswith("after start\n")


def test_a_setup_that_raises_is_told_with_its_traceback_and_tried_again(shop: Shop) -> None:
    process = shop.run("broken", "daemonize")
    assert ended(process) == ""
    log = shop.folder / "log"
    wait_until(lambda: "died again" in log.read_text(), "it is tried again")
    assert "exit code 1: ValueError: no luck; it is restarted in 0.1 s" in log.read_text()
    assert 'raise ValueError("no luck")' in log.read_text()
    ended(shop.run("broken", "stop"))


def test_processes_whose_supervisor_was_killed_end(shop: Shop) -> None:
    process = shop.run("plain")
    wait_until(lambda: len(shop.seen("begins")) == 2, "two processes have begun")
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, shop.seen("begins"))), "none stays")


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="instances: 0 must be 1 or more"):
        ParallelServer(0)
    with pytest.raises(ValueError, match="setup: give what each process is to run"):
        ParallelServer().start()
    with pytest.raises(FurculaError, match="does not run in this process"):
        ParallelServer().stop()
    with pytest.raises(FurculaError, match=re.escape(str(tmp_path / "wishbone.pid"))):
        ParallelServer(pidlocation=tmp_path).stop()
