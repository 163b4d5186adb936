"""`check`, `explain`, `graph`, `list`, `show`, `schema`, `test` and `new`."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from furcula import registry

# ------------------------------------------------------------------ starting


def test_help_needs_neither_yaml_nor_rich_nor_the_flow_file_reader(folder):
    """Only what is needed for an answer is imported; the rest of start-up time is Python's and click's."""
    program = (
        "import sys; sys.argv = ['furcula', '--help']\n"
        "from furcula.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "late = {'yaml', 'rich', 'jinja2', 'jmespath', 'furcula.config', 'furcula.modules'} & set(sys.modules)\n"
        "print('late:', sorted(late))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "late: []"


def test_every_command_has_help(furcula):
    listed = furcula("--help").stdout
    for name in ("run", "check", "explain", "graph", "list", "show", "schema", "test", "new", "dlq", "profiles"):
        assert re.search(rf"^  {name} ", listed, re.MULTILINE)
        assert furcula(name, "--help").exit_code == 0


def test_python_m_furcula_does_not_import_from_the_working_directory(folder):
    (folder / "yaml.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        [sys.executable, "-m", "furcula", "check", "flow.yaml"], capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stdout) == (0, "flow.yaml: ok (5 modules, 4 routes)\n"), done.stderr


# ------------------------------------------------------------------ check


def test_check_runs_nothing_and_says_ok(furcula, folder):
    (folder / "fatal.py").write_text("def source():\n    raise SystemExit('it ran')\n    yield\n")
    (folder / "fatal.yaml").write_text("modules: {a: 'fatal:source', out: 'null'}")
    result = furcula("check", "flow.yaml", "fatal.yaml", "work:flow")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "flow.yaml: ok (5 modules, 4 routes)",
        "fatal.yaml: ok (2 modules, 1 route)",
        "work:flow: ok (3 modules, 2 routes)",
    ]


def test_check_prints_all_problems_of_all_flows_and_ends_with_2(furcula, folder):
    (folder / "a.yaml").write_text("modules:\n  n: work:numbrs\n  d: {map: 'work:double', queue: x}\n")
    result = furcula("check", "a.yaml", "flow.yaml", "work:wrong")
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        "a.yaml:2:6: modules.n.use: work has no 'numbrs', did you mean 'numbers'?",
        "a.yaml:3:34: modules.d.queue: expected a whole number or a mapping (given x)",
        "flow.yaml: ok (5 modules, 4 routes)",
        f"{folder}/work.py:45: modules.d.timeout: d is a plain function and cannot be interrupted: a timeout needs a "
        "coroutine, or thread: true",
    ]


def test_check_tells_warnings_on_stderr(furcula, folder):
    (folder / "a.yaml").write_text("modules: {n: 'work:numbers', out: 'null'}\nroutes: []")
    result = furcula("check", "a.yaml")
    assert "nobody is connected to the source n" in result.stderr or result.exit_code == 2


# ------------------------------------------------------------------ explain and graph


def test_explain_tells_each_path(furcula):
    result = furcula("explain", "flow.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "n -> d -> t -> out",
        "  delivery    at most once: n cannot be told what became of its events",
        "  order       kept",
        "  loss        a crash loses what n had admitted and was not settled",
        "  duplicates  none",
        "  failures    d, out -> logged, counted; t -> dead",
    ]


def test_graph_draws_for_mermaid(furcula):
    result = furcula("graph", "flow.yaml")
    assert result.stdout.splitlines() == [
        "flowchart LR",
        '  m0(["n<br/><small>numbers</small>"])',
        '  m1["d<br/><small>map double</small>"]',
        '  m2["t<br/><small>no_threes</small>"]',
        '  m3["out<br/><small>null</small>"]',
        '  m4["dead<br/><small>null</small>"]',
        "  m0 --> m1",
        "  m1 --> m2",
        "  m2 --> m3",
        "  m2 -.->|failed| m4",
    ]


def test_graph_draws_for_graphviz(furcula):
    result = furcula("graph", "flow.yaml", "--format", "dot")
    assert result.stdout.startswith('digraph "small" {')
    assert '  "t" -> "dead" [label="failed", style=dashed];' in result.stdout
    assert result.stdout.endswith("}\n")


# ------------------------------------------------------------------ list, show, schema


def test_list_has_every_kind_with_a_line(furcula):
    result = furcula("list")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(registry.kinds())
    assert all(len(line.split()) > 3 for line in lines)


def test_list_marks_plug_ins(furcula, monkeypatch):
    from importlib.metadata import EntryPoint

    points = [
        EntryPoint("acme.greet", "work:no_threes", registry.ENTRY_POINTS),
        EntryPoint("acme.broken", "not_installed:Broken", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "_plug_ins", lambda: iter(points))
    monkeypatch.syspath_prepend(".")
    lines = {line.split()[0]: line for line in furcula("list").stdout.splitlines()}
    assert lines["acme.greet"].endswith("Refuse threes. (plug-in: work:no_threes)")
    assert "cannot be loaded" in lines["acme.broken"]


def test_show_has_documentation_ports_and_arguments(furcula):
    result = furcula("show", "interval")
    assert result.exit_code == 0
    assert "inboxes     none: it is a source" in result.stdout
    assert re.search(r"^  every +Duration", result.stdout, re.MULTILINE)
    assert "concurrency" not in result.stdout
    assert "concurrency" in furcula("show", "interval", "--options").stdout


def test_show_a_function_of_ones_own(furcula):
    assert furcula("show", "work:no_threes").stdout == (
        "work:no_threes\n"
        "  Refuse threes.\n"
        "\n"
        "arguments (under with:)\n"
        "  message  str, default: 'three'\n"
        "           What to say then.\n"
    )


def test_show_an_unknown_kind_names_the_nearest_and_ends_with_2(furcula):
    result = furcula("show", "intervall")
    assert result.exit_code == 2
    assert result.stderr == "there is no kind of module 'intervall', did you mean 'interval'?\n"


def test_schema_prints_json(furcula):
    assert json.loads(furcula("schema").stdout)["properties"]["modules"]


# ------------------------------------------------------------------ test

CASES = """
- name: doubled
  inputs: {n: [1, 2]}
  expect: {out: [2, 4]}
