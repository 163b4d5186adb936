"""Modules that never wait: called directly by whoever feeds them, batch by batch.

`list.extend(map(f, batch))` is most of what makes this fast: it keeps what came before an exception, and the same
iterator goes on after it. So the answers stay parallel to the events, with a `Failed` where the function raised.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Protocol

import msgspec

from furcula.engine.batch_answers import batch_outcome
from furcula.engine.caught import CAUGHT, abandon, keep_originals, warn_held
from furcula.engine.counters import BATCH_LIMIT, HELD_LOOP_S, Counters
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch, Link
from furcula.engine.splitting import iterate, take
from furcula.errors import ModuleError
from furcula.event import Event, Routed
from furcula.module import Handling
from furcula.options import convert_value
from furcula.receipt import Receipt

__all__ = [
    "BatchStep",
    "ChooseStep",
    "DataStep",
    "EventStep",
    "SplitStep",
    "Step",
    "converter",
    "events_of",
    "sync_step",
]

_log = logging.getLogger("furcula.flow")


class Step(Protocol):
    """A module as it runs: takes batches, and knows what it still holds."""

    counters: Counters
    outcomes: Outcomes

    def push(self, batch: Batch) -> Awaitable[None] | None:
        """Count the batch as received, and handle it or put it in the queue."""

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        """The same for events that were counted already."""

    def idle(self) -> bool:
        """Is nothing in the queue, and nothing being handled?"""

    def abandon(self) -> int:
        """The deadline has passed: fail whatever is held. Returns how many events that were."""


class _Synchronous:
    """What the steps that never wait have in common: counting, timing, and the keeping of originals."""

    def __init__(self, call: Callable[..., Any], outcomes: Outcomes, *, keep_original: bool = False):
        self.call = call
        self.outcomes = outcomes
        self.counters = outcomes.counters
        self._keep_original = keep_original
        #: While the module is paused: what came, and what its senders wait for.
        self._held_back: tuple[list[Batch], asyncio.Future[None]] | None = None

    def push(self, batch: Batch) -> Awaitable[None] | None:
        counters = self.counters
        count = len(batch)
        counters.received += count
        counters.held += count
        return self.take_in(batch)

    def take_in(self, batch: Batch) -> Awaitable[None] | None:
        """Take events that count as received already; hold them while paused."""
        return self.accept(batch) if self._held_back is None else self._hold(batch)

    def _hold(self, batch: Batch) -> Awaitable[None]:
        assert self._held_back is not None
        batches, resumed = self._held_back
        batches.append(batch)
        return asyncio.shield(resumed)

    def pause(self) -> None:
        """Handle nothing until `resume`. Each sender gets rid of one batch and then waits."""
        if self._held_back is None:
            self._held_back = ([], asyncio.get_running_loop().create_future())

    def resume(self) -> None:
        if self._held_back is not None:
            (batches, resumed), self._held_back = self._held_back, None
            for batch in batches:
                # What downstream asks to wait is known to be bounded: one batch for each sender.
                self.accept(batch)
            resumed.set_result(None)

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        raise NotImplementedError

    def idle(self) -> bool:
        return self._held_back is None or not self._held_back[0]

    def abandon(self) -> int:
        if self._held_back is None:
            return 0
        (batches, resumed), self._held_back = self._held_back, None
        resumed.set_result(None)
        return abandon(self.outcomes, [event for batch in batches for event in batch])

    def _handled(self, count: int, seconds: float) -> None:
        counters = self.counters
        counters.held -= count
        counters.busy_s += seconds
        counters.histogram[min(int(seconds * 1e9 / count).bit_length(), 47)] += count
        if seconds > HELD_LOOP_S:
            warn_held(self.outcomes.name, counters, count, seconds)

    def _copyable(self, batch: Batch) -> tuple[Batch, list[tuple[Any, dict[str, Any]]] | None]:
        """The batch, and copies of what it came with where those are kept. What cannot be copied fails."""
        if not self._keep_original:
            return batch, None
        return keep_originals(self.outcomes, batch)


class EndStep(_Synchronous):
    """No code at all: what arrives has arrived. For a source that takes answers and does nothing else with them."""

    def __init__(self, outcomes: Outcomes):
        super().__init__(_itself, outcomes)

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        self.counters.held -= len(batch)
        return self.outcomes.deliver(batch)


def _itself(event: Event[Any]) -> Event[Any]:
    return event


class EventStep(_Synchronous):
    """A function of the Event."""

    def push(self, batch: Batch) -> Awaitable[None] | None:
        if len(batch) != 1 or self._keep_original or self._held_back is not None:
            return super().push(batch)
        # The same for one event alone, as requests come: 1.0 us where the way of the batches takes 1.9.
        counters = self.counters
        counters.received += 1
        counters.held += 1
        event = batch[0]
        began = perf_counter()
        try:
            result = self.call(event)
        except CAUGHT as error:
            result = Failed(error)
        except StopIteration:
            result = Failed(ModuleError("the function raised StopIteration"))
        seconds = perf_counter() - began
        counters.held -= 1
        counters.busy_s += seconds
        counters.histogram[int(seconds * 1e9).bit_length()] += 1
        if seconds > HELD_LOOP_S:
            warn_held(self.outcomes.name, counters, 1, seconds)
        outcomes = self.outcomes
        if result is event:
            main = outcomes.main
            if main is None:
                return outcomes.same(batch)
            counters.sent += 1
            return main.push(batch)
        return outcomes.sort_out(batch, [result])

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        originals = None
        if self._keep_original:
            batch, originals = self._copyable(batch)
            if not batch:
                return None
        began = perf_counter()
        results, _ = call_all(self.call, batch)
        self._handled(len(batch), perf_counter() - began)
        return self.outcomes.sort_out(batch, results, originals)


class SplitStep(_Synchronous):
    """A generator function, or `flat_map`: what it yields are events of their own."""

    def __init__(self, call: Callable[..., Any], outcomes: Outcomes, *, bare: bool, convert: Any, keep_original: bool):
        super().__init__(call, outcomes, keep_original=keep_original)
        self._bare = bare
        self._convert = convert
        #: Called when a long split has ended.
        self.after: Callable[[], None] | None = None
        # Splits that turned out long, and are being handed on piece by piece.
        self._long: dict[asyncio.Task[None], Batch] = {}

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        if self._long:  # what came first goes first
            return self._later(batch)
        return self._accept_now(batch)

    def _accept_now(self, batch: Batch) -> Awaitable[None] | None:
        batch, originals = self._copyable(batch)
        if not batch:
            return None
        began = perf_counter()
        results: list[Any] = []
        for index, event in enumerate(batch):
            items = self._open(event)
            many = take(items, event, BATCH_LIMIT)
            results.append(many)
            if len(many.items) >= BATCH_LIMIT and many.failed is None:
                done = batch[: index + 1]
                self._handled(index + 1, perf_counter() - began)
                return self._long_split(done, results, originals, items, batch[index + 1 :])
        self._handled(len(batch), perf_counter() - began)
        return self.outcomes.sort_out(batch, results, originals)

    def _open(self, event: Event[Any]) -> Iterator[Any]:
        if not self._bare:
            return iterate(self.call, event)
        if self._convert is not None:
            return iterate(lambda data: self.call(self._convert(data)), event.data)
        return iterate(self.call, event.data)

    def _long_split(
        self, done: Batch, results: list[Any], originals: Any, items: Iterator[Any], rest: Batch
    ) -> Awaitable[None]:
        """The last event of `done` gives more than a batch: hand on what is there, then the rest piece by piece."""
        event = done[-1]
        carrier = event.carrier()
        if carrier is not None:
            # One share stays here until the generator is through; the event carries it.
            event._receipt = carrier.share(2)
        self.counters.held += 1
        self.counters.born += 1
        keeper = Event(event.data, headers=event.headers, key=event.key, parent=event.parent, ttl=event.ttl)
        keeper.inherit(event)
        keeper.tags = event.tags
        kept = originals is not None
        if kept:
            originals = originals[: len(done)]
            keeper.data, keeper.headers = originals[len(done) - 1]
        wait = self.outcomes.sort_out(done, results, originals)
        task = asyncio.get_running_loop().create_task(self._pieces(wait, keeper, event, items, rest, kept))
        self._long[task] = [keeper, *rest]
        task.add_done_callback(lambda task: self._long.pop(task, None))
        # Shielded: whoever waits for it may be cancelled, and the rest of the split must not be.
        return asyncio.shield(task)

    async def _pieces(
        self,
        wait: Awaitable[None] | None,
        keeper: Event[Any],
        event: Event[Any],
        items: Iterator[Any],
        rest: Batch,
        kept: bool,
    ) -> None:
        if wait is not None:
            await wait
        while True:
            began = perf_counter()
            many = take(items, event, BATCH_LIMIT)
            if many.failed is not None:
                many.failed.touched = not kept
                if not kept:
                    keeper.data, keeper.headers = event.data, event.headers
            self.counters.busy_s += perf_counter() - began
            last = len(many.items) < BATCH_LIMIT or many.failed is not None
            carrier = keeper.carrier()
            if last and not many.items and many.failed is None:
                self.counters.held -= 1
                self.counters.joined += 1
                if carrier is not None:
                    carrier.settle("dropped", 1, "filtered")
                break
            if not last:
                if carrier is not None:
                    keeper._receipt = carrier.share(2)
                self.counters.born += 1
            else:
                self.counters.held -= 1
            wait = self.outcomes.sort_out([keeper], [many])
            if last:
                if wait is not None:
                    await wait
                break
            if wait is not None:
                await wait
            else:
                await asyncio.sleep(0)
        self._nothing_held()
        if self.after is not None:
            self.after()
        if rest:
            wait = self._accept_now(rest)
            if wait is not None:
                await wait

    def _later(self, batch: Batch) -> Awaitable[None]:
        earlier = next(reversed(self._long))

        async def after() -> None:
            await asyncio.wait([earlier])
            self._nothing_held()
            wait = self._accept_now(batch)
            if wait is not None:
                await wait

        task = asyncio.get_running_loop().create_task(after())
        self._long[task] = batch
        task.add_done_callback(lambda task: self._long.pop(task, None))
        return asyncio.shield(task)

    def _nothing_held(self) -> None:
        task = asyncio.current_task()
        if task in self._long:
            self._long[task] = []

    def idle(self) -> bool:
        return not self._long and super().idle()

    def abandon(self) -> int:
        before = super().abandon()
        held = [event for batch in self._long.values() for event in batch]
        for task in list(self._long):
            task.cancel()
        self._long.clear()
        return before + abandon(self.outcomes, held)


class ChooseStep(_Synchronous):
    """A function that names the outbox for each event."""

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        began = perf_counter()
        chosen, _ = call_all(self.call, batch)
        self._handled(len(batch), perf_counter() - began)
        first = chosen[0]
        if type(first) is str and chosen.count(first) == len(batch):
            return self.outcomes.send(first, batch)
        results: list[Any] = []
        for event, port in zip(batch, chosen, strict=True):
            if type(port) is str:
                results.append(event if port == "outbox" else event.to(port))
            elif port is None or type(port) is Failed:
                results.append(port)
            else:
                error = ModuleError(f"{self.outcomes.name} must choose the name of an outbox, not {port!r}")
                results.append(Failed(error))
        return self.outcomes.sort_out(batch, results)


class DataStep(_Synchronous):
    """A function of bare data: `map`, `filter`, or a module annotated with the type of its data.

    A run of these hands the data on beside the events and only the last one writes it back.
    """

    def __init__(
        self, call: Callable[..., Any], outcomes: Outcomes, *, role: str, convert: Any, kind: Any, keep_original: bool
    ):
        super().__init__(call, outcomes, keep_original=keep_original)
        self._role = role
        self._convert = convert
        self._kind = kind

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        return self._accept_data(batch, [event.data for event in batch])

    def push_data(self, batch: Batch, datas: list[Any]) -> Awaitable[None] | None:
        """Like `push`; the data stands in `datas`, and what the events have is out of date."""
        counters = self.counters
        count = len(batch)
        counters.received += count
        counters.held += count
        if self._held_back is not None:
            for event, data in zip(batch, datas, strict=True):
                event.data = data
            return self._hold(batch)
        return self._accept_data(batch, datas)

    def push_bare(self, datas: list[Any], receipt: Receipt) -> Awaitable[None] | None:
        """Like `push`, for events that were admitted and not yet made: their data, and the receipt they share.

        A run of bare functions that begins at a source needs no Events before something goes wrong or the run ends.
        """
        counters = self.counters
        count = len(datas)
        if self._held_back is not None or self._keep_original:
            return self.push(events_of(datas, receipt))
        counters.received += count
        counters.held += count
        began = perf_counter()
        results, raised = self._answers(datas)
        self._handled(count, perf_counter() - began)
        if raised or (self._role == "module" and not _NOT_DATA.isdisjoint(map(type, results))):
            batch = events_of(datas, receipt)
            if self._role == "filter":
                return self._filtered(batch, datas, results, raised, None)
            return self.outcomes.sort_out(batch, results)
        if self._role == "filter":
            kept, odd = call_all(bool, results)
            if odd:
                return self._filtered(events_of(datas, receipt), datas, kept, True, None)
            results = datas
            dropped = count - sum(kept)
            if dropped:
                results = list(itertools.compress(datas, kept))
                self.outcomes.ended_bare(dropped, receipt, "filtered")
        if not results:
            return None
        outcomes = self.outcomes
        main = outcomes.main
        if type(main) is Link and type(main.consumer) is DataStep:
            main.sent += len(results)
            counters.sent += len(results)
            return main.consumer.push_bare(results, receipt)
        if outcomes.is_sink:
            outcomes.ended_bare(len(results), receipt)
            return None
        return outcomes.same(events_of(results, receipt))

    def _answers(self, datas: list[Any]) -> tuple[list[Any], bool]:
        if self._convert is None or {*map(type, datas)} == {self._kind}:
            return call_all(self.call, datas)
        return call_all(self._converted, datas)

    def _accept_data(self, batch: Batch, datas: list[Any]) -> Awaitable[None] | None:
        count = len(batch)
        if self._keep_original:
            for event, data in zip(batch, datas, strict=True):
                event.data = data
        originals = None
        if self._keep_original:
            batch, originals = self._copyable(batch)
            if not batch:
                return None
            count, datas = len(batch), [event.data for event in batch]
        began = perf_counter()
        results, raised = self._answers(datas)
        self._handled(count, perf_counter() - began)
        if self._role == "filter":
            return self._filtered(batch, datas, results, raised, originals)
        if raised or (self._role != "map" and not _NOT_DATA.isdisjoint(map(type, results))):
            for event, data in zip(batch, datas, strict=True):
                event.data = data
            return self.outcomes.sort_out(batch, results, originals)
        return self._on(batch, results)

    def _converted(self, data: Any) -> Any:
        return self.call(self._convert(data))

    def _filtered(
        self, batch: Batch, datas: list[Any], results: list[Any], raised: bool, originals: Any
    ) -> Awaitable[None] | None:
        truths, odd = call_all(_truth if raised else bool, results)
        if raised or odd:  # some verdict could not be had, or not be told
            for event, data in zip(batch, datas, strict=True):
                event.data = data
            verdicts = [
                verdict if type(verdict) is Failed else (event if verdict else None)
                for event, verdict in zip(batch, truths, strict=True)
            ]
            return self.outcomes.sort_out(batch, verdicts, originals)
        if all(truths):
            return self._on(batch, datas)
        dropped = [event for event, stays in zip(batch, truths, strict=True) if not stays]
        if self.outcomes.is_sink:
            self.outcomes.deliver(dropped)
        else:
            self.outcomes.drop(dropped, "filtered")
        if len(dropped) == len(batch):
            return None
        return self._on(list(itertools.compress(batch, truths)), list(itertools.compress(datas, truths)))

    def _on(self, batch: Batch, datas: list[Any]) -> Awaitable[None] | None:
        outcomes = self.outcomes
        main = outcomes.main
        if type(main) is Link and type(main.consumer) is DataStep:
            count = len(batch)
            main.sent += count
            outcomes.counters.sent += count
            return main.consumer.push_data(batch, datas)
        for event, data in zip(batch, datas, strict=True):
            event.data = data
        return outcomes.same(batch)


class BatchStep(_Synchronous):
    """A function of a whole batch."""

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        batch, originals = self._copyable(batch)
        if not batch:
            return None
        began = perf_counter()
        try:
            answer = self.call(list(batch))
        except CAUGHT as error:
            answer = error
        self._handled(len(batch), perf_counter() - began)
        return batch_outcome(self.outcomes, batch, answer, originals)


_NOT_DATA = frozenset((type(None), Event, Routed))


def sync_step(handling: Handling, outcomes: Outcomes, *, keep_original: bool = False) -> Any:
    """The step for a handling that never waits."""
    if handling.role == "choose":
        return ChooseStep(handling.call, outcomes, keep_original=keep_original)
    if handling.receives == "events":
        return BatchStep(handling.call, outcomes, keep_original=keep_original)
    convert = converter(handling.input_type)
    if handling.shape == "generator" or handling.role == "flat_map":
        bare = handling.receives == "data"
        return SplitStep(handling.call, outcomes, bare=bare, convert=convert, keep_original=keep_original)
    if handling.receives == "data":
        return DataStep(
            handling.call,
            outcomes,
            role=handling.role,
            convert=convert,
            kind=handling.input_type,
            keep_original=keep_original,
        )
    return EventStep(handling.call, outcomes, keep_original=keep_original)


def converter(kind: Any) -> Callable[[Any], Any] | None:
    """What converts data to an annotated type, or None where nothing is to be done."""
    if kind is Any or kind is object:
        return None

    def convert(data: Any) -> Any:
        if type(data) is kind:
            return data
        try:
            return convert_value(data, kind)
        except msgspec.ValidationError as error:
            raise TypeError(f"the data is not what the module takes: {error}") from None

    return convert


def call_all(call: Callable[[Any], Any], arguments: Sequence[Any]) -> tuple[list[Any], bool]:
    """What `call` answers to each argument, with a `Failed` where it raised; and whether it did raise anywhere.

    There are always as many answers as arguments.
    """
    results: list[Any] = []
    raised = False
    calls = map(call, arguments)
    while True:
        try:
            results.extend(calls)
        except CAUGHT as error:
            results.append(Failed(error))
            raised = True
            continue
        if len(results) == len(arguments):
            return results, raised
        # A StopIteration inside the function looks like the end of the batch: half of it would vanish.
        results.append(Failed(ModuleError("the function raised StopIteration")))
        raised = True


def _truth(verdict: Any) -> Any:
    return verdict if type(verdict) is Failed else bool(verdict)


def events_of(datas: list[Any], receipt: Receipt) -> Batch:
    """The events of an admitted batch, made."""
    # By position: the names of arguments would cost a tenth more.
    return [Event(data, {}, receipt) for data in datas]
