"""generate, interval, cron: what comes when. The clock is moved; nobody waits."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import pytest

from furcula.modules.timing import Cron, Generate, Interval
from furcula.options import Duration


async def taken(supply: Any, count: int, busy_s: float = 0.0) -> list[tuple[float, Any]]:
    """The first `count` of a source's events, with the loop's time of each."""
    found: list[tuple[float, Any]] = []
    assert isinstance(supply, AsyncIterator)
    async for data in supply:
        found.append((round(asyncio.get_running_loop().time(), 6), data))
        if len(found) == count:
            break
        if busy_s:
            await asyncio.sleep(busy_s)
    await supply.aclose()  # type: ignore[attr-defined]
    return found


# ------------------------------------------------------------------ generate


def test_generate_gives_copies_that_share_nothing() -> None:
    written = {"list": []}
    first, second = Generate(data=written, count=2).events()
    first["list"].append(1)
    assert second == {"list": []} == written


def test_generate_gives_each_item_once_or_over_and_over() -> None:
    assert list(Generate(items=[1, 2]).events()) == [1, 2]
    assert list(Generate(items=[1, 2], loop=True, count=5).events()) == [1, 2, 1, 2, 1]
    assert list(Generate(items=[1, 2], count=1).events()) == [1]
    assert list(Generate(count=2).events()) == ["test", "test"]


async def test_generate_keeps_to_its_rate(moved: Any) -> None:
    found = await taken(Generate(data=1, rate=4).events(), 5)
    assert [at for at, _ in found] == [0, 0.25, 0.5, 0.75, 1]
    found = await taken(Generate(data=1, every=Duration("2s"), count=3).events(), 9)
    assert len(found) == 3


async def test_generate_makes_no_burst_after_a_flow_that_was_slow(moved: Any) -> None:
    supply = Generate(data=1, rate=10).events()
    await taken_one(supply)
    await asyncio.sleep(60)
    found = await taken(supply, 30)
    assert found[-1][0] - found[0][0] > 1.7


async def taken_one(supply: Any) -> None:
    await supply.__anext__()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": 1, "items": [1]}, "not both"),
        ({"rate": 1, "every": Duration(1)}, "not both"),
        ({"rate": 0}, "more than 0"),
        ({"count": -1}, "not be negative"),
        ({"loop": True}, "needs items"),
    ],
)
def test_generate_refuses_what_contradicts_itself(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generate(**arguments)


# ------------------------------------------------------------------ interval


async def test_an_interval_ticks_after_each_period_and_says_when(moved: Any) -> None:
    interval = Interval(every=Duration(10), count=3)
    interval.start(moved)
    found = await taken(interval.events(), 9)
    assert found == [
        (10.0, {"tick": 1, "at": 1_000_000_010}),
        (20.0, {"tick": 2, "at": 1_000_000_020}),
        (30.0, {"tick": 3, "at": 1_000_000_030}),
    ]


async def test_an_interval_can_begin_at_once_with_data_of_its_own(moved: Any) -> None:
    interval = Interval(every=Duration(10), data={"a": []}, immediately=True)
    interval.start(moved)
    found = await taken(interval.events(), 2)
    assert [at for at, _ in found] == [0, 10]
    assert found[0][1] == {"a": []}
    assert found[0][1] is not found[1][1]


async def test_an_interval_does_not_drift_when_handling_takes_time(moved: Any) -> None:
    interval = Interval(every=Duration(0.1))
    interval.start(moved)
    found = await taken(interval.events(), 1001, busy_s=0.07)
    assert found[-1][0] == pytest.approx(100.1)


async def test_a_tick_that_was_missed_is_left_out_and_not_made_up_for(moved: Any) -> None:
    interval = Interval(every=Duration(10))
    interval.start(moved)
    found = await taken(interval.events(), 3, busy_s=25)
    assert [at for at, _ in found] == [10, 40, 70]


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Interval(every=Duration(0))


# ------------------------------------------------------------------ cron

# The moved clock begins at 2001-09-09 01:46:40 UTC, a Sunday.


async def test_cron_fires_on_schedule_only_and_not_at_the_start(moved: Any) -> None:
    cron = Cron(schedule="*/5 * * * *", timezone="UTC")
    cron.start(moved)
    found = await taken(cron.events(), 3)
    assert [at for at, _ in found] == [200, 500, 800]
    assert found[0][1] == {"schedule": "*/5 * * * *", "at": 1_000_000_200}


async def test_cron_knows_the_time_zone_and_its_summer_time(moved: Any) -> None:
    cron = Cron(schedule="30 4 * * *", timezone="Europe/Berlin", data="now")
    cron.start(moved)
    found = await taken(cron.events(), 60)
    moments = [datetime.datetime.fromtimestamp(1_000_000_000 + at, datetime.UTC) for at, _ in found]
    assert {moment.strftime("%H:%M") for moment in moments if moment.month == 9} == {"02:30"}
    assert {moment.strftime("%H:%M") for moment in moments if moment.month == 11} == {"03:30"}


async def test_moments_that_passed_while_the_flow_was_busy_give_one_event(moved: Any) -> None:
    cron = Cron(schedule="* * * * *", timezone="UTC")
    cron.start(moved)
    found = await taken(cron.events(), 3, busy_s=150)
    assert [at for at, _ in found] == [20, 170, 320]
    assert [data["at"] - 1_000_000_000 for _, data in found] == [20, 140, 320]


async def test_a_clock_that_is_set_back_does_not_make_cron_fire_early(moved: Any) -> None:
    begin = moved.now
    back_s = 0.0
    moved.now = lambda: begin() - back_s
    cron = Cron(schedule="0 * * * *", timezone="UTC")
    cron.start(moved)
    first = asyncio.ensure_future(taken(cron.events(), 1))
    await asyncio.sleep(100)
    back_s = 600
    (found,) = await first
    assert found[0] == pytest.approx(800 + 600)


async def test_cron_can_go_by_seconds(moved: Any) -> None:
    cron = Cron(schedule="*/10 * * * * *", timezone="UTC")
    cron.start(moved)
    assert [at for at, _ in await taken(cron.events(), 2)] == [10, 20]


@pytest.mark.parametrize("schedule", ["often", "61 * * * *", "0 0 30 2 *", ""])
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(ValueError, match="is not a cron schedule"):
        Cron(schedule=schedule)


def test_a_time_zone_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone 'Europe/Berlyn'"):
        Cron(schedule="* * * * *", timezone="Europe/Berlyn")


async def test_without_a_time_zone_the_machine_s_is_taken(moved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    cron = Cron(schedule="0 8 * * *")
    cron.start(moved)
    ((at, _),) = await taken(cron.events(), 1)
    assert datetime.datetime.fromtimestamp(1_000_000_000 + at, datetime.UTC).strftime("%H:%M") == "02:30"
    monkeypatch.delenv("TZ")
    Cron(schedule="0 8 * * *")  # and without that too, whatever it is
