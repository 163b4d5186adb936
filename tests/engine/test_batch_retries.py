"""What `retry` makes of a batch that fails: as a whole, or some of its members."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from furcula import BatchFailed, Event, Flow, Retry
from furcula.testing import assert_settled


class Later(Exception):
    retryable = True


class Never(Exception):
    retryable = False


class Work:
    """A batch function whose events say with what they fail, try by try. Keeps what it was handed."""

    def __init__(self, **plans: list[type[Exception]]) -> None:
        self.plans = plans
        self.calls: list[list[str]] = []
        self.tries: Counter[str] = Counter()

    def fates(self, events: list[Event[str]]) -> dict[int, Exception]:
        self.calls.append([event.data for event in events])
        errors: dict[int, Exception] = {}
        for index, event in enumerate(events):
            plan = self.plans.get(event.data, [])
            if self.tries[event.data] < len(plan):
                errors[index] = plan[self.tries[event.data]](event.data)
            self.tries[event.data] += 1
        return errors


def ran(work: Any, data: Any, retry: Retry | None, **options: Any) -> tuple[list[Any], list[tuple[Any, str, int]], Any]:
    """What came out, what failed (with what, after how many tries), and the module's statistics."""
    out: list[Any] = []
    dead: list[tuple[Any, str, int]] = []
    flow = Flow("retries")
    place = flow.module(work, "work", retry=retry, **options)
    (
        flow.source(lambda: [Event(one) for one in data], "source")
        >> place
        >> flow.module(lambda event: out.append(event.data), "keep")
    )
    place.failed >> flow.module(
        lambda event: dead.append((event.data, event.failures[-1].type, event.failures[-1].attempts)), "dead"
    )
    statistics = flow.run()
    assert_settled(statistics)
    return out, dead, statistics.modules["work"]


def test_only_members_that_are_worth_it_are_tried_again_and_all_leave_in_order() -> None:
    work = Work(b=[Later], c=[Never], d=[Later, Later, Later], e=[Later, Never])

    async def batch(events: list[Event[str]]) -> list[Event[str]]:
        errors = work.fates(events)
        if errors:
            raise BatchFailed(errors)
        return events

    out, dead, statistics = ran(batch, "abcdef", Retry(attempts=3, delay=0))
    assert work.calls == [list("abcdef"), list("bde"), list("d")]
    assert out == list("abf")
    assert sorted(dead) == [("c", "Never", 1), ("d", "Later", 3), ("e", "Never", 2)]
    assert statistics.retried == 4


def test_a_member_whose_error_retry_does_not_name_is_not_tried_again() -> None:
    work = Work(a=[Later], b=[OSError])

    def batch(events: list[Event[str]]) -> list[Event[str]]:
        errors = work.fates(events)
        if errors:
            raise BatchFailed(errors)
        return events

    out, dead, _ = ran(batch, "ab", Retry(attempts=3, delay=0, errors=(OSError,)))
    assert (out, dead, work.calls) == (["b"], [("a", "Later", 1)], [["a", "b"], ["b"]])


def test_new_events_stand_for_the_members_of_their_own_try() -> None:
    work = Work(b=[Later], d=[Later])

    def batch(events: list[Event[str]]) -> list[Event[str]]:
        errors = work.fates(events)
        made = [Event(event.data.upper()) for index, event in enumerate(events) if index not in errors]
        if errors:
            raise BatchFailed(errors, made)
        return made

    out, dead, _ = ran(batch, "abcde", Retry(attempts=2, delay=0))
    assert (out, dead) == (list("ABCDE"), [])


def test_what_a_try_packed_goes_on_and_the_rest_is_tried_again() -> None:
    work = Work(b=[Later])

    def batch(events: list[Event[str]]) -> list[Event[str]]:
        errors = work.fates(events)
        good = [event for index, event in enumerate(events) if index not in errors]
        made = [Event("".join(event.data for event in good))]
        if errors:
            raise BatchFailed(errors, made)
        return made

    out, dead, statistics = ran(batch, "abcd", Retry(attempts=2, delay=0))
    assert (sorted(out), dead, statistics.joined) == (["acd", "b"], [], 2)


def test_each_try_sees_the_data_as_it_came_and_so_does_who_gets_the_failures() -> None:
    seen: list[list[int]] = []

    def batch(events: list[Event[list[int]]]) -> list[Event[list[int]]]:
        seen.extend(list(event.data) for event in events)
        for event in events:
            event.data.append(0)
        raise BatchFailed({index: Later() for index, event in enumerate(events) if event.data[0] == 1})

    out, dead, _ = ran(batch, [[1], [2]], Retry(attempts=3, delay=0))
    assert (out, dead) == ([[2, 0]], [([1], "Later", 3)])
    assert seen == [[1], [2], [1], [1]]


def test_a_try_that_fails_as_a_whole_fails_those_that_are_left_of_the_batch() -> None:
    work = Work(b=[Later], c=[Later])

    def batch(events: list[Event[str]]) -> list[Event[str]]:
        errors = work.fates(events)
        if len(events) == 2:
            raise OSError("all of them")
        raise BatchFailed(errors)

    out, dead, statistics = ran(batch, "abcd", Retry(attempts=3, delay=0))
    assert work.calls == [list("abcd"), ["b", "c"], ["b", "c"]]
    assert (out, sorted(dead)) == (["a", "d"], [("b", "OSError", 3), ("c", "OSError", 3)])
    assert statistics.retried == 4


@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_each_member_has_the_fate_of_its_own_tries(seed: int) -> None:
    drawn = random.Random(seed)
    names = [f"n{number:03}" for number in range(300)]
    plans = {name: drawn.choices([Later, Never, OSError], k=drawn.choice([0, 0, 0, 1, 2, 3])) for name in names}
    work = Work(**plans)
    attempts = drawn.choice([1, 2, 3])

    async def batch(events: list[Event[str]]) -> list[Event[str]]:
        errors = work.fates(events)
        if errors:
            raise BatchFailed(errors)
        return events

    out, dead, statistics = ran(batch, names, Retry(attempts=attempts, delay=0, errors=(Later, Never)))
    fates: dict[str, tuple[str, int]] = {}
    for name, plan in plans.items():
        tried = 1
        while tried <= len(plan) and tried < attempts and plan[tried - 1] is Later:
            tried += 1
        fates[name] = (plan[tried - 1].__name__ if tried <= len(plan) else "", tried)
    assert out == [name for name in names if not fates[name][0]]
    assert sorted(dead) == [(name, *fate) for name, fate in fates.items() if fate[0]]
    assert work.tries == {name: tried for name, (_, tried) in fates.items()}
    assert statistics.retried == sum(tried - 1 for _, tried in fates.values())
