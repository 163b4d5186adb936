"""What a module answered, turned into what happens to the event: it goes on, forks, is dropped, delivered, or fails."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

from furcula.correlation import CURRENT
from furcula.engine.counters import Counters
from furcula.engine.outlets import Batch, Consumer, Outlet, all_of, settle
from furcula.errors import Expired, FurculaError, ModuleError, nearest
from furcula.event import Event, Failure, Routed
from furcula.graph import EXCEPTION_PORTS
from furcula.receipt import Carrier, Receipt
from furcula.statuses import HttpError

__all__ = ["ABSENT", "Dropped", "Failed", "Many", "Outcomes", "who_asked"]

_log = logging.getLogger("furcula.flow")
_HERE = str(Path(__file__).parent)

#: The answer of a module that gave none because the event is being taken care of elsewhere.
ABSENT: Any = object()


class Failed:
    """An answer: the module failed on this event."""

    __slots__ = ("attempts", "error", "touched")

    def __init__(self, error: BaseException, attempts: int = 1, touched: bool = True):
        self.error = error
        self.attempts = attempts
        self.touched = touched


class Dropped:
    """An answer: the event is dropped, and for this reason."""

    __slots__ = ("reason",)

    def __init__(self, reason: str):
        self.reason = reason


class Many:
    """An answer: the event became these, and failed besides if `failed` is given. Items are Events, Routed, or data."""

    __slots__ = ("failed", "items")

    def __init__(self, items: list[Any], failed: Failed | None = None):
        self.items = items
        self.failed = failed


class Outcomes:
    """The way out of one module.

    Args:
        name: The module's name.
        counters: The module's counters.
        outlets: Where each connected normal outbox leads.
        exceptions: Where `failed`, `expired` and `invalid` lead, as far as connected.
        dead_letter: Where failures go that `failed` does not catch.
        declared: The outboxes it may name, or None for any.
        takes_data: Its answers are data, not Events.
        none_is_data: None is an answer like any other (`map`).
        must_answer: It promised by annotation never to answer None.
        answers: What ends here is offered to whoever asked.
        unasked: Takes what ends here and was not asked for; raises if it should not be here.
    """

    def __init__(
        self,
        name: str,
        counters: Counters,
        *,
        declared: Sequence[str] | None = None,
        takes_data: bool = False,
        none_is_data: bool = False,
        must_answer: bool = False,
        answers: bool = False,
        unasked: Callable[[Event[Any]], None] | None = None,
    ):
        self.name = name
        self.counters = counters
        self.outlets: dict[str, Outlet] = {}
        self.exceptions: dict[str, Outlet] = {}
        self.dead_letter: Consumer | None = None
        self.main: Outlet | None = None
        self.is_sink = True
        #: Where what is abandoned at the deadline of a stop is noted, each with its failure; None: nobody asked.
        self.left: list[tuple[Event[Any], Failure]] | None = None
        self._declared = declared
        self._takes_data = takes_data
        self._none_is_data = none_is_data
        self._must_answer = must_answer
        self._answers = answers
        self._unasked = unasked
        self._logged = 0
        self._nones = 0 if not must_answer else -1

    def connect(
        self, outlets: Mapping[str, Outlet], exceptions: Mapping[str, Outlet], dead_letter: Consumer | None
    ) -> None:
        self.outlets = dict(outlets)
        self.exceptions = dict(exceptions)
        self.dead_letter = dead_letter
        self.main = self.outlets.get("outbox")
        self.is_sink = not self.outlets

    # ------------------------------------------------------------------ whole batches

    def same(self, batch: Batch) -> Awaitable[None] | None:
        """The batch goes on as it is, from the normal outbox."""
        if self.is_sink:
            return self.deliver(batch)
        main = self.main
        if main is None:
            return self.drop(batch, "unconnected")
        self.counters.sent += len(batch)
        return main.push(batch)

    def send(self, outbox: str, batch: Batch) -> Awaitable[None] | None:
        """The batch leaves from `outbox`."""
        if outbox in EXCEPTION_PORTS:
            return self._send_exception(outbox, batch)
        if outbox == "outbox" or self.is_sink:
            return self.same(batch)
        outlet = self.outlets.get(outbox)
        if outlet is None:
            if self._declared is not None and outbox not in self._declared:
                hint = nearest(outbox, self._declared) or f"; it has {', '.join(self._declared)}"
                error = ModuleError(f"{self.name} has no outbox {outbox!r}{hint}")
                return self.fail([(event, Failed(error)) for event in batch])
            return self.drop(batch, "unconnected")
        self.counters.sent += len(batch)
        return outlet.push(batch)

    def _send_exception(self, outbox: str, batch: Batch) -> Awaitable[None] | None:
        if outbox == "failed":
            return self.fail([(event, Failed(ModuleError("sent to failed by the module"))) for event in batch])
        outlet = self.exceptions.get(outbox)
        if outlet is None:
            if outbox == "expired":
                return self.fail([(event, Failed(Expired("its hops are used up"))) for event in batch])
            return self.drop(batch, "unconnected")
        self.counters.sent += len(batch)
        return outlet.push(batch)

    def deliver(self, batch: Batch) -> Awaitable[None] | None:
        """The way of these events ends here, as it should."""
        if self._answers:
            return self._answer(batch)
        if batch:
            self.counters.delivered += len(batch)
            settle(batch, "delivered")
        return None

    def ended_bare(self, count: int, receipt: Receipt, dropped: str = "") -> None:
        """The way of events that were never made ends here: delivered, or dropped for the reason given."""
        if dropped and not self.is_sink:
            self.counters.dropped += count
            self.counters.reasons["dropped", dropped] += count
            receipt.settle("dropped", count, dropped)
        else:
            self.counters.delivered += count
            receipt.settle("delivered", count)

    def _answer(self, batch: Batch) -> Awaitable[None] | None:
        waits: list[Awaitable[None]] = []
        for event in batch:
            receipt = event.carrier()
            try:
                taken = None if receipt is None else _offer(event, receipt)
                if taken is None and self._unasked is not None:
                    self._unasked(event)
            except Exception as error:
                _add(waits, self.fail([(event, Failed(error))]))
                continue
            # It belongs to whoever asked now; otherwise it would hold its request for ever, and its request it.
            event._receipt = None
            if taken is False:
                self.counters.dropped += 1
                self.counters.reasons["dropped", "answered"] += 1
                if receipt is not None:
                    receipt.settle("dropped", 1, "answered")
            else:
                self.counters.delivered += 1
                if receipt is not None:
                    receipt.settle("delivered")
        return all_of(waits)

    def drop(self, batch: Batch, reason: str) -> Awaitable[None] | None:
        if batch:
            self.counters.dropped += len(batch)
            self.counters.reasons["dropped", reason] += len(batch)
            settle(batch, "dropped", reason)
        return None

    # ------------------------------------------------------------------ answers, one by one

    def sort_out(self, events: Batch, results: Sequence[Any], originals: Any = None) -> Awaitable[None] | None:
        """Each event has its answer at the same place in `results`; do what they say.

        Args:
            originals: For each event, the data and headers that it gets back should its answer be wrong.
        """
        if not self._takes_data and all_same(events, results):
            return self.same(events)
        on: Batch = []
        ports: dict[str, Batch] = {}
        dropped: Batch = []
        ended: Batch = []
        failed: list[tuple[Event[Any], Failed]] = []
        nones = 0
        for event, result in zip(events, results, strict=True):
            kind = type(result)
            if result is event:
                on.append(event)
            elif kind is Failed:
                failed.append((event, result))
            elif self.is_sink and kind is not Dropped and not _names_exception(result):
                if kind is Many and result.failed is not None:
                    failed.append((event, result.failed))
                else:
                    ended.append(event)
            elif kind is Many:
                self._split(event, result, on, ports, dropped, failed)
            elif result is None and not self._none_is_data:
                nones += 1
                if self._must_answer:
                    silent = ModuleError(f"{self.name} is annotated to answer with an Event and answered None")
                    failed.append((event, Failed(silent)))
                else:
                    dropped.append(event)
            elif kind is Event or kind is Routed or isinstance(result, Event):
                try:
                    self._one(event, result, on, ports)
                except Exception as error:  # it is under way already, and cannot be copied
                    failed.append((event, Failed(error)))
            elif kind is Dropped:
                self.drop([event], result.reason)
            elif self._takes_data:
                event.data = result
                on.append(event)
            elif result is not ABSENT:
                nonsense = ModuleError(
                    f"{self.name} answered {kind.__name__} where an Event, None or event.to(...) is expected; "
                    "annotate its parameter with the type of the data to work on bare data"
                )
                failed.append((event, Failed(nonsense)))
        if failed and originals is not None:
            kept = {id(event): original for event, original in zip(events, originals, strict=True)}
            for event, how in failed:
                if how.touched and id(event) in kept:
                    event.data, event.headers = kept[id(event)]
                    how.touched = False
        if self._nones >= 0:
            self._watch_for_nones(nones, len(events))
        waits: list[Awaitable[None]] = []
        if ended:
            _add(waits, self.deliver(ended))
        if on:
            _add(waits, self.same(on))
        for port, batch in ports.items():
            _add(waits, self.send(port, batch))
        self.drop(dropped, "filtered")
        if failed:
            _add(waits, self.fail(failed))
        return all_of(waits)

    def _one(self, event: Event[Any], result: Event[Any], on: Batch, ports: dict[str, Batch]) -> None:
        """The event became `result`, one to one, and keeps its slot and its identity."""
        port = "outbox"
        if type(result) is Routed:
            port = result.outbox
            result = result.target  # type: ignore[assignment]
        if result is not event:
            if result._receipt is not None:
                result = result.duplicate(None)
            result.inherit(event)
        if port == "outbox":
            on.append(result)
        else:
            ports.setdefault(port, []).append(result)

    def _split(
        self,
        event: Event[Any],
        many: Many,
        on: Batch,
        ports: dict[str, Batch],
        dropped: Batch,
        failed: list[tuple[Event[Any], Failed]],
    ) -> None:
        failure = many.failed
        items: list[tuple[str, Event[Any]]] = []
        for item in many.items:
            port = "outbox"
            if type(item) is Routed:
                port, item = item.outbox, item.target
            try:
                child = self.child(event, item)
            except Exception as error:  # it is under way already, and cannot be copied
                failure = failure or Failed(error)
                continue
            child._receipt = event._receipt  # so that the same item given again is seen to be taken
            items.append((port, child))
        children = len(items) + (failure is not None)
        if not children:
            dropped.append(event)
            return
        carrier: Carrier | None = event.carrier()
        if children > 1 and carrier is not None:
            carrier = carrier.share(children)
        self.counters.born += children - 1
        for port, child in items:
            child._receipt = carrier
            if port == "outbox":
                on.append(child)
            else:
                ports.setdefault(port, []).append(child)
        if failure is not None:
            event._receipt = carrier
            failed.append((event, failure))

    @staticmethod
    def child(event: Event[Any], item: Any) -> Event[Any]:
        """`item` as an event that came out of `event`: an Event of the module's own, or bare data."""
        child: Event[Any]
        if isinstance(item, Event):
            child = item
            if item._receipt is not None or item is event:
                child = item.duplicate(None)
                child._id = None
            if child._id is not None and child._id == event._id:
                child._id = None
        else:
            child = Event(item, headers=dict(event.headers), tags=event.tags)
        child.parent = event.id
        child.ttl = event.ttl
        child._created = event._created
        if child.key is None:
            child.key = event.key
        if not child.failures:
            child.failures = event.failures
        return child

    def _watch_for_nones(self, nones: int, answers: int) -> None:
        if nones < answers or self.is_sink or self._none_is_data:
            self._nones = -1
            return
        self._nones += nones
        if self._nones >= 100:
            self._nones = -1
            _log.warning(
                "%s has answered None 100 times and so dropped every event: did you forget `return event`?", self.name
            )

    # ------------------------------------------------------------------ failures

    def fail(self, failed: Sequence[tuple[Event[Any], Failed]]) -> Awaitable[None] | None:
        """These events failed here: to `failed`, else to the dead-letter route, else settled as failed and logged."""
        self.counters.failed += len(failed)
        caught = self.exceptions.get("failed")
        onward: Batch = []
        buried: Batch = []
        for event, how in failed:
            self.counters.reasons["failed", type(how.error).__name__] += 1
            dead = any(failure.route == "dead_letter" for failure in event.failures)
            if caught is not None:
                route = "failed"
            elif self.dead_letter is not None and not dead:
                route = "dead_letter"
            else:
                route = ""
            failure = make_failure(self.name, how, route)
            if route:
                event.failures = (*event.failures, failure)
                (onward if route == "failed" else buried).append(event)
                continue
            self._log_failure(event, failure)
            receipt = event.carrier()
            if receipt is not None:
                receipt.settle("failed", 1, failure.type, failure)
        waits: list[Awaitable[None]] = []
        if onward and caught is not None:
            _add(waits, caught.push(onward))
        if buried and self.dead_letter is not None:
            _add(waits, self.dead_letter.push(buried))
        return all_of(waits)

    def fail_one(self, event: Event[Any], error: BaseException) -> Awaitable[None] | None:
        return self.fail([(event, Failed(error))])

    def _log_failure(self, event: Event[Any], failure: Failure) -> None:
        # A module that fails on every event must not drown the log: all of the first ten, then each power of two.
        self._logged += 1
        number = self._logged
        if number > 10 and number & (number - 1):
            return
        earlier = "".join(f" (before that: {f.module}: {f.type}: {f.message})" for f in event.failures[-1:])
        # Who is refused with a 401 or a 404 is told so; nothing of ours is out of order.
        refused = failure.status is not None and failure.status < 500
        # This may be another request's turn, a timer's that it has set, or nobody's.
        token = CURRENT.set(who_asked(event._receipt))
        try:
            _log.log(
                logging.INFO if refused else logging.ERROR,
                "%s failed on event %s, and nothing catches it: %s: %s%s [failure %d here]%s",
                self.name,
                event.id,
                failure.type,
                failure.message,
                earlier,
                number,
                f"\n{failure.traceback}" if failure.traceback and number <= 3 else "",
            )
        finally:
            CURRENT.reset(token)


