"""Functions for child processes: they are found by their names, in a module that imports little."""

from __future__ import annotations

import contextvars
import ctypes
import dataclasses
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from furcula import BatchFailed, Event, Module
from furcula.options import Duration, Secret


def double(number: int) -> int:
    return number * 2


def is_even(number: int) -> bool:
    return number % 2 == 0


def up_to(number: int) -> list[int]:
    return list(range(number % 4))


def picky(number: int) -> int | None:
    if number % 5 == 3:
        raise ValueError(f"no {number}")
    return None if number % 5 == 4 else number + 1


def noted(event: Event[Any]) -> Event[Any] | None:
    if event.data % 7 == 6:
        return None
    event.headers["seen"] = event.data
    event.tag("noted")
    event.key = ("k", event.data % 3)
    event.data += 1
    return event


def routed(event: Event[Any]) -> Event[Any]:
    return event.to("side") if event.data % 3 == 0 else event


def renewed(event: Event[Any]) -> Event[Any]:
    return Event({"was": event.data}, headers={"new": True})


def children(event: Event[Any]) -> Iterator[Any]:
    for number in range(event.data % 3):
        event.data += 100
        yield event
        yield number
    if event.data % 5 == 4:
        raise LookupError("the end is missing")


def port_of(event: Event[Any]) -> str | None:
    return (None, "outbox", "side")[event.data % 3]


def changes_then_fails(event: Event[Any]) -> Event[Any]:
    event.data += 1000
    event.headers["touched"] = True
    raise RuntimeError("after a change")


def nonsense(event: Event[Any]) -> Any:
    return {"not": "an event"}


def stops(number: int) -> int:
    if number % 3 == 0:
        raise StopIteration
    return number


def leaves(number: int) -> int:
    if number % 3 == 0:
        sys.exit(3)
    return number


def sums(events: list[Event[int]]) -> list[Event[int]]:
    for event in events:
        event.data += 1
    return [event for event in events if event.data % 4]


def as_it_is(events: list[Event[Any]]) -> list[Event[Any]]:
    return events


def some_fail(events: list[Event[int]]) -> list[Event[int]]:
    errors = {place: ValueError("third") for place, event in enumerate(events) if event.data % 3 == 0}
    if errors:
        raise BatchFailed(errors)
    return events


def batch_that_ends_with_seven(events: list[Event[int]]) -> list[Event[int]]:
    if any(event.data == 7 for event in events):
        os._exit(4)
    return events


class Adder(Module):
    """Adds a number, and says where it was started."""

    def __init__(self, by: int = 1):
        self.by = by
        self.started = 0

    def start(self, context: Any) -> None:
        self.started = os.getpid()
        self.name = context.name

    def process(self, event: Event[Any]) -> Event[Any]:
        event.headers["by"] = f"{self.name} {self.started == os.getpid()}"
        event.data += self.by
        return event


class Stopping(Module):
    def __init__(self, note: str):
        self.note = note

    def process(self, event: Event[Any]) -> Event[Any]:
        return event

    def stop(self) -> None:
        Path(self.note).write_text("stopped", encoding="utf-8")


class Waiting(Module):
    async def start(self, context: Any) -> None: ...

    def process(self, event: Event[Any]) -> Event[Any]:
        return event


# ------------------------------------------------------------------ which process, and when


def who(number: int) -> list[int]:
    return [number, os.getpid()]


def who_slowly(number: int) -> list[Any]:
    began = time.monotonic()
    time.sleep(0.001 * (number % 4))
    return [number, os.getpid(), began, time.monotonic()]


def meets(order: dict[str, Any]) -> int:
    """The first waits for the second, which says that it was here."""
    note = Path(order["note"])
    if order["number"] == 0:
        limit = time.monotonic() + 30
        while not note.exists() and time.monotonic() < limit:
            time.sleep(0.001)
        return 0 if note.exists() else -1
    if not order.get("silent"):
        note.write_text("here", encoding="utf-8")
    return int(order["number"])


def waits_for(order: dict[str, Any]) -> int:
    """Says that it began, and waits until it is let go on."""
    Path(order["began"]).write_text(str(os.getpid()), encoding="utf-8")
    limit = time.monotonic() + 60
    while not Path(order["go"]).exists() and time.monotonic() < limit:
        time.sleep(0.001)
    return os.getpid()


# ------------------------------------------------------------------ ends


