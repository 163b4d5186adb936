"""shellbot's two patterns and its distributed vote: each example prints what it says it prints, across processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples" / "bus"


@pytest.mark.parametrize("name", ["broadcast", "observe", "vote"])
def test_the_example_prints_what_it_says(name: str) -> None:
    file = EXAMPLES / f"{name}.py"
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert said is not None
    _, _, expected = said.partition(f"$ python {name}.py\n")
    ran = subprocess.run([sys.executable, str(file)], capture_output=True, timeout=90, text=True, encoding="utf-8")
    assert (ran.returncode, ran.stderr) == (0, "")
    found, lines = [[line.strip() for line in text.splitlines()] for text in (ran.stdout, expected)]
    if name == "broadcast":  # its rooms print for themselves
        found, lines = sorted(found), sorted(lines)
    assert found == lines
