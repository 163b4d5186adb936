"""Telling systemd how it goes: `sd_notify`, in Python. Without systemd nothing is told.

The protocol is a datagram of `NAME=value` lines to the unix socket that `NOTIFY_SOCKET` names; `@` begins the name of
one without a file. See sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Final

__all__ = ["is_there", "notify", "ready", "reloading", "stopping", "watchdog_s"]

#: Seconds that systemd may take to receive a word. It is never worth more.
_PATIENCE_S: Final = 0.5


def is_there(environment: Mapping[str, str] | None = None) -> bool:
    """Does systemd want to be told?"""
    return bool((os.environ if environment is None else environment).get("NOTIFY_SOCKET"))


def notify(**fields: str | int) -> bool:
    """Tell these fields, `READY=1` and the like. False: nobody was told. Never raises for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    said = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.settimeout(_PATIENCE_S)
            line.connect(address)
            line.sendall(said.encode())
    except OSError:
        return False
    return True


def ready(status: str) -> None:
    notify(READY=1, STATUS=status)


def reloading(status: str) -> None:
    """Of `Type=notify-reload`: workers are being restarted. `ready` ends it."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000, STATUS=status)


def stopping(status: str) -> None:
    notify(STOPPING=1, STATUS=status)


def watchdog_s() -> float | None:
    """How often to say `WATCHDOG=1`, in seconds: twice in the time after which systemd would end us. None: never."""
    limit = os.environ.get("WATCHDOG_USEC", "")
    if not limit.isdigit() or int(limit) == 0 or not is_there():
        return None
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(limit) / 2e6
