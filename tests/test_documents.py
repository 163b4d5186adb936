"""The code in the documents runs, and prints what stands beside it.

A page is run from its top to its end, in a folder of its own that has the examples in it:

* a block with `title="name"` becomes that file;
* a `python` block is executed, all of a page in one namespace; an `output` block after it is what it prints;
* in a `console` block each line after `$ ` is a command, and what follows is what it prints, on either stream.

`...` in what is printed stands for anything. Blocks of other languages (`sh`, `text`, `mermaid`) are only shown.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scripts.links import broken, pages

ROOT = Path(__file__).parent.parent
LIMIT_S = 60

#: Pages whose code is run here. Every other page that has some must be run by a test of its own.
RUN = [page for page in pages() if "moving" not in page.parts and "decisions" not in page.parts]

#: What a command of the documents means inside the folder of a page.
COMMANDS = {"make demo": f"python {ROOT / 'scripts' / 'demo.py'}"}


class Block(NamedTuple):
    language: str
    title: str
    text: str
    line: int


_FENCE = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', found[2])
        yield Block(found[1] or "text", title[1] if title else "", found[3], text.count("\n", 0, found.start()) + 1)


def assert_printed(expected: str, printed: str, where: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in _bare(expected).split("..."))
    if not re.fullmatch(pattern, _bare(printed), re.DOTALL):
        pytest.fail(f"{where} prints:\n{printed}\nand not:\n{expected}", pytrace=False)


def _bare(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def run_commands(block: Block, folder: Path, where: str) -> None:
    for said in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = said.partition("\n")
        command = command.partition("  #")[0].strip()
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            COMMANDS.get(command, command),
            shell=True,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_S,
        )
        assert_printed(expected, done.stdout, f"{where} $ {command}")


def run_page(page: Path, folder: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
            printed = stdout.getvalue()
        elif block.language == "output":
            assert_printed(block.text, printed, where)
        elif block.language == "console":
            run_commands(block, folder, where)


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_on_the_page_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    shutil.copytree(ROOT / "examples", folder, ignore=shutil.ignore_patterns("__pycache__", "out"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    try:
        run_page(page, folder)
    finally:
        for name in set(sys.modules) - known:  # another page may have other files of the same names
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_on_the_page_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_the_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page.read_text(encoding="utf-8"))
    assert [
        name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "src" / "furcula"))
    ] == []


def test_the_readme_shows_the_examples_as_they_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in ("syslog.yaml", "shop/flows.py"):
        shown = re.sub(r'\A""".*?"""\n+', "", (ROOT / "examples" / file).read_text(encoding="utf-8"))
        assert shown in readme, f"README.md does not show examples/{file} as it is"


def test_the_readme_shows_the_full_circle_as_it_is_and_what_it_really_answers() -> None:
    """The commands and answers on the example's own page are run by its test."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / "examples" / "circle" / "circle.yaml").read_text(encoding="utf-8").strip() in readme
    own = (ROOT / "examples" / "circle" / "README.md").read_text(encoding="utf-8")
    (shown,) = [block.text for block in blocks_of(ROOT / "README.md") if "curl" in block.text]
    exchanges = [said for said in re.split(r"^(?=\$ )", shown, flags=re.MULTILINE) if "curl" in said]
    assert len(exchanges) == 2
    for said in exchanges:
        assert said in own


def test_the_page_of_modules_says_what_their_code_says() -> None:
    command = [sys.executable, "scripts/modules_page.py", "--print"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout
    page = (ROOT / "docs" / "modules.md").read_text(encoding="utf-8")
    assert page == printed, "docs/modules.md is out of date: make docs"


def test_a_page_that_shows_what_is_not_printed_is_found(tmp_path: Path) -> None:
    wrong = tmp_path / "page.md"
    wrong.write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n")
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:5 prints:\n2"):
        run_page(wrong, tmp_path)
