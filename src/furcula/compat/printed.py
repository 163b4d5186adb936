"""A line on standard output, as STDOUT modules of the old systems print it."""

from __future__ import annotations

import datetime
import sys
from typing import Any

__all__ = ["print_line"]


def print_line(data: Any, *, prefix: str = "", timestamp: bool = False) -> None:
    """Print `[2015-02-13 16:56:35.850659] prefix data`, in one write, so that lines of several modules stay whole."""
    begin = f"[{datetime.datetime.now():%Y-%m-%d %H:%M:%S.%f}] " if timestamp else ""
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else str(data)
    # Looked up now, because tests and shells put another one there.
    out = sys.stdout
    try:
        out.write(f"{begin}{prefix}{text}\n")
    except UnicodeEncodeError:  # the terminal cannot show it: show its number, and lose nothing else
        encoding = out.encoding or "ascii"
        out.write(f"{begin}{prefix}{text}\n".encode(encoding, "backslashreplace").decode(encoding))
    out.flush()
