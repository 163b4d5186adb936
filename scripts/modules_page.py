"""Write `docs/modules.md` from the modules' own documentation.

    python scripts/modules_page.py [--print]

`make docs` does it; a test says so when somebody has forgotten.
"""

from __future__ import annotations

import sys
from pathlib import Path

from click.testing import CliRunner

from furcula.cli.main import main as furcula
from furcula.module import Source
from furcula.registry import BUILT_IN, resolve

PAGE = Path(__file__).parent.parent / "docs" / "modules.md"

_HEAD = """\
# Modules

What comes with furcula, as `furcula list` and `furcula show KIND` print it. This page is made from the code by
`make docs`. The options that every module takes beside its arguments (`concurrency`, `retry`, `timeout` and so on) are
shown by `furcula show --options KIND`, and explained in [Concepts](concepts.md).
"""


def page() -> str:
    """The text of the page, for the modules there are now."""
    parts = [_HEAD]
    for title, wanted in (("Sources", True), ("Modules and sinks", False)):
        kinds = [kind for kind in sorted(BUILT_IN) if issubclass(resolve(kind), Source) is wanted]
        parts.append(f"## {title}\n")
        parts += [f"### {kind}\n\n```text\n{_shown(kind)}\n```\n" for kind in kinds]
    return "\n".join(parts)


def _shown(kind: str) -> str:
    """What `furcula show` prints, without its first line, which is the heading here."""
    printed = CliRunner().invoke(furcula, ["show", kind], catch_exceptions=False).output
    return "\n".join(line.removeprefix("  ") for line in printed.splitlines()[1:])


if __name__ == "__main__":
    if sys.argv[1:] == ["--print"]:
        print(page(), end="")
    else:
        PAGE.write_text(page(), encoding="utf-8")
