"""Builds what runs from a flow and its plan: steps, queues and the links between them."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from furcula.engine.attempts import BreakerState, is_stop, isolated, retrying, single
from furcula.engine.batches import BatchPool
from furcula.engine.caught import CAUGHT, snapshot
from furcula.engine.counters import BATCH_LIMIT, Counters, TimeSlice
from furcula.engine.cycles import BackEdge, Region
from furcula.engine.durable import DurableQueue
from furcula.engine.join import Join, JoinInbox
from furcula.engine.outcome import Failed, Many, Outcomes
from furcula.engine.outlets import Batch, BestEffort, Consumer, Fanout, Link, Outlet
from furcula.engine.parts import Arrivals, Cut, Joints, cuts
from furcula.engine.plan import CYCLE_LIMIT, ModulePlan, Plan, RoutePlan
from furcula.engine.pool import Pool
from furcula.engine.processes.messages import Setup
from furcula.engine.processes.pool import Processes, ProcessPool
from furcula.engine.queue import QueueStep
from furcula.engine.requests import Request, RequestOutcomes, attended, one_by_one, still_waited_for
from furcula.engine.sources import Entrance
from furcula.engine.steps import BatchStep, EndStep, SplitStep, converter, sync_step
from furcula.engine.threads import Threads
from furcula.errors import ConfigurationError, Problem, StartFailed
from furcula.event import Event
from furcula.flow import FlowGraph
from furcula.graph import EXCEPTION_PORTS, Place
from furcula.module import Handling, Source, describe
from furcula.naming import import_name, import_path
from furcula.options import Durable, Options, Overflow
from furcula.receipt import Origin

__all__ = ["Assembly", "ModuleRun"]


class ModuleRun:
    """One module as it runs.

    Attributes:
        instance: The object of a class module, else None.
        entrance: Where it admits, if it is a source.
        entries: By inbox, what takes events.
        steps: What holds events for it: its step, its queue, queues of the routes that lead to it.
        join: Its join, if it has one.
    """

    def __init__(self, place: Place, plan: ModulePlan):
        self.name = place.name
        self.place = place
        self.plan = plan
        self.counters = Counters()
        self.outcomes: Outcomes
        #: What becomes of events that arrive at an inbox; the same as `outcomes`, but for a source that is also a sink.
        self.arrivals: Outcomes
        self.instance: Any = None
        self.entrance: Entrance | None = None
        self.emission: Entrance | None = None
        self.entries: dict[str, Any] = {}
        self.steps: list[Any] = []
        self.workers: list[QueueStep | Pool | ProcessPool] = []
        self.join: Join | None = None
        self.executor: Threads | ProcessPool | None = None
        self.links: list[Link] = []
        self.paused = False

    def idle(self) -> bool:
        return all(step.idle() for step in self.steps)

    def parts(self) -> list[Any]:
        """Everything that can hold events back: queues, workers, and steps that are called directly."""
        return list({id(part): part for part in (*self.steps, *self.workers)}.values())

    @property
    def depth(self) -> int:
        return sum(worker.depth for worker in self.workers)

    def abandon(self) -> int:
        held = 0
        for step in self.steps:
            held += step.abandon()
        if self.join is not None:
            held += self.join.abandon()
        return held


class Assembly:
    """All parts of one run.

    Args:
        stage: Make the modules of this stage only.
        joints: With `stage`: what joins it to the others.
    """

    def __init__(
        self,
        flow: FlowGraph,
        plan: Plan,
        *,
        time_slice: TimeSlice,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        batch_limit: int = BATCH_LIMIT,
        stage: str | None = None,
        joints: Joints | None = None,
    ):
        self.flow = flow
        self.plan = plan
        self._joints = joints
        self._cuts: dict[int, Cut] = {} if joints is None else cuts(flow, plan)
        self.origins: dict[str, Origin] = {}
        #: Those of events that another part of the flow has open until it hears what became of them.
        self.crossed: set[str] = set()
        self.regions = [Region(CYCLE_LIMIT) for _ in plan.regions]
        self.modules: dict[str, ModuleRun] = {}
        self._slice = time_slice
        self._now = now
        self._monotonic = monotonic
        self._batch_limit = batch_limit
        self.durable: list[DurableQueue] = []
        #: Can somebody wait for an answer of this flow?
        self._asked = any(place.is_source and place.inboxes for place in flow.places.values())
        for name, place in flow.places.items():
            if joints is None or place.stage == stage:
                self.modules[name] = self._module(place, plan.modules[name])
        self._connect()

    def origin(self, name: str) -> Origin:
        return self.origins.setdefault(name, Origin(name))

    # ------------------------------------------------------------------ modules

    def _module(self, place: Place, plan: ModulePlan) -> ModuleRun:
        run = ModuleRun(place, plan)
        subject = place.subject
        if isinstance(subject, type) and place.role == "module":  # a class may be a function too: `map(str)`
            try:
                run.instance = subject(**place.bound)
            except ConfigurationError as error:
                raise ConfigurationError(
                    [Problem(p.message, f"modules.{place.name}.with", place.location) for p in error.problems]
                ) from error
            except (TypeError, ValueError) as error:
                raise ConfigurationError([Problem(str(error), f"modules.{place.name}.with", place.location)]) from error
            except Exception as error:
                raise StartFailed(f"{place.name} could not be made: {type(error).__name__}: {error}") from error
        elif isinstance(subject, Source):
            run.instance = subject
        handlings = self._handlings(place, run.instance)
        main = handlings.get("inbox") or next(iter(handlings.values()), None)
        # What is handed on later than it came, or in batches, would be handed on in another request's name.
        later = plan.way == "pool" or place.options.join
        later = later or any(handling.waits or handling.receives == "events" for handling in handlings.values())
        kind = RequestOutcomes if self._asked and later else Outcomes
        run.outcomes = run.arrivals = kind(
            place.name,
            run.counters,
            declared=place.outboxes,
            takes_data=main is not None and main.receives == "data",
            none_is_data=main is not None and main.role == "map",
            must_answer=main is not None and main.must_answer,
        )
        if place.is_source:
            unasked = getattr(run.instance, "unasked", None)
            run.arrivals = kind(place.name, run.counters, answers=True, unasked=unasked)
            run.entrance = Entrance(place.name, self.origin(place.name), run.outcomes, self._now)
        elif run.instance is not None:
            run.emission = Entrance(place.name, Origin(place.name), run.outcomes, self._now)
        if plan.region is not None:
            self.regions[plan.region].members.append(run.counters)
        entries: dict[int, Any] = {}
        for inbox, handling in handlings.items():
            key = id(handling)
            if key not in entries:
                entries[key] = self._entry(run, handling)
            run.entries[inbox] = entries[key]
        if place.options.join:
            entry = next(iter(run.entries.values()))
            run.join = Join(
                place.inboxes, run.arrivals, getattr(entry, "take_in", entry.accept), float(place.options.join_timeout)
            )
            run.entries = {inbox: JoinInbox(run.join, inbox) for inbox in place.inboxes}
        if isinstance(place.options.queue, Durable):
            run.entries = {inbox: self._durable(run, place.options.queue, inbox) for inbox in place.inboxes}
        return run

    def _durable(self, run: ModuleRun, options: Durable, inbox: str) -> DurableQueue:
        name = run.name if inbox == "inbox" else f"{run.name}.{inbox}"
        queue = DurableQueue(
            name,
            options,
            (self.flow.folder or Path.cwd()) / options.durable,
            f"{self.flow.name}/{name}",
            run.entries[inbox],
            run.arrivals,
            self.origin(f"queue({name})"),
            flow=self.flow.name,
            overflow=run.place.options.overflow,
            time_slice=self._slice,
            batch_limit=self._batch_limit,
        )
        run.steps.append(queue)
        self.durable.append(queue)
        return queue

    def _handlings(self, place: Place, instance: Any) -> dict[str, Handling]:
        """How each inbox is handled. Inboxes handled alike share one handling, and so one queue."""
        if instance is None:
            return dict.fromkeys(place.inboxes, place.handling) if place.handling and place.inboxes else {}
        found: dict[str, Handling] = {}
        usual: Handling | None = None
        for inbox in place.inboxes:
            own = getattr(instance, f"process_{inbox}", None)
            if own is not None and inbox not in ("batch",):
                found[inbox] = describe(own)
                continue
            if usual is None:
                usual = self._usual_handling(place, instance)
            found[inbox] = usual
        return found

    @staticmethod
    def _usual_handling(place: Place, instance: Any) -> Handling:
        batch = getattr(instance, "process_batch", None)
        if batch is not None:
            described = describe(batch)
            return Handling(batch, described.shape, "events", output_type=described.output_type)
        choose = getattr(instance, "choose", None)
        if choose is not None:
            return describe(choose, "choose")
        process = getattr(instance, "process", None)
        if process is None:
            process = types.MethodType(lambda self, event: event, instance)
        return describe(process, place.role)

    def _entry(self, run: ModuleRun, handling: Handling) -> Any:
        options, plan = run.place.options, run.plan
        keep = options.keep == "original"
        if plan.way == "fused" and run.place.is_source and not hasattr(run.instance, "process"):
            step: Any = EndStep(run.arrivals)
            run.steps.append(step)
            return step
        if plan.way != "pool" and not handling.waits:
            step = sync_step(handling, run.arrivals, keep_original=keep)
            if isinstance(step, SplitStep):
                step.after = self._after(plan.region)
            run.steps.append(step)
            if plan.way != "queue":
                return step
            return self._queue(run, step, size=plan.size, overflow=_in_memory(options))
        return self._pool(run, handling)

    def _pool(self, run: ModuleRun, handling: Handling) -> Any:
        options, plan, outcomes = run.place.options, run.plan, run.arrivals
        if options.processes is not None:
            return self._process_pool(run, handling)
        if handling.receives == "events":
            return self._batch_pool(run, handling)
        threads = run.executor if isinstance(run.executor, Threads) else None
        if options.thread and threads is None:
            run.executor = threads = Threads(options.concurrency, f"furcula {run.name}")
        pool: Pool | None = None

        async def piece(event: Event[Any], items: list[Any]) -> None:
            assert pool is not None
            await pool.piece(event, items)

        whole = options.retry is not None or options.timeout is not None
        attempt = single(handling, converter(handling.input_type), threads, None if whole else piece)
        if options.isolate_context:
            attempt = isolated(attempt)
        outcomes._takes_data = False  # the attempt has put the data into the event
        handle: Any = attempt
        timeout_s = float(options.timeout) if options.timeout is not None else None
        if timeout_s is not None:
            attempt = self._limited(lambda: pool, attempt, copies=options.thread)
            handle = attempt
            if options.thread and options.retry is None:
                handle = _untouched(handle)
        if options.keep == "original" and options.retry is None:
            handle = _keeping(handle)
        if options.retry is not None:
            retry = options.retry
            breaker = BreakerState(retry.breaker, run.name, self._monotonic) if retry.breaker else None

            def retried() -> None:
                run.counters.retried += 1

            parking = _Parking(lambda: pool) if options.key is not None else None
            handle = retrying(attempt, retry, breaker, retried, parking)
        if self._asked:
            handle = attended(handle)
        pool = Pool(
            handle,
            outcomes,
            self._slice,
            concurrency=options.concurrency,
            ordered=options.order == "kept",
            key=_key_function(options.key),
            timeout_s=timeout_s,
            in_thread=options.thread,
            size=plan.size,
            overflow=_in_memory(options),
            batch_limit=self._batch_limit,
        )
        pool.after = self._after(plan.region)
        run.steps.append(pool)
        run.workers.append(pool)
        return pool

    def _process_pool(self, run: ModuleRun, handling: Handling) -> ProcessPool:
        place, options, outcomes = run.place, run.place.options, run.arrivals
        assert options.processes is not None
        find = import_name(place.subject)
        folder = str(self.flow.folder or Path.cwd())

        def setup() -> Setup:
            return Setup(
                run.name,
                self.flow.name,
                find,
                import_path(find),
                sys.argv,
                place.role,
                place.arguments,
                outcomes.is_sink,
                folder,
                options.isolate_context,
            )

        retry = options.retry
        pool = ProcessPool(
            setup,
            outcomes,
            processes=options.processes,
            bare=handling.receives == "data",
            together=handling.receives == "events",
            ordered=options.order == "kept",
            key=_key_function(options.key),
            retry=retry,
            breaker=BreakerState(retry.breaker, run.name, self._monotonic) if retry and retry.breaker else None,
            timeout_s=float(options.timeout) if options.timeout is not None else None,
            size=run.plan.size,
            overflow=_in_memory(options),
            batch_limit=self._batch_limit,
            left=_nobody_waits if self._asked else None,
        )
        outcomes._takes_data = False  # the answer has been put into the event
        pool.after = self._after(run.plan.region)
        run.steps.append(pool)
        run.workers.append(pool)
        # What is made of a class is made in the children, and started there.
        run.instance = Processes(pool)
        run.executor = pool
        return pool

    def _batch_pool(self, run: ModuleRun, handling: Handling) -> Any:
        pool = BatchPool(
            handling.call,
            run.arrivals,
            self._slice,
            options=run.place.options,
            waits=handling.waits,
            size=run.plan.size,
            batch_limit=self._batch_limit,
            choose=self._waited_for(run),
        )
        pool.together = self._asked
        pool.after = self._after(run.plan.region)
        run.steps.append(pool)
        run.workers.append(pool)
        return pool

    @staticmethod
    def _limited(pool: Callable[[], Pool | None], attempt: Any, *, copies: bool) -> Any:
        """`attempt` under the pool's time limit. What runs in a thread works on a copy: it may outlive its event."""
        made: list[Any] = []

        async def on_copy(event: Event[Any]) -> Any:
            copy = event.duplicate(None)
            answer = await attempt(copy)
            if answer is copy:
                event.data, event.headers, event.tags, event.key = copy.data, copy.headers, copy.tags, copy.key
                return event
            return answer

        async def handle(event: Event[Any]) -> Any:
            if not made:
                owner = pool()
                assert owner is not None
                made.append(owner.limited(on_copy if copies else attempt))
            return await made[0](event)

        return handle

    # ------------------------------------------------------------------ queues and routes

    def _queue(self, run: ModuleRun, step: Any, **rest: Any) -> QueueStep:
        name = rest.pop("name", run.name)
        target: Callable[[Batch], Awaitable[None] | None] = step.accept
        choose = self._waited_for(run)
        # A pool sees to it itself when it is the event's turn.
        if choose is not None and not isinstance(step, Pool | BatchPool | ProcessPool):
            together = isinstance(step, BatchStep)
            target = _chosen(choose, target) if together else one_by_one(target, functools.partial(_dropped, run))
        queue = QueueStep(name, target, run.arrivals, self._slice, batch_limit=self._batch_limit, **rest)
        queue.together = self._asked and isinstance(step, BatchStep)
        queue.after = self._after(run.plan.region)
        run.steps.append(queue)
        run.workers.append(queue)
        return queue

    def _waited_for(self, run: ModuleRun) -> Callable[[Batch], Batch] | None:
        if not self._asked:
            return None
        drop = functools.partial(_dropped, run)
        return lambda batch: still_waited_for(batch, drop)

    def _after(self, region: int | None) -> Callable[[], None] | None:
        return None if region is None else self.regions[region].changed

    def _connect(self) -> None:
        links: dict[str, dict[str, list[Link | BestEffort]]] = {name: {} for name in self.modules}
        dead: dict[str, Consumer] = {}
        for index, planned in enumerate(self.plan.routes):
            cut = self._cuts.get(index)
            if cut is not None and cut.target in self.modules:
                self._arrive(cut, planned)
            if planned.source not in self.modules:
                continue
            if cut is not None:
                self._leave(cut, planned, links, dead)
                continue
            if planned.route is None:
                target = self.modules[planned.target]
                consumer = self._consumer(planned, target, "inbox", f"{planned.source} failures")
                link = Link(f"{planned.source} (dead letter) -> {planned.target}", consumer)
                self.modules[planned.source].links.append(link)
                dead[planned.source] = link
                continue
            route = planned.route
            target = self.modules[route.target]
            consumer = self._consumer(planned, target, route.inbox, str(route))
            link = Link(str(route), consumer)
            self.modules[route.source].links.append(link)
            branch: Link | BestEffort = link
            if route.branch == "best-effort":
                branch = BestEffort(link, self.origin(str(route)))
            links[route.source].setdefault(route.outbox, []).append(branch)
        for name, run in self.modules.items():
            outlets: dict[str, Outlet] = {}
            exceptions: dict[str, Outlet] = {}
            for port, branches in links[name].items():
                outlet = self._outlet(run, branches, sent_counts=port != "failed")
                (exceptions if port in EXCEPTION_PORTS else outlets)[port] = outlet
            run.outcomes.connect(outlets, exceptions, dead.get(name))
            if run.arrivals is not run.outcomes:
                run.arrivals.connect({}, exceptions, dead.get(name))

    def _arrive(self, cut: Cut, planned: RoutePlan) -> None:
        assert self._joints is not None
        target = self.modules[cut.target]
        # Inside a cycle nothing waits at a gate; what turns is charged for it here, as in one process.
        within = cut.back and planned.way != "back"
        entry = target.entries[cut.inbox] if within else self._consumer(planned, target, cut.inbox, cut.name)
        origin = self.origin(f"cut({cut.name})")
        if not self._joints.keeps:
            self.crossed.add(origin.name)
        self._joints.arriving(Arrivals(cut, entry, origin))

    def _leave(
        self,
        cut: Cut,
        planned: RoutePlan,
        links: dict[str, dict[str, list[Link | BestEffort]]],
        dead: dict[str, Consumer],
    ) -> None:
        assert self._joints is not None
        run, route = self.modules[cut.source], planned.route
        normal = route is not None and route.outbox not in EXCEPTION_PORTS

        def refuse(refused: list[tuple[Event[Any], Exception]]) -> None:
            for event, error in refused:
                if normal:
                    run.counters.sent -= 1
                    run.outcomes.fail_one(event, error)
                elif (carrier := event.carrier()) is not None:
                    carrier.settle("failed", 1, type(error).__name__)

        consumer = self._joints.leaving(cut, refuse)
        link = Link(cut.name, consumer)
        run.links.append(link)
        if route is None:
            dead[cut.source] = link
            return
        branch: Link | BestEffort = link
        if route.branch == "best-effort":
            branch = BestEffort(link, self.origin(str(route)))
        links[cut.source].setdefault(route.outbox, []).append(branch)

    @staticmethod
    def _outlet(run: ModuleRun, branches: list[Link | BestEffort], sent_counts: bool) -> Outlet:
        required = [branch for branch in branches if isinstance(branch, Link)]
        best_effort = [branch for branch in branches if isinstance(branch, BestEffort)]
        if len(required) == 1 and not best_effort:
            return required[0]

        def cannot_copy(event: Event[Any], error: BaseException) -> None:
            if sent_counts:
                run.counters.sent -= 1
                run.outcomes.fail_one(event, error)
            elif (carrier := event.carrier()) is not None:
                carrier.settle("failed", 1, type(error).__name__)

        return Fanout(required, best_effort, cannot_copy)

    def _consumer(self, planned: RoutePlan, target: ModuleRun, inbox: str, name: str) -> Consumer:
        entry = target.entries[inbox]
        if planned.way == "direct":
            return entry  # type: ignore[no-any-return]
        if planned.way == "back":
            assert planned.region is not None
            region = self.regions[planned.region]
            back = BackEdge(
                name,
                entry.accept,
                target.arrivals,
                self._slice,
                region=region,
                ttl=planned.ttl,
                batch_limit=self._batch_limit,
            )
            back.after = region.changed
            target.steps.append(back)
            target.workers.append(back)
            return back
        rest: dict[str, Any] = {"size": planned.size, "overflow": planned.overflow, "name": name}
        if planned.way == "gate":
            assert planned.region is not None
            rest["allowed"] = self.regions[planned.region].allowed
        queue = self._queue(target, entry, **rest)
        if planned.way == "gate":
            assert planned.region is not None
            self.regions[planned.region].gates.append(queue)
        return queue


