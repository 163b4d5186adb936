"""How long one waits for `import furcula` and `furcula --help`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

__all__ = ["help_ms", "import_ms"]

_IMPORT = (
    "import time; began = time.perf_counter(); "
    "from furcula import Event, Flow; print((time.perf_counter() - began) * 1000)"
)


def _env() -> dict[str, str]:
    """The environment, in which Python keeps what it has compiled, as it does for a user."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def import_ms(repeats: int) -> float:
    """Milliseconds to import furcula with Flow and Event in a fresh interpreter, its own start not counted."""

    def once() -> float:
        done = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True, env=_env())
        return float(done.stdout)

    once()  # compiles what has changed
    return statistics.median(once() for _ in range(repeats))


def help_ms(repeats: int) -> float:
    """Milliseconds that the command `furcula --help` takes, all in all."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "furcula", "--help"], check=True, capture_output=True, env=_env())
        return (time.perf_counter() - began) * 1000

    return statistics.median(once() for _ in range(repeats))
