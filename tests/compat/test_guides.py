"""The guides' programs run, and print what the guides say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.compat.running import ROOT, Program

GUIDES = sorted((ROOT / "docs/moving").glob("*.md"))


def blocks(guide: Path, language: str) -> str:
    return "".join(re.findall(rf"```{language}\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL))


def run(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=30, cwd=ROOT / "src", check=False
    )


def test_there_is_a_guide_for_each_old_system() -> None:
    assert {"compysition.md", "evbus.md", "pipelines.md", "shellbot.md", "wishbone.md"} <= {
        guide.name for guide in GUIDES
    }


@pytest.mark.parametrize("name", ["compysition", "evbus", "pipelines", "shellbot", "wishbone"])
def test_the_program_of_a_guide_prints_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    guide = ROOT / f"docs/moving/{name}.md"
    program = tmp_path / "guide.py"
    program.write_text(blocks(guide, "python"), encoding="utf-8")
    done = run(program)
    assert done.returncode == 0, done.stderr
    expected, printed = blocks(guide, "text").splitlines(), done.stdout.splitlines()
    if name == "wishbone":  # two modules print, and nothing orders them with each other
        expected, printed = sorted(expected), sorted(printed)
    assert printed == expected


def test_the_example_of_pipelines_prints_its_pairs() -> None:
    program = Program("examples/compat/pipelines_words.py")
    status, errors = program.end()
    assert status == 0, errors
    assert program.lines == ["eno => ONE!", "owt => TWO!", "eerht => THREE!"]
    assert "ValueError: not in this house" in errors
