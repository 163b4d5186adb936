"""The one-way example of Compysition's README runs with only its imports changed."""

from __future__ import annotations

import datetime
import re
import signal
import sys

import pytest
from tests.compat.running import ROOT, Program

LINE = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6})\] I am number (one|two): test")


@pytest.mark.skipif(sys.platform == "win32", reason="it is stopped by a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_numbers_are_printed_each_second_until_a_signal(number: signal.Signals) -> None:
    program = Program("examples/compat/compysition_one_way.py")
    program.until(lambda lines: len(lines) >= 6)
    status, errors = program.interrupt(number)
    assert status == 0
    assert "Traceback" not in errors
    found = [LINE.fullmatch(line) for line in program.lines]
    assert all(found), program.lines
    lines = [match for match in found if match]
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert {first[2], second[2]} == {"one", "two"}
    times = [datetime.datetime.fromisoformat(match[1]) for match in lines]
    for earlier, later in zip(times[::2], times[2::2], strict=False):
        assert (later - earlier).total_seconds() == pytest.approx(1, abs=0.4)


def test_only_the_imports_of_the_readme_were_changed() -> None:
    ours = (ROOT / "examples/compat/compysition_one_way.py").read_text().partition("\n\nfrom ")[2].split("\n")
    statements = [re.sub(r"\s+", " ", line.strip()) for line in ours if line.strip() and "import" not in line]
    assert statements == [
        "director = Director()",
        'event_generator = director.register_module(TestEvent, "event_generator", interval=1)',
        'output_one = director.register_module(STDOUT, "output_one", prefix="I am number one: ", timestamp=True)',
        'output_two = director.register_module(STDOUT, "output_two", prefix="I am number two: ", timestamp=True)',
        "director.connect(event_generator, output_one)",
        "director.connect(event_generator, output_two)",
        "director.start()",
        "director.block()",
    ]
