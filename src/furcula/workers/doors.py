"""The listening sockets that a supervisor keeps open while its workers come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterable

import msgspec

from furcula.sockets import Wanted, activated, bound, is_activated, ported

__all__ = ["Doors"]


class Doors:
    """Opens each socket once and hands out duplicates, so that nobody who connects is refused or reset meanwhile.

    UDP is different: each worker has a socket of its own on the same port, among which the system deals the datagrams
    out. The supervisor keeps none of them: what the system put into it nobody would read.
    """

    def __init__(self) -> None:
        self._open: dict[Wanted, asyncio.Future[list[socket.socket]]] = {}
        #: What `port: 0` has become for UDP.
        self._ports: dict[Wanted, Wanted] = {}
        self._binding = asyncio.Lock()

    async def sockets(self, wanted: Wanted) -> list[socket.socket]:
        """For one worker; the caller closes them once they are sent.

        Raises:
            OSError: They cannot be had.
        """
        if wanted.kind == "udp" and not is_activated(wanted):
            return await self._datagrams(wanted)
        opened = self._open.get(wanted)
        if opened is None or (opened.done() and opened.exception() is not None):
            opened = self._open[wanted] = asyncio.ensure_future(_opened(wanted))
        return [made.dup() for made in await asyncio.shield(opened)]

    async def _datagrams(self, wanted: Wanted) -> list[socket.socket]:
        async with self._binding:  # two that ask at once for any free port must be given the same one
            known = self._ports.get(wanted, wanted)
            made = await bound(msgspec.structs.replace(known, reuse_port=True))
            self._ports[wanted] = ported(wanted, made[0])
            return made

    def keep(self, used: Iterable[Wanted]) -> None:
        """Close what is not among these: a client who came there would wait for ever."""
        kept = set(used)
        for wanted in [wanted for wanted, opened in self._open.items() if wanted not in kept and opened.done()]:
            opened = self._open.pop(wanted)
            if opened.exception() is None:
                for made in opened.result():
                    made.close()
                if wanted.kind == "unix":
                    with contextlib.suppress(OSError):
                        os.unlink(wanted.host)

    def close(self) -> None:
        for opened in self._open.values():
            if not opened.done():
                opened.cancel()
        self.keep(())


async def _opened(wanted: Wanted) -> list[socket.socket]:
    if wanted.kind == "fd":
        return [socket.socket(fileno=os.dup(wanted.port))]
    return activated(wanted) or await bound(wanted)
