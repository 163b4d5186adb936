"""What a source of bytes has read, on its way in: data leaves by `outbox`, what was no data by `invalid`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from furcula.codecs import BadFrame
from furcula.codecs.framing import EXCERPT
from furcula.event import MISSING, Event
from furcula.module import Context
from furcula.receipt import Slot

__all__ = ["admit", "admit_both", "invalid"]


def invalid(bad: BadFrame, headers: dict[str, Any]) -> Event[str]:
    """The event for bytes that could not be read: their beginning as text, and the reason as a header."""
    text = bad.raw.decode("utf-8", "backslashreplace")[:EXCERPT]
    return Event(text, {"reason": bad.reason, **headers})


def admit(context: Context, items: list[Any], headers: dict[str, Any]) -> Awaitable[None] | None:
    """Admit what a Reader gave, each with its own copy of `headers`.

    Returns:
        As `Context.admit`: an awaitable is to be awaited before more is read.
    """
    good = [Event(item, headers.copy()) for item in items if type(item) is not BadFrame and item is not MISSING]
    if len(good) == len(items):
        return context.admit(good)
    return admit_both(context, good, [invalid(item, headers) for item in items if type(item) is BadFrame])


def admit_both(
    context: Context,
    good: list[Event[Any]],
    bad: list[Event[Any]],
    settled: Callable[[Slot], None] | None = None,
) -> Awaitable[None] | None:
    """Admit events to `outbox` and to `invalid`."""
    waits = context.admit(good, settled=settled) if good else None
    also = context.admit(bad, "invalid", settled=settled) if bad else None
    if waits is None or also is None:
        return also if waits is None else waits
    return _one_after_the_other(waits, also)


async def _one_after_the_other(first: Awaitable[None], second: Awaitable[None]) -> None:
    await first
    await second
