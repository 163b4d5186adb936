"""What a run counted, as values that can be printed, sent and compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

__all__ = ["FlowStatistics", "ModuleStatistics", "OriginStatistics", "Statistics", "summed"]

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class OriginStatistics(msgspec.Struct, frozen=True):
    """What one origin admitted, and what became of it: `admitted == delivered + dropped + failed + open`.

    Attributes:
        late: Reports on events that were settled already: a defect, and told as one.
        lost: Events that went without being settled (they are counted in `failed`): the same.
        reasons: Why events were dropped or failed.
        crossed: It admits what another part of the flow sends here, and has open itself until it hears what became of
            it. A sum over the parts does not count that twice.
    """

    admitted: int = 0
    delivered: int = 0
    dropped: int = 0
    failed: int = 0
    open: int = 0
    late: int = 0
    lost: int = 0
    reasons: dict[str, int] = {}
    crossed: bool = False

    @property
    def balanced(self) -> bool:
        return self.admitted == self.delivered + self.dropped + self.failed + self.open


class ModuleStatistics(msgspec.Struct, frozen=True):
    """What one module did: `received + born == sent + delivered + dropped + failed + joined + held`.

    Attributes:
        received: Events that came in (for a source: events it admitted).
        born: Events added by splitting one into several.
        sent: Events sent out on normal outboxes, each counted once however many consumers got a copy.
        delivered: Events whose way ended here.
        dropped: Events dropped here on purpose, a full queue included.
        failed: Events that failed here, wherever the failure went then.
        joined: Events that were put together into another.
        held: Events in the queue or being handled now.
        depth: Events in the queue now.
        retried: Further tries after a failure.
        busy_s: Seconds spent in the module's own code on the loop (waiting not included).
        p50_us: Median time an event was handled, in microseconds, from a histogram by powers of two.
        p99_us: The 99th percentile of the same.
        reasons: Why events were dropped or failed: `dropped filtered`, `failed ValueError`.
    """

    received: int = 0
    born: int = 0
    sent: int = 0
    delivered: int = 0
    dropped: int = 0
    failed: int = 0
    joined: int = 0
    held: int = 0
    depth: int = 0
    retried: int = 0
    busy_s: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    paused: bool = False
    reasons: dict[str, int] = {}

    @property
    def balanced(self) -> bool:
        return (
            self.received + self.born
            == self.sent + self.delivered + self.dropped + self.failed + self.joined + self.held
        )


class FlowStatistics(OriginStatistics, frozen=True):
    """The sum over all origins."""

    @classmethod
    def of(cls, origins: Iterable[OriginStatistics]) -> FlowStatistics:
        found = list(origins)
        names = ("admitted", "delivered", "dropped", "failed", "open", "late", "lost")
        return cls(**{name: sum(getattr(origin, name) for origin in found) for name in names})


class Statistics(msgspec.Struct, frozen=True):
    """The figures of a run, at one moment.

    Attributes:
        flow: The flow's name.
        total: The sum over all origins; `statistics.admitted` and the others read it.
        origins: By origin: sources, and what else began lineages.
        modules: By module.
        routes: By route (`a -> b`), how many events were sent along it.
        abandoned: By module, how many events were left when the deadline passed (they are counted in `failed`).
        seconds: How long the flow has run.
    """

    flow: str
    total: FlowStatistics
    origins: dict[str, OriginStatistics]
    modules: dict[str, ModuleStatistics]
    routes: dict[str, int] = {}
    abandoned: dict[str, int] = {}
    seconds: float = 0.0

    @property
    def admitted(self) -> int:
        return self.total.admitted

    @property
    def delivered(self) -> int:
        return self.total.delivered

    @property
    def dropped(self) -> int:
        return self.total.dropped

    @property
    def failed(self) -> int:
        return self.total.failed

    @property
    def open(self) -> int:
        return self.total.open

    @property
    def balanced(self) -> bool:
        """Do all the sums hold?"""
        parts: Mapping[str, OriginStatistics | ModuleStatistics] = {**self.origins}
        return (
            self.total.balanced
            and all(origin.balanced for origin in parts.values())
            and all(module.balanced for module in self.modules.values())
        )

    def __str__(self) -> str:
        total = self.total
        return (
            f"admitted {total.admitted} = delivered {total.delivered} + dropped {total.dropped} "
            f"+ failed {total.failed} + in flight {total.open}"
        )


def summed(parts: Iterable[Statistics], flow: str = "", *, once: bool = False) -> Statistics:
    """The figures of several processes that run the same flow, or parts of it, in one.

    Counts are added up. `seconds` is the longest; a module is `paused` if it is in any of them. Of latencies the
    largest is given, where several have some: that of all together is not above it, and without their histograms
    nothing closer can be said.

    Args:
        parts: What to add up.
        flow: The name, if there are no parts.
        once: The parts are all there are, so what crossed from one to another is counted where it was admitted first.
    """
    found = list(parts)
    origins = {name: _added(OriginStatistics, same) for name, same in _by_name(part.origins for part in found).items()}
    return Statistics(
        flow=found[0].flow if found else flow,
        total=FlowStatistics.of(origin for origin in origins.values() if not (once and origin.crossed)),
        origins=origins,
        modules={
            name: _added(ModuleStatistics, same) for name, same in _by_name(part.modules for part in found).items()
        },
        routes={name: sum(same) for name, same in _by_name(part.routes for part in found).items()},
        abandoned={name: sum(same) for name, same in _by_name(part.abandoned for part in found).items()},
        seconds=max((part.seconds for part in found), default=0.0),
    )


#: What is not added up.
_LARGEST = frozenset(("p50_us", "p99_us", "paused", "crossed"))


def _by_name(tables: Iterable[Mapping[str, T]]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for table in tables:
        for name, value in table.items():
            found.setdefault(name, []).append(value)
    return found


def _added(kind: type[S], parts: Sequence[S]) -> S:
    if len(parts) == 1:
        return parts[0]
    figures: dict[str, Any] = {}
    for name in kind.__struct_fields__:
        values = [getattr(part, name) for part in parts]
        if name == "reasons":
            figures[name] = {reason: sum(counts) for reason, counts in _by_name(values).items()}
        elif name in _LARGEST:
            figures[name] = max(values, default=0)
        else:
            figures[name] = sum(values)
    return kind(**figures)
