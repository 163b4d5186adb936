"""What both ends of a line say, and the sockets that they say it by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

import msgspec

from furcula.engine.crossed import Parcel
from furcula.errors import MissingExtra
from furcula.locks import is_held

try:
    import zmq
except ImportError:
    raise MissingExtra("stages in processes of their own", "zmq") from None

__all__ = ["AT_ONCE_S", "Sent", "Told", "decode_sent", "decode_told", "encode", "is_free", "new_socket"]

#: So long parcels are read before others on the loop have their turn.
AT_ONCE_S: Final = 0.001


class Sent(msgspec.Struct, array_like=True):
    """Near to far. `body` is a Parcel; without one it asks for the state of what is not reported, from `number` on.

    A lane has a name of its own: a connection that breaks and is made again is another one to the far end's socket.
    """

    lane: bytes
    cut: str
    session: bytes
    number: int
    body: Parcel | None = None


class Told(msgspec.Struct, array_like=True):
    """Far to near.

    * `begin`: this is my session, and I have nothing of yours.
    * `accepted`: all up to this number has been handed on.
    * `have`: all up to this number has come, and what is beyond has to be sent again.
    * `report`: what became of this number.
    * `cease`: send me nothing more.
    """

    what: Literal["begin", "accepted", "have", "report", "cease"]
    cut: str
    session: bytes
    number: int = 0
    report: bytes = b""


encode = msgspec.msgpack.Encoder().encode
decode_sent = msgspec.msgpack.Decoder(Sent).decode
decode_told = msgspec.msgpack.Decoder(Told).decode


_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def new_socket(kind: int) -> zmq.Socket[bytes]:
    """One of this process's own context: a process that was forked must not use its parent's."""
    context = _contexts.get(os.getpid())
    if context is None:
        context = _contexts[os.getpid()] = zmq.Context()
    socket = context.socket(kind)
    for option, value in (
        (zmq.SNDHWM, 0),  # what is under way is limited by windows, so a send never has to wait
        (zmq.RCVHWM, 0),
        (zmq.LINGER, 0),
        (zmq.RECONNECT_IVL, 10),
        (zmq.RECONNECT_IVL_MAX, 100),
        (zmq.MAXMSGSIZE, 128 * 1024 * 1024),
    ):
        socket.setsockopt(option, value)
    return socket


def is_free(path: Path) -> bool:
    """Has the process gone that had this place? Its lock went with it."""
    try:
        return not is_held(f"{path}.lock")
    except FileNotFoundError:
        return True
