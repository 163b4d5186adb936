"""What a worker is, and what it and its supervisor say to each other: values only."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from furcula.engine.statistics import Statistics
from furcula.sockets import Wanted

__all__ = [
    "REFUSED",
    "Answer",
    "Ask",
    "Beat",
    "Begin",
    "Cease",
    "Down",
    "Drain",
    "Finished",
    "Force",
    "Ready",
    "Start",
    "Up",
    "Worker",
]


#: The exit code of a worker that finds that the flow as written cannot run.
REFUSED: Final = 2


class Worker(msgspec.Struct, frozen=True):
    """One of the processes that run a flow, or a stage of one.

    Attributes:
        stage: The stage that it runs; None: all of the flow.
        index: Which one of those of its stage, from 0.
        count: How many there are of its stage.
        replacing: It is to take the place of one that is still at work, so what only one process may run waits in it
            until `Begin`.
    """

    stage: str | None = None
    index: int = 0
    count: int = 1
    replacing: bool = False

    @property
    def name(self) -> str:
        """`main/0`"""
        return f"{self.stage or 'main'}/{self.index}"


# ------------------------------------------------------------------ what a worker says


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The flow runs.

    Attributes:
        idle: It has no source of its own, so it ends when the others have.
    """

    idle: bool = False


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The worker's loop turns. Said each second.

    Attributes:
        ended: It is one of several stages, and all its sources have come to their end.
        over: Its sources that have come to their end, by name.
    """

    statistics: Statistics | None = None
    ended: bool = False
    over: frozenset[str] = frozenset()


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A module wants to listen. The `Answer` has the same number."""

    number: int
    wanted: Wanted


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The last words.

    Attributes:
        code: The exit code that follows: 0, or as `furcula run` has them.
        statistics: All figures; None: there was no flow to count in.
        error: What went wrong, in a line or a few.
        signalled: It was ended by a signal from outside, which only its supervisor should have sent.
        over: Its sources that had come to their end before it was told to stop, by name.
        unfit: It is the flow as written that cannot run: another process would fare no better.
    """

    code: int = 0
    statistics: Statistics | None = None
    error: str = ""
    signalled: bool = False
    over: frozenset[str] = frozenset()
    unfit: bool = False


# ------------------------------------------------------------------ what is said to it


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first words: who it is, and what it has to know."""

    worker: Worker
    settings: dict[str, Any] = {}


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Stop; said again, it shortens the time.

    Attributes:
        deadline_s: Seconds for the draining; None: as long as it takes.
        grace_s: Seconds that clients with an open connection get to take their leave: another worker is there for them.
    """

    deadline_s: float | None = None
    grace_s: float = 0.0


class Cease(msgspec.Struct, frozen=True, tag=True):
    """Let the sources end, go on with what other stages send, and beat more often, to be seen coming to rest."""


class Force(msgspec.Struct, frozen=True, tag=True):
    """End at once."""


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The worker that this one replaces has gone: begin what only one process may run.

    Attributes:
        over: But not these sources: they have given all that they have.
    """

    over: frozenset[str] = frozenset()


class Answer(msgspec.Struct, frozen=True, tag=True):
    """The sockets that were asked for come with this message, `count` of them; or an OSError's number and text."""

    number: int
    count: int = 0
    errno: int = 0
    error: str = ""


Up = Ready | Beat | Ask | Finished
Down = Start | Drain | Cease | Force | Begin | Answer
