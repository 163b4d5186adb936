"""ParallelServer: the same `setup` in many processes, each of which is restarted when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from furcula.compat.wishbone.main import Wishbone
from furcula.errors import FurculaError
from furcula.options import Duration
from furcula.workers.background import Began, detached
from furcula.workers.launch import Fork
from furcula.workers.pid_file import PidFile, is_alive, running_pid
from furcula.workers.supervisor import Outcome, Policy, Supervisor
from furcula.workers.worker import Worker

__all__ = ["ParallelServer"]


class ParallelServer:
    """Runs `setup()` in so many processes, under a supervisor.

    A process that dies is started again, after a pause that grows; one that dies ten times within a minute stops the
    server. SIGTERM and SIGINT let all of them drain (a second one ends them at once), SIGHUP restarts them one by one.
    What listens in them listens on the same port: the system deals out what comes.

    Args:
        instances: How many processes.
        setup: Called in each of them. It builds a Wishbone and starts it, or returns it to be started; it may be
            anything else that runs until SIGTERM.
        daemonize: `start` goes on in the background: the process that called it exits when all have begun.
        name: Of the server, for its pid file and its logs.
        pidlocation: A folder, in which the file `<name>.pid` has the number of the supervisor's process while it runs.
            None: there is none.
        log_file: Where the background prints to.
        deadline: Seconds that draining may take.
    """

    def __init__(
        self,
        instances: int = 1,
        setup: Callable[[], Any] | None = None,
        daemonize: bool = False,
        name: str = "wishbone",
        pidlocation: str | Path | None = None,
        *,
        log_file: str | Path = os.devnull,
        deadline: str | float = "10s",
    ):
        if instances < 1:
            raise ValueError(f"instances: {instances} must be 1 or more")
        self._instances = instances
        self._setup = setup
        self._daemonize = daemonize
        self._name = name
        self._pid_file = None if pidlocation is None else Path(pidlocation).absolute() / f"{name}.pid"
        self._log_file = log_file
        self._deadline_s = float(Duration(deadline))
        self._supervisor: Supervisor | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def start(self) -> None:
        """Run until `stop` is called, a signal comes, or every `setup` has returned. Call it in the main thread.

        Raises:
            FurculaError: It runs already (says the pid file), or a process died too often.
            SystemExit: With `daemonize`, in the process that goes on in the foreground.
        """
        if self._setup is None:
            raise ValueError("setup: give what each process is to run")
        telling = None
        if self._daemonize:
            answer = detached(self._log_file)
            if isinstance(answer, Began):
                raise SystemExit(answer.text or answer.code)
            telling = answer
        try:
            outcome = self._run(None if telling is None else lambda: telling.tell(0))
        except BaseException as error:
            if telling is not None:
                telling.tell(1, str(error))
            raise
        if outcome.error:
            if telling is not None:
                telling.tell(1, outcome.error)
            raise FurculaError(outcome.error)

    def _run(self, on_ready: Callable[[], None] | None) -> Outcome:
        setup = self._setup
        assert setup is not None

        def work() -> Any:
            answer = setup()
            if isinstance(answer, Wishbone) and answer.statistics() is None:
                return answer.start()
            return answer

        self._thread = threading.current_thread()
        try:
            if self._pid_file is None:
                return self._supervise(work, on_ready)
            with PidFile(self._pid_file):
                return self._supervise(work, on_ready)
        finally:
            self._ended.set()

    def _supervise(self, work: Callable[[], Any], on_ready: Callable[[], None] | None) -> Outcome:
        workers = [Worker(index=index, count=self._instances) for index in range(self._instances)]
        policy = Policy(deadline_s=self._deadline_s)
        self._supervisor = Supervisor(self._name, workers, Fork(work), {}, policy, on_ready=on_ready)
        # Not uvloop's: what it has open does not survive a fork.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            return runner.run(self._supervisor.run(signals=True))

    def stop(self) -> None:
        """Let all processes drain and end. From another thread than `start`'s, or another process, it waits for that.

        In a process that has not started it, the pid file says which one to stop.

        Raises:
            FurculaError: It does not run, as far as this process or the pid file knows.
        """
        if self._supervisor is not None:
            self._supervisor.stop()
            if threading.current_thread() is not self._thread:
                self._ended.wait()
            return
        if self._pid_file is None:
            raise FurculaError(f"{self._name} does not run in this process, and without pidlocation no other is known")
        pid = running_pid(self._pid_file)
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.SIGTERM)
        while is_alive(pid):
            time.sleep(0.05)
