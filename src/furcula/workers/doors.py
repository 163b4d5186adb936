"""The listening sockets that a supervisor keeps open while its workers come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable

import msgspec

from furcula.sockets import Wanted, activated, bound, is_activated, ported

__all__ = ["Door", "Doors", "door_of"]


class Door(msgspec.Struct, frozen=True):
    """What is opened once.

    Attributes:
        stage: The workers of this stage share it; those of another one would take what is not for them.
        wanted: What is to be opened. The module has no name where the address says it all: one that has another name
            by now, in a new flow file, takes what the old one had.
    """

    stage: str | None
    wanted: Wanted

    @property
    def is_exclusive(self) -> bool:
        """Two modules of one process cannot both have it."""
        return not self.wanted.module and self.wanted.kind in ("tcp", "unix")


def door_of(stage: str | None, wanted: Wanted) -> Door:
    """Where a module of this stage listens."""
    anywhere = wanted.kind in ("tcp", "udp") and not wanted.port
    if anywhere or wanted.kind == "udp" or wanted.reuse_port or is_activated(wanted):
        return Door(stage, wanted)
    return Door(stage, msgspec.structs.replace(wanted, module=""))


class Doors:
    """Opens each socket once and hands out duplicates, so that nobody who connects is refused or reset meanwhile.

    UDP is different: each worker has a socket of its own on the same port, among which the system deals the datagrams
    out. The supervisor keeps none of them: what the system put into it nobody would read.
    """

    def __init__(self) -> None:
        self._open: dict[Door, asyncio.Future[list[socket.socket]]] = {}
        #: What `port: 0` has become for UDP.
        self._ports: dict[Wanted, Wanted] = {}
        self._binding = asyncio.Lock()

    async def sockets(self, door: Door) -> list[socket.socket]:
        """For one worker; the caller closes them once they are sent.

        Raises:
            OSError: They cannot be had.
        """
        wanted = door.wanted
        if wanted.kind == "udp" and not is_activated(wanted):
            return await self._datagrams(wanted)
        opened = self._open.get(door)
        if opened is None or (opened.done() and opened.exception() is not None):
            opened = self._open[door] = asyncio.ensure_future(_opened(wanted))
        return [made.dup() for made in await asyncio.shield(opened)]

    async def _datagrams(self, wanted: Wanted) -> list[socket.socket]:
        async with self._binding:  # two that ask at once for any free port must be given the same one
            known = self._ports.get(wanted, wanted)
            made = await bound(msgspec.structs.replace(known, reuse_port=True))
            self._ports[wanted] = ported(wanted, made[0])
            return made

    def keep(self, used: Iterable[Door]) -> None:
        """Close what is not among these: a client who came there would wait for ever."""
        kept = set(used)
        for door in [door for door, opened in self._open.items() if door not in kept and opened.done()]:
            opened = self._open.pop(door)
            if not opened.cancelled() and opened.exception() is None:
                for made in opened.result():
                    made.close()
                if door.wanted.kind == "unix":
                    with contextlib.suppress(OSError):
                        os.unlink(door.wanted.host)

    def close(self) -> None:
        for opened in self._open.values():
            if not opened.done():
                opened.cancel()
        self.keep(())


async def _opened(wanted: Wanted) -> list[socket.socket]:
    if wanted.kind == "fd":
        return [socket.socket(fileno=os.dup(wanted.port))]
    return activated(wanted) or await bound(wanted)
