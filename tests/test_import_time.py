"""What `import furcula` and `furcula --help` bring in. Their times are printed by `make bench`, and not judged here."""

from __future__ import annotations

import subprocess
import sys

from bench.startup import help_ms, import_ms

#: What only some flows or commands need, and what would be felt by everybody.
HEAVY = ("jinja2", "jmespath", "rich", "yaml", "cronsim", "uvloop", "watchfiles", "sqlite3", "orjson")


def loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split())


def test_importing_furcula_loads_nothing_that_only_some_flows_need() -> None:
    assert loaded_by("import furcula").intersection(HEAVY) == set()


def test_the_commands_help_loads_nothing_heavy() -> None:
    assert loaded_by("import furcula.cli.main").intersection(HEAVY) == set()


def test_both_are_timed_by_the_bench() -> None:
    times = {"import furcula": import_ms(1), "furcula --help": help_ms(1)}
    print(*(f"{what}: {ms:.0f} ms" for what, ms in times.items()), sep="\n")
    assert all(times.values())
