"""`furcula run` runs a flow, reports, and ends with an exit code that says how it went."""

from __future__ import annotations

import os
import pstats
import re
import signal
import subprocess
import sys
import textwrap

import pytest


def test_it_prints_the_sum_and_a_line_for_each_module_to_stderr(furcula):
    result = furcula("run", "flow.yaml")
    assert result.exit_code == 0
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "admitted 3 = delivered 3 + dropped 0 + failed 0 + in flight 0"
    assert lines[2].split() == ["module", "received", "sent", "delivered", "dropped", "failed", "queue", "p50", "p99"]
    rows = {line.split()[0]: line.split()[1:7] for line in lines[3:]}
    assert rows == {
        "n": ["3", "3", "0", "0", "0", "0"],
        "d": ["3", "3", "0", "0", "0", "0"],
        "t": ["3", "2", "0", "0", "1", "0"],
        "out": ["2", "0", "2", "0", "0", "0"],
        "dead": ["1", "0", "1", "0", "0", "0"],
    }
    columns = {match.end() for match in re.finditer(r"received|sent|delivered|dropped|failed|queue", lines[2])}
    assert all(line[end - 1].isdigit() for line in lines[3:] for end in columns)


def test_a_flow_in_python_runs_as_well(furcula):
    result = furcula("run", "work:flow")
    assert result.exit_code == 0
    assert "admitted 3 = delivered 3" in result.stderr


def test_values_are_put_over_those_of_the_file(furcula):
    result = furcula(
        "run", "flow.yaml", "--set", "modules.d={filter: 'work:refuse'}", "--set", "modules.t.with.message=other"
    )
    assert result.exit_code == 0
    assert re.search(r"^d +3 +0 +0 +3 ", result.stderr, re.MULTILINE)


def test_a_source_that_fails_is_told_with_its_line_and_the_figures(furcula, folder):
    result = furcula("run", "flow.yaml", "--set", "modules.n.use=work:broken")
    assert result.exit_code == 1
    assert "admitted 1 = delivered 1" in result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"the source n failed and has ended: OSError: the line went dead ({folder}/work.py:11)"
    )


