"""What a module is: the contract of class modules, and how plain functions are understood.

A module handles events. It may be

* a function, coroutine function, generator function or async generator function, over the Event or over bare data;
* a function over a batch, `list[Event] -> list[Event]`;
* a class with `process` (any of those shapes) and, if it likes, `start` and `stop`.

A source begins lineages: a generator function, an async generator function, an iterable, or a class derived from
`Source`. `Handling` is the value that says which of these a callable is; the engine chooses its way of running from it.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import logging
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import msgspec

from furcula.asking import Asker
from furcula.errors import nearest
from furcula.event import Event
from furcula.options import Secret, convert_value
from furcula.receipt import Slot

__all__ = [
    "BatchFailed",
    "Context",
    "Handling",
    "Module",
    "Source",
    "bind_arguments",
    "data_type",
    "describe",
    "holds_secret",
    "parameters",
    "types_meet",
]

Shape = Literal["function", "coroutine", "generator", "async_generator"]
Role = Literal["module", "map", "filter", "flat_map", "choose"]


class Context(Protocol):
    """What the engine hands to a class module's `start`: its place in the running flow.

    All calls are made on the event loop's thread, except where said.
    """

    name: str
    #: The flow's name.
    flow: str
    log: logging.LoggerAdapter[logging.Logger]
    #: Relative paths in a module's arguments are relative to this: the flow file's folder, or the working directory.
    folder: Path

    def now(self) -> float:
        """Unix time in seconds, by the flow's clock (which tests may move)."""

    def admit(
        self,
        events: Iterable[Any],
        outbox: str = "outbox",
        *,
        settled: Callable[[Slot], None] | None = None,
    ) -> Awaitable[None] | None:
        """Admit events (or bare data) as a source, and send them on from `outbox`.

        Args:
            events: Events that are new, or bare data that becomes their data.
            outbox: Where they leave. An unconnected `invalid` logs and counts them.
            settled: Called once for each event, when its slot is settled, in the order of settling. `slot.fate` is
                `delivered`, `dropped` or `failed`; `slot.failure` has the Failure if there is one.

        Returns:
            None: go on. An awaitable: wait for it before admitting more; that is the back-pressure.

        Raises:
            Stopped: The flow is draining, and admits nothing more.
        """

    def ask(self, event: Event[Any], asker: Asker, outbox: str = "outbox") -> Awaitable[None] | None:
        """Admit one event as a request: what comes back to this source's inbox is given to `asker`.

        The answer may be there when this returns. See `furcula.asking.Asker`.

        Returns:
            None: go on. An awaitable: the flow has no room now; wait for it before asking more.

        Raises:
            Stopped: The flow is draining, and admits nothing more.
        """

    def emit(self, events: Iterable[Any], outbox: str = "outbox") -> Awaitable[None] | None:
        """Send out events that no incoming event caused, under this module's own name as origin."""

    def finished(self, error: BaseException | None = None) -> None:
        """Say that this source will admit nothing more. The flow ends when all its sources have.

        Args:
            error: Why, if it is not as it should be: the run then ends with SourceFailed, once all is settled.
        """


class Module:
    """Base of class modules. Deriving from it is optional: any class with `process` is a module.

    Arguments are those of `__init__`; annotate them, they are converted and checked, and `furcula show` prints them.
    An instance serves one run of one flow. `__init__` may refuse arguments (ValueError) but opens nothing: checking a
    flow makes an instance to hear what it says. What has to be opened is opened in `start`.

    Attributes:
        inboxes: Names of the inboxes. An inbox named `side` is handled by `process_side` if there is one; it has then
            a queue and workers of its own.
        outboxes: Names of the outboxes that `event.to(...)` may use, besides `failed`; None: any.
        optional: Those outboxes that may stay unconnected without a warning; what is sent there is dropped and counted.
    """

    inboxes: ClassVar[tuple[str, ...]] = ("inbox",)
    outboxes: ClassVar[tuple[str, ...] | None] = ("outbox",)
    optional: ClassVar[tuple[str, ...]] = ()

    # A module that keeps a connection may define `unready(self) -> str | None`: why nothing can come or go now.
    #
    # `start(self, context)`, `stop(self)` (plain or async) and `process(self, event)` are looked up, not inherited, so
    # that a module which has no use for one of them costs nothing. A module that works on whole batches defines
    # `process_batch(self, events)`; one that only chooses an outbox defines `choose(self, event) -> str | None`. One
    # that holds events back defines `flush(self) -> list[Event]`, called while the flow drains.


