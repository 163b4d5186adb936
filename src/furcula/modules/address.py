"""Where to listen or to send: a host and a port."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["LOOPBACK", "Address", "peer_name"]

LOOPBACK = "127.0.0.1"


class Address(msgspec.Struct, frozen=True):
    """A host and a port.

    Attributes:
        host: A name, an IPv4 or an IPv6 address (without brackets).
        port: 0 to 65535; 0 asks the system for any free one.
    """

    host: str
    port: int

    @classmethod
    def of(cls, spec: Any) -> Address:
        """From `"host:port"`, `"[::1]:port"`, or a port alone, which is one on loopback.

        Raises:
            ValueError: It is none of these. A bare `":514"` is refused: whether it meant this machine or the world
                would be a guess.
        """
        if isinstance(spec, Address):
            return spec
        if isinstance(spec, int) and not isinstance(spec, bool):
            spec = str(spec)
        if not isinstance(spec, str) or not spec:
            raise ValueError(f"{spec!r} is not an address; write host:port")
        host, colon, port = spec.rpartition(":")
        if not colon:
            host = LOOPBACK
        elif host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError(f"{spec!r} is not an address; an IPv6 address goes in brackets: [::1]:514")
        if not host:
            raise ValueError(f"{spec!r} has no host; write {LOOPBACK}:{port}, or 0.0.0.0:{port} to be open to all")
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise ValueError(f"{spec!r} is not an address: {port!r} is not a port (0 to 65535)")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def peer_name(name: Any) -> str:
    """A socket's name, as an address is written. Sockets of other kinds than IP have names of other shapes."""
    return str(Address(str(name[0]), name[1])) if isinstance(name, tuple) and len(name) >= 2 else str(name or "")