class _Parking:
    """The back-off of a pool that is still to be made."""

    def __init__(self, pool: Callable[[], Pool | None]):
        self._pool = pool

    def park(self, event: Event[Any], delay_s: float, tries: Any) -> Any:
        pool = self._pool()
        assert pool is not None
        return pool.park(event, delay_s, tries)

    def resumed(self, event: Event[Any]) -> Any:
        pool = self._pool()
        return None if pool is None else pool.resumed(event)


def _in_memory(options: Options) -> Overflow:
    """What the queue in memory does when full. Behind a durable one it is just not filled further."""
    return "block" if isinstance(options.queue, Durable) else options.overflow


def _chosen(
    choose: Callable[[Batch], Batch], target: Callable[[Batch], Awaitable[None] | None]
) -> Callable[[Batch], Awaitable[None] | None]:
    def take(batch: Batch) -> Awaitable[None] | None:
        batch = choose(batch)
        return target(batch) if batch else None

    return take


def _dropped(run: ModuleRun, batch: Batch, reason: str) -> None:
    run.counters.held -= len(batch)
    run.arrivals.drop(batch, reason)


def _nobody_waits(event: Event[Any]) -> bool:
    request = event._receipt
    return type(request) is Request and request.asker is not None and request.asker.gone


def _key_function(key: Any) -> Callable[[Event[Any]], Any] | None:
    if key is None or callable(key):
        return key  # type: ignore[no-any-return]
    if key == "key":
        return lambda event: event.key
    return functools.partial(_at, key)


def _at(path: str, event: Event[Any]) -> Any:
    return event.get(path, None)


def _untouched(handle: Any) -> Any:
    """For what works on a copy: a failure leaves the event as it was."""

    async def told(event: Event[Any]) -> Any:
        try:
            return await handle(event)
        except CAUGHT as error:
            if is_stop(error):
                raise
            return Failed(error, touched=False)

    return told


def _keeping(handle: Any) -> Any:
    """Give a failed event its data back as it was handed in."""

    async def kept(event: Event[Any]) -> Any:
        data, headers = snapshot(event)
        try:
            answer = await handle(event)
        except CAUGHT as error:
            if is_stop(error):
                raise
            answer = Failed(error)
        failed = answer.failed if type(answer) is Many else answer
        if type(failed) is Failed:
            event.data, event.headers = data, headers
            failed.touched = False
        return answer

    return kept
