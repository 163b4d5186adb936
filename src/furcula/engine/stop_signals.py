"""Which signals ask for something of their own: some senders say the same thing twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["TOGETHER_S", "StopSignals"]

#: The same signal again within so many seconds is the same request. `timeout` sends it to the process and to its group,
#: and systemd to all processes of a unit while the supervisor drains them.
TOGETHER_S: Final = 0.2


class StopSignals:
    """The signals that a process is told to stop with.

    Args:
        now: A clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._number = 0
        self._at = 0.0

    def repeats(self, number: int) -> bool:
        """Is this the request before, once more? Otherwise what follows is measured by this one.

        Not by the last one that came: whoever holds a key down does want an end.
        """
        now = self._now()
        if number == self._number and now - self._at <= TOGETHER_S:
            return True
        self._number, self._at = number, now
        return False
