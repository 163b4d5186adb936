"""Change events, declared instead of programmed."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from furcula.errors import nearest
from furcula.event import Event, copy_data
from furcula.module import Context, Module
from furcula.modules.template import compile_text

__all__ = ["OPERATIONS", "Modify"]

#: Changes one event. What cannot be done raises, and the event fails.
Change: TypeAlias = Callable[[Event[Any]], object]


class Modify(Module):
    """Change events: set, copy, move, delete and merge values, extract and replace text, render templates.

    The operations are done in the order of this page; for another order, or one of them twice, write `steps`: a list of
    them, `[{set: {data.kind: order}}, {delete: [data.raw]}]`. What cannot be done (nothing at a path, a pattern that
    does not match, a template that names what is not there) makes the event fail.

    Args:
        set: Dotted path -> value.
        copy: Path -> path where a copy of it goes.
        rename: Path -> path to which it moves.
        merge: Path -> dict merged into what is there, deeply; lists are extended.
        template: Path -> Jinja template; its text goes there.
        extract: `{path: data.line, pattern: "(?P<user>\\\\w+) .*", target: data}`, or a list of such: the named groups
            of the pattern, searched in the text at `path`, are merged into the dict at `target` (default: data).
        replace: Path -> `[pattern, replacement]` in the text there.
        join: Path -> separator: the list there becomes text.
        add: Path -> item to append to the list there.
        remove: Path -> item to take out of the list there.
        upper: Paths of texts to write in capitals.
        lower: Paths of texts to write in small letters.
        time: A path where the present time goes, in ISO 8601 and UTC; or path -> strftime format.
        delete: Paths to remove.
        steps: Any of these, one after the other. They come first.
    """

    def __init__(
        self,
        *,
        set: dict[str, Any] | None = None,
        copy: dict[str, str] | None = None,
        rename: dict[str, str] | None = None,
        merge: dict[str, dict[str, Any]] | None = None,
        template: dict[str, str] | None = None,
        extract: dict[str, str] | list[dict[str, str]] | None = None,
        replace: dict[str, tuple[str, str]] | None = None,
        join: dict[str, str] | None = None,
        add: dict[str, Any] | None = None,
        remove: dict[str, Any] | None = None,
        upper: str | list[str] | None = None,
        lower: str | list[str] | None = None,
        time: str | dict[str, str] | None = None,
        delete: str | list[str] | None = None,
        steps: list[dict[str, Any]] | None = None,
    ):
        written = {
            "set": set, "copy": copy, "rename": rename, "merge": merge, "template": template, "extract": extract,
            "replace": replace, "join": join, "add": add, "remove": remove, "upper": upper, "lower": lower,
            "time": time, "delete": delete,
        }  # fmt: skip
        in_order = [*(steps or ()), {name: value for name, value in written.items() if value is not None}]
        self._now: Callable[[], float] = _now
        self._changes = [
            change for step in in_order for name, value in step.items() for change in self._compiled(name, value)
        ]
        if not self._changes:
            raise ValueError(f"modify has nothing to do; it can {', '.join(OPERATIONS)}")

    def _compiled(self, name: str, value: Any) -> list[Change]:
        if name not in OPERATIONS:
            raise ValueError(f"modify has no {name!r}{nearest(name, OPERATIONS) or '; ' + ', '.join(OPERATIONS)}")
        changes = []
        for one in _one_by_one(name, value):
            try:
                changes.append(OPERATIONS[name](*one, self) if name == "time" else OPERATIONS[name](*one))
            except (TypeError, KeyError, ValueError) as error:
                raise ValueError(f"{name}: {error.args[0] if error.args else error}") from None
        return changes

    def start(self, context: Context) -> None:
        self._now = context.now

    def now(self) -> float:
        """Unix time, by the flow's clock."""
        return self._now()

    def process(self, event: Event[Any]) -> Event[Any]:
        for change in self._changes:
            change(event)
        return event


_now = time.time  # the argument of that name hides the module


def _one_by_one(name: str, value: Any) -> list[tuple[Any, ...]]:
    """The arguments of each single operation that is written under one name."""
    if name == "extract":
        return [(one,) for one in (value if isinstance(value, list) else [value])]
    if isinstance(value, Mapping):
        return [(path, operand) for path, operand in value.items()]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} takes paths, not {value!r}")
    return [(path,) for path in value]


# ------------------------------------------------------------------ operations


