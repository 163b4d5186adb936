"""The process of a worker: it loads the flow, runs it, and tells its supervisor how it goes.

If the supervisor has gone, however it went, the worker drains and ends.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from furcula.config.target import opened
from furcula.engine.director import Director
from furcula.engine.loop import run_in_new_loop
from furcula.engine.parts import cuts
from furcula.engine.plan import plan
from furcula.engine.statistics import Statistics
from furcula.engine.stop_signals import StopSignals
from furcula.errors import ConfigurationError, FurculaError, SourceFailed, Stopped
from furcula.flow import FlowGraph
from furcula.graph import MAIN
from furcula.sockets import HANDING, Wanted
from furcula.workers.launch import BEAT_S
from furcula.workers.line import DOWN, Frames, Line, receive, send
from furcula.workers.log import log_as
from furcula.workers.worker import (
    REFUSED,
    Answer,
    Ask,
    Beat,
    Begin,
    Cease,
    Drain,
    Finished,
    Force,
    Ready,
    Start,
    Worker,
)

__all__ = ["cut_names", "director_of", "main"]

_log = logging.getLogger("furcula.workers")

#: Exit codes, as `furcula run` has them.
_FAILED, _INTERRUPTED = 1, 130
#: Seconds beyond its deadline after which a worker ends itself whose supervisor has gone.
_ALONE_S: Final = 15.0
#: Seconds between two looks at whether the flow runs by now; and at whether the sources of a stage have ended.
_LOOK_S: Final = 0.01
_OFTEN_S: Final = 0.05


def director_of(flow: FlowGraph, worker: Worker, settings: dict[str, Any]) -> Director:
    """What runs this worker's part of the flow.

    A source that only one process may run is held in all workers but the first, and there as long as the worker that
    it replaces is still at it. The workers of a cluster settle that among themselves.
    """
    deadline_s = settings["deadline_s"]
    if settings.get("cluster") is not None:
        from furcula.cluster.client import Access
        from furcula.cluster.worker import StageDirector

        access = Access(**settings["cluster"])
        version = settings.get("version", "")
        return StageDirector(flow, worker.stage or MAIN, access, version=version, deadline=deadline_s)
    held = singles(flow, worker) if worker.index > 0 or worker.replacing else frozenset()
    if settings.get("lines") is None:
        return Director(flow, deadline=deadline_s, held=held)
    _same_stages(flow, settings)
    from furcula.workers.lines import Lines

    stage = worker.stage or MAIN
    joints = Lines(Path(settings["lines"]), stage, worker.index, settings["counts"])
    return Director(flow, deadline=deadline_s, stage=stage, joints=joints, held=held)


def _same_stages(flow: FlowGraph, settings: dict[str, Any]) -> None:
    """The workers beside this one, and their supervisor, go by the stages as they were when the run was started.

    Raises:
        ConfigurationError: The flow has others by now.
    """
    stages = {place.stage for place in flow.places.values()}
    if stages == set(settings["counts"]) and cut_names(flow) == settings["cuts"]:
        return
    what = "stages have" if stages != set(settings["counts"]) else "routes between the stages have"
    raise ConfigurationError(
        f"the {what} changed since the run was started, and the other workers know the old ones; stop the run and "
        f"start it anew"
    )


def cut_names(flow: FlowGraph) -> list[str]:
    """The routes between the stages, in words."""
    return sorted(f"{cut.from_stage} -> {cut.to_stage}: {cut.name}" for cut in cuts(flow, plan(flow)).values())


def sources(flow: FlowGraph, worker: Worker) -> frozenset[str]:
    """The sources of its stage."""
    places = flow.places.values()
    return frozenset(place.name for place in places if place.is_source and worker.stage in (None, place.stage))


def singles(flow: FlowGraph, worker: Worker) -> frozenset[str]:
    """The sources of its stage that only one process may run."""
    return frozenset(name for name in sources(flow, worker) if flow.places[name].single)


def is_idle(flow: FlowGraph, worker: Worker) -> bool:
    """Has this worker no source to run, so that it ends when the others have?"""
    return not (sources(flow, worker) - (singles(flow, worker) if worker.index else frozenset()))


def main(arguments: list[str]) -> int:
    """Be a worker.

    Args:
        arguments: The number of this end of the line. What follows is for those who look at lists of processes.
    """
    end = socket.socket(fileno=int(arguments[0]))
    os.set_inheritable(end.fileno(), False)  # what the flow starts must not keep the line open
    frames = Frames(DOWN)
    first = receive(end, frames)
    if first is None or not isinstance(first[0], Start):
        return _FAILED
    start, rest = first[0], first[1:]
    log_as(start.worker.name, start.settings.get("log_level", logging.INFO))
    _end_if_alone(end, float(start.settings["deadline_s"]) + _ALONE_S)
    with _profiled(start):
        body = _Body(end, frames, start, rest)
        last = body.run()
    send(end, last, body.unsent)
    end.close()
    return last.code


def _end_if_alone(end: socket.socket, after_s: float) -> None:
    """However busy or stuck the loop is: a worker without a supervisor does not stay."""

    def watch() -> None:
        poll = select.poll()
        poll.register(end.fileno(), 0)  # the hang-up is always told
        poll.poll()
        time.sleep(after_s)
        os._exit(_FAILED)

    threading.Thread(target=watch, name="furcula alone", daemon=True).start()


@contextmanager
def _profiled(start: Start) -> Iterator[None]:
    path = start.settings.get("profile")
    if not path:
        yield
        return
    import cProfile

    profiler = cProfile.Profile()
    profiler.enable()
    try:
        yield
    finally:
        profiler.disable()
        profiler.dump_stats(f"{path}.{start.worker.name.replace('/', '-')}")


class _Body:
    """The worker, from its first words to its last.

    Args:
        end: Its end of the line.
        frames: What came on it so far.
        start: The first message.
        rest: What else has come.
    """

    def __init__(self, end: socket.socket, frames: Frames[Any], start: Start, rest: list[Any]):
        self.grace_s = 0.0
        #: What of the messages could not be sent before the loop ended.
        self.unsent = b""
        self._end = end
        self._frames = frames
        self._worker = start.worker
        self._settings = start.settings
        self._rest = rest
        self._director: Director | None = None
        self._line: Line[Any] | None = None
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[list[socket.socket]]] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._stopping = False
        self._ceasing = False
        self._signalled = False
        self._signals = StopSignals()
        self._broke = ""
        #: The sources that had ended in the worker whose place this is, and those that had here when it was to stop.
        self._over_before: frozenset[str] = frozenset()
        self._over_at_stop: frozenset[str] | None = None
        self._is_over = False

    def run(self) -> Finished:
        code, error, unfit = 0, "", False
        statistics: Statistics | None = None
        try:
            with opened(self._settings["flow"], self._settings.get("overrides", ())) as flow:
                statistics = run_in_new_loop(self._serve(flow))
        except SourceFailed as failed:
            code, error, statistics = _FAILED, str(failed), failed.statistics
        except ConfigurationError as failed:
            code, error, unfit = REFUSED, str(failed), True
        except FurculaError as failed:
            code, error, unfit = _FAILED, str(failed), isinstance(failed.__cause__, ConfigurationError)
        except KeyboardInterrupt:
            code, error = _INTERRUPTED, "interrupted"
        except Exception as failed:
            _log.exception("the worker broke")
            code, error = _FAILED, f"{type(failed).__name__}: {failed}"
        if statistics is None and self._director is not None:
            statistics = self._director.statistics()
        if not code and self._broke:
            code, error = _FAILED, self._broke
        if not code and self._director is not None and self._director.forced:
            code = _INTERRUPTED
        over = self._over(self._director) if self._director is not None else frozenset()
        return Finished(code, statistics, error, self._signalled, over, unfit)

    async def _serve(self, flow: FlowGraph) -> Statistics:
        HANDING.set(self)
        loop = asyncio.get_running_loop()
        director = self._director = director_of(flow, self._worker, self._settings)
        line = self._line = Line(self._end, self._frames, self._take, self._alone)
        line.send(Beat())  # before the flow can keep the loop: from now on silence means something
        running = loop.create_task(director.run(), name="furcula run")
        await asyncio.sleep(0)  # it has begun to start, so it can be stopped
        loop.add_signal_handler(signal.SIGTERM, self._on_signal)
        line.open()
        for message in self._rest:
            self._take(message, [])
        beating = loop.create_task(self._beat(director, line, running), name="furcula beat")
        try:
            return await running
        finally:
            beating.cancel()
            await asyncio.wait([beating])
            loop.remove_signal_handler(signal.SIGTERM)
            _, self.unsent = line.leave()

    async def _beat(self, director: Director, line: Line[Any], running: asyncio.Task[Any]) -> None:
        said = 0.0
        ready = told = False
        while not running.done():
            now = time.monotonic()
            if not ready and director.phase == "running":
                ready = True
                line.send(Ready(is_idle(director.flow, self._worker)))
                said = 0.0
            self._end_if_over(director)
            ended = self._sources_ended(director)
            if (now - said >= BEAT_S or self._ceasing or (ended and not told)) and not line.busy:
                said, told = now, ended
                line.send(Beat(director.statistics(), ended, self._over(director)))
            await asyncio.sleep(_LOOK_S if not ready else _OFTEN_S if self._in_stages else BEAT_S)

    @property
    def _in_stages(self) -> bool:
        return self._settings.get("lines") is not None

    def _sources_ended(self, director: Director) -> bool:
        """A stage does not end by itself: others may still send to it."""
        return self._in_stages and self._all_over(director)

    def _all_over(self, director: Director) -> bool:
        mine = sources(director.flow, self._worker)
        if self._worker.index:
            mine -= singles(director.flow, self._worker)
        return bool(mine) and mine <= director.sources_ended | self._over_before

    def _over(self, director: Director) -> frozenset[str]:
        """The sources that have given all they have, not those that were told to stop."""
        if self._over_at_stop is not None:
            return self._over_at_stop
        return self._over_before | director.sources_ended

    def _end_if_over(self, director: Director) -> None:
        """The flow would wait for the sources that are over and were not begun again."""
        if self._over_before and not self._is_over and not self._in_stages and self._all_over(director):
            self._is_over = True
            self._keep(asyncio.ensure_future(director.drain()))

    # ------------------------------------------------------------------ what it is told

    def _take(self, message: Any, sockets: list[socket.socket]) -> None:
        assert self._director is not None
        match message:
            case Drain():
                self._signals.repeats(signal.SIGTERM)  # whoever sends it to all of us means the same
                self.grace_s = message.grace_s
                self._stop(message.deadline_s)
            case Cease():
                self._over_at_stop = self._over(self._director)
                self._ceasing = True
                self._keep(asyncio.ensure_future(self._director.cease()))
            case Force():
                self._force()
            case Begin():
                if not self._worker.index:
                    self._over_before = message.over & singles(self._director.flow, self._worker)
                self._keep(asyncio.ensure_future(self._begin(self._director)))
            case Answer():
                self._answered(message, sockets)

    def _stop(self, deadline_s: float | None) -> None:
        assert self._director is not None
        self._over_at_stop = self._over(self._director)
        self._stopping = True
        stopping = self._director.drain() if deadline_s is None else self._director.stop(deadline_s)
        self._keep(asyncio.ensure_future(stopping))

    def _force(self) -> None:
        assert self._director is not None
        if not self._stopping:
            self._stop(0)
        self._director.force()

    async def _begin(self, director: Director) -> None:
        if self._worker.index or self._settings.get("cluster") is not None:
            return
        try:
            for name in sorted(singles(director.flow, self._worker) - self._over_before):
                await director.begin(name)
        except Stopped:
            pass
        except FurculaError as error:  # without it the worker is no use: another one may have more luck
            self._broke = str(error)
            self._stop(self._settings["deadline_s"])

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_signal(self) -> None:
        """Somebody else than the supervisor wants it to end; the supervisor will start another."""
        self._signalled = True
        if self._signals.repeats(signal.SIGTERM):
            return
        if self._stopping:
            self._force()
        else:
            _log.warning("SIGTERM: draining; again ends at once")
            self._stop(self._settings["deadline_s"])

    def _alone(self) -> None:
        _log.error("the supervisor has gone: draining")
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(OSError("the supervisor has gone"))
        self._stop(self._settings["deadline_s"])

    # ------------------------------------------------------------------ listening sockets

    async def sockets(self, wanted: Wanted) -> list[socket.socket]:
        """Ask the supervisor for sockets. See `furcula.sockets.Handing`."""
        assert self._line is not None
        number = next(self._numbers)
        asked: asyncio.Future[list[socket.socket]] = asyncio.get_running_loop().create_future()
        self._asked[number] = asked
        self._line.send(Ask(number, wanted))
        try:
            return await asked
        finally:
            del self._asked[number]

    def _answered(self, answer: Answer, sockets: list[socket.socket]) -> None:
        asked = self._asked.get(answer.number)
        if asked is None or asked.done():
            for made in sockets:
                made.close()
        elif answer.error:
            asked.set_exception(OSError(answer.errno, answer.error))
        else:
            for made in sockets:
                made.setblocking(False)
            asked.set_result(sockets)


def run_as_worker() -> None:
    """The command: `python -m furcula.workers FD`."""
    sys.exit(main(sys.argv[1:]))