class Source(Module):
    """Base of class sources.

    Either define `events(self)`, a generator or async generator of Events or bare data, which the engine runs; or
    define `start(self, context)` to open what you listen on, and admit through the context. Then `cease(self)` is
    called when the flow begins to drain (stop accepting; keep what is needed to answer), and `stop(self)` at its end.
    """

    inboxes: ClassVar[tuple[str, ...]] = ()
    #: What it does with an event's fate: `message` (tells whoever gave it the message), `request` (answers whoever
    #: asked), `position` (does not pass what is not settled), or `none`. For `explain`.
    acknowledges: ClassVar[str] = "none"
    #: May several processes that run the flow all run it? True for what listens, and for what takes from a broker that
    #: gives each message to one taker. Otherwise only one of them does (see the option `single`).
    shared: ClassVar[bool] = False

    # One that answers may define `unasked(self, event)`: what to do with an event that reached its inbox and that
    # nobody asked for. If it raises, the event has failed. Without it, the event is delivered. One that is asked from
    # outside may define `hold_requests(self, held: bool)`: while held it refuses what is asked at once.


class BatchFailed(Exception):
    """Raised by a batch function to fail some members of the batch: `BatchFailed({3: error})`.

    The other members go on: as `result` where it is given (without the failed ones), else as they are. With an option
    `retry`, those of the failed members are tried again whose error it names, unless the error says that this is in
    vain (`retryable = False`); the others keep their answers meanwhile, and all leave together.
    """

    def __init__(self, errors: Mapping[int, BaseException], result: list[Event[Any]] | None = None):
        super().__init__(f"{len(errors)} of the batch failed")
        self.errors = dict(errors)
        self.result = result


class Handling(msgspec.Struct, frozen=True):
    """How a callable handles what it is given.

    Attributes:
        call: The callable itself, arguments bound.
        shape: Whether it answers, awaits or yields.
        receives: `event`, `data`, or `events` (a whole batch).
        role: `module`, or the bare-data role it was given: `map`, `filter`, `flat_map`; `choose` names an outbox.
        input_type: The type of the data it takes, or Any.
        output_type: The type of the data it gives, or Any.
        must_answer: It is annotated to give an Event, never None.
    """

    call: Callable[..., Any]
    shape: Shape
    receives: Literal["event", "data", "events"]
    role: Role = "module"
    input_type: Any = Any
    output_type: Any = Any
    must_answer: bool = False

    @property
    def waits(self) -> bool:
        """Does it need to be awaited?"""
        return self.shape in ("coroutine", "async_generator")


def describe(call: Callable[..., Any], role: Role = "module") -> Handling:
    """Understand a callable by its kind and its annotations.

    Raises:
        TypeError: It takes no argument, or more than one without a default.
    """
    target: Any = call
    if not (inspect.isroutine(target) or isinstance(target, functools.partial | type)):
        target = getattr(call, "__call__")  # noqa: B004, B009 -- an instance that can be called
    plain = target
    while isinstance(plain, functools.partial):
        plain = plain.func
    shape: Shape = "function"
    if inspect.isasyncgenfunction(plain):
        shape = "async_generator"
    elif inspect.iscoroutinefunction(plain):
        shape = "coroutine"
    elif inspect.isgeneratorfunction(plain):
        shape = "generator"
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some built-ins tell nothing; they take bare data
        return Handling(call, shape, "data", role)
    wanted = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    required = [parameter for parameter in wanted if parameter.default is parameter.empty]
    if not wanted and not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        raise TypeError(f"{_name_of(plain)} takes no argument; a module takes the event or its data")
    if len(required) > 1:
        raise TypeError(f"{_name_of(plain)} needs {len(required)} arguments; give all but the first with `with:`")
    hints = _hints(plain)
    annotation = hints.get(wanted[0].name, None) if wanted else None
    answer = hints.get("return", None)
    receives: Literal["event", "data", "events"]
    input_type: Any = Any
    if role in ("map", "filter", "flat_map"):
        if annotation is not None and _is_event(annotation):
            raise TypeError(f"{_name_of(plain)} takes an Event; {role} is for functions of bare data, use module")
        receives, input_type = "data", Any if annotation is None else annotation
    elif annotation is None or _is_event(annotation):
        receives, input_type = "event", _event_data(annotation)
    elif _origin_of(annotation) in (list, collections.abc.Sequence, collections.abc.Iterable) and any(
        _is_event(argument) for argument in typing.get_args(annotation)
    ):
        receives = "events"
        input_type = _event_data(typing.get_args(annotation)[0])
    else:
        receives, input_type = "data", annotation
    output_type, must_answer = _output(answer, shape, receives, role)
    return Handling(call, shape, receives, role, input_type, output_type, must_answer)


