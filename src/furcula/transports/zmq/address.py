"""Where a hub is: `tcp://host:port`, `ipc://path` or `inproc://name`, and whether it may be held by this process."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from furcula.errors import ConfigurationError

__all__ = ["HubAddress"]

#: Bytes that the path of a socket may have.
IPC_PATH_BYTES = 107 if sys.platform == "linux" else 103


class HubAddress(msgspec.Struct, frozen=True):
    """An address that has been understood.

    Attributes:
        kind: `tcp`, `ipc` or `inproc`.
        host: Of tcp: as written, `*` for every interface of IPv4, `::` for every interface of both families.
        port: Of tcp.
        path: Of ipc (a file) and inproc (a name).
    """

    kind: Literal["tcp", "ipc", "inproc"]
    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def of(cls, url: str) -> HubAddress:
        """Understand a URL without its query.

        Raises:
            ConfigurationError: It is none of the three forms; the message names it.
        """
        scheme, found, rest = url.partition("://")
        if scheme == "ipc" and found and rest:
            if len(rest.encode()) > IPC_PATH_BYTES:
                raise ConfigurationError(
                    f"the path {rest!r} of a hub has {len(rest.encode())} bytes; the system allows {IPC_PATH_BYTES}"
                )
            return cls("ipc", path=rest)
        if scheme == "inproc" and found and rest:
            return cls("inproc", path=rest)
        if scheme == "tcp" and found:
            try:
                parts = urlsplit(f"tcp://{rest}")
                host, port = parts.hostname, parts.port
            except ValueError:
                host = port = None
            if host and port and not parts.path:
                return cls("tcp", host="*" if host == "0.0.0.0" else host, port=port)
        raise ConfigurationError(
            f"{url!r} is no address of a hub; write tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name"
        )

    def __str__(self) -> str:
        if self.kind == "tcp":
            return f"tcp://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        return f"{self.kind}://{self.path}"

    @property
    def public(self) -> bool:
        """Would a hub here be heard by other machines?"""
        if self.kind != "tcp":
            return False
        if self.host in ("*", "::"):
            return True
        try:
            return not ipaddress.ip_address(self.resolved()).is_loopback
        except ValueError:
            return True

    def resolved(self) -> str:
        """The host as a number, as far as it is known."""
        if self.host == "*":
            return "0.0.0.0"
        try:
            return str(ipaddress.ip_address(self.host))
        except ValueError:
            pass
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError:
            return self.host
        # A name may stand for both families; what both ends choose must be the same.
        found.sort(key=lambda one: one[0] != socket.AF_INET)
        return str(found[0][4][0])

    def to_connect(self) -> str:
        """The endpoint for connecting."""
        if self.kind != "tcp":
            return str(self)
        host = self.connects_to()
        return f"tcp://{f'[{host}]' if ':' in host else host}:{self.port}"

    def connects_to(self) -> str:
        """The host for connecting, of tcp."""
        return {"*": "127.0.0.1", "::": "::1"}.get(self.host) or self.resolved()

    def hopeless(self) -> str | None:
        """Why nobody can hold a hub here or have one, as things are; None: it may be done."""
        if self.kind == "ipc" and not self.path.startswith("@"):
            folder = os.path.dirname(os.path.abspath(self.path))
            if not os.path.isdir(folder):
                return f"there is no folder {folder}"
        return None

    def listening(self) -> socket.socket | None:
        """A socket that listens here, or None if somebody listens already or the address is on another host.

        tcp only. We bind it ourselves and hand it to libzmq, so that we know it again after a fork.
        """
        host = self.resolved()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            listener.bind((host, self.port))
            listener.listen(128)
        except OSError:
            listener.close()
            return None
        return listener
