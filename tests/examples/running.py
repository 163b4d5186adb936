"""Example programs as their users run them: a process, its lines as they come, a signal, its end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["EXAMPLES", "LIMIT_S", "ROOT", "Program", "running"]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LIMIT_S = 30


class Program:
    """A running program. Both its streams are read as they come, so it never waits for us."""

    def __init__(self, *command: str, cwd: Path = EXAMPLES, **environment: str):
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._more = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream, kept), daemon=True)
            for stream, kept in ((self._process.stdout, self.lines), (self._process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str], kept: list[str]) -> None:
        for line in stream:
            with self._more:
                kept.append(line.rstrip("\n"))
                self._more.notify_all()

    def until(self, holds: Callable[[list[str]], bool], *, errors: bool = False) -> list[str]:
        """Wait until what it has printed so far is enough; returns that."""
        kept = self.errors if errors else self.lines
        with self._more:
            assert self._more.wait_for(lambda: holds(kept) or self._process.poll() is not None, LIMIT_S), self
            assert holds(kept), self
            return list(kept)

    def url(self) -> str:
        """The address that it prints, on either stream."""
        pattern = re.compile(r"(http://[\d.]+:\d+)")

        def said() -> str | None:
            found = pattern.search("\n".join([*self.lines, *self.errors]))
            return found[1] if found else None

        with self._more:
            assert self._more.wait_for(lambda: said() or self._process.poll() is not None, LIMIT_S), self
            url = said()
            assert url is not None, self
            return url

    def until_it_listens(self, port: int) -> None:
        """Wait until it takes connections."""
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                assert self.runs, self
                assert time.monotonic() < end, self
                time.sleep(0.01)

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end. Returns its exit status."""
        try:
            return self._process.wait(LIMIT_S)
        finally:
            self.close()

    def close(self) -> None:
        """End it if it runs, and let go of it."""
        if self.runs:
            self._process.kill()
            self._process.wait(LIMIT_S)
        for reader in self._readers:
            reader.join(LIMIT_S)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def __repr__(self) -> str:
        return "\n".join(["it has printed:", *self.lines, "and to stderr:", *self.errors])


@contextmanager
def running(*arguments: str, cwd: Path = EXAMPLES, **environment: str) -> Iterator[Program]:
    """A Python program that runs inside the block, and no longer."""
    program = Program(sys.executable, *arguments, cwd=cwd, **environment)
    try:
        yield program
    finally:
        program.close()
