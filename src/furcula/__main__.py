"""`python -m furcula` is the command `furcula`."""

import os
import sys

# `python -m` puts the working directory first on the import path; the command does not, and a file that happens to lie
# there must not be taken for a module of the flow.
if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
    del sys.path[0]

from furcula.cli.main import main

if __name__ == "__main__":
    main(prog_name="furcula")