def all_same(events: Batch, results: Any) -> bool:
    """Did the module answer each event with that very event?

    Comparing lists asks `is` before `==`, at 1 ns for an event where a loop of `is` takes 15; Events are equal only to
    themselves. An answer with an `__eq__` of its own may raise, and is then not the event.
    """
    try:
        return bool(results == events)
    except Exception:
        return False


def _offer(event: Event[Any], receipt: Carrier) -> bool | None:
    """Offer an answer to whoever asked, as `Carrier.answer`. What answers several requests, each gets for its own."""
    parents = {id(parent): parent for parent in getattr(receipt, "parents", ())}
    if not parents:
        return receipt.answer(event)
    *others, last = parents.values()
    answers = [_offer(event.duplicate(None), parent) for parent in others]
    answers.append(_offer(event, last))
    return True if True in answers else (False if False in answers else None)


def who_asked(receipt: Any) -> Any:
    """The asker whose event carries this receipt; None: nobody's, or several askers'."""
    if type(receipt) is Receipt:
        return None
    asker = getattr(receipt, "asker", None)
    if asker is not None:
        return asker
    askers = {id(asker): asker for asker in map(who_asked, getattr(receipt, "parents", ()))}
    return next(iter(askers.values())) if len(askers) == 1 else None


def make_failure(module: str, how: Failed, route: str = "") -> Failure:
    """What happened, as a value. Raises nothing, whatever the exception is like: the engine has no one to catch it."""
    error = how.error
    own = isinstance(error, FurculaError)
    # Only errors of ours: that a server *we* asked said 404 is no status for whoever asked us.
    status = _say(error, "status", lambda: getattr(error, "status", None), None) if own else None
    headers: Any = {}
    problem: Any = {}
    if isinstance(error, HttpError):
        headers = _say(error, "headers", lambda: dict(error.headers), {})
        if not all(type(name) is str and type(value) is str for name, value in headers.items()):
            headers = {}
        problem = _say(error, "problem", error.problem, {})
    return Failure(
        module=module,
        type=type(error).__name__,
        message=_say(error, "message", lambda: str(error), "(its message could not be made)"),
        traceback="" if own else format_traceback(error),
        attempts=how.attempts,
        retryable=_say(error, "retryable", lambda: bool(getattr(error, "retryable", False)), False),
        touched=how.touched,
        at=time.time(),
        route=route,
        status=status if isinstance(status, int) and not isinstance(status, bool) else None,
        headers=headers,
        problem=problem if isinstance(problem, dict) else {},
    )


