"""Options: values that belong to a module's place in a flow, never to its code."""

from __future__ import annotations

import builtins
import importlib
import random
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from furcula.errors import nearest
from furcula.event import Event

__all__ = [
    "Breaker",
    "Cluster",
    "Durable",
    "Duration",
    "Options",
    "Overflow",
    "Retry",
    "Secret",
    "Size",
    "convert_value",
    "exception_class",
]

Overflow = Literal["block", "drop-newest", "drop-oldest", "fail"]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES = {
    "": 1, "b": 1, "k": 1000, "kb": 1000, "m": 1000**2, "mb": 1000**2, "g": 1000**3, "gb": 1000**3,
    "kib": 1024, "mib": 1024**2, "gib": 1024**3,
}  # fmt: skip
_STAGE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


class Duration(float):
    """Seconds, written as a number or as `"250ms"`, `"2s"`, `"5m"`, `"1h"`, `"7d"`."""

    def __new__(cls, value: Any) -> Duration:
        if isinstance(value, str):
            match = _AMOUNT.fullmatch(value)
            unit = match and _UNITS_S.get(match[2] or "s")
            if not match or not unit:
                raise ValueError(f"{value!r} is not a duration; write seconds, or '250ms', '2s', '5m', '1h'")
            value = float(match[1]) * unit
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a duration; write seconds, or '250ms', '2s', '5m', '1h'")
        if not 0 <= value < float("inf"):
            raise ValueError(f"{value!r} is not a duration: it must not be negative or endless")
        return super().__new__(cls, value)


class Size(int):
    """Bytes, written as a number or as `"64kB"`, `"10MB"`, `"1GiB"`."""

    def __new__(cls, value: Any) -> Size:
        if isinstance(value, str):
            match = _AMOUNT.fullmatch(value)
            unit = match and _UNITS_BYTES.get(match[2].lower())
            if not match or not unit:
                raise ValueError(f"{value!r} is not a size; write bytes, or '64kB', '10MB', '1GiB'")
            value = int(float(match[1]) * unit)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{value!r} is not a size; write bytes, or '64kB', '10MB', '1GiB'")
        if value < 0:
            raise ValueError(f"{value!r} is not a size: it must not be negative")
        return super().__new__(cls, value)