def killed(number: int) -> int:
    if number % 20 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def exits(number: int) -> int:
    if number % 20 == 7:
        os._exit(3)
    return number


def crashes(number: int) -> int:
    if number == 7:
        ctypes.string_at(0)
    return number


def always_ends(number: int) -> int:
    os._exit(1)


def ends_later(number: int) -> int:
    """The process ends when nobody is being handled."""
    if number == 0:
        threading.Timer(0.05, os._exit, [5]).start()
    return number


def leaves_a_child(number: int) -> int:
    """Another process, which has inherited everything, lives on."""
    if number == 3:
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
        os._exit(6)
    return number


def hangs(number: int) -> int:
    if number % 20 == 7:
        time.sleep(600)
    return number


def _times(note: str) -> int:
    """How often this was called with that name."""
    with open(note, "ab") as file:
        file.write(b"x")
    return os.path.getsize(note)


def ends_once(number: int, *, notes: str) -> int:
    if number % 10 == 7 and _times(f"{notes}/{number}") == 1:
        os._exit(1)
    return number


def hangs_once(number: int, *, notes: str) -> int:
    if number % 10 == 7 and _times(f"{notes}/{number}") == 1:
        time.sleep(600)
    return number


class Refused(ConnectionError):
    """Cannot be made from its message alone."""

    def __new__(cls, one: int, *, two: str) -> Refused:
        return super().__new__(cls, one)

    def __init__(self, one: int, *, two: str):
        super().__init__(one)
        self.two = two

    def __str__(self) -> str:
        return f"refused: {self.two}"

    retryable = True


def refuses(event: Event[Any], *, notes: str, times: int = 100) -> Event[Any]:
    event.data["tries"] = event.data.get("tries", 0) + 1
    if _times(f"{notes}/{event.data['number']}") <= times:
        raise Refused(1, two=str(event.data["number"]))
    return event


def refuses_in_lane(event: Event[Any], *, notes: str) -> Event[Any]:
    """Each third fails the first time that it is tried."""
    if event.data[1] % 3 == 0 and _times(f"{notes}/{event.data[0]}-{event.data[1]}") == 1:
        raise Refused(1, two="once")
    event.data = [*event.data, time.monotonic()]
    return event


# ------------------------------------------------------------------ what crosses


def gives(number: int) -> Any:
    return {0: object(), 1: {"deep": {1, 2}}, 2: (1, 2), 3: b"raw", 4: {"inside": [3, threading.Lock()]}}[number]


def kind_of(value: Any) -> str:
    return type(value).__name__


def sees(event: Event[Any]) -> Event[Any]:
    """What a function may see of an event."""
    event.data = {
        "id": event.id,
        "key": repr(event.key),
        "tags": sorted(event.tags),
        "headers": event.headers,
        "failures": [failure.module for failure in event.failures],
        "created": event.created > 0,
    }
    return event


def arguments(number: int, *, wait: Duration, secret: Secret, plain: Any = None) -> list[Any]:
    return [wait == 2.0, repr(secret), secret.reveal(), repr(plain)]


def prints(number: int) -> int:
    print(f"out {number}")
    print(f"err {number}", file=sys.stderr)
    return number


def unlucky(number: int) -> list[int]:
    """Now and then the process dies, now and then the function fails."""
    drawn = random.random()
    if drawn < 0.02:
        os.kill(os.getpid(), signal.SIGKILL)
    if drawn < 0.04:
        raise ValueError("unlucky")
    if drawn < 0.2:
        time.sleep(0.002 * random.random())
    return [number, number % 5]


def thirds_fail_once(events: list[Event[int]], *, notes: str) -> list[Event[int]]:
    errors = {
        place: ValueError("once")
        for place, event in enumerate(events)
        if event.data % 3 == 0 and _times(f"{notes}/{event.data}") == 1
    }
    if errors:
        raise BatchFailed(errors)
    return events


def large(number: int) -> bytes:
    return bytes(number)


def endless(number: int) -> Iterator[int]:
    while number:
        yield number


_seen: contextvars.ContextVar[int] = contextvars.ContextVar("_seen", default=0)


def counts_in_context(number: int) -> int:
    _seen.set(_seen.get() + 1)
    return _seen.get()


@dataclasses.dataclass(frozen=True)
class OddKey:
    number: int


def keyed_oddly(number: int) -> object:
    """What bytes can say of 2 cannot be read again: a dict with a dict as a key."""
    return {OddKey(1): 2} if number == 2 else number
