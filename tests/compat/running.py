"""Example programs, run as their users run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT_S = 30


class Program:
    """A running example: its lines as they come, a signal, and its end."""

    def __init__(self, path: str):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT / "src")}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()

    def until(self, holds: Callable[[list[str]], bool]) -> None:
        """Wait until what it has printed so far is enough."""
        with self._more:
            assert self._more.wait_for(lambda: holds(self.lines), LIMIT_S), self.lines

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        """Send a signal; wait for the end. Returns its exit status and what it wrote to stderr."""
        self._process.send_signal(number)
        return self.end()

    def end(self) -> tuple[int, str]:
        try:
            status = self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._reader.join(LIMIT_S)
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            text = errors.read()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status, text
