"""Modules that wait: coroutines, threads, keys, retries. A few workers, each driving one loop in a task of its own.

The workers share one iterator over the events. A worker runs on as long as nothing it awaits really waits, exactly
like a `for` loop. Only when its task is about to be suspended inside the module does the event get a *place*: results
that come after it are kept behind it (`order: kept`), and another worker is woken to go on with the rest. So a
coroutine that never waits costs an `await` and a list append, and one that sometimes waits costs a place for each time
it does.

A worker drives a whole loop coroutine and never hands a started coroutine to another task: `asyncio.timeout` and
everything else that asks for the current task works in users' code as it should.

With a key, an event that is suspended makes its key *busy*; later events with that key go into a lane behind it, and
nothing else waits for them. An event in back-off leaves its worker and keeps only its lane.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Generator, Hashable, Iterator
from operator import length_hint
from time import perf_counter
from typing import Any

from furcula.engine.attempts import Handle, is_stop
from furcula.engine.caught import CAUGHT, abandon, warn_held
from furcula.engine.counters import BATCH_LIMIT, HELD_LOOP_S, Pace, TimeSlice
from furcula.engine.outcome import ABSENT, Failed, Many, Outcomes
from furcula.engine.outlets import Batch, all_of
from furcula.engine.queue import Queued
from furcula.errors import ModuleTimeout
from furcula.event import Event, shallow
from furcula.options import Overflow

__all__ = ["GRACE_S", "LANE_SIZE", "Pool", "Watched"]

#: How long a coroutine that was cancelled by its time limit may take to end.
GRACE_S = 5.0
#: Events that may wait behind one busy key.
LANE_SIZE = 128

_PENDING: Any = object()


class _Place:
    """One event that was suspended inside the module, and the answer when there is one."""

    __slots__ = ("began", "event", "key", "result")

    def __init__(self, event: Event[Any]):
        self.event = event
        self.key: Hashable = None
        self.result: Any = _PENDING
        self.began = perf_counter()


class _Worker:
    """One loop over the shared events, in a task of its own."""

    __slots__ = (
        "abandoned",
        "attempt_since",
        "began",
        "event",
        "grace",
        "key",
        "limit",
        "place",
        "running",
        "stuck",
        "task",
        "timed_out",
        "wake",
    )

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        #: The event inside the module now.
        self.event: Event[Any] | None = None
        self.key: Hashable = None
        #: Runs out when a coroutine that was cancelled does not let go.
        self.grace: asyncio.TimerHandle | None = None
        #: The event in hand that waits for room in its lane.
        self.stuck: Event[Any] | None = None
        #: Its place, once it was suspended.
        self.place: _Place | None = None
        #: Is this worker the one that goes on through the shared events?
        self.running = True
        self.wake: asyncio.Future[None] | None = None
        self.began = 0.0
        #: A token of the try under a time limit; None between tries.
        self.attempt_since: object | None = None
        self.limit: object | None = None
        self.timed_out = False
        #: The event was given up while the module is still at it; what it answers is thrown away.
        self.abandoned = False


class Watched:
    """Awaits a coroutine inside the task that awaits this, and tells when the task is suspended and resumed."""

    __slots__ = ("_coroutine", "_resumed", "_suspended")

    def __init__(self, coroutine: Any, suspended: Callable[[], None], resumed: Callable[[], None]):
        self._coroutine = coroutine
        self._suspended = suspended
        self._resumed = resumed

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, suspended, resumed = self._coroutine, self._suspended, self._resumed
        try:
            waits_for = coroutine.send(None)
            while True:
                suspended()
                try:
                    value = yield waits_for
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    resumed()
                    waits_for = coroutine.throw(error)
                else:
                    resumed()
                    waits_for = coroutine.send(value)
        except StopIteration as stop:
            return stop.value


class Pool(Queued):
    """A step for a module that may wait.

    Args:
        handle: Makes the answer for one event (see `attempts`).
        concurrency: Workers at most.
        ordered: Keep the order of arrival.
        key: Gives the key of an event; None: no lanes.
        timeout_s: The limit of one try; `handle` calls `limited` for it.
        in_thread: The try cannot be cancelled.
    """

    def __init__(
        self,
        handle: Handle,
        outcomes: Outcomes,
        time_slice: TimeSlice,
        *,
        concurrency: int = 1,
        ordered: bool = True,
        key: Callable[[Event[Any]], Hashable] | None = None,
        timeout_s: float | None = None,
        in_thread: bool = False,
        size: int = 1024,
        overflow: Overflow = "block",
        batch_limit: int = BATCH_LIMIT,
    ):
        super().__init__(outcomes.name, outcomes, size, overflow)
        self.concurrency = concurrency
        self._handle = handle
        self._ordered = ordered and key is None
        self._key = key
        self._timeout_s = timeout_s
        self._in_thread = in_thread
        self._slice = time_slice
        self._pace = Pace(batch_limit)
        self._workers: list[_Worker] = []
        self._idle: deque[_Worker] = deque()
        self._running = 0
        self._paused = False
        self._spawn: Callable[[Any, str], asyncio.Task[None]] | None = None
        # What the running worker has done since it last flushed, in step.
        # It answers them in turn, so the answers alone tell which events they belong to: those from `_first` on.
        self._results: list[Any] = []
        self._batch: Batch = []
        self._first = 0
        self._shared: Iterator[Event[Any]] = iter(())
        # Places and finished pieces in the order of arrival; the head is pending, or there is none.
        self._ring: deque[_Place | tuple[Batch, list[Any]]] = deque()
        self._ring_count = 0
        self._ring_limit = max(BATCH_LIMIT, 4 * concurrency) if size >= BATCH_LIMIT else max(size, 2 * concurrency)
        # Downstream asked to wait; nobody takes a new event before that is over.
        self._pressure: list[Awaitable[None]] = []
        self._pressure_over: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        # Keys whose event is suspended or in back-off, with what waits behind it.
        self._lanes: dict[Hashable, deque[Event[Any]]] = {}
        self._lane_size = min(LANE_SIZE, size)
        self._lanes_size = 64 * size
        self._waiting_in_lanes = 0
        self._stuck: deque[_Worker] = deque()
        self._parked: dict[Hashable, Event[Any]] = {}
        # What was tried of each event in back-off. By the event itself: by its id, the next one at its address would
        # take over what it left behind.
        self._tries: dict[Event[Any], Any] = {}
        # Lanes to go on with: those whose back-off is over, and (with None) those that a pause has interrupted.
        self._resumable: deque[tuple[Hashable, Event[Any] | None]] = deque()
        # Tries under a time limit, the earliest deadline first: the limit is the same for all.
        self._limits: OrderedDict[object, tuple[float, _Worker]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ waking workers

    def notify(self) -> None:
        """Wake a worker if none is running and there is something to do."""
        if self._running or self._paused or self._spawn is None:
            return
        if self._idle:
            worker = self._idle.popleft()
            worker.running = True
            self._running += 1
            wake, worker.wake = worker.wake, None
            if wake is not None and not wake.done():
                wake.set_result(None)
        elif len(self._workers) < self.concurrency:
            worker = _Worker()
            self._running += 1
            self._workers.append(worker)
            worker.task = self._spawn(self._drive(worker), f"{self.name}[{len(self._workers)}]")

    def start(self, spawn: Callable[[Any, str], asyncio.Task[None]]) -> None:
        self._spawn = spawn
        if self.queue:
            self.notify()

    # ------------------------------------------------------------------ a worker

    async def _drive(self, worker: _Worker) -> None:
        await Watched(self._work(worker), lambda: self._on_suspended(worker), lambda: self._on_resumed(worker))

    async def _work(self, worker: _Worker) -> None:
        handle = self._handle
        # This list is emptied, never replaced: a bound method of a list that was swapped would lose answers.
        add_result = self._results.append
        worker.began = perf_counter()
        key_of = self._key
        while True:
            if self._resumable and not self._paused:
                await self._resume_lane(worker)
                continue
            for event in self._shared:
                if key_of is not None and not await self._free_lane(worker, event, key_of):
                    continue
                worker.event = event
                try:
                    result = await handle(event)
                except CAUGHT as error:
                    result = self._raised(worker, error)
                if worker.place is None:
                    if key_of is None or result is not PARKED:
                        add_result(result)
                    else:
                        self._skip()
                else:
                    await self._finish(worker, result)
                    await self._become_running(worker)
                    if self._resumable:
                        break
            else:
                await self._next_batch(worker)

    def _raised(self, worker: _Worker, error: BaseException) -> Any:
        if worker.timed_out:
            worker.timed_out = False
            if worker.task is not None and worker.task.cancelling():
                worker.task.uncancel()
            if isinstance(error, asyncio.CancelledError):
                error = ModuleTimeout(f"{self.name} took longer than {self._timeout_s:g} s")
        elif is_stop(error):
            raise error
        return Failed(error)

    async def _next_batch(self, worker: _Worker) -> None:
        """The shared events are used up: hand on what is done, and get more or sleep."""
        worker.event = None
        now = perf_counter()
        done = len(self._results)
        if done:
            self.counters.handled(done, now - worker.began)
            self._pace.measured(done, now - worker.began)
        worker.began = now
        self._flush()
        if self._pressure:
            await self._relieve()
        while self._ordered and self._ring_count >= self._ring_limit:
            # The head is slow, and enough is done behind it.
            await self._until_moved()
        if self._slice.over():
            await self._slice.let_others_run()
        if length_hint(self._shared):
            return  # another worker took a batch since this one entered its own; that one comes first
        if self.queue and not self._paused:
            batch = self.queue.take(self._pace.limit)
            self._batch, self._first = batch, 0
            self._shared = iter(batch)
            return
        if self._resumable and not self._paused:
            return
        worker.running = False
        self._running -= 1
        worker.wake = asyncio.get_running_loop().create_future()
        self._idle.append(worker)
        await worker.wake
        worker.began = perf_counter()

    async def _become_running(self, worker: _Worker) -> None:
        """A worker that was suspended inside the module is through, and joins the others in taking events."""
        if self._pressure:
            await self._relieve()
        if not worker.running:
            worker.running = True
            self._running += 1

    def _on_suspended(self, worker: _Worker) -> None:
        now = perf_counter()
        seconds = now - worker.began
        if seconds > HELD_LOOP_S:
            warn_held(self.name, self.counters, len(self._results) + 1, seconds)
        event = worker.event
        if event is None:
            return
        if worker.attempt_since is not None and worker.limit is not worker.attempt_since:
            self._arm(worker)
        if worker.place is not None:
            return
        if self._results:
            self.counters.handled(len(self._results), seconds)
        self._skip()
        worker.place = place = _Place(event)
        if self._ordered:
            self._ring.append(place)
            self._ring_count += 1
        elif self._key is not None:
            place.key = worker.key
            self._lanes.setdefault(place.key, deque())
        worker.running = False
        self._running -= 1
        if self._has_more():
            self.notify()

    def _on_resumed(self, worker: _Worker) -> None:
        worker.began = perf_counter()

    def _has_more(self) -> bool:
        return bool(length_hint(self._shared) or self.queue or self._resumable)

    # ------------------------------------------------------------------ what goes out

    def _flush(self) -> None:
        """Hand on what the running worker has done; behind a pending place, keep it in order."""
        if not self._results:
            return
        results = self._results.copy()
        self._results.clear()
        last = self._first + len(results)
        events, self._first = self._batch[self._first : last], last
        if self._ordered and self._ring:
            self._ring.append((events, results))
            self._ring_count += len(events)
            return
        self._out(events, results)

    def _skip(self) -> None:
        """Hand on what is done; the next event in turn is answered elsewhere."""
        self._flush()
        self._first += 1

    def _out(self, events: Batch, results: list[Any]) -> None:
        self.counters.held -= len(events)
        wait = self.outcomes.sort_out(events, results)
        if wait is not None:
            self._pressure.append(wait)
        if self.after is not None:
            self.after()

    async def _finish(self, worker: _Worker, result: Any) -> None:
        place, worker.place = worker.place, None
        worker.event = worker.attempt_since = None
        assert place is not None
        if worker.abandoned:
            worker.abandoned = False
        else:
            self._fill(place, result)
        if self._pressure:
            await self._relieve()
        if self._key is not None and result is not PARKED:
            await self._lane(worker, place.key, None)

    def _fill(self, place: _Place, result: Any) -> None:
        if result is PARKED:
            return
        self.counters.waited(perf_counter() - place.began)
        place.result = result
        if not self._ordered:
            self._out([place.event], [result])
            return
        ring = self._ring
        events: Batch = []
        results: list[Any] = []
        while ring:
            head = ring[0]
            if type(head) is tuple:
                events += head[0]
                results += head[1]
            elif head.result is _PENDING:  # type: ignore[union-attr]
                break
            else:
                events.append(head.event)  # type: ignore[union-attr]
                results.append(head.result)  # type: ignore[union-attr]
            ring.popleft()
        if events:
            self._ring_count -= len(events)
            self._out(events, results)
            self._moved()

    async def piece(self, event: Event[Any], items: list[Any]) -> None:
        """Hand on part of what an event is being split into, in its turn, and wait for room.

        So a split of any length stays bounded. Called from inside the module, while it handles `event`.
        """
        worker = self._worker_of(event)
        if worker is None:
            raise RuntimeError("only an event being handled can be split")
        if worker.place is None:
            await asyncio.sleep(0)  # being suspended gives it its place
        while self._ordered and self._ring[0] is not worker.place:
            await self._until_moved()
        carrier = event.carrier()
        if carrier is not None:
            event._receipt = carrier.share(2)
        part = shallow(event.numbered())
        self.counters.born += 1
        wait = self.outcomes.sort_out([part], [Many(items)])
        if wait is not None:
            await wait

    async def _relieve(self) -> None:
        """Wait until downstream has room. One worker waits for it, the others for that one."""
        while self._pressure or self._pressure_over is not None:
            if self._pressure_over is not None:
                await asyncio.shield(self._pressure_over)
                continue
            waits, self._pressure = self._pressure, []
            self._pressure_over = asyncio.get_running_loop().create_future()
            try:
                wait = all_of(waits)
                if wait is not None:
                    await wait
            finally:
                over, self._pressure_over = self._pressure_over, None
                over.set_result(None)

    # ------------------------------------------------------------------ keys

    async def _free_lane(self, worker: _Worker, event: Event[Any], key_of: Callable[[Event[Any]], Hashable]) -> bool:
        """True: nothing holds this event. False: its key was busy, and it has been seen to."""
        worker.event = None
        try:
            key = key_of(event)
            lane = self._lanes.get(key)
        except CAUGHT as error:
            self._results.append(Failed(error))
            return False
        if lane is None and not self._stuck and self._has_room(None):
            worker.key = key
            return True
        self._skip()
        if self._stuck or not self._has_room(lane):
            # A full lane makes the inbox wait. Whoever takes an event meanwhile waits in line behind this one: the
            # lane may be free again before this worker is told, and its key would be overtaken.
            worker.stuck = event
            self._stuck.append(worker)
            while self._stuck[0] is not worker or not self._has_room(self._lanes.get(key)):
                if self._resumable and not self._paused:  # it may be this worker that has to move it
                    await self._resume_lane(worker)
                else:
                    await self._until_moved()
            self._stuck.popleft()
            worker.stuck = None
            self._moved()
            lane = self._lanes.get(key)
        if lane is not None:
            lane.append(event)
            self._waiting_in_lanes += 1
        else:
            self._lanes[key] = deque()
            await self._lane(worker, key, event)
            await self._become_running(worker)
        return False

    def _has_room(self, lane: deque[Event[Any]] | None) -> bool:
        if len(self._parked) + self._waiting_in_lanes >= self._lanes_size:
            return False
        return lane is None or len(lane) < self._lane_size

    async def _resume_lane(self, worker: _Worker) -> None:
        """Go on with an event whose back-off is over, and its lane."""
        key, event = self._resumable.popleft()
        self._parked.pop(key, None)
        self._moved()
        await self._lane(worker, key, event)
        await self._become_running(worker)

    async def _lane(self, worker: _Worker, key: Hashable, event: Event[Any] | None) -> None:
        """Go on with the lane of `key` until it is empty or its event is parked in back-off."""
        while key in self._lanes and key not in self._parked:
            if event is None:
                lane = self._lanes[key]
                if lane and self._paused:
                    self._resumable.append((key, None))
                    return
                if not lane:
                    del self._lanes[key]
                    self._moved()
                    return
                event = lane.popleft()
                self._waiting_in_lanes -= 1
                self._moved()
            worker.event, worker.key = event, key
            # It has its place from the start: its key is busy already.
            worker.place = place = _Place(event)
            place.key = key
            if worker.running:
                worker.running = False
                self._running -= 1
                if self._has_more():
                    self.notify()
            try:
                result = await self._handle(event)
            except CAUGHT as error:
                result = self._raised(worker, error)
            worker.event = worker.place = worker.attempt_since = None
            if result is PARKED:  # whoever takes it out of its back-off goes on with the lane
                return
            self._tries.pop(event, None)  # it may have ended without a further try
            if worker.abandoned:
                worker.abandoned = False
            else:
                self._fill(place, result)
            if self._pressure:
                await self._relieve()
            event = None

    async def _until_moved(self) -> None:
        """Wait until some place in the ring or some lane has become free."""
        if self._room is None:
            self._room = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._room)

    def _moved(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def park(self, event: Event[Any], delay_s: float, tries: Any) -> Any:
        """Put an event into back-off: its lane waits, its worker does not. See `attempts.Parking`."""
        worker = self._worker_of(event)
        if worker is None:
            raise RuntimeError("only an event being handled can be put into back-off")
        key = worker.key
        self._lanes.setdefault(key, deque())
        self._parked[key] = event
        self._tries[event] = tries

        def resume() -> None:
            if self._parked.get(key) is event:
                self._resumable.append((key, event))
                self._moved()
                self.notify()

        asyncio.get_running_loop().call_later(delay_s, resume)
        return PARKED

    def resumed(self, event: Event[Any]) -> Any:
        return self._tries.pop(event, None)

    # ------------------------------------------------------------------ time limits

    def limited(self, attempt: Handle) -> Handle:
        """`attempt` under the time limit."""

        async def handle(event: Event[Any]) -> Any:
            worker = self._worker_of(event)
            if worker is None:
                return await attempt(event)
            worker.attempt_since = object()
            try:
                answer = await attempt(event)
            except CAUGHT as error:
                if not worker.timed_out:
                    if worker.abandoned and not is_stop(error):
                        return ABSENT
                    raise
                if worker.abandoned:
                    self._let_go(worker)
                    return ABSENT
                failed = self._raised(worker, error)
                raise failed.error from None
            finally:
                if worker.limit is not None:
                    self._limits.pop(worker.limit, None)
                    worker.limit = None
                worker.attempt_since = None
                if worker.grace is not None:
                    worker.grace.cancel()
                    worker.grace = None
            if worker.abandoned:  # the event has failed meanwhile
                self._let_go(worker)
                return ABSENT
            if worker.timed_out:  # it caught the cancellation and answered all the same: too late
                self._raised(worker, asyncio.CancelledError())
                raise ModuleTimeout(f"{self.name} took longer than {self._timeout_s:g} s")
            return answer

        return handle

    @staticmethod
    def _let_go(worker: _Worker) -> None:
        """The module has come back at last; the cancellation that it was sent is spent."""
        if worker.timed_out:
            worker.timed_out = False
            if worker.task is not None and worker.task.cancelling():
                worker.task.uncancel()

    def _worker_of(self, event: Event[Any]) -> _Worker | None:
        for worker in self._workers:
            if worker.event is event:
                return worker
        return None

    def _arm(self, worker: _Worker) -> None:
        assert self._timeout_s is not None
        loop = asyncio.get_running_loop()
        worker.limit = token = worker.attempt_since
        self._limits[token] = (loop.time() + self._timeout_s, worker)
        if self._timer is None:
            self._timer = loop.call_later(self._timeout_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._limits:
            token, (deadline, worker) = next(iter(self._limits.items()))
            if deadline > now:
                self._timer = loop.call_at(deadline, self._expire)
                return
            del self._limits[token]
            if worker.limit is not token:
                continue
            worker.limit = None
            if self._in_thread:
                self._give_up(worker)
            elif worker.task is not None:
                worker.timed_out = True
                worker.task.cancel()
                worker.grace = loop.call_later(GRACE_S, self._grace_over, worker, worker.event)

    def _grace_over(self, worker: _Worker, event: Event[Any] | None) -> None:
        if worker.event is event and worker.timed_out:
            self._give_up(worker)

    def _give_up(self, worker: _Worker) -> None:
        """Fail the event now. Its worker is not free before the module lets go of it."""
        place = worker.place
        if place is None or worker.abandoned:
            return
        worker.abandoned = True
        error = ModuleTimeout(f"{self.name} took longer than {self._timeout_s:g} s and did not let go")
        self._fill(place, Failed(error, touched=not self._in_thread))

    # ------------------------------------------------------------------ pause, end

    def pause(self) -> None:
        self._paused = True
        rest = list(self._shared)  # taken, but not yet given to the module
        if rest:
            self.queue.put_back(rest)

    def resume(self) -> None:
        self._paused = False
        self._moved()
        if self.queue or self._resumable:
            self.notify()

    def idle(self) -> bool:
        return not (
            self.queue
            or length_hint(self._shared)
            or self._running
            or self._ring
            or self._lanes
            or self._results
            or any(worker.event is not None and not worker.abandoned for worker in self._workers)
        )

    def abandon(self) -> int:
        held = self.queue.clear()
        held += list(self._shared)
        held += self._batch[self._first : self._first + len(self._results)]
        self._results.clear()
        for entry in self._ring:
            held += entry[0] if type(entry) is tuple else [entry.event]  # type: ignore[union-attr]
        self._ring.clear()
        seen = set(map(id, held))
        for worker in self._workers:
            if worker.event is not None and not worker.abandoned and id(worker.event) not in seen:
                held.append(worker.event)
                worker.abandoned = True
        for worker in self._workers:
            if worker.stuck is not None:
                held.append(worker.stuck)
                worker.stuck = None
        self._stuck.clear()
        held += self._parked.values()
        for lane in self._lanes.values():
            held += lane
        self._parked.clear()
        self._tries.clear()
        self._resumable.clear()
        self._lanes.clear()
        self._waiting_in_lanes = 0
        for timer in (self._timer, *(worker.grace for worker in self._workers)):
            if timer is not None:
                timer.cancel()
        return abandon(self.outcomes, held)


#: An answer: the event is in back-off, and will be handled again.
PARKED: Any = object()
