"""The bench runs, in a size that measures nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench.__main__ import main
from bench.measure import Pairs, pairs
from bench.rows import ROWS


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    main([*arguments, "--repeats", "1"])
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("row", ["asyncio.Queue", "functions", "coroutines", "a queue before", "fan-out", "in order"])
def test_a_row_says_how_many_times_as_fast_as_its_reference_it_is(row: str, capsys: pytest.CaptureFixture[str]) -> None:
    (*_, line) = lines_of(capsys, "--rows", row, "--events", "2000")
    assert row in line
    assert " x " in line


def test_latency_memory_and_start_up_have_figures_and_what_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--rows", "idle", "waits", "import", "help", "growth", "--events", "1000")
    for what, unit, wanted in (
        ("five idle modules", " us ", "<= 60 us"),
        ("waits in a queue", " bytes ", "< 600 bytes"),
        ("import furcula", " ms ", "<= 120 ms"),
        ("furcula --help", " ms ", "<= 200 ms"),
        ("resident memory", "% ", "+-5 %"),
    ):
        (line,) = [line for line in lines if what in line]
        assert unit in line
        assert wanted in line


def test_the_readme_has_a_figure_of_every_row() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for row in ROWS:
        beginning, end = f"| {row.name} | {row.against} | ", f" | {row.target} |"
        assert any(line.startswith(beginning) and line.endswith(end) for line in readme.splitlines()), beginning + end


def test_the_table_can_be_had_for_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(capsys, "--rows", "import", "--markdown")
    assert lines[-3:-1] == ["| what | against | figure | wanted |", "| --- | --- | --- | --- |"]
    assert lines[-1].startswith("| import furcula |  | ")


def test_a_row_whose_peer_is_missing_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "streamz", None)
    monkeypatch.delitem(sys.modules, "bench.peers.streamz", raising=False)
    (*_, line) = lines_of(capsys, "--rows", "streamz", "--events", "1000")
    assert "cannot run: streamz is not installed here" in line


def test_a_ratio_is_the_median_over_pairs_and_not_that_of_the_sums() -> None:
    # A machine that was busy during the third pair slowed both.
    assert Pairs([1.0, 1.0, 9.0], [0.5, 0.6, 4.5]).ratio == 0.5


def test_the_subject_and_its_reference_are_run_in_turn() -> None:
    ran: list[str] = []
    pairs(lambda events: ran.append(f"a{events}"), lambda events: ran.append(f"b{events}"), events=10, repeats=2)
    assert ran == ["a1", "b1", "a10", "b10", "a10", "b10"]
