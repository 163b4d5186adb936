"""The claim that every test of a running flow makes at its end: everything admitted is settled, and the sums hold."""

from __future__ import annotations

from furcula.engine.statistics import Statistics

__all__ = ["assert_settled"]


def assert_settled(statistics: Statistics) -> None:
    """Assert that a run has kept its promise: nothing open, nothing lost, nothing settled twice, all sums right.

    Raises:
        AssertionError: It says which origin or module is wrong, and its figures.
    """
    wrong = []
    for name, origin in {"the flow": statistics.total, **statistics.origins}.items():
        if not origin.balanced:
            wrong.append(
                f"{name}: admitted {origin.admitted} is not delivered {origin.delivered} + dropped {origin.dropped} "
                f"+ failed {origin.failed} + open {origin.open}"
            )
        wrong += [
            f"{name}: {count} {word}"
            for word, count in (("still open", origin.open), ("lost", origin.lost), ("settled twice", origin.late))
            if count
        ]
    for name, module in statistics.modules.items():
        if not module.balanced:
            wrong.append(
                f"{name}: received {module.received} + born {module.born} is not sent {module.sent} + delivered "
                f"{module.delivered} + dropped {module.dropped} + failed {module.failed} + joined {module.joined} "
                f"+ held {module.held}"
            )
        elif module.held:
            wrong.append(f"{name}: still holds {module.held}")
    assert not wrong, f"{statistics.flow} is not settled:\n" + "\n".join(wrong)
