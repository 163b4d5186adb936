"""The supervisor: starts the workers, restarts those that die, and ends them all.

It decides by what each process says (`process.py`) and by how it ends. A worker keeps its seat when its process is
replaced. The phases of a run: *running* → (*ending*: all that have sources ended by themselves, the others drain) or
(*stopping*: asked for, with one deadline for all) → *ended*.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from furcula.engine.statistics import Statistics, summed
from furcula.engine.stop_signals import StopSignals
from furcula.graph import MAIN
from furcula.workers import systemd
from furcula.workers.doors import Door, Doors
from furcula.workers.figures import Lost, RunFigures, WorkerFigures
from furcula.workers.launch import Launch
from furcula.workers.process import Process
from furcula.workers.worker import Begin, Cease, Worker

__all__ = ["Outcome", "Policy", "Supervisor"]

_log = logging.getLogger("furcula.workers")

#: Seconds between two looks at the workers.
_LOOK_S: Final = 0.2
#: Seconds between two looks at whether stages have come to rest.
_REST_S: Final = 0.02
#: Seconds between two looks beyond which the supervisor itself was kept from running.
_LATE_S: Final = 1.0
#: Seconds beyond the deadline that a worker gets for its clean-up, before it is killed.
_CLEAN_UP_S: Final = 10.0
#: The same after a second signal.
_FORCED_S: Final = 2.0
#: So many of the dead, and of their reasons, are remembered.
_KEPT: Final = 100
#: Seconds between two words to systemd on how many events there were.
_STATUS_S: Final = 10.0


class Policy(msgspec.Struct, frozen=True):
    """When workers are restarted, and when no more.

    Attributes:
        deadline_s: Seconds that draining may take, for all workers together.
        hung_after_s: A worker that has said nothing for so long is killed; None: never.
        start_within_s: Seconds within which a worker must have begun to speak, and in a restart one by one be ready.
        max_deaths: A worker that dies so often within the window stops the run.
        window_s: The window.
        pause_s: Seconds before the first restart, doubled with each one.
        longest_pause_s: But not beyond this.
        settled_after_s: A worker that was up for so long is restarted after the first pause again.
        grace_s: Seconds that clients with open connections get, in a restart one by one, to take their leave.
        must_start: A worker that dies before all of them were ready stops the run. Whatever this says, one that cannot
            run because of how the flow is written, or because it cannot open what it listens on, stops the run if no
            worker of its stage was ever ready: starting it again would not help.
    """

    deadline_s: float = 10.0
    hung_after_s: float | None = 30.0
    start_within_s: float = 120.0
    max_deaths: int = 10
    window_s: float = 60.0
    pause_s: float = 0.1
    longest_pause_s: float = 10.0
    settled_after_s: float = 10.0
    grace_s: float = 5.0
    must_start: bool = False


class Outcome(msgspec.Struct, frozen=True):
    """How a run ended.

    Attributes:
        figures: Of all workers.
        error: Why it could not go on; empty: it came to its end or was stopped.
        forced: It was ended by a second signal.
        ran: It did not end because a worker could not start; there may be figures.
        refused: The flow as written cannot run.
    """

    figures: RunFigures
    error: str = ""
    forced: bool = False
    ran: bool = True
    refused: bool = False


class _Seat:
    """A worker, whichever process it is at the time."""

    def __init__(self, worker: Worker, pause_s: float):
        self.worker = worker
        self.process: Process | None = None
        self.replacement: Process | None = None
        #: It has none now, and gets one when this comes.
        self.restarting: asyncio.TimerHandle | None = None
        #: What its last process listened on.
        self.used: set[Door] = set()
        self.done = False
        self.restarts = 0
        self.deaths: deque[float] = deque()
        self.pause_s = pause_s
        self.past: list[Statistics] = []
        self.told: set[str] = set()
        self.incomplete = False

    def rest(self) -> None:
        """Start it no more by itself."""
        if self.restarting is not None:
            self.restarting.cancel()
            self.restarting = None


class Supervisor:
    """Runs workers until they have all ended, or it is told to stop.

    Args:
        name: Of what is run, for logs.
        workers: Who is to run.
        launch: How a process is started.
        settings: What every worker is told, as it is: values that MessagePack has.
        policy: When workers are restarted.
        order: The stages from the sources down, where they send to each other directly: they end in this order, those
            that stand together when all of them have come to rest. None: each ends by itself.
        on_ready: Called once, when all workers are ready.
        on_restart: Called before a restart one by one begins.
    """

    def __init__(
        self,
        name: str,
        workers: Sequence[Worker],
        launch: Launch,
        settings: dict[str, Any],
        policy: Policy = Policy(),  # noqa: B008 -- a frozen value
        *,
        order: Sequence[Sequence[str]] | None = None,
        on_ready: Callable[[], None] | None = None,
        on_restart: Callable[[], None] | None = None,
    ):
        self.name = name
        self.policy = policy
        self._launch = launch
        self._settings = settings
        self._order = order
        self._in_order: asyncio.Task[None] | None = None
        self._on_ready = on_ready
        self._on_restart = on_restart
        self._seats = [_Seat(worker, policy.pause_s) for worker in workers]
        self._seat_of: dict[Process, _Seat] = {}
        self._doors = Doors()
        self._lost: list[Lost] = []
        self._stopping = False
        self._stop_asked = False
        self._ending = False
        self._forced = False
        self._error = ""
        self._all_ready = False
        #: The stages of which a worker was ready at some time.
        self._proven: set[str | None] = set()
        #: What the first worker said that could not start; empty: all could.
        self._not_started = ""
        self._refused = False
        self._signals = StopSignals()
        self._rolling: asyncio.Task[None] | None = None
        self._again = False
        self._ended: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._began = 0.0
        self._said = 0.0
        self._barked = 0.0
        self._looked = 0.0

    # ------------------------------------------------------------------ the run

    async def run(self, *, signals: bool = False) -> Outcome:
        """Start the workers; return when all have ended.

        Args:
            signals: Stop on SIGINT and SIGTERM, of which a second one forces (the same one within 0.2 s is no second
                one), and restart one by one on SIGHUP.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._began = time.monotonic()
        handled: dict[int, Callable[[], None]] = {signal.SIGCHLD: self._look}
        if signals:
            handled |= {number: partial(self._on_stop, number) for number in (signal.SIGINT, signal.SIGTERM)}
            handled[signal.SIGHUP] = self.restart
        installed = []
        for number, call in handled.items():
            with contextlib.suppress(RuntimeError, ValueError):  # not the main thread: `_look` finds the dead later
                loop.add_signal_handler(number, call)
                installed.append(number)
        looking = loop.create_task(self._keep_looking(), name="furcula supervisor")
        try:
            for seat in self._seats:
                if not self._stopping:
                    self._start(seat)
            if self._stop_asked:
                self._stop()
            self._check_end()
            await self._ended.wait()
            if looking.done():
                await looking  # it broke, and what it raised is to be seen
        finally:
            looking.cancel()
            await asyncio.wait([looking])
            for task in (self._rolling, self._in_order):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
            self._stopping = True
            for seat in self._seats:
                seat.rest()
            for process in self._alive():  # only if something broke
                process.kill("the supervisor ended")
            while self._alive():
                self._look()
                await asyncio.sleep(0.01)
            self._doors.close()
            for number in installed:
                loop.remove_signal_handler(number)
        ran = bool(self._proven) or not self._not_started
        return Outcome(self.figures(), self._error, self._forced, ran, self._refused)

    async def _keep_looking(self) -> None:
        try:
            while True:
                self._look()
                self._tell_systemd()
                await asyncio.sleep(_LOOK_S)
        finally:
            assert self._ended is not None
            self._ended.set()

    def _alive(self) -> list[Process]:
        return [process for process in self._seat_of if not process.gone.done()]

    def _start(self, seat: _Seat, *, replacing: bool = False) -> Process:
        seat.restarting = None
        worker = msgspec.structs.replace(seat.worker, replacing=replacing)
        private = [process.fd for process in self._alive()]
        process = Process(worker, self._settings, self._launch, self._doors, private, self._became_ready)
        self._seat_of[process] = seat
        if replacing:
            seat.replacement = process
        else:
            seat.process = process
        _log.info("%s started as process %d", process.name, process.pid, extra={"flow": self.name})
        return process

    def _became_ready(self, process: Process) -> None:
        self._proven.add(process.worker.stage)
        _log.info("%s is ready", process.name, extra={"flow": self.name})
        self._check_ready()
        self._check_end()

    def _check_ready(self) -> None:
        if not self._all_ready and all(
            seat.done or (seat.process is not None and seat.process.is_ready) for seat in self._seats
        ):
            self._all_ready = True
            systemd.ready(f"{_counted(len(self._seats))} run")
            if self._on_ready is not None:
                self._on_ready()

    # ------------------------------------------------------------------ looking after them

    def _look(self) -> None:
        """Who has ended, who says nothing, and whose time is up?"""
        assert self._loop is not None
        now = self._loop.time()
        if now - self._looked > _LATE_S:  # it was us who stood still, and what was said meanwhile is not read yet
            for process in self._alive():
                process.heard = max(process.heard, now)
        self._looked = now
        for process in self._alive():
            if process.reap():
                self._ended_process(process)
            elif process.killed:
                pass
            elif process.ends_by is not None and now > process.ends_by:
                process.kill("killed: it had not ended when its time was up")
            elif (limit := self._silence(process)) is not None and now - process.heard > limit:
                process.kill(f"no beat for {limit:g} s: killed")
        self._check_end()

    def _silence(self, process: Process) -> float | None:
        limit = self.policy.hung_after_s
        if limit is None:
            return None
        return limit if process.has_beaten else max(limit, self.policy.start_within_s)

    def _ended_process(self, process: Process) -> None:
        seat = self._seat_of.pop(process)
        if process.statistics is not None:
            seat.past = [summed([*seat.past, process.statistics])]
        lost = process.lost
        had = ""
        if lost is not None:
            self._lost = [*self._lost[-_KEPT:], lost]
            seat.incomplete = True
            had = f"; {lost.had}"
        is_replacement = process is seat.replacement
        if is_replacement:
            seat.replacement = None
        if process is seat.process:
            seat.process, seat.used = None, set(process.used)
        if process.draining:
            if process.ended_as_told or self._forced or self._is_told(process):
                _log.info("%s ended%s", process.name, had, extra={"flow": self.name})
            else:
                _log.error("%s ended: %s%s", process.name, process.reason, had, extra={"flow": self.name})
                if self._stopping or self._ending:
                    self._error = self._error or f"{process.name} ended: {process.reason}"
            if not self._stopping and self._ending:
                seat.done = True
            return
        if process.ended_well and process.finished is not None and not process.finished.signalled:
            if not is_replacement or seat.process is None:
                seat.done = True
            _log.info("%s has come to its end", process.name, extra={"flow": self.name})
            self._check_ready()
            return
        self._died(seat, process, had)

    def _is_told(self, process: Process) -> bool:
        """It could not start because of what another has told already."""
        return bool(self._not_started) and process.said == self._not_started

    def _died(self, seat: _Seat, process: Process, had: str) -> None:
        """Say so, once, with what it had; start it again, or end the run."""
        assert self._loop is not None
        policy, now, reason = self.policy, self._loop.time(), process.reason
        if self._stopping:
            _log.error("%s ended: %s%s", process.name, reason, had, extra={"flow": self.name})
            return
        if seat.process is not None:  # it was to take the place of one that is well: the restart tells why not
            return
        seat.deaths.append(now)
        while seat.deaths[0] < now - policy.window_s:
            seat.deaths.popleft()
        hopeless = process.is_hopeless and process.worker.stage not in self._proven
        if hopeless or (policy.must_start and not self._all_ready):
            self._not_started = process.said or reason
            self._refused = process.is_refused
            # Whoever runs us says why, and where nothing else would help, as it does without workers.
            self._error = process.said if hopeless else f"{process.name} could not start: {reason}"
            self._stop()
            return
        if len(seat.deaths) >= policy.max_deaths:
            times = f"{len(seat.deaths)} times within {policy.window_s:g} s"
            self._give_up(f"{process.name} died {times}; the last time: {reason}", had)
            return
        if seat.replacement is not None:  # that takes its place
            _log.error("%s died (process %d): %s%s", process.name, process.pid, reason, had, extra={"flow": self.name})
            return
        if now - process.began > policy.settled_after_s:
            seat.pause_s = policy.pause_s
        pause_s, seat.pause_s = seat.pause_s, min(seat.pause_s * 2, policy.longest_pause_s)
        if reason in seat.told:
            text = "%s died again (process %d), for the same reason; it is restarted in %g s%s"
            _log.warning(text, process.name, process.pid, pause_s, had, extra={"flow": self.name})
        else:
            if len(seat.told) > _KEPT:
                seat.told.clear()
            seat.told.add(reason)
            text = "%s died (process %d): %s; it is restarted in %g s%s"
            _log.error(text, process.name, process.pid, reason, pause_s, had, extra={"flow": self.name})
        seat.restarts += 1
        seat.restarting = self._loop.call_later(pause_s, self._start_again, seat)

    def _start_again(self, seat: _Seat) -> None:
        assert self._loop is not None
        try:
            self._start(seat)
        except OSError as error:  # no memory, no more processes: that may pass
            _log.error("%s cannot be started: %s", seat.worker.name, error, extra={"flow": self.name})
            seat.restarting = self._loop.call_later(self.policy.longest_pause_s, self._start_again, seat)

    def _give_up(self, why: str, had: str = "") -> None:
        _log.critical("%s; the run ends%s", why, had, extra={"flow": self.name})
        self._error = self._error or why
        self._stop()

    def _check_end(self) -> None:
        """Have all ended? Have all that have sources? Then the others have nothing more to wait for."""
        assert self._ended is not None
        alive = self._alive()
        if not alive and (self._stopping or all(seat.done for seat in self._seats)):
            self._ended.set()
            return
        if self._stopping or self._ending or not alive:
            return
        if self._order is not None:
            here = [seat.process for seat in self._seats if not seat.done]
            over = all(one is not None and one.is_ready and (one.idle or one.ended) for one in here)
            if over and any(one is not None and one.ended for one in here):
                self._end()
            return
        if not any(seat.done for seat in self._seats):
            return
        left = [seat for seat in self._seats if not seat.done]
        if all(seat.process is not None and seat.process.is_ready and seat.process.idle for seat in left):
            self._end()

    def _end(self) -> None:
        """Nothing more comes: drain all workers, those too that a restart has just begun."""
        self._ending = True
        if self._rolling is not None:
            self._rolling.cancel()
        self._drain_all(None)

    # ------------------------------------------------------------------ its end

    def _on_stop(self, number: int) -> None:
        if self._signals.repeats(number):
            return
        if not self._stopping:
            limit = self.policy.deadline_s
            text = "draining %s for at most %g s; again ends at once"
            _log.warning(text, _counted(len(self._alive())), limit, extra={"flow": self.name})
            self._stop()
        else:
            _log.warning("again: ending at once", extra={"flow": self.name})
            self.force()

    def stop(self) -> None:
        """Drain all workers, within one deadline. May be called from any thread, also before the run."""
        self._stop_asked = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        systemd.stopping("draining")
        if self._rolling is not None:
            self._rolling.cancel()
        for seat in self._seats:
            seat.rest()
        self._drain_all(self.policy.deadline_s)
        self._check_end()

    def _drain_all(self, limit_s: float | None) -> None:
        if self._order is None:
            for process in self._alive():
                process.drain(limit_s, more_s=_CLEAN_UP_S)
            return
        assert self._loop is not None
        if self._in_order is not None:
            self._in_order.cancel()
        self._in_order = self._loop.create_task(self._drain_in_order(self._order, limit_s), name="furcula drain")

    async def _drain_in_order(self, order: Sequence[Sequence[str]], limit_s: float | None) -> None:
        """What one stage has sent, the next must still take. One deadline holds for all."""
        assert self._loop is not None
        until = None if limit_s is None else self._loop.time() + limit_s
        if limit_s is not None:
            for process in self._alive():
                process.ends_within(limit_s + _CLEAN_UP_S)
        for group in order:
            seats = [seat for seat in self._seats if (seat.worker.stage or MAIN) in group]
            if len(group) > 1:
                await self._at_rest(seats, until)
            together = await self._manned(seats)
            left_s = None if until is None else max(0.0, until - self._loop.time())
            for process in together:
                process.drain(left_s, more_s=_CLEAN_UP_S)
            if together:
                await asyncio.wait([process.gone for process in together])

    async def _manned(self, seats: Sequence[_Seat]) -> list[Process]:
        """Their processes, once none of them waits for its restart. Within a deadline none does any more."""
        while any(seat.restarting is not None for seat in seats):  # noqa: ASYNC110 -- a look now and then will do
            await asyncio.sleep(_REST_S)
        return [process for process in self._alive() if self._seat_of[process] in seats]

    async def _at_rest(self, seats: Sequence[_Seat], until: float | None) -> None:
        """These send to each other: let their sources end, and wait until nothing is open in any of them."""
        assert self._loop is not None
        told: set[Process] = set()
        before: list[tuple[int, int, int]] = []
        while until is None or self._loop.time() < until:
            together = await self._manned(seats)  # one that dies meanwhile comes again, and must be told too
            for process in together:
                if process not in told:
                    told.add(process)
                    process.send(Cease())
            beats = [process.beats for process in together]
            while any(p.beats < n + 2 and not p.gone.done() for p, n in zip(together, beats, strict=True)):
                await asyncio.sleep(_REST_S)
                if until is not None and self._loop.time() >= until:
                    return
            now = [
                (p.pid, p.statistics.total.admitted, p.statistics.total.open)
                for p in together
                if p.statistics is not None and not p.gone.done()
            ]
            if now == before and not any(count for _, _, count in now):
                return
            before = now

    def force(self) -> None:
        """End all workers at once."""
        self._stop()
        self._forced = True
        for process in self._alive():
            process.force(_FORCED_S)

    # ------------------------------------------------------------------ one by one

    def restart(self) -> None:
        """Restart the workers one by one: the next is replaced when the one before has gone.

        Each gets a process of its own first, which must be ready before the old one drains; if one does not become
        ready, the rest stays as it is. Called again meanwhile, it is done once more afterwards.
        """
        if self._stopping or self._ending:
            return
        if self._rolling is not None:
            self._again = True
            return
        assert self._loop is not None
        if self._on_restart is not None:
            self._on_restart()
        self._rolling = self._loop.create_task(self._restart(), name="furcula restart")
        self._rolling.add_done_callback(self._restarted)

    def _restarted(self, task: asyncio.Task[None]) -> None:
        self._rolling = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.critical("the restart broke", exc_info=error, extra={"flow": self.name})
        if not self._stopping:
            systemd.ready(f"{_counted(len(self._seats))} run")
            if self._again:
                self._again = False
                self.restart()

    async def _restart(self) -> None:
        _log.info("restarting %s, one by one", _counted(len(self._seats)), extra={"flow": self.name})
        systemd.reloading("restarting the workers, one by one")
        try:
            why = await self._replace_all()
        finally:
            self._doors.keep(self._used())
        if why:
            text = "%s; the restart was given up, and the workers that run go on"
            _log.error(text, why, extra={"flow": self.name})
        else:
            _log.info("all workers have been restarted", extra={"flow": self.name})

    def _used(self) -> set[Door]:
        """What the workers listen on, or will again when they are restarted."""
        used = {door for process in self._alive() for door in process.used}
        return used | {door for seat in self._seats if seat.process is None and not seat.done for door in seat.used}

    async def _replace_all(self) -> str:
        """Returns why it could not be done."""
        for seat in self._seats:
            if seat.done:
                continue
            why = await self._replace(seat)
            if why:
                return f"{seat.worker.name} could not be replaced: {why}"
        return ""

    async def _replace(self, seat: _Seat) -> str:
        """Returns why it could not be done."""
        seat.rest()
        if seat.process is None:
            new = self._start(seat)
            return await self._until_ready(new)
        old = seat.process
        new = self._start(seat, replacing=True)
        why = await self._until_ready(new)
        if seat.done:  # the old one has come to its end meanwhile, and there is nothing left to do in its place
            if not why:
                new.drain(self.policy.deadline_s, more_s=_CLEAN_UP_S)
                await asyncio.wait([new.gone])
            return ""
        if why:  # if the old one died meanwhile, a restart is on its way
            return why
        seat.process, seat.replacement = new, None
        over: frozenset[str] = frozenset()  # as after any death: the next one begins all sources again
        if not old.gone.done():
            deadline_s = self.policy.deadline_s
            grace_s = min(self.policy.grace_s, deadline_s / 2)
            old.drain(deadline_s, grace_s=grace_s, more_s=_CLEAN_UP_S)
            await asyncio.wait([old.gone])
            over = old.over
        new.send(Begin(over))
        return ""

    async def _until_ready(self, process: Process) -> str:
        limit = self.policy.start_within_s
        waits: list[asyncio.Future[Any]] = [process.made_ready, process.gone]
        await asyncio.wait(waits, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if process.gone.done():
            return process.reason
        if not process.is_ready:
            process.kill(f"not ready within {limit:g} s: killed")
            await asyncio.wait([process.gone])
            return process.reason
        return ""

    # ------------------------------------------------------------------ figures

    def figures(self) -> RunFigures:
        """The figures now: of those who are at work as they said last, at most a second ago."""
        workers = []
        for seat in self._seats:
            known = [process.statistics for process, owner in self._seat_of.items() if owner is seat]
            parts = [*seat.past, *(part for part in known if part is not None)]
            process = seat.process
            workers.append(
                WorkerFigures(
                    name=seat.worker.name,
                    pid=process.pid if process is not None else 0,
                    state=self._state(seat),
                    restarts=seat.restarts,
                    statistics=summed(parts) if parts else None,
                    incomplete=seat.incomplete,
                )
            )
        total = summed([one.statistics for one in workers if one.statistics is not None], self.name, once=True)
        total = msgspec.structs.replace(total, seconds=time.monotonic() - self._began)
        return RunFigures(total, workers, list(self._lost))

    def _state(self, seat: _Seat) -> str:
        process = seat.process
        if process is None:
            return "ended" if seat.done or self._stopping else "waiting"
        if process.draining:
            return "draining"
        return "running" if process.is_ready else "starting"

    def _tell_systemd(self) -> None:
        if not systemd.is_there():
            return
        assert self._loop is not None
        now = self._loop.time()
        watchdog_s = systemd.watchdog_s()
        if watchdog_s is not None and now - self._barked >= watchdog_s - _LOOK_S:
            self._barked = now
            systemd.notify(WATCHDOG=1)
        if self._all_ready and now - self._said > _STATUS_S:
            self._said = now
            figures = self.figures()
            running = sum(worker.state == "running" for worker in figures.workers)
            systemd.notify(STATUS=f"{running} of {_counted(len(self._seats))} run; {figures.statistics}")


def _counted(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"
