"""Plain sockets of pyzmq, closed when a test is over; and whether a port is free."""

from __future__ import annotations

import socket

import zmq.asyncio


class Peers:
    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()
        self._sockets: list[zmq.asyncio.Socket] = []

    def socket(self, kind: int) -> zmq.asyncio.Socket:
        self._sockets.append(self._context.socket(kind))
        return self._sockets[-1]

    def close(self) -> None:
        for one in self._sockets:
            one.close(linger=0)
        self._context.term()


def is_free(address: str) -> bool:
    """0mq closes in the background, so the port is free a little later."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        except OSError:
            return False
    return True
