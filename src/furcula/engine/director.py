"""The Director: runs one flow in one process, from start to its orderly end.

The phases: *assembled* (instances made, nothing opened) → *started* (module by module from the sinks up to the
sources) → *running* → *draining* (sources cease; then module by module from the sources down, each is waited for until
it holds nothing) → *stopped* (what the deadline left is failed and named; `stop` hooks run).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from furcula.engine.assembly import Assembly, ModuleRun
from furcula.engine.context import ModuleContext
from furcula.engine.counters import BATCH_LIMIT, TimeSlice
from furcula.engine.deadline import Deadline
from furcula.engine.durable import DurableQueue
from furcula.engine.hooks import Hooks
from furcula.engine.outlets import Consumer
from furcula.engine.parts import Joints
from furcula.engine.plan import plan
from furcula.engine.requests import FutureAsker, Request
from furcula.engine.running_sources import RunningSources
from furcula.engine.sources import Entrance
from furcula.engine.statistics import FlowStatistics, OriginStatistics, Statistics
from furcula.engine.stop_signals import StopSignals
from furcula.errors import (
    ConfigurationError,
    DeadlinePassed,
    StartFailed,
    Stopped,
    StoreError,
    nearest,
)
from furcula.event import Event, Failure
from furcula.flow import FlowGraph
from furcula.options import Duration
from furcula.receipt import Origin, Receipt, Slot, Tracked

__all__ = ["Director"]

_log = logging.getLogger("furcula.flow")


class Director:
    """Runs one flow once.

    Use it as `async with Director(flow) as director:`, or call `run`. All methods belong to the event loop in which it
    was started.

    Args:
        flow: The flow. It is checked when the Director is made.
        deadline: Seconds that draining may take after a stop was asked for. A flow whose sources have ended drains as
            long as it needs.
        now: The clock for `event.created` and schedules: Unix time in seconds.
        queue_everywhere: Put a queue of this size before every module, whatever the options say. For tests.
        batch_limit: The most events that move together.
        stage: Run the modules of this stage only.
        joints: With `stage`: what joins it to the stages that run elsewhere.
        held: Sources that are not to begin; see `begin`. The flow does not wait for them to end, unless all are held.
        abandoned: Given all events that modules still held when the deadline of a stop had passed, each with its
            failure, and waited for; the `stop` hooks are called after that. They have settled as failed.

    Raises:
        ConfigurationError: The flow has problems, or a module's arguments are wrong.
    """

    def __init__(
        self,
        flow: FlowGraph,
        *,
        deadline: str | float = "10s",
        now: Callable[[], float] = time.time,
        queue_everywhere: int | None = None,
        batch_limit: int = BATCH_LIMIT,
        stage: str | None = None,
        joints: Joints | None = None,
        held: Iterable[str] = (),
        abandoned: Callable[[list[tuple[Event[Any], Failure]]], Awaitable[None]] | None = None,
    ):
        flow.check()
        self.flow = flow
        self.plan = plan(flow, queue_everywhere=queue_everywhere)
        self.deadline_s = float(Duration(deadline))
        self.phase = "assembled"
        self.abandoned: dict[str, int] = {}
        self._now = now
        self._slice = TimeSlice()
        self._batch_limit = batch_limit if queue_everywhere is None else min(batch_limit, queue_everywhere)
        self._assembly = Assembly(
            flow,
            self.plan,
            time_slice=self._slice,
            now=now,
            monotonic=self._monotonic,
            batch_limit=self._batch_limit,
            stage=stage,
            joints=joints,
        )
        self._joints = joints
        self.modules = self._assembly.modules
        self._tell_abandoned = abandoned
        self._left: list[tuple[Event[Any], Failure]] = []
        if abandoned is not None:
            for run in self.modules.values():
                run.arrivals.left = self._left
        self._deadline = Deadline()
        self._hooks = Hooks(self._deadline)
        self._sources = RunningSources(
            self.modules.values(),
            held=held,
            start=self._start_module,
            hooks=self._hooks,
            deadline=self._deadline,
            all_ended=self._all_ended,
            time_slice=self._slice,
            batch_limit=self._batch_limit,
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended: asyncio.Event | None = None
        self._context: contextvars.Context | None = None
        self._started = asyncio.Event()
        self._limited = False
        self._signals = StopSignals()
        self._stopping: asyncio.Task[Statistics] | None = None
        self._failure: BaseException | None = None
        self._began = 0.0
        self._seconds = 0.0
        self._durable = self._assembly.durable

    # ------------------------------------------------------------------ start

    async def __aenter__(self) -> Director:
        await self.start()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        await self.stop(0 if kind is not None else None)

    async def start(self) -> None:
        """Open what the modules need, sinks first, then let the sources begin.

        Raises:
            StartFailed: A module raised in `start`. Those that had started are stopped again.
        """
        if self.phase != "assembled":
            raise RuntimeError("a Director runs its flow once; make a new one to run it again")
        if self._joints is None:  # of one part of several the same would be said again and again
            for warning in self.flow.warnings():
                _log.warning("%s: %s", self.flow.name, warning)
        self.phase = "starting"
        self._ended = asyncio.Event()
        self._started = asyncio.Event()
        self._context = contextvars.copy_context()
        self._began = time.monotonic()
        for run in self.modules.values():
            for worker in run.workers:
                worker.start(self._spawn)
        try:
            for queue in self._durable:
                await self._open_queue(queue)
            if self._joints is not None:
                await self._joints.open(self._spawn)
            for run in self._from_sinks():
                if run.name not in self._sources.held:
                    await self._start_module(run)
        except BaseException:
            self._started.set()
            await self.stop(0)
            raise
        self._started.set()
        if self._stopping is not None:  # a stop was asked for meanwhile: the sources do not even begin
            return
        self.phase = "running"
        for queue in self._durable:
            queue.start(self._spawn)
        if self._joints is not None:
            self._joints.begin()
        self._sources.begin_all()

    async def begin(self, name: str) -> None:
        """Let a source begin that was held.

        Raises:
            StartFailed: It raised in `start`.
            Stopped: The flow is not running.
        """
        run = self._known(name)
        if self.phase != "running":
            raise Stopped(f"the flow is {self.phase} and begins nothing more")
        await self._sources.begin(run)

    async def hold(self, name: str) -> None:
        """Let a source end, and be as if it had never begun: `begin` may let it begin anew. What it gave goes on."""
        run = self._known(name)
        if self.phase == "running":
            await self._sources.hold(run)

    @property
    def sources_ended(self) -> set[str]:
        """The sources that have come to their end."""
        return self._sources.ended

    async def _open_queue(self, queue: DurableQueue) -> None:
        try:
            await queue.open()
        except StoreError as error:
            raise StartFailed(f"{queue.name} could not start: its durable queue: {error}") from error

    def _from_sinks(self) -> list[ModuleRun]:
        names = [name for component in reversed(self.plan.order) for name in component]
        return [self.modules[name] for name in names if name in self.modules]

    async def _start_module(self, run: ModuleRun) -> None:
        context = ModuleContext(
            run,
            flow=self.flow.name,
            folder=self.flow.folder or Path.cwd(),
            now=self._now,
            ended=partial(self._sources.finish, run.name),
        )
        await self._hooks.start(run, context)

    def _all_ended(self) -> None:
        # A part of a flow is needed for as long as the others are: its end is for whoever runs them all to say.
        if self._ended is not None and self._joints is None:
            self._ended.set()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        # In the context of the start: workers are made as they are needed, and one that began in the middle of a
        # request would be taken for that request's ever after.
        context = self._context.copy() if self._context is not None else None
        task = asyncio.get_running_loop().create_task(work, name=f"furcula {name}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error: BaseException | None
        if task.cancelled():
            if self._stopping is not None or self._ended is None or self._ended.is_set():
                return
            error = RuntimeError(f"{task.get_name()} was cancelled while the flow was {self.phase}")
        else:
            error = task.exception()
            if error is None:
                return
        # Modules cannot get here with an exception of theirs: this is a defect of the engine, and not to be hidden.
        _log.critical("%s broke; the flow stops", task.get_name(), exc_info=error)
        self._failure = error
        if self._ended is not None:
            self._ended.set()

    def _monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    # ------------------------------------------------------------------ from outside

    def _entrance(self, name: str) -> tuple[ModuleRun, Entrance | None]:
        run = self.modules.get(name)
        if run is None:
            raise ConfigurationError(f"there is no module {name!r}{nearest(name, self.modules)}")
        if self.phase != "running":
            raise Stopped(f"the flow is {self.phase} and takes nothing more")
        return run, run.entrance

    def _enter(self, run: ModuleRun, event: Event[Any], slot: Slot, inbox: str) -> Awaitable[None] | None:
        if run.entrance is not None:
            return run.entrance.admit([event], slot=slot)
        event._receipt = slot
        consumer: Consumer = run.entries[inbox]
        return consumer.push([event])

    async def put(self, name: str, data: Any, *, inbox: str = "inbox", settled: bool = False) -> Slot:
        """Admit one event as if the source `name` had given it, or into an inbox of any module.

        Args:
            data: An Event, or bare data.
            settled: Return only when the event is settled.

        Returns:
            The slot: `slot.fate` is its fate once it has settled, before that the worst so far or None.

        Raises:
            Stopped: The flow is not running.
        """
        run, entrance = self._entrance(name)
        if entrance is None and inbox not in run.entries:
            raise ConfigurationError(f"{run.name} has no inbox {inbox!r}{nearest(inbox, run.entries)}")
        origin = entrance.origin if entrance is not None else self._assembly.origin(f"put({name})")
        event = _fresh(data)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        slot = Tracked((Receipt(origin, 1, self._now()),), 1, lambda slot: _resolve(done), self._now())
        wait = self._enter(run, event, slot, inbox)
        if wait is not None:
            await wait
        if settled:
            await done
        return slot

    async def ask(
        self,
        name: str,
        data: Any,
        *,
        timeout: str | float = "30s",
        gather: bool = False,
        inbox: str = "inbox",
    ) -> Any:
        """Send a request into the flow and wait for what comes back to the module `name`.

        The module must be one that events can return to: a source with an inbox (`inlet`, `http.listen`).

        Args:
            data: An Event, or bare data.
            timeout: Seconds to wait.
            gather: Wait until the request is settled, and return the list of all that came back.

        Returns:
            The event that came back first; with `gather`, a list of events.

        Raises:
            Unanswered: The request is settled and nothing came back; it says what became of it.
            DeadlinePassed: No answer in time. The request's events go on until they are settled.
            Stopped: The flow is not running.
        """
        run, entrance = self._entrance(name)
        if entrance is None or not run.entries:
            raise ConfigurationError(f"nothing can come back to {name}: ask a source that has an inbox, like `inlet`")
        event = _fresh(data)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        asker = FutureAsker(future, gather)
        request = Request.of(entrance.origin, asker, self._now())
        limit = float(Duration(timeout))
        timer = loop.call_later(limit, _pass_deadline, future, name, limit)
        try:
            wait = self._enter(run, event, request, inbox)
            del event, request
            # The answer may be there before there is room for more: room is the next request's concern.
            if wait is not None and not future.done():
                await asyncio.wait([future, asyncio.ensure_future(_awaited(wait))], return_when=asyncio.FIRST_COMPLETED)
            return await future
        except asyncio.CancelledError:
            asker.leave()  # whoever asked has been cancelled
            raise
        finally:
            timer.cancel()
            asker.over = True
            if not future.done():
                future.cancel()

    def pause(self, name: str) -> None:
        """Let a module handle nothing more until `resume`; what comes waits, and those who send it in the end too.

        A paused source may give one more batch, which it had in hand. A flow whose sources have ended does not end
        before its paused modules are resumed or it is stopped.
        """
        run = self._known(name)
        if run.paused:
            return
        run.paused = True
        if run.entrance is not None:
            run.entrance.pause()
        for part in run.parts():
            part.pause()

    def resume(self, name: str) -> None:
        """Let a paused module go on."""
        run = self._known(name)
        if not run.paused:
            return
        run.paused = False
        if run.entrance is not None:
            run.entrance.resume()
        for part in run.parts():
            part.resume()

    def unready(self) -> dict[str, str]:
        """Why the flow is not ready, by module: connections that are lost or not yet made. Empty: it is ready."""
        found = {}
        for run in self.modules.values():
            ask = getattr(run.instance, "unready", None)
            reason = ask() if ask is not None and run in self._hooks.started else None
            if reason:
                found[run.name] = str(reason)
        reason = self._joints.unready() if self._joints is not None else None
        if reason:
            found["the other stages"] = reason
        return found

    def _known(self, name: str) -> ModuleRun:
        run = self.modules.get(name)
        if run is None:
            raise ConfigurationError(f"there is no module {name!r}{nearest(name, self.modules)}")
        return run

    # ------------------------------------------------------------------ run and stop

    async def wait(self) -> None:
        """Wait until all sources have ended. A flow without sources, or with a listener, waits until it is stopped."""
        if self._ended is None:
            raise RuntimeError("start the Director first")
        await self._ended.wait()

    async def run(self, *, signals: bool = False) -> Statistics:
        """Start, wait for the sources to end, drain, stop.

        Args:
            signals: Stop on SIGINT and SIGTERM too: the first drains within the deadline, a second ends at once. The
                same one within 0.2 s is no second one.

        Raises:
            SourceFailed: A source raised. What it had admitted was settled first; `error.statistics` has the figures.
        """
        loop = asyncio.get_running_loop()
        installed = []
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                try:
                    loop.add_signal_handler(number, self._on_signal, number)
                    installed.append(number)
                except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or not this system
                    pass
        try:
            try:
                await self.start()
            except Stopped:
                if self._stopping is None:
                    raise
            await self.wait()
            if self._stopping is None:
                # The sources have ended by themselves: what they gave is drained however long it takes.
                statistics = await self._stop_once(None)
            else:
                statistics = await asyncio.shield(self._stopping)
        finally:
            if self.phase not in ("assembled", "stopped"):
                await self.stop(0)
            for number in installed:
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        if self._sources.failure is not None:
            self._sources.failure.statistics = statistics
            raise self._sources.failure
        return statistics

    def _on_signal(self, number: int) -> None:
        if self._signals.repeats(number):
            return
        name = signal.Signals(number).name
        if self._stopping is None or not self._limited:
            _log.warning("%s: %s: draining for at most %g s; again ends at once", self.flow.name, name, self.deadline_s)
            if self._stopping is None:
                self.request_stop()
                self._limited = True  # before its task has begun: another signal may be here already
            else:  # it was draining by itself, without a limit
                self._limited = True
                for queue in self._durable:
                    queue.cease()
                self._deadline.limit(self.deadline_s)
        else:
            _log.warning("%s: %s again: ending at once", self.flow.name, name)
            self.force()

    def request_stop(self, deadline: str | float | None = None) -> asyncio.Task[Statistics]:
        """Begin to stop, without waiting for it. For signal handlers."""
        if self._stopping is None:
            limit = self.deadline_s if deadline is None else float(Duration(deadline))
            self._stopping = asyncio.get_running_loop().create_task(self._stop(limit), name="furcula stop")
        return self._stopping

    def force(self) -> None:
        """End at once: the deadline of a stop that is under way is now, and hooks are skipped."""
        self._deadline.force()

    async def stop(self, deadline: str | float | None = None) -> Statistics:
        """Stop: sources cease, the rest drains in topological order within the deadline, then hooks run.

        May be called again, and from several tasks; each gets the same statistics.

        Args:
            deadline: Seconds for the draining; None: the Director's own.
        """
        if self.phase == "assembled":
            self.phase = "stopped"
            return self.statistics()
        limit = self.deadline_s if deadline is None else float(Duration(deadline))
        if self._stopping is not None and deadline is not None:  # it may be made shorter while it is under way
            self._deadline.limit(limit)
        return await self._stop_once(limit)

    async def cease(self) -> None:
        """Let the sources end, and do no more: what they gave goes on, and what other parts send is still taken.

        For parts that send to each other: `stop` would take nothing more, though what another still has may have to
        come back here. May be repeated.
        """
        if self.phase == "running" and self._stopping is None:
            await self._sources.cease()

    async def drain(self) -> Statistics:
        """Stop as `stop` does, but let what was admitted take as long as it needs."""
        if self.phase == "assembled":
            return await self.stop()
        return await self._stop_once(None)

    async def _stop_once(self, limit: float | None) -> Statistics:
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(limit), name="furcula stop")
        return await asyncio.shield(self._stopping)

    @property
    def forced(self) -> bool:
        """Was the end forced by a second signal?"""
        return self._deadline.forced

    async def _stop(self, limit: float | None) -> Statistics:
        self._limited = limit is not None
        if limit is not None:
            self._deadline.limit(limit)
        if self.phase == "starting":
            await self._started.wait()  # a hook that takes longer than the deadline is cancelled in `start`
        self.phase = "draining"
        if limit is not None:
            for run in self.modules.values():
                if run.paused:
                    self.resume(run.name)
        await self._sources.cease()
        if self._joints is not None:
            await self._cease_to_take(self._joints)
        for queue in self._durable:
            if limit is None:
                queue.run_dry(self._spawn)
            else:
                queue.cease()
        await self._drain_all()
        while not all(queue.dry for queue in self._durable) and not self._deadline.passed:
            # What failed far down may have gone back to the queue, to be handed out again.
            await self._deadline.until(lambda: all(queue.dry or not queue.idle() for queue in self._durable))
            await self._drain_all()
        if self._joints is not None:
            if not self._joints.keeps:
                await self._deadline.until(self._joints.settled)
            await self._deadline.unless_passed(self._joints.cease())
            await self._drain_with(self._joints)
        self._deadline.lift()
        for run in self.modules.values():
            if run.emission is not None:
                run.emission.closed = True
        self._abandon()
        await self._end_tasks()
        await asyncio.sleep(0)  # what sources are told of their last events is told before they stop
        if self._left and self._tell_abandoned is not None:
            await self._tell_abandoned(self._left)
            self._left.clear()
        if not self._deadline.forced:
            await self._run_stop_hooks()
        if self._joints is not None:
            await self._joints.close()
        for queue in self._durable:
            await queue.close()
        for run in self.modules.values():
            if run.executor is not None:
                run.executor.shutdown(wait=False, cancel_futures=True)
        self._seconds = time.monotonic() - self._began
        self.phase = "stopped"
        if self._ended is not None:
            self._ended.set()
        return self.statistics()

    async def _cease_to_take(self, joints: Joints) -> None:
        """Take nothing more from other parts; but what this one sent them may have to come back first.

        A join here may wait for what is still there, so nothing is flushed before that.
        """
        if joints.keeps or not (self._sources.tasks or self._answers()):
            await self._deadline.unless_passed(joints.cease())
            return
        modules = list(self.modules.values())
        await self._deadline.until(lambda: all(run.idle() for run in modules) and (joints.settled() or joints.quiet()))

    def _answers(self) -> bool:
        return any(run.entrance is not None and run.entries for run in self.modules.values())

    async def _drain_with(self, joints: Joints) -> None:
        """What was taken may come to be handed on only while what was taken before it drains."""
        while not self._deadline.passed:
            await self._drain_all()
            if joints.dry() and joints.settled():
                return
            await self._deadline.until(lambda: (joints.dry() and joints.settled()) or not joints.idle())

    async def _drain_all(self) -> None:
        for component in self.plan.order:
            await self._drain([self.modules[name] for name in component if name in self.modules])

    async def _drain(self, component: list[ModuleRun]) -> None:
        """Wait until these modules hold nothing, and what they kept back has left them too."""
        while not self._deadline.passed:
            await self._deadline.until(lambda: all(run.idle() for run in component) and self._joints_idle())
            if self._deadline.passed:
                return
            waits: list[Awaitable[None]] = []
            for run in component:
                wait = run.join.flush() if run.join is not None else None
                if wait is not None:
                    waits.append(wait)
                wait = await self._flush(run)
                if wait is not None:
                    waits.append(wait)
            for wait in waits:
                await self._deadline.unless_passed(_awaited(wait))
            if all(run.idle() for run in component):
                return

    def _joints_idle(self) -> bool:
        return self._joints is None or self._joints.idle()

    async def _flush(self, run: ModuleRun) -> Awaitable[None] | None:
        if run.entrance is not None:
            return None
        events = await self._hooks.flush(run)
        return run.emission.emit(events) if events and run.emission is not None else None

    def _abandon(self) -> None:
        for run in self.modules.values():
            count = run.abandon()
            if count:
                self.abandoned[run.name] = self.abandoned.get(run.name, 0) + count
        for name, left in self._joints.abandon().items() if self._joints is not None else ():
            if left:
                self.abandoned[name] = self.abandoned.get(name, 0) + left
        if self.abandoned:
            named = ", ".join(f"{count} in {name}" for name, count in self.abandoned.items())
            _log.error("%s: the deadline passed; abandoned: %s", self.flow.name, named)

    async def _end_tasks(self) -> None:
        for _ in range(10):
            tasks = [task for task in (*self._tasks, *self._sources.tasks.values()) if not task.done()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1.0)
        for task in self._tasks:
            _log.error("%s: %s does not end when it is cancelled", self.flow.name, task.get_name())

    async def _run_stop_hooks(self) -> None:
        for component in self.plan.order:
            for name in component:
                run = self.modules.get(name)
                if run is not None:
                    await self._hooks.stop(run)

    # ------------------------------------------------------------------ figures

    def statistics(self) -> Statistics:
        """The figures now."""
        origins = {}
        emissions = [run.emission.origin for run in self.modules.values() if run.emission is not None]
        for origin in (*self._assembly.origins.values(), *(o for o in emissions if o.admitted)):
            origins[origin.name] = _origin_statistics(origin, origin.name in self._assembly.crossed)
        modules = {}
        for name, run in self.modules.items():
            run.counters.depth = run.depth
            modules[name] = run.counters.statistics(run.paused)
        for queue in self._durable:
            queue.counters.depth = queue.depth
            modules[f"{queue.name}.queue"] = queue.counters.statistics(self.modules[queue.name.split(".")[0]].paused)
        routes = {link.name: link.sent for run in self.modules.values() for link in run.links}
        running = self.phase not in ("assembled", "stopped")
        return Statistics(
            flow=self.flow.name,
            total=FlowStatistics.of(origins.values()),
            origins=origins,
            modules=modules,
            routes=routes,
            abandoned=dict(self.abandoned),
            seconds=time.monotonic() - self._began if running else self._seconds,
        )


def _fresh(data: Any) -> Event[Any]:
    """An event of its own: bare data wrapped, an Event that is under way somewhere cloned."""
    if not isinstance(data, Event):
        return Event(data)
    return data if data._receipt is None else data.clone()


async def _awaited(wait: Awaitable[None]) -> None:
    await wait


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _pass_deadline(future: asyncio.Future[Any], name: str, limit: float) -> None:
    if not future.done():
        future.set_exception(DeadlinePassed(f"no answer came back to {name} within {limit:g} s"))


def _origin_statistics(origin: Origin, crossed: bool) -> OriginStatistics:
    return OriginStatistics(
        admitted=origin.admitted,
        delivered=origin.delivered,
        dropped=origin.dropped,
        failed=origin.failed,
        open=origin.open,
        late=origin.late,
        lost=origin.lost,
        reasons={" ".join(reason): count for reason, count in origin.reasons.items()},
        crossed=crossed,
    )
