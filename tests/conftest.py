"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples each time, so that a run here says the same as a run elsewhere; `make fuzz` draws new ones.
settings.register_profile("same", derandomize=True, database=None)
if "FURCULA_EXAMPLES" not in os.environ:
    settings.load_profile("same")
