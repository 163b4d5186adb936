"""`furcula run` in a process of its own: its lines as they come, signals, and its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 45

FUNCTIONS = """
import asyncio
import os
import signal
import sys
import time

from furcula import ConfigurationError, Event


def say(*words):
    # In one write: other processes write to the same pipe.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())


def numbers(count: int = 1000):
    yield from range(count)


async def ticks():
    while True:
        yield os.getpid()
        await asyncio.sleep(0.005)


async def announced():
    say("source in", os.getpid())
    while True:
        yield 1
        await asyncio.sleep(0.01)


def double(n: int) -> int:
    return 2 * n


def pid(event: Event) -> Event:
    event.data = {"pid": os.getpid()}
    return event


def note(event: Event, file: str = "seen") -> Event:
    with open(file, "a") as out:
        out.write(f"{os.getpid()} {event.data}\\n")
    return event


async def stuck(event: Event) -> Event:
    say("stuck")
    await asyncio.sleep(3600)
    return event


def hang(event: Event) -> Event:
    say("hanging", os.getpid())
    time.sleep(3600)
    return event


def killed(event: Event) -> Event:
    os.kill(os.getpid(), signal.SIGKILL)
    return event


def leave(event: Event) -> Event:
    os._exit(3)


class Unfit:
    def __init__(self, *, early: bool = False):
        if early and "workers" in sys.argv[0]:  # whoever starts them finds nothing wrong
            raise ValueError("this cannot be what you want")

    def start(self, context):
        raise ConfigurationError("this cannot be what you want")

    def process(self, event: Event) -> Event:
        return event


class Unwilling:
    def start(self, context):
        raise OSError("no such device")

    def process(self, event: Event) -> Event:
        return event
"""


class Running:
    """A program whose output is read as it comes. It leads a session, so that what it leaves can be found."""

    def __init__(
        self, folder: Path, *arguments: str, environment: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()
    ):
        (folder / "work.py").write_text(FUNCTIONS)
        self.lines: list[str] = []
        self._more = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "furcula", *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def until(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until so many lines have this in them. Returns what the pattern's group, or all of it, found."""

        def found() -> list[str]:
            return [match[match.lastindex or 0] for line in self.lines if (match := re.search(pattern, line))]

        with self._more:
            assert self._more.wait_for(lambda: len(found()) >= times, LIMIT_S), f"{pattern!r} is not in:\n{self.text}"
            return found()

    def workers(self, times: int) -> list[int]:
        """The processes of workers, in the order in which they were started, once there were so many."""
        return [int(pid) for pid in self.until(r"started as process (\d+)", times)]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals | None = None) -> int:
        """Wait for the end, after this signal. Returns the exit code."""
        if number is not None:
            self.send(number)
        try:
            return self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.text}") from None
        finally:
            self.close()

    def close(self) -> None:
        """End it and the workers it has, whatever state they are in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(LIMIT_S)
        for pid in re.findall(r"started as process (\d+)", self.text):
            if is_worker(int(pid)):
                os.kill(int(pid), signal.SIGKILL)
        self._reader.join(LIMIT_S)
        if self.process.stdout is not None and not self._reader.is_alive():
            self.process.stdout.close()


def is_worker(pid: int) -> bool:
    """Is this process a worker that lives?"""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"furcula.workers" in command


def wait_until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"it does not come to pass: {what}"
        time.sleep(0.01)
