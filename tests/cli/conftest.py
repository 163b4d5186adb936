"""Commands run in this process, in a folder with a small flow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from furcula.cli.main import main

FUNCTIONS = '''
from furcula import Event, Flow


def numbers():
    yield from (1, 2, 3)


def broken():
    yield 1
    raise OSError("the line went dead")


def double(n: int) -> int:
    return 2 * n


def refuse(n: int) -> bool:
    return False


def no_threes(event: Event, message: str = "three") -> Event:
    """Refuse threes.

    Args:
        message: What to say then.
    """
    if event.data == 6:
        raise ValueError(message)
    return event


class Unwilling:
    def start(self, context):
        raise OSError("no such device")

    def process(self, event: Event) -> Event:
        return event


flow = Flow("python")
flow.source(numbers) >> flow.map(double) >> flow.use("null", "out")

wrong = Flow("wrong")
wrong.source(numbers, "n") >> wrong.map(double, "d", timeout="1s")
'''

FLOW = """flow: small
modules:
  n: {use: "work:numbers"}
  d: {map: "work:double"}
  t: {use: "work:no_threes"}
  out: {use: "null"}
  dead: {use: "null"}
routes:
  - n -> d -> t -> out
  - t.failed -> dead
"""

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work.py").write_text(FUNCTIONS)
    (tmp_path / "flow.yaml").write_text(FLOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def furcula(folder: Path) -> Run:
    """Run `furcula` with these arguments: stdout, stderr and the exit code come back."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)

    return run


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command sets up logging for its process, and these commands run in ours."""
    logger = logging.getLogger("furcula")
    before = (logger.level, logger.propagate, list(logger.handlers))
    yield
    logger.setLevel(before[0])
    logger.propagate = before[1]
    logger.handlers[:] = before[2]
