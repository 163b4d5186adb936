"""Cases: what a flow should make of given inputs, written in YAML beside the flow.

    - name: expensive orders are taxed
      inputs: {orders: [{sku: a, price: 100}]}
      expect: {out: [{sku: a, price: 119}]}

Sources give the inputs, sinks collect, and the clock moves by itself (`Flow.test`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from furcula.config import functions
from furcula.config.checks import in_file_order
from furcula.config.convert import Checker
from furcula.config.load import read_text
from furcula.config.nodes import Node, compose
from furcula.errors import ConfigurationError, Problem, nearest
from furcula.event import Event
from furcula.flow import FlowGraph
from furcula.run import Flow

__all__ = ["Case", "case_file", "read_cases", "run_case"]


class Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One case as it is written.

    Attributes:
        name: What it claims.
        inputs: For each source, what it admits: data, or `{data: …, headers: …}`.
        replace: For a module, the function to run in its place (`package.module:name`).
        expect: For each sink, the data that comes to it, in order; with `{data: …, headers: …}` also the headers.
        expect_failed: For each module, how many events fail there, or the types of their exceptions.
        statistics: Figures of the whole run: `{delivered: 3}`.
    """

    name: str
    inputs: dict[str, list[Any]] = {}
    replace: dict[str, str] = {}
    expect: dict[str, list[Any]] = {}
    expect_failed: dict[str, int | list[str]] = {}
    statistics: dict[str, int] = {}


class Case(Written, frozen=True):
    """One case, and where it stands."""

    location: str = ""


_FIGURES = ("admitted", "delivered", "dropped", "failed", "open")


def case_file(flow_file: str | Path) -> Path | None:
    """The cases beside `flow.yaml`: `flow.test.yaml` or `flow_test.yaml`; None: there are none."""
    flow_file = Path(flow_file)
    names = (f"{flow_file.stem}{ending}{flow_file.suffix}" for ending in (".test", "_test"))
    return next((flow_file.parent / name for name in names if (flow_file.parent / name).is_file()), None)


def read_cases(file: str | Path, flow: FlowGraph) -> list[Case]:
    """The cases in a file.

    Args:
        file: A YAML file with a list of cases.
        flow: The flow they are about, which must have every module they name.

    Raises:
        ConfigurationError: With every problem of the file, each with its place.
    """
    problems: list[Problem] = []
    root = compose(read_text(Path(file)), str(file), problems)
    if root is not None and not root.is_list:
        problems.append(Problem("expected a list of cases: - name: ...", "", root.location))
    if problems or root is None:
        raise ConfigurationError(problems)
    checker = Checker(problems)
    given = [_read_case(node, f"[{index}]", checker, flow) for index, node in enumerate(root.value)]
    if problems:
        raise ConfigurationError(in_file_order(problems))
    return [msgspec.convert({**one, "location": location}, Case) for one, location in given]


def _read_case(node: Node, path: str, checker: Checker, flow: FlowGraph) -> tuple[Any, str]:
    given = checker.check(node, Written, path)
    if not node.is_mapping:
        return given, node.location
    for part in ("inputs", "replace", "expect", "expect_failed"):
        below = node.value.get(part)
        for name in below.value if below is not None and below.is_mapping else ():
            if name not in flow.places:
                hint = nearest(name, flow.places)
                checker.report(f"there is no module {str(name)!r}{hint}", f"{path}.{part}.{name}", below.keys[name])
            elif part == "inputs" and not flow.places[name].is_source:
                checker.report(f"{name} is not a source", f"{path}.{part}.{name}", below.keys[name])
    figures = node.value.get("statistics")
    for name in figures.value if figures is not None and figures.is_mapping else ():
        if name not in _FIGURES:
            hint = nearest(name, _FIGURES) or "; known: " + ", ".join(_FIGURES)
            checker.report(f"there is no figure {str(name)!r}{hint}", f"{path}.statistics.{name}", figures.keys[name])
    return given, node.location


def run_case(flow: Flow, case: Case, folder: Path | None) -> list[str]:
    """Run one case. Returns how what came out differs from what was expected; empty: it passed.

    Args:
        flow: The flow; it is not changed.
        case: The case.
        folder: Where the functions under `replace` are looked up.
    """
    with functions.importable(folder):
        replace = {name: functions.find(text, folder) for name, text in case.replace.items()}
    inputs = {name: [_event(item) for item in items] for name, items in case.inputs.items()}
    result = flow.test(inputs, replace=replace)
    differences: list[str] = []
    for sink, expected in case.expect.items():
        differences += _difference(sink, expected, [_as_expected(event, expected) for event in result[sink]])
    for module, wanted in case.expect_failed.items():
        differences += _failures(module, wanted, result.statistics.modules[module])
    for figure, number in case.statistics.items():
        actual = getattr(result.statistics, figure)
        if actual != number:
            differences.append(f"{figure}: expected {number}, got {actual}")
    return differences


def _is_whole_event(item: Any) -> bool:
    return isinstance(item, Mapping) and "data" in item and set(item) <= {"data", "headers"}


def _event(item: Any) -> Any:
    return Event(item["data"], dict(item.get("headers", {}))) if _is_whole_event(item) else Event(item)


def _as_expected(event: Event[Any], expected: Iterable[Any]) -> Any:
    """The event in the form in which the case says what it expects."""
    if any(_is_whole_event(item) and "headers" in item for item in expected):
        return {"data": event.data, "headers": event.headers}
    if any(_is_whole_event(item) for item in expected):
        return {"data": event.data}
    return event.data


def _difference(sink: str, expected: list[Any], actual: list[Any]) -> list[str]:
    if expected == actual:
        return []
    head = f"{sink}: expected {len(expected)} and got {len(actual)} events (- expected, + got)"
    compared = difflib.ndiff([_line(item) for item in expected], [_line(item) for item in actual])
    return [head, *(f"  {line.rstrip()}" for line in compared)]


def _line(item: Any) -> str:
    return json.dumps(item, default=repr, ensure_ascii=False)


def _failures(module: str, wanted: int | list[str], figures: Any) -> list[str]:
    reasons = {name.removeprefix("failed "): n for name, n in figures.reasons.items() if name.startswith("failed ")}
    if isinstance(wanted, int):
        shown = ", ".join(f"{n} {name}" for name, n in reasons.items())
        note = f" ({shown})" if shown else ""
        return [] if figures.failed == wanted else [f"{module} failed: expected {wanted}, got {figures.failed}{note}"]
    actual = sorted(name for name, number in reasons.items() for _ in range(number))
    return _difference(f"{module} failed", sorted(wanted), actual)