- name: threes are refused
  inputs: {n: [3]}
  expect: {dead: [%s]}
  expect_failed: {t: [ValueError]}
"""


def test_cases_that_pass(furcula, folder):
    (folder / "flow.test.yaml").write_text(CASES % 6)
    result = furcula("test", "flow.yaml")
    assert (result.exit_code, result.stdout) == (0, "pass  doubled\npass  threes are refused\n2 of 2 passed\n")


def test_a_case_that_fails_shows_the_difference_and_ends_with_1(furcula, folder):
    (folder / "flow_test.yaml").write_text(CASES % 7)
    result = furcula("test", "flow.yaml")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "pass  doubled",
        "FAIL  threes are refused  (flow_test.yaml:5:3)",
        "      dead: expected 1 and got 1 events (- expected, + got)",
        "        - 7",
        "        + 6",
        "1 of 2 passed",
    ]


def test_no_cases_is_told_with_where_to_write_them(furcula):
    result = furcula("test", "flow.yaml")
    assert result.exit_code == 2
    assert (
        result.stderr == "there are no cases for flow.yaml: write them to flow.test.yaml, or name a file by --cases\n"
    )


def test_cases_of_a_flow_in_python_are_named(furcula, folder):
    (folder / "cases.yaml").write_text("- name: a\n  inputs: {numbers: [4]}\n  expect: {out: [8]}\n")
    assert furcula("test", "work:flow", "--cases", "cases.yaml").exit_code == 0


# ------------------------------------------------------------------ new


def test_a_new_project_runs_and_passes_its_tests(furcula, folder):
    result = furcula("new", "fresh")
    assert result.exit_code == 0
    for arguments in (["check", "flow.yaml"], ["run", "flow.yaml"], ["test", "flow.yaml"], ["explain", "flow.yaml"]):
        done = subprocess.run(
            [sys.executable, "-m", "furcula", *arguments], cwd=folder / "fresh", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"],
        cwd=folder / "fresh",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["flow.yaml", ".", "a b"])
def test_a_new_project_takes_nobodys_place(furcula, folder, name):
    before = sorted(folder.iterdir())
    assert furcula("new", name).exit_code == 2
    assert sorted(folder.iterdir()) == before


def test_a_mistake_in_the_command_line_ends_with_2(furcula):
    assert furcula("run").exit_code == 2
    assert furcula("rnu").exit_code == 2
