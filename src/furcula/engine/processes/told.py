"""Exceptions that cross between processes: told by the names of their classes, and rebuilt from what was told.

An exception is not sent itself: that would be pickle. What comes home has its class's name, its message and its
traceback, and is an instance of the nearest of its classes that is imported here, so `retry: errors` finds it. Nothing
is imported for its sake.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from furcula.engine.outcome import Failed, make_failure
from furcula.naming import MAIN

__all__ = ["MAIN_IN_CHILD", "ChildTraceback", "ToldError", "rebuild", "tell"]

#: The name under which a child runs the program, so that `if __name__ == "__main__"` is not true there.
MAIN_IN_CHILD = "__furcula_main__"


class ToldError(msgspec.Struct, array_like=True):
    """An exception in words.

    Attributes:
        kinds: Its class and that one's base classes, each as `module:name`.
        retryable: None where it does not say.
    """

    kinds: list[str]
    message: str
    traceback: str
    retryable: bool | None
    status: int | None
    headers: dict[str, str]
    problem: dict[str, Any]


class ChildTraceback(Exception):
    """Stands as the cause of an exception that came out of a child: its text is the traceback there."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def tell(error: BaseException) -> ToldError:
    """What is to be said of `error`. Raises nothing."""
    failure = make_failure("", Failed(error))
    kinds = []
    for kind in type(error).__mro__:
        if issubclass(kind, BaseException):
            module = MAIN if kind.__module__ == MAIN_IN_CHILD else kind.__module__
            kinds.append(f"{module}:{kind.__qualname__}")
    try:
        msgspec.msgpack.encode(failure.problem)
        problem = failure.problem
    except Exception:  # members that cannot be said: the client is told the rest
        problem = {}
    retryable = failure.retryable if _says(error, "retryable") else None
    return ToldError(kinds, failure.message, failure.traceback, retryable, failure.status, failure.headers, problem)


def _says(error: BaseException, name: str) -> bool:
    try:
        return hasattr(error, name)
    except Exception:  # a property of the user's may raise anything
        return False


def rebuild(told: ToldError) -> BaseException:
    """An exception that says what was told, of the nearest class that is known here."""
    kinds = tuple(told.kinds)
    for first in range(len(kinds)):
        try:
            error: BaseException = _class_of(kinds, first)(told.message)
        except Exception:  # a class that cannot be made so: the next one is less exact
            continue
        error.__dict__.update(
            told_message=told.message,
            headers=told.headers,
            told_problem=told.problem,
        )
        if told.retryable is not None:
            error.__dict__["retryable"] = told.retryable
        if told.status is not None:
            error.__dict__["status"] = told.status
        if told.traceback:
            error.__cause__ = ChildTraceback(told.traceback)
        return error
    return RuntimeError(told.message)


#: By the names told and the first one that is known here. Like `sys.modules` it grows with the classes there are.
_classes: dict[tuple[tuple[str, ...], int], type[BaseException]] = {}


def _class_of(kinds: tuple[str, ...], first: int) -> type[BaseException]:
    known = _classes.get((kinds, first))
    if known is not None:
        return known
    base = _found(kinds[first])
    module, _, name = kinds[0].partition(":")
    # Not `__init__` of the class: what it was given is not known, and what it does was done in the child.
    made: type[BaseException] = type(
        name.rpartition(".")[2],
        (base,),
        {
            "__module__": module,
            "__qualname__": name,
            "__init__": lambda self, *_: None,
            "__str__": lambda self: self.told_message,
            "problem": lambda self: self.told_problem,
        },
    )
    _classes[kinds, first] = made
    return made


def _found(kind: str) -> type[BaseException]:
    module, _, name = kind.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise LookupError(kind)
    return found