def _say(error: BaseException, what: str, how: Callable[[], Any], otherwise: Any) -> Any:
    """What an exception says of itself. It is of a class of the user's, and may raise."""
    try:
        return how()
    except Exception as raised:
        kind = type(error)
        if kind not in _speechless:
            _speechless.add(kind)
            _log.warning(
                "%s cannot tell its %s; does its __init__ call super().__init__()?",
                kind.__name__,
                what,
                exc_info=raised,
            )
        return otherwise


#: Classes of exceptions of which it was logged already that they could not be read.
_speechless: WeakSet[type] = WeakSet()


def format_traceback(error: BaseException) -> str:
    # The engine's own frames at the top say nothing to whoever wrote the module.
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_HERE):
        frames = frames.tb_next
    try:
        lines = traceback.format_exception(type(error), error, frames or error.__traceback__, limit=-12)
    except Exception:
        return ""
    text = "".join(lines)
    return text if len(text) <= 8000 else text[:2000] + "\n[...]\n" + text[-6000:]


def _names_exception(result: Any) -> bool:
    """Does the answer of a sink send something to `failed`, `invalid` or `expired`?"""
    if type(result) is Many:
        return any(_names_exception(item) for item in result.items)
    return type(result) is Routed and result.outbox in EXCEPTION_PORTS


def _add(waits: list[Awaitable[None]], wait: Awaitable[None] | None) -> None:
    if wait is not None:
        waits.append(wait)
