"""What a module and its child processes say to each other: frames of MessagePack over a pair of sockets.

A frame is four bytes, its length, and a MessagePack array. The home says `[number, events]` for each batch, and `[0,
[]]` for the end. The child says `[number, seconds, answers]`, as often as it likes for one batch: answers come in the
order of the events. Its first frame is `[0, 0, []]`: it is ready; or `[-1, 0, [why]]`: it cannot be.

Beside that a child keeps a *cell* in memory that both see: the time at which it began an event, and which one. So the
home knows what a child was at when it died, at the price of eight bytes written.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from furcula.event import Event, Failure
from furcula.module import Role
from furcula.naming import ImportName

__all__ = [
    "CELL",
    "DATA",
    "FAILED",
    "FRAME_LIMIT",
    "HEAD",
    "MANY",
    "NEW",
    "NO_EVENTS",
    "PACKED",
    "SAME",
    "UNCHANGED",
    "Answers",
    "EventWire",
    "Setup",
    "encode",
    "event_wire",
    "frame",
    "hashable",
    "mark_of",
    "place_of",
]

#: The length in front of a frame.
HEAD = struct.Struct(">I")
#: When the child began the event it is at (`time.monotonic`), and its mark. In the machine's own order and alignment:
#: so each is written in one piece.
CELL = struct.Struct("@dQ")
#: Bytes that a frame may have.
FRAME_LIMIT = 64_000_000

# Answers. An event function that returned its event: SAME; another event: NEW; bare data: DATA; a generator: MANY.
UNCHANGED = 0
DATA = 1
SAME = 2
NEW = 3
MANY = 4
FAILED = 5
#: The answer of a function of a whole batch, and that of one that answered no events.
PACKED = 6
NO_EVENTS = 7


class Setup(msgspec.Struct):
    """What a child is told first.

    Attributes:
        module: The module's name in the flow.
        find: The function or class.
        paths: `sys.path`.
        argv: `sys.argv`.
        role: As the flow places it.
        arguments: The arguments bound to it, as given.
        sink: Nothing is connected to it, so its answers need not come home.
        folder: What relative paths are relative to.
        isolate: Each event has a context of its own.
    """

    module: str
    flow: str
    find: ImportName
    paths: list[str]
    argv: list[str]
    role: Role
    arguments: dict[str, Any]
    sink: bool
    folder: str
    isolate: bool


class EventWire(msgspec.Struct, array_like=True, gc=False):
    """An event on its way to a child: what a function may see of it."""

    data: Any
    headers: Any
    id: str | None
    parent: str | None
    created: float
    key: Any
    ttl: int | None
    tags: frozenset[Any]
    failures: tuple[Failure, ...]

    def event(self) -> Event[Any]:
        return Event(
            self.data,
            self.headers,
            None,
            hashable(self.key),
            self.parent,
            self.ttl,
            self.tags,
            self.failures,
            None,
            self.created,
            self.id,
        )


class Answers(msgspec.Struct, array_like=True):
    """A frame from a child."""

    number: int
    seconds: float
    answers: list[Any]


encode = msgspec.msgpack.Encoder().encode


def frame(body: bytes) -> bytes:
    return HEAD.pack(len(body)) + body


def event_wire(event: Event[Any]) -> EventWire:
    return EventWire(
        event.data,
        event.headers,
        event.id,
        event.parent,
        event.created,
        event.key,
        event.ttl,
        event.tags,
        event.failures,
    )


def hashable(key: Any) -> Any:
    """A key as it was before MessagePack made its tuples lists."""
    return tuple([hashable(part) for part in key]) if type(key) is list else key


def mark_of(number: int, place: int) -> int:
    """The mark of the event at `place` of the batch `number`; 0 is none."""
    return (number << 24) | (place + 1)


def place_of(mark: int) -> tuple[int, int]:
    return mark >> 24, (mark & 0xFFFFFF) - 1
