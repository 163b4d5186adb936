"""Every error furcula raises: one root, few branches, and the branch says who must act.

* `ConfigurationError`: whoever wrote the flow, in YAML or in Python.
* `ModuleError`: whoever wrote a module.
* `DeliveryError`: nobody's bug; an event met a limit (time, room, hops) that the flow sets.
* `InputError`: whoever sent the bytes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

__all__ = [
    "Abandoned",
    "CircuitOpen",
    "ConfigurationError",
    "DeadlinePassed",
    "DeliveryError",
    "Expired",
    "FurculaError",
    "Incomplete",
    "InputError",
    "Late",
    "Lost",
    "MissingExtra",
    "ModuleError",
    "ModuleTimeout",
    "Problem",
    "QueueFull",
    "SourceFailed",
    "StartFailed",
    "Stopped",
    "StoreDamaged",
    "StoreError",
    "StoreUnavailable",
    "Unanswered",
    "WorkerDied",
    "nearest",
]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `", did you mean 'x'?"` for the known name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.55)
    return f", did you mean {close[0]!r}?" if close else ""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong with a flow or its file.

    Attributes:
        message: What is wrong, with the wrong value and the nearest valid name.
        path: Where in the flow: `modules.enrich.retry.attempts`, `routes[2]`.
        location: `file:line:column`, or `file:line` of Python code, or empty.
    """

    message: str
    path: str = ""
    location: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.location, self.path, self.message) if part)


class FurculaError(Exception):
    """The root of every error of furcula."""

    #: May a source that can redeliver try the same event again?
    retryable = False


class ConfigurationError(FurculaError):
    """The flow as written cannot run. `problems` has all that was found, each with its place."""

    def __init__(self, problems: Sequence[Problem] | str):
        if isinstance(problems, str):
            problems = [Problem(problems)]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> Any:
        return (type(self), (list(self.problems),))


class MissingExtra(ConfigurationError):
    """An optional library is not installed. The message names the extra to install."""

    def __init__(self, what: str, extra: str):
        super().__init__(f"{what} needs an optional library: pip install 'furcula[{extra}]'")


class ModuleError(FurculaError):
    """A module broke its side of the contract (returned nonsense, named an unknown outbox)."""


class StartFailed(ModuleError):
    """A module raised in `start`, so the flow did not start. The message names the module."""


class SourceFailed(ModuleError):
    """A source raised, so its stream ended early. What it had admitted was settled first.

    Attributes:
        statistics: The statistics of the run, complete.
    """

    statistics: Any = None


class DeliveryError(FurculaError):
    """An event met a limit that the flow sets."""

    retryable = True


class QueueFull(DeliveryError):
    """The queue in front of a module was full and its `overflow` says `fail`."""

    status = 503


class ModuleTimeout(DeliveryError, TimeoutError):
    """A module did not finish an event within its `timeout`."""

    status = 504


class WorkerDied(DeliveryError):
    """The process that was handling the event ended: by a signal, for want of memory, or by its own doing."""

    status = 503


class CircuitOpen(DeliveryError):
    """A module's circuit breaker is open: it failed too often and is being left alone for a while."""

    status = 503


class Abandoned(DeliveryError):
    """The flow was stopped and its deadline passed before this event was settled."""

    status = 503


class Lost(DeliveryError):
    """A receipt was garbage-collected while a share of it was open. This is a defect of furcula."""


class Expired(DeliveryError):
    """An event used up its hops (`ttl`)."""

    retryable = False


class Incomplete(DeliveryError):
    """An aggregation did not get an event from every inbox in time."""

    retryable = False


class Late(DeliveryError):
    """An event came to an aggregation after its siblings had been given up."""

    retryable = False


class Unanswered(DeliveryError):
    """A request was settled, and no event of it came back to who asked.

    Attributes:
        fate: What became of it: `delivered`, `dropped` or `failed`.
        reason: Why it was dropped, or the name of the error it failed with.
        failure: The Failure, where there is one.
    """

    def __init__(self, fate: str, reason: str = "", failure: Any = None):
        self.fate = fate
        self.reason = reason
        self.failure = failure
        more = f" ({failure.type}: {failure.message})" if failure is not None else (f" ({reason})" if reason else "")
        super().__init__(f"the request was {fate}{more}, and nothing came back")


class DeadlinePassed(DeliveryError, TimeoutError):
    """No answer to a request came in time. Its events go on until they are settled."""


class StoreError(FurculaError):
    """A store (an SQLite file with durable queues and dead letters) cannot be used. The message names the file."""


class StoreDamaged(StoreError):
    """What is in the file cannot be trusted: it is no store, one of another version, or damaged."""


class StoreUnavailable(StoreError, DeliveryError):
    """The store cannot be written now: the disk is full, or another program holds the file. Nothing was stored."""

    retryable = True
    status = 503


class Stopped(FurculaError):
    """The Director is stopping or has stopped and admits nothing more."""

    retryable = True
    status = 503


class InputError(FurculaError, ValueError):
    """Bytes that are not what the codec or the framing expects. Becomes an event on `invalid`."""

    status = 400
