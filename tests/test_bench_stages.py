"""The bench of routes between processes runs, in a size that measures nothing."""

from __future__ import annotations

import pytest
from bench.stages.__main__ import main
from bench.stages.flow import Work
from bench.stages.running import run


@pytest.mark.parametrize(
    ("row", "unit"), [("ipc route, 100-byte", " x ("), ("cluster route, 100-byte", " x ("), ("ipc route, one", "p50 +")]
)
def test_a_row_says_what_was_found_and_what_is_wanted(row: str, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rows", row, "--events", "2000", "--samples", "20", "--repeats", "1"])
    (line,) = capsys.readouterr().out.splitlines()
    assert row in line
    assert unit in line
    assert "(wanted" in line


def test_a_run_over_jetstream_handles_all_by_key_and_times_each() -> None:
    found = run("jetstream", Work(200, rate=400.0, order="key", keys=7, partitions=4), workers=2)
    assert len(found.latencies_s) == 200
    assert 0 < found.quantile_s(0.5) <= found.quantile_s(0.99)
