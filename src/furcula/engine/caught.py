"""What every way of running a module does alike: what it catches, what it keeps, what it warns of, what it abandons."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from furcula.engine.counters import Counters
from furcula.engine.outcome import Failed, Outcomes, make_failure
from furcula.engine.outlets import Batch
from furcula.errors import Abandoned
from furcula.event import Event, copy_data

__all__ = ["CAUGHT", "abandon", "keep_originals", "snapshot", "warn_held"]

_log = logging.getLogger("furcula.flow")

#: What a module may raise without stopping anything. CancelledError from a future of the user's own is a failure too,
#: and so is a module's sys.exit().
CAUGHT = (Exception, asyncio.CancelledError, SystemExit)


def abandon(outcomes: Outcomes, held: Batch) -> int:
    """Fail events that are still held when the deadline has passed; failure routes are not tried any more."""
    for event in held:
        outcomes.counters.failed += 1
        outcomes.counters.held -= 1
        outcomes.counters.reasons["failed", "abandoned"] += 1
        error = Abandoned(f"the flow stopped before {outcomes.name} was done with it")
        failure = make_failure(outcomes.name, Failed(error))
        receipt = event.carrier()
        if receipt is not None:
            receipt.settle("failed", 1, "abandoned", failure)
        if outcomes.left is not None:
            outcomes.left.append((event, failure))
    return len(held)


def warn_held(name: str, counters: Counters, count: int, seconds: float) -> None:
    if counters.warned:
        return
    counters.warned = True
    _log.warning(
        "%s held the event loop for %.0f ms (%d event%s): everything else waited. If it blocks, say thread: true",
        name,
        seconds * 1000,
        count,
        "" if count == 1 else "s",
    )


def keep_originals(outcomes: Outcomes, batch: Batch) -> tuple[Batch, list[tuple[Any, dict[str, Any]]]]:
    """The batch, and copies of what it came with. What cannot be copied fails and is left out of both."""
    try:
        return batch, [snapshot(event) for event in batch]
    except Exception:
        pass  # some event cannot be copied: find out which
    good: Batch = []
    originals = []
    for event in batch:
        try:
            originals.append(snapshot(event))
            good.append(event)
        except Exception as error:
            outcomes.counters.held -= 1
            outcomes.fail([(event, Failed(error, touched=False))])
    return good, originals


def snapshot(event: Event[Any]) -> tuple[Any, dict[str, Any]]:
    return copy_data(event.data), copy_data(event.headers)