def _output(answer: Any, shape: Shape, receives: str, role: Role) -> tuple[Any, bool]:
    if role == "choose" or answer is None:
        return Any, False
    if shape in ("generator", "async_generator"):
        arguments = typing.get_args(answer)
        answer = arguments[0] if arguments else Any
    elif role == "flat_map" or receives == "events":
        arguments = typing.get_args(answer)
        answer = arguments[0] if len(arguments) == 1 else Any
    if role == "filter":
        return Any, False
    must_answer = receives == "event" and shape in ("function", "coroutine") and _is_event(answer)
    members = [m for m in _members(answer) if m is not type(None)]
    if receives != "data":
        answer = _event_data(members[0]) if len(members) == 1 else Any
    elif _is_event(answer):
        answer = _event_data(answer)
    return (Any if answer is type(None) else answer), must_answer


def _name_of(call: Any) -> str:
    return getattr(call, "__qualname__", None) or type(call).__name__


def _hints(call: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call)
    except Exception:  # an annotation that cannot be resolved at run time tells us nothing
        found: dict[str, Any] = {}
        for name, annotation in getattr(call, "__annotations__", {}).items():
            if annotation is Event or annotation in ("Event", "furcula.Event") or str(annotation).startswith("Event["):
                found[name] = Event
        return found


def _origin_of(annotation: Any) -> Any:
    return typing.get_origin(annotation) or annotation


def _is_event(annotation: Any) -> bool:
    origin = _origin_of(annotation)
    return isinstance(origin, type) and issubclass(origin, Event)


def _event_data(annotation: Any) -> Any:
    arguments = typing.get_args(annotation)
    if not arguments or isinstance(arguments[0], typing.TypeVar):
        return Any
    return arguments[0]


def data_type(annotation: Any) -> Any:
    """The type to which data is converted for an annotation; Any where nothing is to be done."""
    return Any if annotation in (Any, object, None, inspect.Parameter.empty) else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


_STRUCTURED = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def types_meet(given: Any, taken: Any) -> bool:
    """May data annotated `given` go where `taken` is expected, as it is or by conversion? In doubt, yes."""
    for one in _members(given):
        for other in _members(taken):
            if _one_meets(one, other):
                return True
    return False


def _one_meets(given: Any, taken: Any) -> bool:
    if Any in (given, taken) or object in (given, taken) or isinstance(given, typing.TypeVar):
        return True
    if isinstance(taken, typing.TypeVar):
        return True
    source, target = _origin_of(given), _origin_of(taken)
    if not (isinstance(source, type) and isinstance(target, type)):
        return True
    if issubclass(source, target) or issubclass(target, source):
        given_arguments, taken_arguments = typing.get_args(given), typing.get_args(taken)
        if len(given_arguments) == len(taken_arguments) and source is target and Ellipsis not in given_arguments:
            return all(types_meet(a, b) for a, b in zip(given_arguments, taken_arguments, strict=True))
        return True
    if (source, target) in ((int, float), (bytes, bytearray), (bytearray, bytes)):
        return True
    if _structured(source) and _structured(target):
        return True
    sequences = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)
    return source in sequences and target in sequences


