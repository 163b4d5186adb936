"""The fixtures for pytest, and the claim that they make."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from furcula import Director, Event, Flow, Statistics
from furcula.testing import assert_settled
from furcula.testing.plugin import furcula_run, rehearse

__all__ = ["furcula_run", "rehearse"]  # used as fixtures, whether the plug-in is installed or not

ROOT = Path(__file__).parents[2]


def flow() -> Flow:
    made = Flow("small")
    http = made.use("inlet", "http")
    http >> made.map(lambda n: 2 * n, "double") >> http
    return made


def test_rehearse_runs_a_flow_for_a_test(rehearse: Callable[..., object]) -> None:
    assert rehearse(flow(), {"http": [1, 2]}).data("http") == [2, 4]  # type: ignore[attr-defined]


async def test_furcula_run_gives_a_director(furcula_run: Callable[[Flow], Director]) -> None:
    async with furcula_run(flow()) as director:
        reply: Event = await director.ask("http", 4, timeout="5s")
        assert reply.data == 8


LEAKING = """
from furcula import Flow
from furcula.testing.plugin import furcula_run, rehearse
import asyncio, pytest

def test_a_flow_that_is_left_running(furcula_run):
    flow = Flow("left")
    flow.use("inlet", "in") >> flow.use("null", "out")
    async def leave():
        await furcula_run(flow).start()
    asyncio.run(leave())

def test_a_flow_that_was_never_started(furcula_run):
    flow = Flow("unused")
    flow.use("inlet", "in") >> flow.use("null", "out")
    furcula_run(flow)
"""


def test_a_director_that_is_left_running_fails_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    assert "the flow left still runs (running): stop it" in done.stdout, done.stdout + done.stderr
    assert "2 passed, 1 error" in done.stdout


# ---------------------------------------------------------------------- assert_settled


def settled() -> Statistics:
    return flow().test({"http": [1]}).statistics


def test_a_run_that_kept_its_promise_is_settled() -> None:
    assert_settled(settled())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"open": 1, "admitted": 2}, "the flow: 1 still open"),
        ({"lost": 1}, "the flow: 1 lost"),
        ({"late": 2}, "the flow: 2 settled twice"),
        ({"delivered": 0}, r"the flow: admitted 1 is not delivered 0 \+ dropped 0"),
    ],
)
def test_what_is_wrong_with_the_sums_is_said(change: dict[str, int], said: str) -> None:
    statistics = settled()
    wrong = msgspec.structs.replace(statistics, total=msgspec.structs.replace(statistics.total, **change))
    with pytest.raises(AssertionError, match=said):
        assert_settled(wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"held": 1, "received": 2}, "double: still holds 1"), ({"born": 1}, r"double: received 1 \+ born 1 is not")],
)
def test_the_module_that_is_wrong_is_named(change: dict[str, int], said: str) -> None:
    statistics = settled()
    modules = {**statistics.modules, "double": msgspec.structs.replace(statistics.modules["double"], **change)}
    with pytest.raises(AssertionError, match=said):
        assert_settled(msgspec.structs.replace(statistics, modules=modules))
