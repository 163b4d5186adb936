"""Functions are found beside the flow file or among what is installed, and nowhere else."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from furcula import ConfigurationError
from furcula.config import load, loads

FILE = "modules:\n  n: {{use: '{0}'}}\n"


def told(folder, name, **files):
    for module, text in files.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(text))
    with pytest.raises(ConfigurationError) as caught:
        loads(FILE.format(name), folder=folder, name="flow.yaml")
    return str(caught.value)


def test_the_import_path_is_as_before_afterwards(folder):
    before = list(sys.path)
    loads(FILE.format("shop:numbers"), folder=folder)
    assert sys.path == before


def test_two_folders_may_have_modules_of_the_same_name(tmp_path):
    flows = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.py").write_text(f"def source():\n    yield {name!r}\n")
        flows.append(loads(FILE.format("same:source"), folder=tmp_path / name))
    assert [list(flow["n"].subject()) for flow in flows] == [["one"], ["two"]]


def test_a_file_beside_the_flow_cannot_take_the_place_of_the_standard_library(tmp_path):
    (tmp_path / "uses_colorsys.py").write_text(
        "import colorsys\ndef source():\n    yield colorsys.rgb_to_hsv(0, 0, 0)\n"
    )
    (tmp_path / "colorsys.py").write_text("raise SystemExit('shadowed')\n")
    sys.modules.pop("colorsys", None)
    flow = loads(FILE.format("uses_colorsys:source"), folder=tmp_path)
    assert list(flow["n"].subject()) == [(0.0, 0.0, 0)]


def test_naming_a_file_that_is_called_like_the_standard_library_is_told(tmp_path):
    assert told(tmp_path, "json:source", json="def source(): yield 1") == (
        f"flow.yaml:2:12: modules.n.use: json has no 'source'; json is Python's own, so rename {tmp_path}/json.py"
    )
    assert sys.modules["json"] is json


def test_the_working_directory_is_not_looked_at(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "only_here.py").write_text("def source(): yield 1")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "flows").mkdir()
    assert told(tmp_path / "flows", "only_here:source") == (
        f"flow.yaml:2:12: modules.n.use: there is no Python module 'only_here' beside the flow ({tmp_path}/flows) or "
        "among the installed packages"
    )


def test_the_nearest_module_is_named(folder):
    assert told(folder, "shp:numbers").endswith("did you mean 'shop'?")


def test_an_error_while_importing_is_told_with_its_line(tmp_path):
    text = """
        limit = 10
        print(1 / (limit - 10))
    """
    assert told(tmp_path, "raising:source", raising=text) == (
        f"flow.yaml:2:12: modules.n.use: raising cannot be imported: {tmp_path}/raising.py:3: ZeroDivisionError: "
        "division by zero"
    )


def test_a_syntax_error_is_told_with_its_line(tmp_path):
    assert told(tmp_path, "garbled:source", garbled="def source(:\n    yield 1\n") == (
        f"flow.yaml:2:12: modules.n.use: garbled cannot be imported: {tmp_path}/garbled.py:1: SyntaxError: "
        "invalid syntax"
    )


def test_an_import_that_the_module_itself_misses_is_told_with_its_line(tmp_path):
    assert told(tmp_path, "lacking:source", lacking="\nimport not_there_at_all\n") == (
        f"flow.yaml:2:12: modules.n.use: lacking cannot be imported: {tmp_path}/lacking.py:2: ModuleNotFoundError: No "
        "module named 'not_there_at_all'"
    )


def test_a_module_that_exits_while_it_is_imported_is_told(tmp_path):
    assert told(tmp_path, "leaving:source", leaving="raise SystemExit(3)").endswith(
        f"{tmp_path}/leaving.py:1: SystemExit: exit(3)"
    )


def test_an_error_in_a_module_that_the_module_imports_is_told_with_its_own_line(tmp_path):
    found = told(tmp_path, "outer:source", outer="import deeper\n", deeper="\n\nraise ValueError('deep')\n")
    assert found.endswith(f"outer cannot be imported: {tmp_path}/deeper.py:3: ValueError: deep")


def test_packages_and_attributes_of_attributes_are_found(tmp_path):
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner" / "__init__.py").write_text("")
    (tmp_path / "package" / "inner" / "deep.py").write_text("class Some:\n    @staticmethod\n    def run(): yield 1\n")
    flow = loads(FILE.format("package.inner.deep:Some.run"), folder=tmp_path)
    assert flow["n"].is_source


def test_a_function_of_an_installed_package_is_found(folder):
    flow = loads("modules: {n: 'shop:numbers', r: {map: 'math:sqrt'}}", folder=folder)
    assert flow["r"].subject(4.0) == 2.0


@pytest.mark.parametrize(
    "name", ["shop:", ":numbers", "shop:numbers()", "shop numbers:x", "../shop:numbers", "shop:a:b"]
)
def test_what_is_not_a_name_is_refused(folder, name):
    assert "is not the name of a function; write package.module:name" in told(folder, name)


def test_two_folders_may_each_have_a_package_of_one_name_with_or_without_an_init_file(tmp_path):
    for name, init in (("one", True), ("two", False), ("three", False)):
        package = tmp_path / name / "twins"
        package.mkdir(parents=True)
        if init:
            (package / "__init__.py").write_text("")
        (package / f"in_{name}.py").write_text(f"def told(data):\n    return {name!r}\n")
        (tmp_path / name / "flow.yaml").write_text(f"modules:\n  m: {{map: 'twins.in_{name}:told'}}\n")
    flows = [load(tmp_path / name / "flow.yaml") for name in ("one", "two", "three", "one")]
    assert [flow["m"](None) for flow in flows] == ["one", "two", "three", "one"]
