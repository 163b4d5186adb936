"""Sources that go by the clock: generate, interval, cron.

They sleep by the event loop's clock and tell the time by the flow's (`Context.now`), so a test can move both.
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import math
import os
import zoneinfo
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from cronsim import CronSim, CronSimError

from furcula.event import copy_data
from furcula.module import Context, Source
from furcula.options import Duration

__all__ = ["Cron", "Generate", "Interval"]

#: A moment that is nearer than this has come: clocks that are summed up from floats miss by less.
_NOW_S = 1e-6


class Generate(Source):
    """Make events: copies of `data`, or the `items` one by one; as fast as they are taken, or at a rate.

    Args:
        data: The data of every event.
        items: The data of one event each.
        count: So many events; default: for ever with `data`, each once with `items`.
        rate: So many a second. A flow that is slower than that gets them as it can take them, and no burst later.
        every: The time between two events, instead of `rate`.
        loop: Begin again with the first of the `items` after the last.
    """

    def __init__(
        self,
        *,
        data: Any = None,
        items: list[Any] | None = None,
        count: int | None = None,
        rate: float | None = None,
        every: Duration | None = None,
        loop: bool = False,
    ):
        if items is not None and data is not None:
            raise ValueError("generate takes data or items, not both")
        if rate is not None and every is not None:
            raise ValueError("generate takes rate or every, not both")
        if rate is not None and not rate > 0:
            raise ValueError("rate must be more than 0")
        if count is not None and count < 0:
            raise ValueError("count must not be negative")
        if loop and not items:
            raise ValueError("loop needs items")
        self._pause = float(every) if every is not None else 1 / rate if rate is not None else 0.0
        self._data = "test" if data is None else data
        self._items = items
        self._count = count
        self._loop = loop

    def events(self) -> Iterable[Any] | AsyncIterator[Any]:
        return self._paced() if self._pause else self._all()

    def _all(self) -> Iterator[Any]:
        supply: Iterable[Any] = itertools.repeat(self._data) if self._items is None else self._items
        if self._loop:
            supply = itertools.cycle(supply)
        # No two events may share what can be changed, nor may any change what is written in the flow.
        return map(copy_data, supply if self._count is None else itertools.islice(supply, self._count))

    async def _paced(self) -> AsyncIterator[Any]:
        clock = asyncio.get_running_loop().time
        due = clock()
        for data in self._all():
            wait = due - clock()
            if wait > _NOW_S:
                await asyncio.sleep(wait)
            elif wait < -1:
                due = clock()  # more than a second behind: the flow is too slow, and gets no burst for that
            yield data
            due += self._pause


class Interval(Source):
    """Make an event every so often. Does not drift; a tick that was missed is left out.

    Args:
        every: The time between two events.
        data: The data of every event; default: `{"tick": number from 1, "at": unix time}`.
        count: End after so many events.
        immediately: The first event at once; default: after `every`.
    """

    def __init__(self, *, every: Duration, data: Any = None, count: int | None = None, immediately: bool = False):
        if not every:
            raise ValueError("every must be more than 0")
        self._every = float(every)
        self._data = data
        self._count = count
        self._immediately = immediately
        self._context: Context | None = None

    def start(self, context: Context) -> None:
        self._context = context

    async def events(self) -> AsyncIterator[Any]:
        assert self._context is not None
        clock = asyncio.get_running_loop().time
        begin = clock()
        slot = 0 if self._immediately else 1
        for tick in itertools.count(1) if self._count is None else range(1, self._count + 1):
            while (wait := begin + slot * self._every - clock()) > _NOW_S:  # noqa: ASYNC110 -- it waits for a time
                await asyncio.sleep(wait)
            yield {"tick": tick, "at": self._context.now()} if self._data is None else copy_data(self._data)
            # Counted from the beginning, so errors do not add up; and never a slot that has passed.
            slot = max(slot + 1, math.ceil((clock() - begin - _NOW_S) / self._every))


class Cron(Source):
    """Make an event at the times of a cron schedule, and only then.

    Moments that passed while the machine slept, or the flow was busy, give one event, not many.

    Args:
        schedule: Five fields: minute, hour, day of month, month, day of week; or six, with seconds first.
        data: The data of every event; default: `{"schedule": schedule, "at": unix time it was due}`.
        timezone: A name such as Europe/Berlin; default: the machine's.
    """

    #: No sleep is longer, so that a clock that was set, or a machine that slept, is noticed.
    LONGEST_SLEEP_S = 60.0

    def __init__(self, *, schedule: str, data: Any = None, timezone: str | None = None):
        self._schedule = schedule
        self._data = data
        self._zone = _zone(timezone)
        self._context: Context | None = None
        try:
            next(CronSim(schedule, datetime.datetime.now(self._zone)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"{schedule!r} is not a cron schedule: {error or 'it never comes'}") from None

    def start(self, context: Context) -> None:
        self._context = context

    async def events(self) -> AsyncIterator[Any]:
        assert self._context is not None
        now = self._context.now
        moments = CronSim(self._schedule, datetime.datetime.fromtimestamp(now(), self._zone))
        due = next(moments).timestamp()
        while True:
            while (wait := due - now()) > _NOW_S:  # noqa: ASYNC110 -- it waits for a time
                await asyncio.sleep(min(wait, self.LONGEST_SLEEP_S))
            following = next(moments).timestamp()
            while following <= now():
                due, following = following, next(moments).timestamp()
            yield {"schedule": self._schedule, "at": due} if self._data is None else copy_data(self._data)
            due = following


def _zone(name: str | None) -> datetime.tzinfo:
    """The time zone of that name, or the machine's, with its changes of summer time."""
    try:
        if name is not None:
            return zoneinfo.ZoneInfo(name)
        if named := os.environ.get("TZ", "").lstrip(":"):
            return zoneinfo.ZoneInfo(named)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"there is no time zone {name or named!r}; write one such as Europe/Berlin") from error
    try:
        with open("/etc/localtime", "rb") as file:
            return zoneinfo.ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return datetime.UTC
