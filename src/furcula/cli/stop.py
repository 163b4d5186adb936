"""`furcula stop`: end a run that has a pid file."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import click

from furcula.cli.command import FAILED, REFUSED, Command, ending

__all__ = ["stop"]

#: Seconds between two looks at whether the process is there.
LOOK_S = 0.05
#: Seconds after which the second signal is sent: two that come together are one.
AGAIN_S = 0.5


@click.command(cls=Command)
@click.argument("pid_file", metavar="PID_FILE", type=click.Path(dir_okay=False))
@click.option("--force", is_flag=True, help="End it at once: what is under way is abandoned.")
@click.option("--within", default="60s", show_default=True, help="How long to wait for its end.")
def stop(pid_file: str, force: bool, within: str) -> None:
    """Let a run drain and end, and wait for that. PID_FILE is what `furcula run --pid-file` was given.

    Exit code 0: it has ended. 1: there is no such run, or it goes on still.
    """
    from furcula.options import Duration
    from furcula.workers.pid_file import is_alive, running_pid

    try:
        within_s = float(Duration(within))
    except ValueError as error:
        raise ending(f"--within: {error}", REFUSED) from None
    pid = running_pid(pid_file)
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:  # it has just ended
        return
    except PermissionError:
        raise ending(f"process {pid} belongs to another user", FAILED) from None
    now = time.monotonic()
    end, again = now + within_s, now + AGAIN_S
    while is_alive(pid):
        if time.monotonic() > end:
            raise ending(f"process {pid} has not ended within {within}; --force ends it at once", FAILED)
        time.sleep(LOOK_S)
        if force and time.monotonic() > again:  # the first signal asks it to drain, another one not to wait for that
            again = time.monotonic() + 10 * AGAIN_S
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
