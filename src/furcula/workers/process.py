"""One process of a worker, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Any

from furcula.engine.statistics import Statistics
from furcula.workers.doors import Door, Doors, door_of
from furcula.workers.figures import Lost
from furcula.workers.launch import Launch, in_words
from furcula.workers.line import UP, Frames, Line
from furcula.workers.worker import REFUSED, Answer, Ask, Beat, Drain, Finished, Force, Ready, Start, Worker

__all__ = ["Process"]


class Process:
    """A process that was started, its line, and what is known of it.

    Args:
        worker: Which worker it is.
        settings: What it has to know.
        launch: How it is started.
        doors: Who gives it its listening sockets.
        private: Open files of the supervisor that are not for it.
        ready: Called when its flow runs.

    Attributes:
        is_ready: Its flow runs.
        idle: It has no source of its own.
        finished: Its last words.
        ended: It runs one of several stages, and its sources have come to their end.
        over: Its sources that have come to their end.
        beats: How often it has beaten.
        ends_by: The time of the loop at which it is killed; None: it may take its time.
        killed: Why it was killed, if we did it.
        used: What it listens on, and for which module.
        denied: It was not given what it wanted to listen on.
        gone: Done when the process has ended.
    """

    def __init__(
        self,
        worker: Worker,
        settings: dict[str, Any],
        launch: Launch,
        doors: Doors,
        private: Iterable[int],
        ready: Callable[[Process], None],
    ):
        loop = asyncio.get_running_loop()
        self.worker = worker
        self.is_ready = False
        self.idle = False
        self.statistics: Statistics | None = None
        self.finished: Finished | None = None
        self.ended = False
        self.over: frozenset[str] = frozenset()
        self.beats = 0
        self.draining = False
        self.ends_by: float | None = None
        self.killed = ""
        self.used: dict[Door, str] = {}
        self.denied = False
        self.began = self.heard = loop.time()
        self.has_beaten = False
        self.gone: asyncio.Future[int] = loop.create_future()
        self.made_ready: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._doors = doors
        self._ready = ready
        self._asking: set[asyncio.Task[None]] = set()
        ours, theirs = socket.socketpair()
        self.fd = ours.fileno()
        try:
            self._child = launch(worker, theirs, (*private, ours.fileno()))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._line = Line(ours, Frames(UP), self._take, lambda: None)
        self._line.open()
        self._line.send(Start(worker, settings))

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def name(self) -> str:
        return self.worker.name

    def _take(self, message: Any, sockets: list[socket.socket]) -> None:
        self.heard = self._loop.time()
        match message:
            case Ready():
                self.idle = message.idle
                self.is_ready = self.has_beaten = True
                if not self.made_ready.done():
                    self.made_ready.set_result(None)
                self._ready(self)
            case Beat():
                self.has_beaten = True
                self.beats += 1
                self.ended, self.over = message.ended, message.over
                if message.statistics is not None:
                    self.statistics = message.statistics
            case Finished():
                self.finished = message
                self.statistics = message.statistics or self.statistics
                # A source that has failed may have more luck in another process.
                self.over = frozenset() if message.code else message.over
            case Ask():
                task = self._loop.create_task(self._give(message))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _give(self, ask: Ask) -> None:
        wanted = ask.wanted
        door = door_of(self.worker.stage, wanted)
        try:
            if door.is_exclusive and self.used.setdefault(door, wanted.module) != wanted.module:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            self.used[door] = wanted.module
            given = await self._doors.sockets(door)
        except OSError as error:
            self.denied = True
            self._line.send(Answer(ask.number, errno=error.errno or 0, error=error.strerror or str(error)))
            return
        self._line.send(Answer(ask.number, len(given)), given)
        for made in given:
            made.close()

    # ------------------------------------------------------------------ what is said to it

    def send(self, message: Any) -> None:
        self._line.send(message)

    def drain(self, deadline_s: float | None, *, grace_s: float = 0.0, more_s: float = 0.0) -> None:
        """Let it drain; `more_s` after the deadline it is killed."""
        self.draining = True
        self._line.send(Drain(deadline_s, grace_s))
        if deadline_s is not None:
            self.ends_within(deadline_s + more_s)

    def force(self, within_s: float) -> None:
        self.draining = True
        self._line.send(Force())
        self.ends_within(within_s)

    def ends_within(self, seconds: float) -> None:
        """Whatever becomes of it, it is killed then."""
        at = self._loop.time() + seconds
        self.ends_by = at if self.ends_by is None else min(at, self.ends_by)

    def kill(self, why: str) -> None:
        if not self.killed:
            self.killed = why
            self._child.kill()

    # ------------------------------------------------------------------ its end

    def reap(self) -> bool:
        """Has it ended? Then all that it said has been heard."""
        if self.gone.done():
            return False
        code = self._child.poll()
        if code is None:
            return False
        self._line.read()
        self._line.close()
        for task in self._asking:
            task.cancel()
        if not self.made_ready.done():
            self.made_ready.cancel()
        self.gone.set_result(code)
        return True

    @property
    def ended_well(self) -> bool:
        """It has ended, by itself, and nothing went wrong."""
        return self.finished is not None and self.finished.code == 0 and self.gone.done() and self.gone.result() == 0

    @property
    def ended_as_told(self) -> bool:
        """It has ended because it was to, in good order or by the signal that it was sent."""
        if self.killed:
            return False
        if self.finished is None:
            return self.gone.result() in (-signal.SIGTERM, -signal.SIGINT)
        return self.finished.code in (0, 130)

    @property
    def said(self) -> str:
        """What went wrong, in its own last words; empty: it has said nothing of the kind."""
        return self.finished.error if self.finished is not None else ""

    @property
    def is_hopeless(self) -> bool:
        """It ended because of how the flow is written, or for want of what it was to listen on."""
        return self.finished is not None and (self.finished.unfit or (self.denied and bool(self.said)))

    @property
    def is_refused(self) -> bool:
        """It found that the flow as written cannot run."""
        return self.finished is not None and self.finished.code == REFUSED

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        if self.killed:
            return self.killed
        code = self.gone.result()
        if self.said:
            return f"{in_words(code)}: {self.said}"
        if self.finished is not None and self.finished.signalled:
            return "it was stopped by a signal that did not come from its supervisor"
        return in_words(code)

    @property
    def lost(self) -> Lost | None:
        """What it had, if it ended without its last words."""
        if self.finished is not None and self.finished.statistics is not None:
            return None
        known = self.statistics
        if known is None:
            return None
        held = {name: module.held for name, module in known.modules.items() if module.held}
        age_s = max(0.0, self._loop.time() - self.heard)
        return Lost(self.name, self.pid, self.reason, known.open, held, age_s)
