"""The Event: data, headers, identity and lineage. It is what moves."""

from __future__ import annotations

import copy as _copy
import itertools
import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Generic, Self

import msgspec
from typing_extensions import TypeVar

from furcula.errors import InputError
from furcula.receipt import Carrier, Fan

__all__ = ["MISSING", "Event", "Failure", "Routed", "copy_data"]

T = TypeVar("T", default=Any)


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


#: Stands for nothing where None would be something: `event.get(path, MISSING)`.
MISSING: Final = _Missing()
_REQUIRED: Final = _Missing()

# An id is a prefix that no two processes share and a counter: 30 ns where uuid4 takes 1,500. The number is drawn on
# first use, because most events of a fused run are never asked for their id.
_next_number = itertools.count(1).__next__


def _new_prefix() -> str:
    return os.urandom(6).hex()


_prefix = _new_prefix()


def _after_fork() -> None:
    global _prefix
    _prefix = _new_prefix()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong with an event in one module. Travels with the event in `Event.failures`.

    Attributes:
        module: The module's name in the flow.
        type: The exception's class name (`TimeoutError`).
        message: `str` of the exception.
        traceback: The formatted traceback, or empty for failures that no code raised.
        attempts: How often the module was tried with this event, 1 or more.
        retryable: May whoever sent the event try again later?
        touched: True: the data is as the module left it. False: as it was handed in.
        at: Unix time in seconds.
        route: Where the event was sent on: `failed`, `dead_letter`, or empty for nowhere.
        status: The HTTP status for whoever asked, where the exception says one (see `furcula.statuses`).
        headers: Header fields of the answer, from the exception.
        problem: What the exception tells the client: members of the problem details, `detail` among them.
    """

    module: str
    type: str
    message: str
    traceback: str = ""
    attempts: int = 1
    retryable: bool = False
    touched: bool = False
    at: float = 0.0
    route: str = ""
    status: int | None = None
    headers: dict[str, str] = {}
    problem: dict[str, Any] = {}


class Event(msgspec.Struct, Generic[T], gc=False, eq=False):
    """One event.

    Args:
        data: Anything. What leaves the process must be something the codec can say (JSON's types, bytes, datetimes).
        headers: About the data: where it came from, its content type. String keys.

    Attributes:
        key: What keeps events in order with each other where a module says `key`. Any hashable value, or None.
        parent: The id of the event this one was split or cloned from, or None.
        ttl: How many more turns through a cycle are allowed; None until the event first turns.
        tags: Words attached to the event; see `tag`.
        failures: What went wrong so far, oldest first.
        scratch: A dict for notes between modules of one process; never leaves the process.

    Events are compared by identity. They are not tracked by the garbage collector, which is most of what makes them
    cheap: do not store an event inside its own data.
    """

    # `_receipt` stands third so that the engine can make a batch with map(Event, datas, headers, receipts).
    data: T = None  # type: ignore[assignment]
    headers: dict[str, Any] = {}
    _receipt: Carrier | Fan | None = None
    key: Any = None
    parent: str | None = None
    ttl: int | None = None
    tags: frozenset[str] = frozenset()
    failures: tuple[Failure, ...] = ()
    _scratch: dict[str, Any] | None = None
    _created: float = 0.0
    _id: str | int | None = None

    WIRE_FIELDS: ClassVar[frozenset[str]] = frozenset(
        ("headers", "header", "data", "id", "parent", "created", "key", "ttl", "tags", "failures")
    )

    # ------------------------------------------------------------------ identity

    @property
    def id(self) -> str:
        """Identity, given on first use and never changed. It stays through one-to-one handling and fan-out."""
        number = self._id
        if number is None:
            number = self._id = _next_number()
        return number if type(number) is str else f"{_prefix}-{number}"

    @property
    def created(self) -> float:
        """Unix time in seconds at which the event's lineage was admitted (or, before that, of the first look)."""
        if not self._created:
            receipt = self._receipt
            self._created = time.time() if receipt is None else receipt.created
        return self._created

    @property
    def scratch(self) -> dict[str, Any]:
        if self._scratch is None:
            self._scratch = {}
        return self._scratch

    def carrier(self) -> Carrier | None:
        """What this event's one share is reported to. For the engine."""
        receipt = self._receipt
        return receipt.part(self._id) if type(receipt) is Fan else receipt  # type: ignore[return-value]

    def numbered(self) -> Self:
        """Make sure that copies made from now on share this event's id. For the engine's fan-outs."""
        if self._id is None:
            self._id = _next_number()
        return self

    def clone(self) -> Event[T]:
        """A new event with copies of data and headers, its own id, and this one as its parent."""
        return Event(
            copy_data(self.data),
            copy_data(self.headers),
            key=self.key,
            parent=self.id,
            ttl=self.ttl,
            tags=self.tags,
            failures=self.failures,
        )

    def duplicate(self, receipt: Carrier | None) -> Event[T]:
        """The same event a second time (same id), with data of its own, for another consumer."""
        if self._id is None:
            self._id = _next_number()
        twin: Event[T] = shallow(self)
        twin.data = copy_data(self.data)
        twin.headers = copy_data(self.headers) if self.headers else {}
        twin._receipt = receipt
        if self._scratch is not None:
            twin._scratch = dict(self._scratch)
        return twin

    def inherit(self, source: Event[Any]) -> None:
        """Take over identity, lineage and receipt of the event this one was made from, one to one."""
        self._receipt = source._receipt
        self._id = source.numbered()._id
        self._created = source._created
        self.parent = source.parent
        self.ttl = source.ttl
        if self.key is None:
            self.key = source.key
        if not self.failures:
            self.failures = source.failures

    # ------------------------------------------------------------------ routing and tags

    def to(self, outbox: str) -> Event[T]:
        """Return this event addressed to `outbox`: `return event.to("eu")`."""
        return Routed(target=self, outbox=outbox)

    def tag(self, *words: str) -> Self:
        self.tags = self.tags | frozenset(words)
        return self

    def untag(self, *words: str) -> Self:
        self.tags = self.tags - frozenset(words)
        return self

    # ------------------------------------------------------------------ dotted paths

    def get(self, path: str, default: Any = _REQUIRED) -> Any:
        """The value at a dotted path: `data.user.name`, `headers.host`, `data.items.0`, `tags`.

        Raises:
            KeyError: There is nothing at `path`, and no default was given.
        """
        value: Any = self
        walked: list[str] = []
        for part in _parts(path):
            found = _step(value, part, at_root=not walked)
            if found is MISSING:
                if default is not _REQUIRED:
                    return default
                raise KeyError(_nothing_at(path, walked, part, value))
            walked.append(part)
            value = found
        return value

    def has(self, path: str) -> bool:
        value: Any = self
        for index, part in enumerate(_parts(path)):
            value = _step(value, part, at_root=not index)
            if value is MISSING:
                return False
        return True

    def set(self, path: str, value: Any) -> Self:
        """Put `value` at a dotted path, making dicts on the way. Returns the event.

        Raises:
            KeyError: Something on the way is neither a dict nor a list, or a list has no such place.
        """
        parts = _parts(path)
        _check_root(path, parts)
        if len(parts) == 1:
            if parts[0] in ("id", "created"):
                raise KeyError(f"{path!r} cannot be set")
            setattr(self, parts[0], frozenset(value) if parts[0] == "tags" else value)
            return self
        holder: Any = self
        for index, part in enumerate(parts[:-1]):
            below = _step(holder, part, at_root=not index)
            if below is MISSING or (below is None and not index):
                below = {}
                _put(holder, part, below, path, at_root=not index)
            holder = below
        _put(holder, parts[-1], value, path, at_root=False)
        return self

    def delete(self, path: str) -> Self:
        """Remove what is at a dotted path. Returns the event.

        Raises:
            KeyError: There is nothing at `path`.
        """
        parts = _parts(path)
        _check_root(path, parts)
        if len(parts) == 1:
            empty: dict[str, Any] = {
                "data": None,
                "headers": {},
                "key": None,
                "tags": frozenset(),
                "scratch": {},
            }
            if parts[0] not in empty:
                raise KeyError(f"{path!r} cannot be deleted")
            setattr(self, "_scratch" if parts[0] == "scratch" else parts[0], empty[parts[0]])
            return self
        holder = self.get(".".join(parts[:-1]))
        if isinstance(holder, dict) and parts[-1] in holder:
            del holder[parts[-1]]
        elif isinstance(holder, list) and _index(holder, parts[-1]) is not None:
            del holder[int(parts[-1])]
        else:
            raise KeyError(_nothing_at(path, parts[:-1], parts[-1], holder))
        return self

    def copy(self, source: str, target: str) -> Self:
        """Put a copy of what is at `source` at `target`. Returns the event."""
        return self.set(target, copy_data(self.get(source)))

    def merge(self, path: str, values: Mapping[str, Any]) -> Self:
        """Merge a mapping into the dict at `path`, deeply; a list meets a list by extension. Returns the event."""
        existing = self.get(path, None)
        if existing is None:
            existing = {}
        if not isinstance(existing, dict):
            raise KeyError(f"{path!r} holds {type(existing).__name__}, and only a dict can be merged into")
        _merge(existing, values)
        return self.set(path, existing)

    # ------------------------------------------------------------------ the wire form

    def to_wire(self, *, identity: bool = True) -> dict[str, Any]:
        """The event as a plain dict: `{"headers": …, "data": …}`, and with `identity` also id, parent and the rest.

        Parts that have their default value are left out. `scratch` never leaves.
        """
        wire: dict[str, Any] = {"headers": self.headers, "data": self.data}
        if identity:
            wire["id"] = self.id
            wire["created"] = self.created
            if self.parent is not None:
                wire["parent"] = self.parent
            if self.key is not None:
                wire["key"] = self.key
            if self.ttl is not None:
                wire["ttl"] = self.ttl
            if self.tags:
                wire["tags"] = sorted(self.tags)
            if self.failures:
                wire["failures"] = [msgspec.to_builtins(failure) for failure in self.failures]
        return wire

    @classmethod
    def from_wire(cls, wire: Any) -> Event[Any]:
        """The event that a dict of `to_wire` (or Wishbone's, which may say `header`) describes.

        Raises:
            InputError: It is not such a dict; the message says what is wrong with it.
        """
        if not isinstance(wire, Mapping):
            raise InputError(f"an event must be a dict with 'headers' and 'data', not {type(wire).__name__}")
        if "data" not in wire:
            raise InputError("the event has no 'data'")
        unknown = [name for name in wire if name not in cls.WIRE_FIELDS]
        if unknown:
            raise InputError(f"the event has unknown part {unknown[0]!r}")
        if "headers" in wire and "header" in wire:
            raise InputError("the event has both 'headers' and 'header'")
        headers = wire.get("headers", wire.get("header", {}))
        if not isinstance(headers, Mapping):
            raise InputError(f"'headers' must be a dict, not {type(headers).__name__}")
        if not all(isinstance(name, str) for name in headers):
            raise InputError("the names in 'headers' must be strings")
        try:
            rest = msgspec.convert(
                {name: wire[name] for name in ("id", "parent", "created", "ttl", "tags", "failures") if name in wire},
                _WireRest,
            )
        except msgspec.ValidationError as error:
            raise InputError(f"the event is malformed: {error}") from None
        return Event(
            wire["data"],
            dict(headers),
            key=wire.get("key"),
            parent=rest.parent,
            ttl=rest.ttl,
            tags=rest.tags,
            failures=rest.failures,
            _created=rest.created,
            _id=rest.id,
        )

    def __repr__(self) -> str:
        extra = f", headers={self.headers!r}" if self.headers else ""
        extra += f", failures={len(self.failures)}" if self.failures else ""
        return f"Event({self.data!r}{extra})"

    def __copy__(self) -> Event[T]:
        raise TypeError("use event.clone(): a bare copy would carry the same duty to acknowledge twice")

    def __deepcopy__(self, memo: Any) -> Event[T]:
        return self.clone()

    def __reduce__(self) -> Any:
        raise TypeError("events are not pickled; use event.to_wire()")


class Routed(Event[T], gc=False, eq=False):
    """What `event.to(outbox)` returns: an envelope that the engine opens. Never seen downstream."""

    target: Event[T] | None = None
    outbox: str = ""


class _WireRest(msgspec.Struct):
    id: str | None = None
    parent: str | None = None
    created: float = 0.0
    ttl: int | None = None
    tags: frozenset[str] = frozenset()
    failures: tuple[Failure, ...] = ()


# ---------------------------------------------------------------------- copies

#: Types whose values nobody can change.
ATOMS = frozenset((str, int, float, bool, type(None), bytes, complex, frozenset))


#: A copy of an Event that shares everything with it, receipt included: a step on the way to a copy for a consumer.
shallow: Any = msgspec.Struct.__copy__  # type: ignore[attr-defined]


def copy_data(data: Any) -> Any:
    """A copy of `data` that shares nothing mutable with it.

    Dicts, lists, tuples and sets are copied recursively (a fifth of deepcopy's time); anything else by `deepcopy`.
    """
    kind = type(data)
    if kind is dict:
        new = data.copy()
        for value in data.values():
            kind = type(value)
            if kind is not str and kind is not int and kind not in ATOMS:
                break
        else:
            return new
        for name, value in data.items():
            if type(value) not in ATOMS:
                new[name] = copy_data(value)
        return new
    if kind in ATOMS:
        return data
    if kind is list:
        if ATOMS.issuperset(map(type, data)):
            return data.copy()
        return [copy_data(item) for item in data]
    if kind is tuple:
        return tuple([copy_data(item) for item in data])
    return _copy.deepcopy(data)


# ---------------------------------------------------------------------- paths

_ROOTS = frozenset(("data", "headers", "id", "parent", "created", "key", "ttl", "tags", "failures", "scratch"))


def _parts(path: str) -> list[str]:
    if not isinstance(path, str) or not path:
        raise KeyError(f"a path is dotted words that begin with data or headers, not {path!r}")
    return path.split(".")


def _check_root(path: str, parts: list[str]) -> None:
    if parts[0] not in _ROOTS:
        raise KeyError(f"{path!r}: a path begins with one of {', '.join(sorted(_ROOTS))}")


def _index(holder: Any, part: str) -> int | None:
    try:
        index = int(part)
    except ValueError:
        return None
    return index if -len(holder) <= index < len(holder) else None


def _step(holder: Any, part: str, at_root: bool) -> Any:
    if at_root:
        if part not in _ROOTS:
            _check_root(part, [part])
        return getattr(holder, part)
    if isinstance(holder, Mapping):
        return holder.get(part, MISSING)
    if isinstance(holder, list | tuple):
        index = _index(holder, part)
        return MISSING if index is None else holder[index]
    if isinstance(holder, msgspec.Struct):
        return getattr(holder, part, MISSING)
    if hasattr(holder, "__dataclass_fields__"):
        return getattr(holder, part, MISSING) if part in holder.__dataclass_fields__ else MISSING
    return MISSING


def _put(holder: Any, part: str, value: Any, path: str, at_root: bool) -> None:
    if at_root:
        setattr(holder, part, value)
    elif isinstance(holder, dict):
        holder[part] = value
    elif isinstance(holder, list):
        index = _index(holder, part)
        if index is None:
            raise KeyError(f"{path!r}: the list has {len(holder)} items and no place {part!r}")
        holder[index] = value
    elif (isinstance(holder, msgspec.Struct) or hasattr(holder, "__dataclass_fields__")) and hasattr(holder, part):
        setattr(holder, part, value)
    else:
        raise KeyError(f"{path!r}: {part!r} cannot be put into {type(holder).__name__}")


def _nothing_at(path: str, walked: list[str], part: str, holder: Any) -> str:
    where = ".".join(walked) or "the event"
    if isinstance(holder, Mapping):
        known = ", ".join(repr(name) for name in list(holder)[:8]) or "nothing"
        return f"{path!r}: {where} has no {part!r} (it has {known})"
    return f"{path!r}: {where} is {type(holder).__name__} and has no {part!r}"


def _merge(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        existing = target.get(name)
        if isinstance(existing, dict) and isinstance(value, Mapping):
            _merge(existing, value)
        elif isinstance(existing, list) and isinstance(value, list):
            existing.extend(copy_data(value))
        else:
            target[name] = copy_data(value)
