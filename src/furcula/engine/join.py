"""Inputs put together by lineage: one event from each inbox, however the branches overtook each other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from furcula.engine.batch_answers import join_events
from furcula.engine.caught import abandon
from furcula.engine.outcome import Failed, Outcomes
from furcula.engine.outlets import Batch, all_of
from furcula.errors import Incomplete, Late
from furcula.event import Event, Failure

__all__ = ["TABLE_SIZE", "Join", "JoinInbox"]

#: Incomplete joins that are kept at once; beyond, the oldest is given up. Never blocks: in a diamond whose other branch
#: is slower, blocking here would stop both.
TABLE_SIZE = 10_000


class _Parts:
    __slots__ = ("by_inbox", "deadline")

    def __init__(self, deadline: float):
        self.by_inbox: dict[str, Event[Any]] = {}
        self.deadline = deadline


class Join:
    """Holds the parts of each lineage until there is one from every inbox.

    Args:
        inboxes: The inboxes, in the order in which the parts stand in the joined data.
        target: Takes the joined events; they count as received already.
    """

    def __init__(
        self,
        inboxes: tuple[str, ...],
        outcomes: Outcomes,
        target: Callable[[Batch], Awaitable[None] | None],
        timeout_s: float,
    ):
        self.outcomes = outcomes
        self.counters = outcomes.counters
        self._inboxes = inboxes
        self._target = target
        self._timeout_s = timeout_s
        self._table: OrderedDict[str, _Parts] = OrderedDict()
        self._given_up: OrderedDict[str, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def accept(self, inbox: str, batch: Batch) -> Awaitable[None] | None:
        """Take events that count as received already."""
        counters = self.counters
        ready: Batch = []
        failed: list[tuple[Event[Any], Failed]] = []
        for event in batch:
            lineage = event.id
            if lineage in self._given_up:
                failed.append((event, Failed(Late("its siblings were given up before it came"), touched=False)))
                continue
            parts = self._table.get(lineage)
            if parts is None:
                parts = self._table[lineage] = _Parts(asyncio.get_running_loop().time() + self._timeout_s)
            elif inbox in parts.by_inbox:
                error = Incomplete(f"a second event of the same lineage came to {self.outcomes.name}.{inbox}")
                failed.append((event, Failed(error, touched=False)))
                continue
            parts.by_inbox[inbox] = event
            if len(parts.by_inbox) == len(self._inboxes):
                del self._table[lineage]
                ready.append(self._together(parts))
        counters.held -= len(failed)
        waits: list[Awaitable[None]] = []
        while len(self._table) > TABLE_SIZE:
            self._give_up(*self._table.popitem(last=False), "the table of incomplete joins is full", waits)
        if self._table and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)
        for wait in (self._target(ready) if ready else None, self.outcomes.fail(failed) if failed else None):
            if wait is not None:
                waits.append(wait)
        return all_of(waits)

    def _together(self, parts: _Parts) -> Event[Any]:
        members = [parts.by_inbox[inbox] for inbox in self._inboxes if inbox in parts.by_inbox]
        first = members[0]
        headers: dict[str, Any] = {}
        for member in members:
            headers.update(member.headers)
        data = {inbox: parts.by_inbox[inbox].data for inbox in self._inboxes if inbox in parts.by_inbox}
        tags = frozenset().union(*(member.tags for member in members))
        joined: Event[Any] = Event(data, headers=headers, key=first.key, parent=first.parent, tags=tags)
        join_events(members, joined)
        joined._id = first.numbered()._id
        joined._created = first._created
        failures: list[Failure] = []
        for member in members:
            failures += [failure for failure in member.failures if failure not in failures]
        joined.failures = tuple(failures)
        self.counters.joined += len(members) - 1
        self.counters.held -= len(members) - 1
        return joined

    def _give_up(self, lineage: str, parts: _Parts, why: str, waits: list[Awaitable[None]]) -> None:
        self._given_up[lineage] = None
        while len(self._given_up) > TABLE_SIZE:
            self._given_up.popitem(last=False)
        missing = ", ".join(inbox for inbox in self._inboxes if inbox not in parts.by_inbox)
        event = self._together(parts)
        self.counters.held -= 1
        wait = self.outcomes.fail([(event, Failed(Incomplete(f"{why}; nothing came to {missing}"), touched=False))])
        if wait is not None:
            waits.append(wait)

    def _expire(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        waits: list[Awaitable[None]] = []
        while self._table:
            lineage, parts = next(iter(self._table.items()))
            if parts.deadline > now:
                self._timer = loop.call_at(parts.deadline, self._expire)
                break
            del self._table[lineage]
            self._give_up(lineage, parts, f"waited {self._timeout_s:g} s", waits)

    def flush(self) -> Awaitable[None] | None:
        """Nothing more will come: what is incomplete fails."""
        waits: list[Awaitable[None]] = []
        while self._table:
            self._give_up(*self._table.popitem(last=False), "the flow ended", waits)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return all_of(waits)

    def abandon(self) -> int:
        held = [event for parts in self._table.values() for event in parts.by_inbox.values()]
        self._table.clear()
        if self._timer is not None:
            self._timer.cancel()
        return abandon(self.outcomes, held)


class JoinInbox:
    """One inbox of a join, as a consumer."""

    __slots__ = ("_inbox", "_join")

    def __init__(self, join: Join, inbox: str):
        self._join = join
        self._inbox = inbox

    def push(self, batch: Batch) -> Awaitable[None] | None:
        counters = self._join.counters
        counters.received += len(batch)
        counters.held += len(batch)
        return self.accept(batch)

    def accept(self, batch: Batch) -> Awaitable[None] | None:
        return self._join.accept(self._inbox, batch)
