"""What both ends of a cut have in common: parcels, what became of their events, and who waits for them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from furcula import Event
from furcula.codecs import encode_events
from furcula.engine.crossed import Arrival, Homes, Parcel, Reported, settle_reported
from furcula.event import Failure
from furcula.receipt import Origin, Receipt, Slot


@pytest.fixture(autouse=True)
def _no_garbage() -> Iterator[None]:
    """A collector that runs would hide what stays behind."""
    gc.disable()
    yield
    gc.enable()


def arrived(count: int, origin: Origin, done: Any = lambda arrival: None) -> Arrival:
    parcel = Parcel("a -> b", encode_events([Event({"n": number}) for number in range(count)]))
    return Arrival(parcel, origin, Homes("main/0"), done)


@pytest.mark.parametrize("fate", ["delivered", "dropped", "failed"])
def test_an_event_that_came_in_a_parcel_is_not_kept_by_anything_once_it_is_settled(fate: Any) -> None:
    origin = Origin("a -> b")
    events = [*arrived(3, origin).events]
    for event in events:
        event.carrier().settle(fate, 1, "tried")  # type: ignore[union-attr]
    assert origin.open == 0
    event = events.pop()
    assert sys.getrefcount(event) == 2  # this name, and the call


def test_a_settled_event_is_not_kept_for_a_sibling_that_takes_long() -> None:
    origin = Origin("a -> b")
    slow, *events = arrived(3, origin).events
    event = events.pop()
    event.carrier().settle("delivered")  # type: ignore[union-attr]
    assert sys.getrefcount(event) == 2
    for rest in (slow, *events):
        rest.carrier().settle("delivered")  # type: ignore[union-attr]


def test_the_sender_is_told_once_what_became_of_all_and_which_did_not_arrive() -> None:
    told: list[Arrival] = []
    origin = Origin("a -> b")
    one, two, three = arrived(3, origin, told.append).events
    one.carrier().settle("delivered")  # type: ignore[union-attr]
    two.carrier().settle("failed", 1, "error", Failure("b", "ValueError", "no"))  # type: ignore[union-attr]
    assert (told, origin.delivered, origin.failed, origin.open) == ([], 1, 1, 1)
    three.carrier().settle("dropped", 1, "filtered")  # type: ignore[union-attr]
    (arrival,) = told
    assert {index: (said.fate, said.reason) for index, said in arrival.fates.items()} == {
        1: ("failed", "error"),
        2: ("dropped", "filtered"),
    }
    assert (origin.admitted, origin.delivered, origin.dropped, origin.failed, origin.open) == (3, 1, 1, 1, 0)


def test_a_parcel_of_several_batches_settles_each_of_their_receipts_by_its_own_count() -> None:
    origin = Origin("in")
    receipts = [Receipt(origin, count) for count in (100, 50)]
    settle_reported([receipts[0]] * 100 + [receipts[1]] * 50, {})
    assert [receipt.open for receipt in receipts] == [0, 0]
    assert (origin.delivered, origin.open, origin.late) == (150, 0, 0)


def test_a_parcel_with_slots_among_its_receipts_settles_all_of_them() -> None:
    origin = Origin("in")
    receipt = Receipt(origin, 100)
    slot = receipt.share(1)
    assert type(slot) is Slot
    settle_reported([receipt] * 99 + [slot, None], {})
    assert (receipt.open, origin.delivered, slot.fate) == (0, 100, "delivered")


def test_what_did_not_arrive_is_settled_as_it_was_reported_and_the_rest_is_delivered() -> None:
    origin = Origin("in")
    receipt = Receipt(origin, 100)
    settle_reported([receipt] * 100, {3: Reported("failed", "error"), 7: Reported("dropped", "filtered")})
    assert (origin.delivered, origin.failed, origin.dropped, origin.open) == (98, 1, 1, 0)


def test_only_events_that_somebody_waits_for_are_named_in_a_parcel() -> None:
    receipt = Receipt(Origin("in"), 3)
    assert Homes("main/0").all_sent([receipt, None, receipt.share(1)]) == {}
    receipt.settle("delivered", 2)
