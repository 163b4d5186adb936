"""Where listening sockets come from: a supervisor, systemd, or this process itself.

A module that listens says what it wants, and takes what it is given. Under a supervisor (`furcula.workers`) the socket
has been opened there, once, and stays open while workers come and go: what waits in its queue is reset by nobody. Under
systemd's socket activation it was open before the process began. Else it is opened here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from contextvars import ContextVar
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

__all__ = [
    "BACKLOG",
    "HANDING",
    "Handing",
    "Wanted",
    "activated",
    "bound",
    "grace_s",
    "is_activated",
    "is_handed",
    "listening",
    "ported",
]

#: Connections that may wait to be accepted.
BACKLOG: Final = 2048
#: systemd's first socket.
_FIRST_FD: Final = 3
_ANY_HOST: Final = frozenset(("0.0.0.0", "::"))


class Wanted(msgspec.Struct, frozen=True):
    """What a module wants to listen on.

    Attributes:
        module: Its name in the flow.
        kind: `tcp`, `udp`, `unix` (then `host` is the path), `fd` (then `port` is the number of an open socket).
        host: A name or an address.
        port: 0: any free one.
        reuse_port: Let other programs listen on the same port.
    """

    module: str
    kind: Literal["tcp", "udp", "unix", "fd"]
    host: str = ""
    port: int = 0
    reuse_port: bool = False


class Handing(Protocol):
    """Hands out listening sockets to the modules of one process."""

    #: Seconds for which a module that ceases may wait for those who are connected to take their leave: others have
    #: taken its place. 0: nobody has.
    grace_s: float

    async def sockets(self, wanted: Wanted) -> list[socket.socket]:
        """Sockets for this module, which closes them; none may be shared with another module.

        Raises:
            OSError: They cannot be had.
        """
        ...


#: Who hands out sockets to the flow that is run in this context. None: systemd if it has any, else the process itself.
HANDING: ContextVar[Handing | None] = ContextVar("furcula handing", default=None)


async def listening(wanted: Wanted) -> list[socket.socket]:
    """The sockets to listen on, not blocking; TCP and unix ones listen already. The caller closes them.

    Raises:
        OSError: They cannot be had.
    """
    handing = HANDING.get()
    if handing is not None:
        return await handing.sockets(wanted)
    return activated(wanted) or await bound(wanted)


def is_handed() -> bool:
    """Does this process run a flow beside others, which take its place when it goes?"""
    return HANDING.get() is not None


def grace_s() -> float:
    """See `Handing.grace_s`."""
    handing = HANDING.get()
    return handing.grace_s if handing is not None else 0.0


# ------------------------------------------------------------------ opened here


async def bound(wanted: Wanted) -> list[socket.socket]:
    """Open sockets: one for each address that the host has; for UDP one.

    Raises:
        OSError: The address cannot be had.
    """
    if wanted.kind == "unix":
        return [_bound_path(wanted.host)]
    if wanted.kind == "fd":
        taken = socket.socket(fileno=wanted.port)
        taken.setblocking(False)
        return [taken]
    datagrams = wanted.kind == "udp"
    found = await asyncio.get_running_loop().getaddrinfo(
        wanted.host,
        wanted.port,
        type=socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM,
        flags=0 if datagrams else socket.AI_PASSIVE,
    )
    opened: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, _, name in found[:1] if datagrams else dict.fromkeys(found):
            try:
                opened.append(_opened(family, kind, protocol, name, reuse_port=wanted.reuse_port))
            except OSError as error:
                # `localhost` is two addresses, of which a machine may have one.
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
    except BaseException:
        for made in opened:
            made.close()
        raise
    if not opened:
        raise missing or OSError(errno.EADDRNOTAVAIL, f"{wanted.host} has no address to listen on")
    return opened


def _opened(family: int, kind: int, protocol: int, name: object, *, reuse_port: bool) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # `::` and `0.0.0.0` are two sockets
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        else:
            with contextlib.suppress(OSError):  # as much as the system grants: it is where bursts wait
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind(name)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _bound_path(path: str) -> socket.socket:
    """A unix socket at this path; one that nobody listens on any more makes room.

    Raises:
        OSError: Somebody listens there, or something else is there.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) == 0:
                    raise OSError(errno.EADDRINUSE, "somebody listens there")
            os.unlink(path)
    made = socket.socket(socket.AF_UNIX)
    try:
        made.setblocking(False)
        made.bind(path)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def ported(wanted: Wanted, made: socket.socket) -> Wanted:
    """The same with the port that `made` was given, where any was wanted."""
    if wanted.kind in ("tcp", "udp") and not wanted.port:
        return msgspec.structs.replace(wanted, port=made.getsockname()[1])
    return wanted


# ------------------------------------------------------------------ opened by systemd


def activated(wanted: Wanted) -> list[socket.socket]:
    """The sockets that systemd opened for this module: those of its name (`FileDescriptorName=`), else of its address.

    They are duplicates: what systemd gave stays open as long as the process. Empty: there are none.
    """
    by_name: list[socket.socket] = []
    by_address: list[socket.socket] = []
    if wanted.kind == "fd":  # whoever names a number has said which
        return []
    for fd, name in _passed():
        try:
            given = socket.socket(fileno=os.dup(fd))
        except OSError:  # systemd passes pipes and files too
            continue
        if not _is_kind(given, wanted):
            given.close()
        elif name == wanted.module:
            by_name.append(given)
        elif _is_at(given, wanted):
            by_address.append(given)
        else:
            given.close()
    chosen, other = (by_name, by_address) if by_name else (by_address, [])
    for given in other:
        given.close()
    for given in chosen:
        given.setblocking(False)
    return chosen


def is_activated(wanted: Wanted) -> bool:
    """Has systemd opened sockets for this module?"""
    found = activated(wanted)
    for given in found:
        given.close()
    return bool(found)


def _passed() -> list[tuple[int, str]]:
    """Numbers and names of what systemd passed to this very process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    if not count.isdigit():
        return []
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * int(count)
    return [(_FIRST_FD + index, names[index]) for index in range(int(count))]


def _is_kind(given: socket.socket, wanted: Wanted) -> bool:
    families = (socket.AF_UNIX,) if wanted.kind == "unix" else (socket.AF_INET, socket.AF_INET6)
    if given.family not in families:
        return False
    if wanted.kind == "udp":
        return given.type == socket.SOCK_DGRAM
    return given.type == socket.SOCK_STREAM and bool(given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_at(given: socket.socket, wanted: Wanted) -> bool:
    name = given.getsockname()
    if wanted.kind == "unix":
        return bool(name) and Path(name).absolute() == Path(wanted.host).absolute()
    host, port = name[:2]
    if not wanted.port or port != wanted.port:
        return False
    if wanted.host in _ANY_HOST:
        return host in _ANY_HOST
    try:
        found = socket.getaddrinfo(wanted.host, port)
    except OSError:
        return False
    return any(address[4][0] == host for address in found)
