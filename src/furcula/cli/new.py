"""`furcula new`: a small project that runs as it is."""

from __future__ import annotations

import re
from pathlib import Path

import click

from furcula.cli.command import REFUSED, Command, ending

__all__ = ["new"]

#: The files of a new project; they lie in `starter/`.
_FILES = ("flow.yaml", "functions.py", "flow.test.yaml", "test_flow.py", "README.md")


@click.command(cls=Command)
@click.argument("name", metavar="NAME")
def new(name: str) -> None:
    """Make a folder NAME with a flow, its functions, and tests for both."""
    from importlib import resources

    folder = Path(name)
    if not re.fullmatch(r"[^\W\d][\w-]*", folder.name):
        raise ending(f"{folder.name!r} is not a name for a flow: use letters, digits, '_' and '-'", REFUSED)
    if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
        raise ending(f"{folder} exists already; choose another name", REFUSED)
    folder.mkdir(parents=True, exist_ok=True)
    starter = resources.files("furcula.cli") / "starter"
    for file in _FILES:
        text = (starter / file).read_text(encoding="utf-8").replace("STARTER", folder.name)
        (folder / file).write_text(text, encoding="utf-8")
        click.echo(f"{folder / file}")
    click.echo(f"\nNow try:\n  furcula run {folder / 'flow.yaml'}\n  furcula test {folder / 'flow.yaml'}")
