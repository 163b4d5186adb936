"""One module alone: what it makes of what it is given, run by the real engine under a clock that moves by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from furcula.engine.director import Director
from furcula.engine.moving import MovingLoop, run_moving
from furcula.engine.rehearsal import EPOCH
from furcula.engine.statistics import Statistics
from furcula.event import Event, Failure, copy_data
from furcula.graph import Place
from furcula.options import Duration, Options
from furcula.run import Flow
from furcula.testing.settled import assert_settled

__all__ = ["ModuleResult", "run_module"]

_NAME = "module"


class ModuleResult:
    """What came out of a module.

    Attributes:
        outputs: By outbox, the events that left by it, in order.
        failed: The events that it failed on; `failed[0].failures[-1]` says why.
        statistics: The figures of the run.
        instance: The object of a class module, as it was left.
        seconds: How long it took by the clock that moves.
    """

    def __init__(
        self,
        outputs: dict[str, list[Event[Any]]],
        failed: list[Event[Any]],
        statistics: Statistics,
        instance: Any,
        seconds: float,
    ):
        self.outputs = outputs
        self.failed = failed
        self.statistics = statistics
        self.instance = instance
        self.seconds = seconds

    def __getitem__(self, outbox: str) -> list[Event[Any]]:
        try:
            return self.outputs[outbox]
        except KeyError:
            raise KeyError(f"nobody looked at the outbox {outbox!r}; say outboxes=[{outbox!r}]") from None

    def data(self, outbox: str = "outbox") -> list[Any]:
        """The data of what left by an outbox."""
        return [event.data for event in self[outbox]]

    @property
    def failures(self) -> list[Failure]:
        """Why events failed, in order."""
        return [event.failures[-1] for event in self.failed]

    @property
    def dropped(self) -> int:
        """How many events it dropped on purpose (what it sent to an outbox that nobody looked at among them)."""
        return self.statistics.modules[_NAME].dropped

    @property
    def delivered(self) -> int:
        """How many events ended in it, as they do in a sink."""
        return self.statistics.modules[_NAME].delivered


def run_module(
    module: Any,
    events: Iterable[Any] | Mapping[str, Iterable[Any]] = (),
    /,
    *,
    inbox: str = "inbox",
    outboxes: Iterable[str] | None = None,
    options: Options | Mapping[str, Any] | None = None,
    stop_after: str | float | None = None,
    time_limit: str | float = 3600,
    **arguments: Any,
) -> ModuleResult:
    """Run one module with these events, start to stop, and return what it made of them.

    Not inside a running loop: it runs one of its own, whose clock moves by itself. What is given is copied first. ::

        assert run_module("match", [{"n": 1}, {"n": 2}], where="data.n", eq=2).data() == [{"n": 2}]

    Args:
        module: A kind (`"modify"`), a class, a function, or a place in a flow, of which function, options and arguments
            are taken.
        events: Events or bare data. A dict gives several inboxes theirs. A source takes none.
        inbox: Where they arrive.
        outboxes: Those to look at. Default: the normal ones that the module declares, and `outbox` if it declares none.
            With none at all, `outboxes=()`, the module is a sink.
        options: How it is run.
        stop_after: Seconds of the moving clock after which the flow is stopped: for sources that never end.
        time_limit: Seconds of the moving clock after which this raises TimeoutError.
        arguments: What the module takes.

    Raises:
        ConfigurationError: An unknown kind, or wrong options or arguments.
        SourceFailed: A source raised.
        AssertionError: An event was lost, or the sums are wrong.
    """
    flow = Flow(_NAME)
    place = _placed(flow, module, options, arguments)
    by_inbox = events if isinstance(events, Mapping) else {inbox: events}
    given = {name: [_copied(item) for item in items] for name, items in by_inbox.items()}
    if not place.is_source or any(given.values()):
        for index, (name, items) in enumerate(given.items()):
            flow.connect(flow.source(items, f"events/{index}"), (place, name))
    outputs, failed = _collect(flow, place, outboxes)

    async def run(loop: MovingLoop) -> ModuleResult:
        director = Director(flow, now=lambda: EPOCH + loop.time())
        if stop_after is not None:
            loop.call_later(float(Duration(stop_after)), director.request_stop)
        async with asyncio.timeout(float(Duration(time_limit))):
            statistics = await director.run()
        return ModuleResult(outputs, failed, statistics, director.modules[_NAME].instance, loop.time())

    result = run_moving(run)
    assert_settled(result.statistics)
    return result


def _placed(flow: Flow, module: Any, options: Any, arguments: Mapping[str, Any]) -> Place:
    if not isinstance(module, Place):
        return flow.use(module, _NAME, options=options, **arguments)
    return flow.put(
        module.subject,
        _NAME,
        source=module.is_source,
        role=module.role,
        options=options if isinstance(options, Options) else module.options,
        changes=options if isinstance(options, Mapping) else None,
        inboxes=module.inboxes,
        outboxes=module.outboxes,
        arguments={**module.arguments, **arguments},
    )


def _collect(
    flow: Flow, place: Place, outboxes: Iterable[str] | None
) -> tuple[dict[str, list[Event[Any]]], list[Event[Any]]]:
    declared = ("outbox",) if place.outboxes is None else place.outboxes
    names = [name for name in (declared if outboxes is None else outboxes) if name != "failed"]
    if place.is_source:
        names += [name for name in ("invalid",) if name in declared and name not in names]
    outputs: dict[str, list[Event[Any]]] = {}
    for index, name in enumerate(dict.fromkeys(names)):
        outputs[name] = []
        flow.connect((place, name), flow.module(_collector(outputs[name]), f"output/{index}"))
    failed: list[Event[Any]] = []
    flow.connect((place, "failed"), flow.module(_collector(failed), "output/failed"))
    return outputs, failed


def _collector(into: list[Event[Any]]) -> Callable[[Event[Any]], None]:
    def collect(event: Event[Any]) -> None:
        into.append(event)

    return collect


def _copied(item: Any) -> Any:
    return item.duplicate(None) if isinstance(item, Event) else copy_data(item)