def _structured(kind: type) -> bool:
    return (
        kind in _STRUCTURED
        or issubclass(kind, dict | msgspec.Struct)
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__total__")
    )


# ------------------------------------------------------------------ arguments of modules


class ArgumentProblem(ValueError):
    """One argument of a module is wrong. `argument` names it, `path` says where inside its value."""

    def __init__(self, argument: str, message: str, path: str = ""):
        super().__init__(message)
        self.argument = argument
        self.path = path


class Parameter(msgspec.Struct, frozen=True):
    """One argument that a module's factory takes by keyword."""

    name: str
    type: Any
    default: Any
    required: bool
    doc: str = ""


def parameters(factory: Callable[..., Any], *, skip: int = 0) -> list[Parameter]:
    """The arguments of a factory that may be given by keyword, `skip` leading ones left out."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return []
    hints = _hints(vars(factory).get("__init__", factory) if isinstance(factory, type) else _unwrapped(factory))
    docs = argument_docs(factory)
    found = []
    for index, parameter in enumerate(signature.parameters.values()):
        if index < skip or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.POSITIONAL_ONLY,
        ):
            continue
        required = parameter.default is parameter.empty
        found.append(
            Parameter(
                parameter.name,
                data_type(hints.get(parameter.name, Any)),
                None if required else parameter.default,
                required,
                docs.get(parameter.name, ""),
            )
        )
    return found


def _unwrapped(call: Any) -> Any:
    while isinstance(call, functools.partial):
        call = call.func
    return call


def argument_docs(factory: Any) -> dict[str, str]:
    """The `Args:` section of a Google-style docstring, by argument."""
    doc = inspect.getdoc(factory) or ""
    found: dict[str, str] = {}
    current = None
    inside = False
    for line in doc.splitlines():
        if line.strip() in ("Args:", "Arguments:"):
            inside = True
        elif inside and line.strip() and not line.startswith(" "):
            break
        elif inside and line.startswith("    ") and not line.startswith("     ") and ":" in line:
            current, _, text = line.strip().partition(":")
            found[current] = text.strip()
        elif inside and current and line.strip():
            found[current] += " " + line.strip()
    return found


def bind_arguments(
    factory: Callable[..., Any], arguments: Mapping[str, Any], *, skip: int = 0
) -> tuple[dict[str, Any], list[ArgumentProblem]]:
    """Convert `arguments` by the annotations of `factory`. Returns the values and everything that is wrong."""
    known = {parameter.name: parameter for parameter in parameters(factory, skip=skip)}
    problems: list[ArgumentProblem] = []
    values: dict[str, Any] = {}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in _signature_parameters(factory))
    for name, value in arguments.items():
        parameter = known.get(name)
        if parameter is None:
            if takes_any:
                values[name] = value
            else:
                hint = nearest(name, known) or (f"; it takes {', '.join(known)}" if known else "; it takes none")
                problems.append(ArgumentProblem(name, f"there is no argument {name!r}{hint}"))
            continue
        try:
            values[name] = convert_value(value, parameter.type)
        except ValueError as error:
            message, _, path = str(error).partition(" - at `$")
            shown = "a secret" if isinstance(value, Secret) or holds_secret(parameter.type) else repr(value)
            problems.append(ArgumentProblem(name, f"{message} (given {shown})", path.rstrip("`")))
    for name, parameter in known.items():
        if parameter.required and name not in arguments:
            problems.append(ArgumentProblem(name, f"the argument {name!r} is missing"))
    return values, problems


def holds_secret(kind: Any) -> bool:
    """May a value of this type be a secret, or have one inside?"""
    if isinstance(kind, type) and not typing.get_args(kind):
        if issubclass(kind, msgspec.Struct):
            return any(holds_secret(field.type) for field in msgspec.structs.fields(kind))
        return issubclass(kind, Secret)
    return any(holds_secret(argument) for argument in typing.get_args(kind))


def _signature_parameters(factory: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return ()
