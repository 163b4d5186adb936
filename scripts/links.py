"""Do the links in the Markdown pages lead somewhere?

    python scripts/links.py

Looks at links to files of this repository, and at their headings. Links into the web are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def pages(root: Path = ROOT) -> list[Path]:
    """Every Markdown page a reader may open."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("bench/*.md"), *root.glob("examples/**/*.md")]
    return sorted(found)


def broken(page: Path) -> Iterator[str]:
    """The links of a page that lead nowhere, each with the reason."""
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists():
            yield f"{target}: there is no {path}"
        elif heading and file.suffix == ".md" and heading not in anchors(file):
            yield f"{target}: {file.name} has no such heading"


def anchors(page: Path) -> set[str]:
    """What may stand behind `#` in a link to this page."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def main() -> None:
    found = [f"{page.relative_to(ROOT)}: {trouble}" for page in pages() for trouble in broken(page)]
    print("\n".join(found) or f"{len(pages())} pages, and every link in them leads somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
