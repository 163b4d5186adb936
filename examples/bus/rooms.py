"""What the three examples share: a context with settings, and the way to run one process for each direct channel."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ROOMS = ["room-1", "room-2", "räum ☃"]


class Settings:
    """A context as shellbot has one."""

    def __init__(self, **values: Any):
        self.values = {name.replace("_", "."): value for name, value in values.items()}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value


def address() -> str:
    """The address that was given on the command line, or a spare one."""
    if len(sys.argv) > 1:
        return sys.argv[1]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


@contextmanager
def direct_channels(run: Callable[[Settings, str, Any], None], settings: Settings) -> Iterator[None]:
    """Run a process for each room, and go on when each of them says that it is ready."""
    ready = multiprocessing.Barrier(len(ROOMS) + 1)
    rooms = [multiprocessing.Process(target=run, args=(settings, room, ready)) for room in ROOMS]
    for process in rooms:
        process.start()
    ready.wait(30)
    yield
    for process in rooms:
        process.join(30)
