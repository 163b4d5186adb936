"""MDP/0.1 as values: what stands in the frames, and when a peer counts as gone."""

from __future__ import annotations

from typing import Final

from furcula.errors import InputError
from furcula.options import Duration

__all__ = [
    "CLIENT",
    "DISCONNECT",
    "HEARTBEAT",
    "INTERVAL",
    "LIVENESS",
    "READY",
    "REPLY",
    "REQUEST",
    "WORKER",
    "check_service",
    "from_router",
    "from_worker",
]

CLIENT: Final = b"MDPC01"
WORKER: Final = b"MDPW01"
READY: Final = b"\x01"
REQUEST: Final = b"\x02"
REPLY: Final = b"\x03"
HEARTBEAT: Final = b"\x04"
DISCONNECT: Final = b"\x05"

#: Time between two heartbeats, and how many may fail to come before a peer counts as gone.
INTERVAL: Final = Duration(1)
LIVENESS: Final = 3


def check_service(name: str) -> bytes:
    """The name of a service as it stands in a frame.

    Raises:
        ValueError: It is none.
    """
    if not name or name.startswith("mmi."):
        raise ValueError(f"{name!r} is no name of a service (those that begin with mmi. belong to the router)")
    return name.encode()


def from_router(frames: list[bytes]) -> tuple[bytes, list[bytes]]:
    """What a router says to a worker: the command, and what follows it.

    Raises:
        InputError: It is no such message.
    """
    if len(frames) < 3 or frames[0] != b"" or frames[1] != WORKER:
        raise InputError(f"no message of MDP/0.1 to a worker: {frames[:3]!r}")
    command, rest = frames[2], frames[3:]
    if command == REQUEST and (len(rest) < 3 or rest[1] != b""):
        raise InputError("a request without client, empty frame and body")
    if command not in (REQUEST, HEARTBEAT, DISCONNECT):
        raise InputError(f"a router does not say {command!r}")
    return command, rest


def from_worker(rest: list[bytes]) -> tuple[bytes, list[bytes]]:
    """What a worker says to a router, behind identity, empty frame and header.

    Raises:
        InputError: It is no such message.
    """
    if not rest:
        raise InputError("a worker's message without a command")
    command, rest = rest[0], rest[1:]
    if command == READY and len(rest) != 1:
        raise InputError("a worker is ready for one service")
    if command == REPLY and (len(rest) < 3 or rest[1] != b""):
        raise InputError("a reply without client, empty frame and body")
    if command not in (READY, REPLY, HEARTBEAT, DISCONNECT):
        raise InputError(f"a worker does not say {command!r}")
    return command, rest
