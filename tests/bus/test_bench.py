"""The bench of the bus runs, in a size that measures nothing."""

from __future__ import annotations

import pytest
from bench.bus.__main__ import main


@pytest.mark.parametrize(
    ("row", "unit"),
    [("one message", "p50"), ("in memory", "deliveries/s"), ("work queue", " x ("), ("zmq.asyncio", " x (")],
)
def test_a_row_says_what_was_found_and_what_is_wanted(row: str, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rows", row, "--count", "2000", "--repeats", "1"])
    (line,) = capsys.readouterr().out.splitlines()
    assert row in line
    assert unit in line
    assert "(wanted" in line
