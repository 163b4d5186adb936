"""What is published works: a wheel is built, installed into a clean environment, and runs the demonstration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIMIT_S = 300

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(2 * LIMIT_S)]


def run(*command: str | Path, folder: Path) -> str:
    """What the command prints. It sees nothing of the environment in which the tests run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel, and what it needs, and no more."""
    folder = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    interpreter = folder / "venv" / "bin" / "python"
    try:
        run(interpreter, "-m", "pip", "install", "--disable-pip-version-check", wheel, folder=folder)
    except AssertionError as error:
        if "connection" in str(error).lower() and "CI" not in os.environ:
            pytest.skip("the package index cannot be reached")
        raise
    return interpreter


def test_the_wheel_has_the_types_the_licence_and_the_starter_and_nothing_of_the_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "furcula/py.typed" in names
    assert "furcula/cli/starter/flow.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [name for name in names if not re.match(r"furcula(-[\d.]+\.dist-info)?/", name)] == []


def test_installed_from_the_wheel_the_demonstration_ends_with_its_figures(python: Path, tmp_path: Path) -> None:
    printed = run(python, ROOT / "scripts" / "demo.py", "--out", tmp_path / "out", folder=tmp_path)
    assert "admitted 1000 = delivered 970 + dropped 20 + failed 10 + in flight 0" in printed.splitlines()
    table = {words[0]: words[1:6] for line in printed.splitlines() if len(words := line.split()) > 5}
    assert table["module"] == ["received", "sent", "delivered", "dropped", "failed"]
    assert table["listen"] == ["1000", "990", "0", "0", "10"]
    assert table["keep"] == ["985", "965", "0", "20", "0"]
    assert table["out"] == ["955", "0", "955", "0", "0"]
    assert table["dead"] == ["15", "0", "15", "0", "0"]
    assert (tmp_path / "out" / "errors.ndjson").read_text().count("\n") == 955


def test_installed_from_the_wheel_a_new_project_runs_and_passes_its_cases(python: Path, tmp_path: Path) -> None:
    furcula = python.with_name("furcula")
    run(furcula, "new", "shop", folder=tmp_path)
    printed = run(furcula, "run", "shop/flow.yaml", folder=tmp_path)
    assert "admitted 3 = delivered 2 + dropped 1 + failed 0 + in flight 0" in printed
    assert "3 of 3 passed" in run(furcula, "test", "shop/flow.yaml", folder=tmp_path)
