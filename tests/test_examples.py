"""Every example runs, prints what it says it prints, and its cases pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from furcula.config import load
from furcula.config.cases import case_file, read_cases, run_case
from furcula.explain import explain

EXAMPLES = Path(__file__).parent.parent / "examples"
FLOWS = sorted(file for file in EXAMPLES.glob("*.yaml") if not file.name.endswith(".test.yaml"))
LIMIT_S = 60


def furcula(*arguments: str) -> str:
    """What the command prints, to stdout and to stderr."""
    command = [sys.executable, "-m", "furcula", *arguments]
    run = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=LIMIT_S)
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("file", FLOWS, ids=lambda file: file.stem)
def test_the_flow_is_well_formed_and_has_nothing_to_be_warned_about(file: Path) -> None:
    assert load(file).warnings() == []


@pytest.mark.parametrize("file", FLOWS, ids=lambda file: file.stem)
def test_the_cases_beside_it_pass(file: Path) -> None:
    cases = case_file(file)
    assert cases is not None, f"{file.name} has no cases"
    flow = load(file)
    failing = {case.name: found for case in read_cases(cases, flow) if (found := run_case(flow, case, file.parent))}
    assert failing == {}


def commands_in(file: Path) -> list[tuple[str, list[str]]]:
    """The commands in the comment at the top, each with the lines it is said to print."""
    comment = re.match(r"(#.*\n)*", file.read_text())
    assert comment is not None
    found: list[tuple[str, list[str]]] = []
    for line in comment[0].splitlines():
        if line.startswith("#   $ furcula "):
            found.append((line.removeprefix("#   $ furcula "), []))
        elif line.startswith("#   ") and found:
            found[-1][1].append(line.removeprefix("#   "))
    return found


@pytest.mark.parametrize(
    ("command", "lines"), [pytest.param(*said, id=said[0]) for file in FLOWS for said in commands_in(file)]
)
def test_the_command_in_its_comment_prints_what_the_comment_says(command: str, lines: list[str]) -> None:
    printed = furcula(*command.split()).splitlines()
    assert [line for line in printed if line in lines] == lines, "\n".join(printed)


def test_syslog_in_python_is_the_same_flow_as_in_yaml() -> None:
    assert furcula("explain", "shop.flows:flow") == f"{explain(load(EXAMPLES / 'syslog.yaml'))}\n"