class Secret(str):
    """A string that never shows itself. `secret.reveal()` gives the plain text."""

    __slots__ = ()

    def reveal(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return "Secret('********')"

    def __str__(self) -> str:
        return "********"

    def __format__(self, spec: str) -> str:
        return "********"

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not pickled")


class Breaker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A circuit breaker: after `failures` tries in a row that failed, leave the module alone for `reset` seconds.

    While it is open, events fail at once with `CircuitOpen`. Then one event is let through; its fate closes the
    breaker or opens it again.
    """

    failures: int = 5
    reset: Duration = Duration(30)

    def __post_init__(self) -> None:
        if self.failures < 1:
            raise ValueError("failures must be 1 or more")


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Try an event again after a failure.

    Args:
        attempts: Tries in all, the first included.
        delay: Seconds before the second try.
        factor: Each further wait is this many times longer.
        max_delay: No wait is longer than this.
        jitter: 0 to 1: by how much of itself a wait may be shortened, at random, so that many do not return at once.
        errors: Exception classes (or their names, `package.module:Name`) that are worth another try. Others fail now.
        breaker: A circuit breaker over all events of the module, or None.

    Each try sees the original payload.
    """

    attempts: int = 3
    delay: Duration = Duration(0.1)
    factor: float = 2.0
    max_delay: Duration = Duration(30)
    jitter: float = 0.5
    errors: tuple[Any, ...] = (Exception,)
    breaker: Breaker | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError("attempts must be 1 or more")
        if not 0 <= self.jitter <= 1:
            raise ValueError("jitter must be between 0 and 1")
        if self.factor < 1:
            raise ValueError("factor must be 1 or more")
        msgspec.structs.force_setattr(self, "delay", Duration(self.delay))
        msgspec.structs.force_setattr(self, "max_delay", Duration(self.max_delay))
        errors = self.errors if isinstance(self.errors, tuple | list) else (self.errors,)
        msgspec.structs.force_setattr(self, "errors", tuple(exception_class(error) for error in errors))

    def delay_s(self, tried: int, draw: Callable[[], float] = random.random) -> float:
        """Seconds to wait after `tried` tries have failed. `draw` gives a number from 0 to 1."""
        try:
            wait = self.delay * self.factor ** (tried - 1)
        except OverflowError:
            wait = self.max_delay
        return float(min(wait, self.max_delay)) * (1 - self.jitter * draw())


class Durable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A queue in a file: what is in it survives the process, and the machine.

    An event is delivered, as far as its source is concerned, once it is stored and the file synced. What is taken from
    the queue is removed when it is settled; after a crash, what was not settled is handed out again.

    Args:
        durable: The store's path, relative to the flow's folder. Many modules may name the same.
        size: Events it may hold; beyond that the module's `overflow` says what happens.
        max_deliveries: How often an event is handed out that fails in a way worth another try, or whose process dies.
        delay: Seconds before it is handed out again; doubled each time.
        max_delay: No such wait is longer.
    """

    durable: str
    size: int = 1_000_000
    max_deliveries: int = 5
    delay: Duration = Duration(1)
    max_delay: Duration = Duration(60)

    def __post_init__(self) -> None:
        if not self.durable:
            raise ValueError("durable must be the path of a file")
        if self.size < 1:
            raise ValueError("size must be 1 or more")
        if self.max_deliveries < 1:
            raise ValueError("max_deliveries must be 1 or more")
        msgspec.structs.force_setattr(self, "delay", Duration(self.delay))
        msgspec.structs.force_setattr(self, "max_delay", Duration(self.max_delay))

    def delay_s(self, attempts: int) -> float:
        """Seconds to wait after so many deliveries."""
        return float(min(self.delay * 2.0 ** min(attempts - 1, 60), self.max_delay))


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a flow's stages are joined by JetStream, where they run with `--cluster`.

    Args:
        replicas: Servers that store each message, 1 to 5. None: 3 on a cluster of three servers or more, else 1.
        storage: `file`, or `memory` for what may be lost with the servers.
        max_messages: Messages that wait for one stage (each of many events) before those who send to it have to wait.
        max_bytes: Bytes that wait for one stage before those who send to it have to wait.
        duplicate_window: So long a message that is sent a second time is recognised.
        together: So long what the events of one message became is held back, to be sent on together. A message that
            takes longer is sent on in parts, which are not recognised when they are sent a second time.
        partitions: Into how many parts the keys of a module are divided; at most so many workers share it.
        ack_wait: After so long without word of a worker what it had goes to another, where the order is not kept.
        lease: After so long without word of a worker another takes its place: partitions, and sources that run once.
        max_deliveries: How often an event is tried that fails in a way worth another try, or whose worker dies.
        delay: Seconds before an event is tried again; doubled each time.
        max_delay: No such wait is longer.
        prefetch: Events that a worker has in hand of one partition.
        dead_letters_for: So long dead letters are kept.
    """

    replicas: int | None = None
    storage: Literal["file", "memory"] = "file"
    max_messages: int = 100_000
    max_bytes: Size = Size("1GB")
    duplicate_window: Duration = Duration("2m")
    together: Duration = Duration("100ms")
    partitions: int = 16
    ack_wait: Duration = Duration(30)
    lease: Duration = Duration(5)
    max_deliveries: int = 5
    delay: Duration = Duration(1)
    max_delay: Duration = Duration(60)
    prefetch: int = 2000
    dead_letters_for: Duration = Duration("30d")

    def __post_init__(self) -> None:
        for name in ("replicas", "max_messages", "partitions", "max_deliveries", "prefetch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more")
        if self.replicas is not None and self.replicas > 5:
            raise ValueError("replicas must be 5 or fewer")
        if self.partitions > 1024:
            raise ValueError("partitions must be 1024 or fewer")
        for name in ("duplicate_window", "together", "ack_wait", "lease", "delay", "max_delay", "dead_letters_for"):
            msgspec.structs.force_setattr(self, name, Duration(getattr(self, name)))
        msgspec.structs.force_setattr(self, "max_bytes", Size(self.max_bytes))
        if self.max_bytes < 1:  # which the server would take for "as many as there are"
            raise ValueError("max_bytes must be 1 or more")
        for name in ("duplicate_window", "dead_letters_for"):
            if getattr(self, name) < 0.1:
                raise ValueError(f"{name} must be a tenth of a second or more")
        for name in ("ack_wait", "lease"):
            if getattr(self, name) < 0.5:
                raise ValueError(f"{name} must be half a second or more")
        if self.storage not in ("file", "memory"):
            raise ValueError(f"storage must be file or memory, not {self.storage!r}")

    def delay_s(self, tries: int) -> float:
        """Seconds to wait after so many tries."""
        return float(min(self.delay * 2.0 ** min(tries - 1, 60), self.max_delay))


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a module is run at its place in a flow.

    Args:
        concurrency: How many events may be waiting inside a coroutine or thread at once.
        order: `kept`: events leave in the order in which they came. `none`: as they are done.
        key: A dotted path (or a function of the event): events with the same key stay in order, others overtake.
            Those with nothing at the path have one key in common, None: they stay in order with each other.
        queue: Places in the queue in front of the module. None: as many as the engine thinks right, where one is
            needed at all. `{durable: path}`: a queue in a file (see `Durable`).
        overflow: What a full queue does: make the sender wait, or drop, or fail.
        retry: Try again after a failure.
        timeout: Seconds that one try may take. Needs a coroutine, `thread` or `processes`.
        thread: Run the function in a thread, for code that blocks.
        keep: `original`: a failed event carries its data as it was handed in (a copy of each event is made for that).
        join: Wait for one event from each inbox, by lineage, and hand them over together.
        join_timeout: Seconds after which an incomplete join goes to `failed`.
        isolate_context: Give each event a context of its own, so that context variables set while handling one are
            not seen by the next.
        processes: Run the function in so many processes of its own, for code that computes. It must be a plain
            function or class that can be imported by its name; data and headers cross as MessagePack.
        stage: The part of the flow that the module belongs to. Stages may run in processes, or on machines, of their
            own; in one process they change nothing. Modules without one are the stage `main`.
        single: For a source: where several processes run the flow, only one of them runs this source at a time. None:
            as its kind says: what listens, and what takes from a broker, runs in all of them; anything else in one.
    """

    concurrency: int = 1
    order: Literal["kept", "none"] = "kept"
    key: str | Callable[[Any], Any] | None = None
    queue: int | Durable | None = None
    overflow: Overflow = "block"
    retry: Retry | None = None
    timeout: Duration | None = None
    thread: bool = False
    keep: Literal["original"] | None = None
    join: bool = False
    join_timeout: Duration = Duration(60)
    isolate_context: bool = False
    processes: int | None = None
    stage: str | None = None
    single: bool | None = None

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError("concurrency must be 1 or more")
        if self.processes is not None and self.processes < 1:
            raise ValueError("processes must be 1 or more")
        if self.stage is not None and not _STAGE.fullmatch(self.stage):
            raise ValueError(f"the stage {self.stage!r} must be letters, digits, - and _, at most 64")
        if isinstance(self.key, str):
            try:
                Event().has(self.key)
            except KeyError as error:
                raise ValueError(f"key must be a path: {error.args[0]}") from None
        if isinstance(self.queue, dict):
            msgspec.structs.force_setattr(self, "queue", convert_value(self.queue, Durable))
        if isinstance(self.queue, int) and self.queue < 1:
            raise ValueError("queue must be 1 or more")
        if self.timeout is not None:
            msgspec.structs.force_setattr(self, "timeout", Duration(self.timeout))
            if not self.timeout:
                raise ValueError("timeout must be more than 0")
        msgspec.structs.force_setattr(self, "join_timeout", Duration(self.join_timeout))
        if self.order not in ("kept", "none"):
            raise ValueError(f"order must be 'kept' or 'none', not {self.order!r}")
        if self.overflow not in ("block", "drop-newest", "drop-oldest", "fail"):
            raise ValueError(f"overflow must be block, drop-newest, drop-oldest or fail, not {self.overflow!r}")

    @classmethod
    def of(cls, options: Options | None = None, **changes: Any) -> Options:
        """`options` with `changes`, each converted from the form that YAML would give.

        Raises:
            ValueError: An unknown name (with the nearest valid one) or a wrong value.
        """
        known = cls.__struct_fields__
        for name in changes:
            if name not in known:
                raise ValueError(f"there is no option {name!r}{nearest(name, known)}")
        kinds = cls.kinds()
        values = {name: convert_value(value, kinds[name]) for name, value in changes.items()}
        return msgspec.structs.replace(options or cls(), **values)

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """The type of each option as YAML may give it (a key that is a function is not YAML's to give)."""
        return {field.name: field.type for field in msgspec.structs.fields(cls)} | {"key": str | None}


def exception_class(name: Any) -> type[BaseException]:
    """The exception class that `name` names: a class, a built-in's name, or `package.module:Name`."""
    if isinstance(name, type) and issubclass(name, BaseException):
        return name
    found: Any = None
    if isinstance(name, str):
        module, colon, attribute = name.partition(":")
        if colon:
            try:
                found = getattr(importlib.import_module(module), attribute, None)
            except ImportError as error:
                raise ValueError(f"the exception {name!r} cannot be imported: {error}") from None
        else:
            found = getattr(builtins, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise ValueError(f"{name!r} is not an exception class; write TimeoutError or package.module:Name")
    return found


def _decode(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if issubclass(kind, Duration | Size):
        return kind(value)
    if issubclass(kind, Secret):
        if not isinstance(value, str):
            raise ValueError(f"expected a string, not {type(value).__name__}")
        return kind(value)
    if kind is type or callable(value):
        return value
    raise ValueError(f"expected {kind.__name__}, not {type(value).__name__}")


def convert_value(value: Any, kind: Any) -> Any:
    """`value` converted to `kind` by msgspec's rules, with our own `Duration`, `Size` and `Secret` among them.

    Raises:
        ValueError: It cannot be converted; the message says why, and where inside the value (`at $.delay`).
    """
    if callable(value) or isinstance(value, msgspec.Struct):
        return value
    return msgspec.convert(value, kind, dec_hook=_decode)
