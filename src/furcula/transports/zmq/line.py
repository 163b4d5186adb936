"""One connection to a hub, read and written on one event loop.

`zmq.asyncio` makes a future for each message, which is too slow by far (55,000 messages a second). Here the loop
watches the socket's descriptor, and a wake-up reads all there is. The descriptor is edge-triggered, and libzmq may
consume the edge while we send, so after sending the socket is looked at once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq
from zmq.utils.monitor import parse_monitor_message

from furcula.transports.zmq.address import HubAddress
from furcula.transports.zmq.frames import OVERHEAD, Frame, encode
from furcula.transports.zmq.holder import keep_apart
from furcula.transports.zmq.keys import Keys

__all__ = ["Line"]

#: Frames that are read before others on the loop have their turn.
AT_ONCE = 200


class Line:
    """A connection.

    Args:
        context: Of its socket.
        address: Of the hub.
        keys: Shown to the hub.
        inside: An endpoint of this process where the hub is to be reached; None: it is in another.
        max_body: Bytes that a body may have.
        received: Called with each frame, as bytes.
        lost: Called once when the connection has broken and everything that had come over it has been received.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        address: HubAddress,
        keys: Keys | None,
        inside: str | None,
        max_body: int,
        received: Callable[[bytes], None],
        lost: Callable[[], None],
    ):
        #: The hub did not let us in.
        self.denied = False
        self._loop = asyncio.get_running_loop()
        self._received = received
        self._lost = lost
        self._closed = False
        self._looking = False
        self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            # What is under way is limited by windows, so a send never has to wait.
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.MAXMSGSIZE, max_body + OVERHEAD),
            (zmq.HEARTBEAT_IVL, 1000),
            (zmq.HEARTBEAT_TIMEOUT, 3000),
            (zmq.RECONNECT_IVL, 20),
            (zmq.RECONNECT_IVL_MAX, 200),
        ):
            self._socket.setsockopt(option, value)
        endpoint = inside or address.to_connect()
        if endpoint.startswith("tcp://["):
            self._socket.setsockopt(zmq.IPV6, 1)
        if keys is not None and inside is None:
            keys.show(self._socket)
        self._monitor: zmq.Socket[bytes] | None = None
        if inside is None:  # a hub of this process ends after those who use it
            self._monitor = self._socket.get_monitor_socket(
                zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            )
        keep_apart(address, self)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            self._close_sockets()
            raise
        self._loop.add_reader(self._socket.fileno(), self._read)
        if self._monitor is not None:
            self._loop.add_reader(self._monitor.fileno(), self._look)
            self._loop.call_soon(self._look)  # until it has been read empty once, the descriptor tells nothing

    def send(self, frame: Frame) -> None:
        self._socket.send(encode(frame), zmq.NOBLOCK)
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._looking = False
        if self._closed:
            return
        receive = self._socket.recv
        for _ in range(AT_ONCE):
            try:
                raw = receive(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._received(raw)
            if self._closed:
                return
        self._looking = True
        self._loop.call_soon(self._read)

    def _look(self) -> None:
        while not self._closed and self._monitor is not None:
            try:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_DISCONNECTED:
                while not self._closed and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                    self._read()
                if not self._closed:
                    self._lost()
            else:
                self.denied = True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        if self._monitor is not None:
            self._loop.remove_reader(self._monitor.fileno())
        self._close_sockets()

    def _close_sockets(self) -> None:
        self._closed = True
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self._socket.close()
