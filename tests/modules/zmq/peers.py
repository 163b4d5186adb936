"""Plain sockets of pyzmq, closed when a test is over."""

from __future__ import annotations

import zmq.asyncio


class Peers:
    def __init__(self) -> None:
        self._context = zmq.asyncio.Context()
        self._sockets: list[zmq.asyncio.Socket] = []

    def socket(self, kind: int) -> zmq.asyncio.Socket:
        self._sockets.append(self._context.socket(kind))
        return self._sockets[-1]

    def close(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        self._context.term()
