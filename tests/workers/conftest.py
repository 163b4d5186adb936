"""Flows run by a supervisor, in a folder of their own; whatever a test leaves is ended after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.workers.running import Running

Furcula = Callable[..., Running]


@pytest.fixture
def furcula(tmp_path: Path) -> Iterator[Furcula]:
    """Start `furcula` with these arguments."""
    started: list[Running] = []

    def start(*arguments: str, **settings: Any) -> Running:
        started.append(Running(tmp_path, *arguments, **settings))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def flow(tmp_path: Path) -> Callable[[str], str]:
    """Write a flow file with these modules."""

    def write(modules: str, name: str = "flow.yaml") -> str:
        (tmp_path / name).write_text(f"flow: shop\nmodules:\n{modules}")
        return name

    return write
