"""The line between a supervisor and one worker: messages in MessagePack, and sockets beside them.

A message is four bytes of length, how many sockets come with it in one byte, and its body. It is a pair of unix
sockets, so a side that ends, however it ends, is noticed by the other.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from furcula.workers.worker import Down, Up

__all__ = ["DOWN", "UP", "Frames", "Line", "LineBroken", "receive", "send"]

T = TypeVar("T")

_HEAD: Final = struct.Struct(">IB")
#: The figures of a flow of thousands of modules take a part of this.
_MOST_BYTES: Final = 64 << 20
_MOST_SOCKETS: Final = 64
_READ: Final = 1 << 16
#: Seconds that a message may take outside of a loop.
_LAST_S: Final = 5

UP: Final[msgspec.msgpack.Decoder[Up]] = msgspec.msgpack.Decoder(Up)
DOWN: Final[msgspec.msgpack.Decoder[Down]] = msgspec.msgpack.Decoder(Down)
_encode = msgspec.msgpack.Encoder().encode


class LineBroken(ValueError):
    """What came is no message."""


def _frame(message: Any, sockets: int = 0) -> bytes:
    body = _encode(message)
    return _HEAD.pack(len(body), sockets) + body


class Frames(Generic[T]):
    """Makes messages of what was read."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[T]):
        self._decoder = decoder
        self._bytes = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[tuple[T, list[socket.socket]]]:
        """The messages that are whole now, each with its sockets.

        Raises:
            LineBroken: They are none.
        """
        self._bytes += data
        self._fds += fds
        found = []
        while len(self._bytes) >= _HEAD.size:
            size, count = _HEAD.unpack_from(self._bytes)
            if size > _MOST_BYTES or count > _MOST_SOCKETS:
                raise LineBroken(f"a message of {size} bytes with {count} sockets")
            if len(self._bytes) < _HEAD.size + size:
                break
            body = bytes(self._bytes[_HEAD.size : _HEAD.size + size])
            del self._bytes[: _HEAD.size + size]
            try:
                message = self._decoder.decode(body)
            except msgspec.MsgspecError as error:
                raise LineBroken(str(error)) from error
            found.append((message, [socket.socket(fileno=self._fds.popleft()) for _ in range(count)]))
        return found

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popleft())


class Line(Generic[T]):
    """One end of the line, in an event loop.

    Args:
        end: The socket; the Line closes it.
        frames: What comes is made messages by it: `Frames(UP)` or `Frames(DOWN)`.
        take: Called with each message and its sockets, in the order they were sent.
        gone: Called once when the other side has ended.
    """

    def __init__(
        self,
        end: socket.socket,
        frames: Frames[T],
        take: Callable[[T, list[socket.socket]], None],
        gone: Callable[[], None],
    ):
        end.setblocking(False)
        self._end = end
        self._frames = frames
        self._take = take
        self._gone = gone
        self._out: deque[tuple[bytes, list[socket.socket]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writing = False
        self._over = False

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._end.fileno(), self.read)

    @property
    def busy(self) -> bool:
        """Does something wait to be sent? Then the other side does not keep up."""
        return bool(self._out)

    def send(self, message: Any, sockets: Sequence[socket.socket] = ()) -> None:
        """Send a message, with duplicates of these sockets. Never waits; to one who has gone it does nothing."""
        if self._over:
            return
        self._out.append((_frame(message, len(sockets)), [made.dup() for made in sockets]))
        if not self._writing:
            self._write()

    def _write(self) -> None:
        while self._out:
            data, sockets = self._out[0]
            try:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [made.fileno() for made in sockets]))]
                sent = self._end.sendmsg([data], rights) if sockets else self._end.send(data)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # it has gone; reading tells
                self._forget()
                break
            for made in sockets:
                made.close()
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], [])
        if bool(self._out) != self._writing and self._loop is not None:
            self._writing = bool(self._out)
            if self._writing:
                self._loop.add_writer(self._end.fileno(), self._write)
            else:
                self._loop.remove_writer(self._end.fileno())

    def read(self) -> None:
        """Take what has come, without waiting."""
        while not self._over:
            try:
                data, fds, _, _ = socket.recv_fds(self._end, _READ, _MOST_SOCKETS)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self.close()
                self._gone()
                return
            try:
                messages = self._frames.feed(data, fds)
            except LineBroken:
                self.close()
                self._gone()
                return
            for message, sockets in messages:
                self._take(message, sockets)

    def _forget(self) -> None:
        for _, sockets in self._out:
            for made in sockets:
                made.close()
        self._out.clear()

    def leave(self) -> tuple[socket.socket, bytes]:
        """Leave the loop, and hand over the socket with what was not yet sent."""
        rest = b"".join(data for data, _ in self._out)
        self._over = True
        self._unlisten()
        self._forget()
        self._frames.close()
        return self._end, rest

    def _unlisten(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._end.fileno())
            if self._writing:
                self._loop.remove_writer(self._end.fileno())
        self._loop = None
        self._writing = False

    def close(self) -> None:
        """Close. May be repeated."""
        if not self._over:
            self.leave()
        self._end.close()


def receive(end: socket.socket, frames: Frames[T]) -> list[T] | None:
    """The next messages, outside of a loop: waits for them. None: the other side has ended."""
    end.setblocking(True)
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(end, _READ, _MOST_SOCKETS)
        except OSError:
            return None
        if not data:
            return None
        messages = frames.feed(data, fds)
        if messages:
            return [message for message, _ in messages]


def send(end: socket.socket, message: Any, rest: bytes = b"") -> bool:
    """Send a message outside of a loop, after `rest`. False: nobody takes it any more.

    Args:
        end: May be closed, as a `Line` leaves it whose other side has gone.
    """
    try:
        # Not `settimeout`, which would make reading in another thread not wait either.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _LAST_S, 0))
        end.setblocking(True)
        end.sendall(rest + _frame(message))
    except OSError:
        return False
    return True
