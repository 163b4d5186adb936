"""How long one waits for `import furcula` and `furcula --help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

__all__ = ["help_ms", "import_ms"]

_IMPORT = (
    "import time; began = time.perf_counter(); "
    "from furcula import Event, Flow; print((time.perf_counter() - began) * 1000)"
)


def import_ms(repeats: int) -> float:
    """Milliseconds to import furcula with Flow and Event in a fresh interpreter, its own start not counted."""

    def once() -> float:
        return float(subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True).stdout)

    return statistics.median(once() for _ in range(repeats))


def help_ms(repeats: int) -> float:
    """Milliseconds that the command `furcula --help` takes, all in all."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "furcula", "--help"], check=True, capture_output=True)
        return (time.perf_counter() - began) * 1000

    return statistics.median(once() for _ in range(repeats))