def _checked(path: Any) -> str:
    Event().has(path)  # KeyError for what is no path
    return str(path)


def _set(path: str, value: Any) -> Change:
    path = _checked(path)
    return lambda event: event.set(path, copy_data(value))


def _copy(source: str, target: str) -> Change:
    source, target = _checked(source), _checked(target)
    return lambda event: event.copy(source, target)


def _rename(source: str, target: str) -> Change:
    source, target = _checked(source), _checked(target)

    def change(event: Event[Any]) -> None:
        value = event.get(source)
        event.delete(source)
        event.set(target, value)

    return change


def _merge(path: str, values: dict[str, Any]) -> Change:
    path = _checked(path)
    if not isinstance(values, Mapping):
        raise TypeError(f"{path} needs a dict, not {values!r}")
    return lambda event: event.merge(path, values)


def _template(path: str, text: str) -> Change:
    path = _checked(path)
    render = compile_text(text)
    return lambda event: event.set(path, render(event))


def _extract(spec: Mapping[str, str]) -> Change:
    unknown = [name for name in spec if name not in ("path", "pattern", "target")]
    if unknown or "path" not in spec or "pattern" not in spec:
        raise ValueError("write {path: …, pattern: …, target: …}")
    path, target = _checked(spec["path"]), _checked(spec.get("target", "data"))
    pattern = _pattern(spec["pattern"])
    if not pattern.groupindex:
        raise ValueError(f"{pattern.pattern!r} has no named group (?P<name>…)")

    def change(event: Event[Any]) -> None:
        found = pattern.search(_text(event, path))
        if found is None:
            raise ValueError(f"{path} does not match {pattern.pattern!r}")
        named = {name: value for name, value in found.groupdict().items() if value is not None}
        if isinstance(event.get(target, None), dict):
            event.merge(target, named)
        else:
            event.set(target, named)

    return change


def _replace(path: str, what: tuple[str, str]) -> Change:
    path = _checked(path)
    if not isinstance(what, list | tuple) or len(what) != 2:
        raise ValueError(f"{path} needs [pattern, replacement], not {what!r}")
    pattern, replacement = _pattern(what[0]), what[1]
    return lambda event: event.set(path, pattern.sub(replacement, _text(event, path)))


def _join(path: str, separator: str) -> Change:
    path = _checked(path)
    return lambda event: event.set(path, separator.join(map(str, _list(event, path))))


def _add(path: str, item: Any) -> Change:
    path = _checked(path)

    def change(event: Event[Any]) -> None:
        if event.has(path):
            _list(event, path).append(copy_data(item))
        else:
            event.set(path, [copy_data(item)])

    return change


def _remove(path: str, item: Any) -> Change:
    path = _checked(path)

    def change(event: Event[Any]) -> None:
        try:
            _list(event, path).remove(item)
        except ValueError:
            raise ValueError(f"{path} has no item {item!r}") from None

    return change


def _upper(path: str) -> Change:
    path = _checked(path)
    return lambda event: event.set(path, _text(event, path).upper())


def _lower(path: str) -> Change:
    path = _checked(path)
    return lambda event: event.set(path, _text(event, path).lower())


def _time(path: str, *rest: Any) -> Change:
    path, clock = _checked(path), rest[-1]
    form = rest[0] if len(rest) == 2 else None

    def change(event: Event[Any]) -> None:
        at = datetime.datetime.fromtimestamp(clock.now(), datetime.UTC)
        event.set(path, at.isoformat() if form is None else at.strftime(form))

    return change


def _delete(path: str) -> Change:
    path = _checked(path)
    return lambda event: event.delete(path)


#: name -> what makes a change from a path and an operand (`extract`: from its spec).
OPERATIONS: dict[str, Callable[..., Change]] = {
    "set": _set,
    "copy": _copy,
    "rename": _rename,
    "merge": _merge,
    "template": _template,
    "extract": _extract,
    "replace": _replace,
    "join": _join,
    "add": _add,
    "remove": _remove,
    "upper": _upper,
    "lower": _lower,
    "time": _time,
    "delete": _delete,
}


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None


def _text(event: Event[Any], path: str) -> str:
    value = event.get(path)
    if not isinstance(value, str):
        raise TypeError(f"{path} holds {type(value).__name__}, not text")
    return value


def _list(event: Event[Any], path: str) -> list[Any]:
    value = event.get(path)
    if not isinstance(value, list):
        raise TypeError(f"{path} holds {type(value).__name__}, not a list")
    return value