def test_a_module_that_does_not_start_is_told(furcula):
    result = furcula("run", "flow.yaml", "--set", "modules.out.use=work:Unwilling")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "out (flow.yaml:6:3) could not start: OSError: no such device",
        "--traceback shows where it was raised",
    ]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stop", "none.pid"], "none.pid: No such file or directory: is there a run with this --pid-file?"),
        (["stop", "bad.pid"], "bad.pid has no process number in it"),
        (
            ["run", "flow.yaml", "--set", "modules.out={use: dead_letter.write, with: {store: bad.pid}}"],
            "out (flow.yaml:6:3) could not start: {folder}/bad.pid is no store of furcula, nor any SQLite file; "
            "name another path",
        ),
    ],
)
def test_a_mistake_that_says_what_to_do_offers_no_traceback_and_names_no_class(furcula, folder, arguments, told):
    (folder / "bad.pid").write_text("this is no number and no store")
    result = furcula(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == told.format(folder=folder)


def test_the_traceback_is_shown_when_asked_for(furcula):
    result = furcula("run", "flow.yaml", "--set", "modules.out.use=work:Unwilling", "--traceback")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert 'raise OSError("no such device")' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["flw.yaml"], "flw.yaml: cannot be read: No such file or directory, did you mean 'flow.yaml'?"),
        (["flow"], "'flow' is neither a flow file (flow.yaml) nor package.module:flow, did you mean 'flow.yaml'?"),
        (["work:flwo"], "work has no 'flwo', did you mean 'flow'?"),
        (["work:double"], "work:double is function, not a Flow"),
        (["work:flow", "--set", "ttl=1"], "--set: values can be put over those of a flow file only"),
        (["flow.yaml", "--set", "modules.x.queue=1"], "--set: modules.x.queue: there is no module 'x'"),
        (["flow.yaml", "--processes", ""], "--processes: '' is not a number from 1 to 1024"),
        (["flow.yaml", "--processes", "main=2,main=3"], "--processes: main is given twice"),
        (
            ["flow.yaml", "--hung-after", "2s"],
            "--hung-after: 2s is too short: workers speak once a second, so healthy ones would be killed; give 3s or "
            "more",
        ),
        (
            ["flow.yaml", "--deadline", "soon"],
            "--deadline: 'soon' is not a duration; write seconds, or '250ms', '2s', '5m', '1h'",
        ),
    ],
)
def test_what_cannot_run_is_told_in_a_line_and_ends_with_2(furcula, arguments, told):
    result = furcula("run", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", told + "\n")


def test_a_profile_is_written(furcula, folder):
    assert furcula("run", "flow.yaml", "--profile", "out.prof").exit_code == 0
    functions = {name for _, _, name in pstats.Stats(str(folder / "out.prof")).stats}
    assert "double" in functions


ENDLESS = """
import time

from furcula import Event


async def ticks():
    import asyncio
    while True:
        yield 1
        await asyncio.sleep(0.001)


async def stuck(event: Event) -> Event:
    import asyncio
    print("stuck", flush=True)
    await asyncio.sleep(3600)
    return event


def ready(event: Event):
    print("ready", flush=True)
"""


def started(folder, last, *arguments):
    """`furcula run` in a process of its own, once its last module has handled an event."""
    (folder / "endless.py").write_text(textwrap.dedent(ENDLESS))
    (folder / "endless.yaml").write_text(f"modules: {{t: 'endless:ticks', last: 'endless:{last}'}}")
    process = subprocess.Popen(
        [sys.executable, "-m", "furcula", "run", "endless.yaml", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("stuck", "ready")
    return process


@pytest.mark.parametrize("arguments", [[], ["--processes", "2"]])
def test_a_report_that_cannot_be_written_fails_nothing(folder, arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "furcula", "run", "flow.yaml", *arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        assert subprocess.run(command, cwd=folder, stderr=full, env=environment, timeout=60).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--processes", "2"]])
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_stream_that_is_closed_from_the_start_is_no_socket_of_ours_later(folder, closed, arguments):
    # A shell, not `preexec_fn`: which of our descriptors are open there would be a matter of chance.
    command = f'exec "$@" {closed}{"<" if closed == 0 else ">"}&-'
    furcula = [sys.executable, "-m", "furcula", "run", "flow.yaml", *arguments]
    ended = subprocess.run(
        ["sh", "-c", command, "sh", *furcula], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    if closed != 2:
        assert re.search(r"admitted [1-9]\d* = ", ended.stderr)


def test_a_signal_drains_and_ends_with_0(folder):
    process = started(folder, "ready")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0
    assert re.search(r"admitted (\d+) = delivered \1 \+ dropped 0 \+ failed 0 \+ in flight 0", told)


def test_what_is_left_at_the_deadline_is_named(folder):
    process = started(folder, "stuck", "--deadline", "100ms")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 0
    assert re.search(r"abandoned at the deadline: last \d+", told)


def test_a_second_signal_ends_at_once_with_130(folder):
    process = started(folder, "stuck", "--deadline", "1h")
    assert process.stderr is not None
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if "draining" in line:
            break
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=20)
    assert process.returncode == 130
    assert told.endswith("ended at once by a second signal\n")


def test_the_live_table_shows_the_workers_below_their_sum(folder):
    from furcula.cli.figures import LiveTable
    from furcula.engine.statistics import FlowStatistics, ModuleStatistics, Statistics
    from furcula.workers.figures import WorkerFigures

    table = LiveTable()
    sums = Statistics(
        "flow", FlowStatistics(admitted=5, open=5), {}, {"price": ModuleStatistics(received=5)}, seconds=1
    )
    table.update(sums, [WorkerFigures("main/0", 123, "running", 2, sums), WorkerFigures("main/1", 0, "waiting", 1)])
    from rich.console import Console

    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table._live.get_renderable())
        lines = [line.split() for line in console.export_text().splitlines()]
    assert ["main/0", "123", "running", "2", "5", "0", "0", "0", "5"] in lines
    assert ["main/1", "waiting", "1"] in lines


def test_the_live_table_shows_the_modules(folder):
    from furcula.cli.figures import LiveTable
    from furcula.engine.statistics import FlowStatistics, ModuleStatistics, Statistics

    table = LiveTable()
    modules = {"price": ModuleStatistics(received=500, depth=7, p50_us=1500.0)}
    table.update(Statistics("flow", FlowStatistics(admitted=500, open=500), {}, modules, seconds=2.0))
    from rich.console import Console

    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(table._live.get_renderable())
        shown = console.export_text()
    assert [line.split() for line in shown.splitlines() if "price" in line] == [
        ["price", "250", "500", "0", "7", "1.5ms"]
    ]
