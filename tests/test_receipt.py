"""Receipts by themselves: every slot settles once, by its worst fate."""

from __future__ import annotations

import gc
import itertools
import logging

import pytest

from furcula.receipt import Fan, Origin, Receipt, Slot, Tracked, settle_all


def counts(origin: Origin) -> tuple[int, int, int, int, int]:
    assert origin.admitted == origin.delivered + origin.dropped + origin.failed + origin.open
    return origin.admitted, origin.delivered, origin.dropped, origin.failed, origin.open


def test_a_batch_settles_slot_by_slot() -> None:
    origin = Origin("o")
    receipt = Receipt(origin, 5)
    receipt.settle("delivered", 2)
    receipt.settle("dropped", 1, "filtered")
    assert counts(origin) == (5, 2, 1, 0, 2)
    receipt.settle("failed", 2, "ValueError")
    assert counts(origin) == (5, 2, 1, 2, 0)
    assert origin.reasons == {("dropped", "filtered"): 1, ("failed", "ValueError"): 2}


@pytest.mark.parametrize("fates", list(itertools.product(["delivered", "dropped", "failed"], repeat=3)))
def test_the_worst_fate_of_its_shares_is_a_slots_fate(fates: tuple[str, ...]) -> None:
    worst = "failed" if "failed" in fates else "delivered" if "delivered" in fates else "dropped"
    for way in ("one by one", "together", "fan"):
        origin = Origin("o")
        receipt = Receipt(origin, 1)
        if way == "fan":
            fan = Fan(receipt, 1, 3)
            for fate in fates:
                fan.settle(fate, [7], "why")  # type: ignore[arg-type]
        else:
            slot = receipt.share(3)
            for fate in fates:
                if way == "together":
                    settle_all([slot], fate, "why")  # type: ignore[arg-type]
                else:
                    slot.settle(fate, 1, "why")  # type: ignore[arg-type]
        expected = [int(worst == fate) for fate in ("delivered", "dropped", "failed")]
        assert counts(origin) == (1, *expected, 0)


def test_a_pack_tells_its_fate_to_all_its_members() -> None:
    origin = Origin("o")
    pack = Slot((Receipt(origin, 1), Receipt(origin, 1), Receipt(origin, 1).share(1)))
    pack.settle("failed", 1, "ValueError")
    assert counts(origin) == (3, 0, 0, 3, 0)


def test_a_late_report_changes_nothing_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    origin = Origin("o")
    slot = Receipt(origin, 1).share(1)
    slot.settle("delivered")
    slot.settle("failed", 1, "late")
    receipt = Receipt(origin, 1)
    receipt.settle("delivered", 2)
    assert counts(origin) == (2, 2, 0, 0, 0)
    assert origin.late == 2
    assert "settled already" in caplog.text


def test_what_is_collected_while_open_is_lost_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    origin, told = Origin("o"), []
    receipt = Receipt(origin, 3)
    receipt.settle("delivered")
    tracked = Tracked((Receipt(origin, 1),), 1, lambda slot: told.append((slot.fate, slot.reason)))
    del receipt, tracked
    gc.collect()
    assert counts(origin) == (4, 1, 0, 3, 0)
    assert origin.lost == 3
    assert told == [("failed", "lost")]


def test_an_answer_is_asked_for_through_splits_and_packs() -> None:
    class Asked(Tracked, gc=False, eq=False):
        def answer(self, reply: object) -> bool | None:
            return reply == "first"

    origin = Origin("o")
    asked = Asked((Receipt(origin, 1),))
    part = Slot((asked.share(2), Receipt(origin, 1)))
    assert part.answer("first") is True
    assert part.answer("second") is False
    assert Receipt(origin, 1).share(2).answer("nobody asked") is None
    part.settle("delivered")
    asked.settle("delivered")
