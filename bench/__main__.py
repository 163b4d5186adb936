"""`python -m bench`: print the table."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence

from bench.rows import ROWS, Row, Size

_HEAD = ("what", "against", "figure", "wanted", "range of the ratios; rate")


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _arguments(arguments)
    size = Size(chosen.events, chosen.repeats)
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in ROWS:
        if _is_chosen(row, chosen.rows, chosen.long):
            print(f"... {row.name}", file=sys.stderr, flush=True)
            lines.append(_measured(row, size))
    print(f"CPython {platform.python_version()}, {platform.machine()}: {size.events:,} events, {size.repeats} pairs\n")
    if chosen.markdown:
        _print_markdown(lines)
    else:
        _print_columns(lines)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare furcula with what could be instead.")
    parser.add_argument("--rows", nargs="+", default=[], metavar="WORD", help="only rows whose name has one of these")
    parser.add_argument(
        "--events", type=int, default=Size().events, help="events in a timed run (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=Size().repeats, help="timed pairs in a row (default: %(default)s)"
    )
    parser.add_argument("--long", action="store_true", help="also pass 100 times as many events and look at the memory")
    parser.add_argument("--markdown", action="store_true", help="print the table as it stands in README.md")
    return parser.parse_args(arguments)


def _is_chosen(row: Row, words: Sequence[str], long: bool) -> bool:
    if words:
        return any(word.lower() in row.name.lower() for word in words)
    return long or not row.long


def _measured(row: Row, size: Size) -> tuple[str, ...]:
    try:
        figure, remark = row.measure(size)
    except ImportError as error:
        figure, remark = "-", f"cannot run: {error.name} is not installed here"
    except FileNotFoundError as error:
        figure, remark = "-", f"cannot run: there is no {error.filename} on this system"
    return row.name, row.against, figure, row.target, remark


def _print_columns(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_markdown(lines: Sequence[Sequence[str]]) -> None:
    """Without the last column: a page has room for what matters."""
    head, *rows = [line[:-1] for line in lines]
    for line in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
