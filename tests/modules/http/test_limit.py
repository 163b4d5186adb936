"""http.limit: so often and no oftener, by a clock that the tests move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.modules.conftest import Bench

from furcula import Event
from furcula.modules.http.limit import Limit
from furcula.statuses import TooManyRequests
from furcula.testing import run_module


class Clock:
    def __init__(self) -> None:
        self.time_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time_s


def limited(clock: Clock, **arguments: Any) -> Limit:
    module = Limit(**arguments)
    module.start(Bench(Path(), clock))
    return module


def asked(module: Limit, client: Any = "10.0.0.1:5000", **headers: Any) -> bool:
    try:
        return bool(module.process(Event(None, {"client": client, **headers})))
    except TooManyRequests:
        return False


def test_a_burst_passes_and_then_one_for_each_interval() -> None:
    clock = Clock()
    module = limited(clock, rate="60/1m", burst=3)
    assert [asked(module) for _ in range(5)] == [True, True, True, False, False]
    clock.time_s += 0.9
    assert not asked(module)
    clock.time_s += 0.1
    assert [asked(module), asked(module)] == [True, False]
    clock.time_s += 3600
    assert [asked(module) for _ in range(5)] == [True, True, True, False, False]


def test_without_a_burst_of_its_own_the_whole_rate_may_come_at_once() -> None:
    module = limited(Clock(), rate="5/1h")
    assert [asked(module) for _ in range(6)] == [True] * 5 + [False]


def test_the_answer_says_when_to_come_again() -> None:
    clock = Clock()
    module = limited(clock, rate="2/1m")
    assert asked(module)
    assert asked(module)
    clock.time_s += 10
    with pytest.raises(TooManyRequests) as caught:
        module.process(Event(None, {"client": "10.0.0.1:1"}))
    error = caught.value
    assert error.headers == {
        "retry-after": "20",
        "ratelimit-limit": "2",
        "ratelimit-remaining": "0",
        "ratelimit-reset": "50",
    }
    assert error.problem() == {
        "detail": "2 requests in 60 s are allowed",
        "limit": 2,
        "window_s": 60.0,
        "retry_after_s": 20.0,
    }
    clock.time_s += int(error.headers["retry-after"])
    assert asked(module)


def test_who_is_refused_loses_nothing_by_having_asked() -> None:
    clock = Clock()
    module = limited(clock, rate="1/1m")
    assert asked(module)
    for _ in range(59):
        clock.time_s += 1
        assert not asked(module)
    clock.time_s += 1
    assert asked(module)


def test_each_client_has_a_bucket_whatever_its_port() -> None:
    module = limited(Clock(), rate="1/1m")
    assert asked(module, "10.0.0.1:5000")
    assert not asked(module, "10.0.0.1:5001")
    assert asked(module, "10.0.0.2:5000")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("[2001:db8::1]:5", "[2001:db8::ffff:2]:9", True),
        ("[2001:db8:0:1::1]:5", "[2001:db8:0:2::1]:5", False),
        ("[::ffff:10.0.0.1]:5", "[::ffff:10.0.0.2]:5", False),
        ("[::ffff:10.0.0.1]:5", "10.0.0.1:5", True),
        ("[fe80::1%eth0]:5", "[fe80::2%eth0]:5", True),
        ("[nonsense]:5", "[other]:5", False),
        ("", "", True),
        (None, "", True),
        (7, "", True),
        ("unix", "unix", True),
    ],
)
def test_which_clients_are_one(one: Any, other: Any, same: bool) -> None:
    module = limited(Clock(), rate="1/1m")
    assert asked(module, one)
    assert asked(module, other) is not same


def test_the_key_may_be_anything_of_the_event_and_those_without_share_a_bucket() -> None:
    module = limited(Clock(), rate="1/1m", key="headers.auth.user")
    for user in ("ada", "bob", 7, ["a", {"b": 1}], None):
        assert asked(module, auth={"user": user})
        assert not asked(module, "another", auth={"user": user})
    assert asked(module)
    assert not asked(module, "another")
    assert asked(module, auth={"user": "x" * 1_000_000})
    assert not asked(module, auth={"user": "x" * 1_000_000})
    assert all(len(key) < 100 for key in module._full_at)


def test_the_table_is_bounded_and_a_full_bucket_goes_first() -> None:
    clock = Clock()
    module = limited(clock, rate="60/1m", burst=60, most=3)
    for _ in range(30):
        assert asked(module, "busy:1")
    assert asked(module, "light:1")
    clock.time_s += 2  # the bucket of `light` is full again, that of `busy` is not
    assert asked(module, "third:1")
    assert asked(module, "fourth:1")
    assert module.known == 3
    assert sorted(module._full_at) == ["busy", "fourth", "third"]
    assert asked(module, "fifth:1")  # none is full: the one that was unused longest goes
    assert sorted(module._full_at) == ["fifth", "fourth", "third"]


def test_a_hundred_thousand_clients_take_no_more_room_than_was_given() -> None:
    module = limited(Clock(), rate="1/1m", most=100)
    assert all(asked(module, f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:1") for n in range(100_000))
    assert module.known == 100


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    clock = Clock()
    module = limited(clock, rate="1/1m")
    assert asked(module)
    clock.time_s -= 86_400
    assert not asked(module)
    clock.time_s += 60
    assert asked(module)


@given(
    count=st.integers(1, 50),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 100), min_size=1, max_size=200),
)
def test_no_window_ever_has_more_than_the_burst_and_the_rate(count: int, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    module = limited(clock, rate=f"{count}/60s", burst=burst)
    passed = []
    for pause in pauses:
        clock.time_s += pause
        if asked(module):
            passed.append(clock.time_s)
    for index, begin in enumerate(passed):
        for further, end in enumerate(passed[index:], 1):
            assert further <= burst + (end - begin) * count / 60 + 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": "often"}, "write requests in a time"),
        ({"rate": "0/1m"}, "write requests in a time"),
        ({"rate": "5/0s"}, "write requests in a time"),
        ({"rate": "5/week"}, "write requests in a time"),
        ({"rate": "5/1.2.3s"}, "write requests in a time"),
        ({"rate": "-5/1s"}, "write requests in a time"),
        ({"rate": "5/s", "burst": 0}, "burst must be 1"),
        ({"rate": "5/s", "most": 0}, "most must be 1"),
        ({"rate": "5/s", "key": "auth.user"}, "key: .*begins with"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limit(**arguments)


def test_rates_are_written_in_several_ways() -> None:
    for rate in ("120/2m", "120 / 2 m", "120/120s", "120/120"):
        module = limited(Clock(), rate=rate)
        assert (module._count, module._window_s) == (120, 120)
    assert limited(Clock(), rate="3/s")._window_s == 1
    assert limited(Clock(), rate="3/h")._window_s == 3600


def test_in_the_engine_the_flows_clock_counts_and_what_is_too_much_fails_with_429(tmp_path: Path) -> None:
    events = [Event(n, {"client": "10.0.0.1:1"}) for n in range(5)]
    result = run_module("http.limit", events, rate="3/1m")
    assert result.data() == [0, 1, 2]
    assert [(failure.status, failure.retryable) for failure in result.failures] == [(429, True)] * 2
