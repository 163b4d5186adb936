"""Two ways to start the process of a worker: a new Python, or a fork of this one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from furcula.engine.statistics import Statistics
from furcula.sockets import HANDING, Wanted, bound
from furcula.workers.line import DOWN, Frames, receive, send
from furcula.workers.worker import Beat, Drain, Finished, Force, Ready, Start, Worker

__all__ = ["Child", "Exec", "Fork", "Launch", "in_words"]

#: What systemd told the supervisor is not meant for its workers.
_NOT_FOR_WORKERS: Final = frozenset(
    ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
)
BEAT_S: Final = 1.0


class Child(Protocol):
    """A process that was started."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, or minus the number of the signal that killed it; None: it lives."""
        ...

    def kill(self) -> None:
        """End it with SIGKILL. May be repeated."""
        ...


class Launch(Protocol):
    """A way to start the process of a worker."""

    def __call__(self, worker: Worker, end: socket.socket, private: Iterable[int]) -> Child:
        """Start it.

        Args:
            worker: Which one. The `Start` message tells it too.
            end: Its end of the line. The caller closes its own copy afterwards.
            private: Open files of the supervisor that the process must not have: as long as one has them, those at
                their other ends do not notice that the supervisor has gone.
        """
        ...


def in_words(code: int) -> str:
    """`killed by SIGKILL`, `exit code 3`"""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class Exec:
    """Starts a new Python for each worker: it finds code and flow file as they are then.

    The worker has a session of its own, so Ctrl-C reaches the supervisor only; the first worker has the supervisor's
    standard input, the others have none.

    Args:
        module: What to run, as in `python -m`; it is given the number of its end of the line.
        title: Shown in lists of processes.
    """

    def __init__(self, module: str = "furcula.workers", title: str = ""):
        self._module = module
        self._title = title

    def __call__(self, worker: Worker, end: socket.socket, private: Iterable[int]) -> Child:
        command = [sys.executable, "-m", self._module, str(end.fileno()), worker.name]
        command += [self._title] if self._title else []
        return subprocess.Popen(
            command,
            pass_fds=[end.fileno()],
            stdin=None if worker.index == 0 else subprocess.DEVNULL,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_WORKERS},
        )


# ------------------------------------------------------------------ forked


class _Forked:
    def __init__(self, pid: int):
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                self._code = 0
            else:
                if pid:
                    self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Fork:
    """Forks this process for each worker, and calls `work` there.

    `work` may block for as long as it likes. To stop it the worker is sent SIGTERM, and SIGTERM again to force it, as
    an operator would. That it lives is told by a thread beside it, so what is noticed is a process that stands still,
    not a loop that does.

    Args:
        work: What to run. It may return the `Statistics` of what it did.
        environment: Variables put over those of this process.
    """

    def __init__(self, work: Callable[[], Any], environment: Mapping[str, str] | None = None):
        self._work = work
        self._environment = dict(environment or {})

    def __call__(self, worker: Worker, end: socket.socket, private: Iterable[int]) -> Child:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()  # else both would write what is in it
        # A signal between the fork and the end of what undoes our handlers would be taken by our loop.
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        )
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return _Forked(pid)
        code = 1
        try:
            code = self._in_child(worker, end, private, before)
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(BaseException):
                    stream.flush()
            os._exit(code)  # what the supervisor has on its stack, and at its exit, is not ours to run

    def _in_child(self, worker: Worker, end: socket.socket, private: Iterable[int], mask: Any) -> int:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd in private:
            os.close(fd)
        if worker.index:
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
        for name in _NOT_FOR_WORKERS:
            os.environ.pop(name, None)
        os.environ.update(self._environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        frames = Frames(DOWN)
        first = receive(end, frames)
        if first is None or not isinstance(first[0], Start):
            return 0
        HANDING.set(_Sharing())
        voice = _Voice(end, frames)
        voice.take(first[1:])
        return voice.ended(*self._worked())

    def _worked(self) -> tuple[int, Any, str]:
        try:
            return 0, self._work(), ""
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return end.code or 0, None, ""
            return 1, None, str(end.code)
        except KeyboardInterrupt:
            return 130, None, "interrupted"
        except BaseException as error:
            import traceback

            traceback.print_exc()
            return 1, None, f"{type(error).__name__}: {error}"


class _Sharing:
    """Opens sockets in this very process, so that the other workers can have the same port."""

    grace_s = 0.0

    async def sockets(self, wanted: Wanted) -> list[socket.socket]:
        return await bound(msgspec.structs.replace(wanted, reuse_port=True))


class _Voice:
    """Speaks with the supervisor while the worker's own code has the main thread."""

    def __init__(self, end: socket.socket, frames: Frames[Any]):
        self._end = end
        self._frames = frames
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._stopping = False
        self._say(Ready())
        for work in (self._listen, self._beat):
            threading.Thread(target=work, name="furcula worker", daemon=True).start()

    def _say(self, message: Any) -> None:
        with self._lock:
            if not self._over.is_set() and not send(self._end, message):
                self._over.set()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._say(Beat())

    def _listen(self) -> None:
        while True:
            messages = receive(self._end, self._frames)
            if messages is None:  # the supervisor has gone: nobody else ends this worker
                self.take([Drain()])
                return
            self.take(messages)

    def take(self, messages: Sequence[Any]) -> None:
        for message in messages:
            if isinstance(message, Force) or (isinstance(message, Drain) and not self._stopping):
                self._stopping = True
                if not self._over.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)

    def ended(self, code: int, given: Any, error: str) -> int:
        statistics = given if isinstance(given, Statistics) else None
        # It would have ended by the signal, had it not handled it.
        self._say(Finished(code, statistics, error, signalled=False))
        self._over.set()
        return code
