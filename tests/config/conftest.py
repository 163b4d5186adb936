"""A folder with functions for flow files to name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from furcula.config import loads
from furcula.errors import ConfigurationError

FUNCTIONS = '''
import msgspec

from furcula import Duration, Event, Flow, Secret, Size, Source


class Limits(msgspec.Struct):
    low: int = 0
    high: int = 10
    strict: bool = False


def numbers():
    yield from (1, 2, 3)


def numbers_up_to(limit: int):
    yield from range(limit)


async def letters():
    yield "a"


rows = [{"n": 1}, {"n": 2}]


def double(n: int) -> int:
    return 2 * n


def negate(n: int) -> int:
    return -n


def is_even(n: int) -> bool:
    return n % 2 == 0


def repeat(n: int):
    return [n, n]


def label(event: Event, text: str = "", limits: Limits | None = None, tags: list[str] = ()) -> Event:
    event.headers["label"] = text
    return event


def split(event: Event):
    yield event


def ident(event: Event):
    return event.data


async def send(event: Event, password: Secret, port: int = 1, size: Size = Size(1), every: Duration = Duration(1),
               active: bool = False, rates: dict[str, float] = {}, mode: int | str = 1) -> Event:
    return event


def open_ended(event: Event, **settings):
    return event


def sink(event):
    pass


class Picky:
    """A class module."""

    outboxes = ("outbox", "other")

    def __init__(self, level: int):
        self.level = level

    def process(self, event: Event) -> Event:
        return event


class Ticks(Source):
    def events(self):
        yield 1


inner = Flow("inner")
inner.map(double, "twice") >> inner.map(double, "again")
not_a_module = 7
'''

Problems = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.fixture
def problems(folder: Path) -> Problems:
    """All problems of a text, a line each; none: it loads."""

    def find(text: str, **settings: object) -> list[str]:
        settings.setdefault("environment", {})
        try:
            loads(text, folder=folder, name="flow.yaml", **settings)
        except ConfigurationError as error:
            return [str(problem) for problem in error.problems]
        return []

    return find
