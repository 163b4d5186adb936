"""What a source tells whoever it took an event from, once that event is settled."""

from __future__ import annotations

from typing import Literal

from furcula.receipt import Slot

__all__ = ["MAX_DELIVERIES", "Verdict", "verdict"]

#: * `ack`: it is done: delivered, or dropped on purpose.
#: * `again`: hand it out once more, later.
#: * `reject`: it is refused for good.
#: * `release`: hand it out once more; it was not tried, so no attempt is charged.
Verdict = Literal["ack", "again", "reject", "release"]

#: How often an event is handed out that fails in a way worth another try.
MAX_DELIVERIES = 5


def verdict(slot: Slot, attempts: int = 1, max_deliveries: int = MAX_DELIVERIES) -> Verdict:
    """What to say of a settled slot.

    Args:
        attempts: How often the event was handed out, this time included.
        max_deliveries: How often it may be.
    """
    if slot.fate != "failed":
        return "ack"
    if slot.reason == "abandoned":
        return "release"
    worth_it = slot.reason == "lost" or bool(getattr(slot.failure, "retryable", False))
    return "again" if worth_it and attempts < max_deliveries else "reject"
