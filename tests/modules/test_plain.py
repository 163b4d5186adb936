"""null, count, log, inlet."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from furcula.event import Event, Failure
from furcula.modules.plain import Count, Inlet, Log, Null


def test_null_takes_every_event() -> None:
    events = [Event(1), Event(2)]
    assert Null().process_batch(events) == events
    assert Null.outboxes == ()


def test_count_counts_what_passes_and_by_value() -> None:
    count = Count(by="data.kind")
    events = [Event({"kind": "a"}), Event({"kind": "b"}), Event({"kind": "a"}), Event({})]
    assert count.process_batch(events) is events
    assert count.total == 4
    assert count.values == {"a": 2, "b": 1, "(none)": 1}


def test_count_tells_no_more_than_a_thousand_values_apart() -> None:
    count = Count(by="data")
    count.process_batch([Event(number) for number in range(1500)] + [Event(3)])
    assert len(count.values) == 1001
    assert count.values["(others)"] == 500
    assert count.values["3"] == 2


async def test_count_logs_the_sum_at_the_end(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    count = Count(by="data")
    count.start(bench)
    count.process_batch([Event("x"), Event("x"), Event("y")])
    count.stop()
    assert caplog.messages == ["3 events (x: 2, y: 1)"]


def test_count_refuses_what_is_no_path() -> None:
    with pytest.raises(ValueError, match="a path begins with"):
        Count(by="kind")


async def test_log_says_what_passes_and_why_it_failed(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    log = Log(level="warning", text="dead:", limit=5)
    log.start(bench)
    event = Event("1234567", failures=(Failure("price", "KeyError", "'sku'"),))
    assert log.process(event) is event
    assert caplog.messages == ["dead: 12345… (7 characters) (failed in price: KeyError: 'sku')"]
    assert caplog.records[0].levelno == logging.WARNING


async def test_an_inlet_never_ends_by_itself_and_gives_back_what_comes_to_it(bench: Any) -> None:
    inlet = Inlet()
    inlet.start(bench)
    event = Event(1)
    assert not hasattr(inlet, "process")  # what comes to it has arrived
    del event
    assert not bench.ended.is_set()
