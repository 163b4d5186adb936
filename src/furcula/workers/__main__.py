"""The process of a worker, as its supervisor starts it. It is of no use by hand."""

import os
import sys

# As in `python -m furcula`: what lies in the working directory must not be taken for a module of the flow.
if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
    del sys.path[0]

from furcula.workers.child import run_as_worker

if __name__ == "__main__":
    run_as_worker()
