"""One child process, seen from home: started, told what to do, listened to, and buried."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from furcula.engine.processes.messages import CELL, HEAD, Answers, frame
from furcula.errors import ModuleError

__all__ = ["LINGER_S", "Child"]

#: How long a child may live on without its connection, or after it was told that it is enough.
LINGER_S = 2.0
_UNREAD_S = 0.2
# Not `-m`: the import path of this process may have been changed since it began, and furcula come from what was added.
_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from furcula.engine.processes.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_answers = msgspec.msgpack.Decoder(Answers)


class Child(asyncio.Protocol):
    """A child process and the connection to it.

    Args:
        answered: Called with each frame of answers.
        lost: Called once when the connection is gone, whoever closed it.

    Attributes:
        jobs: The batches that it was given and has not answered in full, the running one first. For its owner.
        ready: Is done when the child can be given work; fails with ModuleError when it cannot be.
    """

    def __init__(self, answered: Callable[[Child, Answers], None], lost: Callable[[Child], None]):
        self.jobs: deque[Any] = deque()
        self.is_ready = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Why we ended it, if we did.
        self.ended_for: Any = None
        self._answered = answered
        self._lost = lost
        self._gone = asyncio.Event()
        #: Why its last answer could not be read.
        self.unreadable = ""
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._cell: mmap.mmap | None = None
        self._pidfd: int | None = None
        self._exit: int | None = None

    async def open(self, setup: bytes, paths: list[str]) -> None:
        """Start the process and tell it what to do. Await `ready` for its answer."""
        ours = self._begin(paths)
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            raise
        self._watch_process()
        self.send(setup)

    def _begin(self, paths: list[str]) -> socket.socket:
        """Start the process. Returns our end of the connection to it."""
        ours, theirs = socket.socketpair()
        cell_fd = _shared_page()
        try:
            self._cell = mmap.mmap(cell_fd, mmap.PAGESIZE)
            flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", _PROGRAM, json.dumps(paths), str(theirs.fileno()), str(cell_fd)],
                pass_fds=(theirs.fileno(), cell_fd),
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the terminal is for the flow, which drains: the children go on until it is done.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(cell_fd)
        ours.setblocking(False)
        return ours

    def _watch_process(self) -> None:
        """Notice the end of the process also where a program that it had started holds its connection open."""
        if not hasattr(os, "pidfd_open"):
            return
        assert self._process is not None
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(self._process.pid)
        except OSError:
            return

        def over() -> None:
            self._unwatch()
            # What it had said is read by then.
            loop.call_later(_UNREAD_S, self._abort)

        self._pidfd = descriptor
        loop.add_reader(descriptor, over)

    def _unwatch(self) -> None:
        descriptor, self._pidfd = self._pidfd, None
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)

    def _abort(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.abort()

    def send(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame(body))

    # ------------------------------------------------------------------ what the connection says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        begin = 0
        while len(buffer) - begin >= HEAD.size:
            (size,) = HEAD.unpack_from(buffer, begin)
            end = begin + HEAD.size + size
            if len(buffer) < end:
                break
            try:
                found = _answers.decode(memoryview(buffer)[begin + HEAD.size : end])
            except (ValueError, TypeError, RecursionError) as error:  # bytes could say it, but it cannot be read again
                self.unreadable = str(error)
                if self._transport is not None:
                    self._transport.abort()
                return
            begin = end
            if found.number > 0:
                self._answered(self, found)
            elif found.number == 0:
                self.is_ready = True
                if not self.ready.done():
                    self.ready.set_result(None)
            elif not self.ready.done():
                self.ready.set_exception(ModuleError(str(found.answers[0])))
        if begin:
            del buffer[:begin]

    def connection_lost(self, error: Exception | None) -> None:
        self._gone.set()
        self.is_ready = False
        self._lost(self)

    # ------------------------------------------------------------------ what it is at

    def running(self) -> tuple[float, int]:
        """When it began what it is at (`time.monotonic`), and the mark of that; 0: it is at nothing."""
        assert self._cell is not None
        while True:
            _, mark = CELL.unpack_from(self._cell)
            began, again = CELL.unpack_from(self._cell)
            if mark == again:
                return began, mark

    @property
    def end(self) -> str:
        """How the process ended, in words."""
        status = self._exit
        if status is None:
            return "its process does not answer"
        if status < 0:
            try:
                return f"its process was ended by {signal.Signals(-status).name}"
            except ValueError:
                return f"its process was ended by signal {-status}"
        return f"its process ended by itself, with status {status}"

    # ------------------------------------------------------------------ its end

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def enough(self) -> None:
        """Tell it to end when it is done with what it has."""
        self.send(b"\x92\x00\x90")

    async def buried(self) -> None:
        """Wait until the process is gone; one that lives on for `LINGER_S` is ended. Then its ends are closed."""
        if self._process is not None and self._process.poll() is None:
            # In a thread for the moment that it takes: so it is real time that passes, whatever clock the loop has.
            await asyncio.get_running_loop().run_in_executor(None, _wait, self._process)
        self.close()
        if self._transport is not None:
            await self._gone.wait()

    def close(self) -> None:
        """End and reap the process, whatever it is at, and close what is open to it. May be called again."""
        process = self._process
        if process is not None:
            self.kill()
            self._exit = process.wait()
        self._unwatch()
        self._abort()
        if not self.ready.done():
            self.ready.set_exception(ModuleError(f"{self.end} before it had begun"))
        if self.ready.done() and not self.ready.cancelled():
            self.ready.exception()  # whoever wants to know has looked


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(LINGER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _shared_page() -> int:
    """A page of memory that a child can see too, as a file."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("furcula")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, mmap.PAGESIZE)
    return descriptor
