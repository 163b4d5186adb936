"""What goes over the wire between a client and the hub: one frame a message, a version byte, then MessagePack.

Frames are decoded into typed structs in one call, so whatever a stranger sends is either one of these or refused.
Bodies are opaque here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from furcula.errors import InputError
from furcula.transport import MAX_CHANNEL

__all__ = [
    "CHANNELS",
    "LAST",
    "NAME_BYTES",
    "OVERHEAD",
    "VERSION",
    "Accepted",
    "Bye",
    "Credit",
    "Deliver",
    "Done",
    "Frame",
    "FromClient",
    "FromHub",
    "Gone",
    "Hello",
    "Hold",
    "Ping",
    "Publish",
    "Put",
    "Said",
    "Subscribe",
    "Subscribed",
    "Take",
    "Taken",
    "Unknown",
    "Unsubscribe",
    "Welcome",
    "encode",
    "from_client",
    "from_hub",
]

VERSION: Final = 1
#: Bytes of the name that a client gives itself.
NAME_BYTES: Final = 12
#: Bytes that a frame may have beside its body.
OVERHEAD: Final = 64 * 1024

Name = Annotated[bytes, msgspec.Meta(min_length=NAME_BYTES, max_length=NAME_BYTES)]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Channel = Annotated[str, msgspec.Meta(max_length=MAX_CHANNEL)]
#: Channels that one subscription may name.
CHANNELS: Final = 65_536
#: Senders whose last number a subscriber tells.
LAST: Final = 2048

Channels = Annotated[tuple[Channel, ...], msgspec.Meta(min_length=1, max_length=CHANNELS)]


class Frame(msgspec.Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """One message."""


# ------------------------------------------------------------------ from a client


class Hold(msgspec.Struct, array_like=True, gc=False):
    """A message that a taker has in hand, named by who put it."""

    putter: Name
    number: Number


class Hello(Frame, tag=1):
    """The first word on every connection. `again`: the client knew a hub before, and tells it all it had."""

    name: Name
    again: bool
    holds: Annotated[list[Hold], msgspec.Meta(max_length=65_536)] = []
    #: The largest body that it takes.
    max_body: Annotated[int, msgspec.Meta(ge=1)] = 2**53


class Subscribe(Frame, tag=2):
    """`room`: bodies that may be under way to it. `again`: it was subscribed before, here or at an earlier hub, and has
    of these senders what they published up to the number in `last`."""

    id: Number
    channels: Channels
    prefix: bool
    replay: Number
    block: bool
    room: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    again: bool
    last: Annotated[dict[Name, Number], msgspec.Meta(max_length=LAST)] = {}


class Unsubscribe(Frame, tag=3):
    id: Number


class Credit(Frame, tag=4):
    """The subscriber has read so many, since it subscribed at this hub."""

    id: Number
    read: Number


class Publish(Frame, tag=5):
    """`fate`: 0 it is new, 1 it was sent to an earlier hub, 2 an earlier hub had accepted it."""

    number: Number
    channel: Channel
    body: bytes
    fate: Literal[0, 1, 2] = 0


class Put(Frame, tag=6):
    """`again`: it was sent to an earlier hub."""

    number: Number
    channel: Channel
    body: bytes
    again: bool = False


class Take(Frame, tag=7):
    """The client waits for so many messages of the channel more than before; less, where one has given up."""

    channel: Channel
    more: Annotated[int, msgspec.Meta(ge=-1_000_000, le=1_000_000)]


class Said(Frame, tag=8):
    """What became of a message that was taken."""

    putter: Name
    number: Number
    word: Literal["ack", "again", "reject", "release"]
    delay_s: Annotated[float, msgspec.Meta(ge=0, le=10 * 365 * 86400)] = 0.0
    report: bytes = b""


class Bye(Frame, tag=9):
    """The last word. Answered with Gone, when all that was said before has been dealt with."""


# ------------------------------------------------------------------ from the hub


class Welcome(Frame, tag=20):
    max_body: Annotated[int, msgspec.Meta(ge=1)]


class Unknown(Frame, tag=21):
    """The hub does not know who speaks: say Hello first."""


class Subscribed(Frame, tag=22):
    id: int
    replayed: int


class Accepted(Frame, tag=23):
    """These numbers, published or put, have been accepted."""

    numbers: list[int]


class Deliver(Frame, tag=24):
    """One body for a subscription. `dropped`: how many it has not got so far, because it was full."""

    id: int
    sender: bytes
    number: int
    dropped: int
    channel: str
    body: bytes


class Taken(Frame, tag=25):
    putter: bytes
    number: int
    attempts: int
    channel: str
    body: bytes


class Done(Frame, tag=26):
    """What the taker said of a message that this client put."""

    number: int
    good: bool
    report: bytes


class Ping(Frame, tag=27):
    """Sent now and then, so that the hub finds out who has gone; carries losses nobody was told of yet."""

    dropped: dict[int, int] = {}


class Gone(Frame, tag=28):
    pass


FromClient = Hello | Subscribe | Unsubscribe | Credit | Publish | Put | Take | Said | Bye
FromHub = Welcome | Unknown | Subscribed | Accepted | Deliver | Taken | Done | Ping | Gone

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[FromClient] = msgspec.msgpack.Decoder(FromClient)
_hub_decoder: msgspec.msgpack.Decoder[FromHub] = msgspec.msgpack.Decoder(FromHub)


def encode(frame: Frame) -> bytes:
    out = bytearray((VERSION,))
    _encoder.encode_into(frame, out, 1)
    return bytes(out)


def from_client(raw: bytes) -> FromClient:
    """Raises InputError, with `version` or `malformed` as its message, and nothing else."""
    _check(raw)
    try:
        return _client_decoder.decode(memoryview(raw)[1:])
    except (ValueError, RecursionError, MemoryError):
        raise InputError("malformed") from None


def from_hub(raw: bytes) -> FromHub:
    """Raises InputError, with `version` or `malformed` as its message, and nothing else."""
    _check(raw)
    try:
        return _hub_decoder.decode(memoryview(raw)[1:])
    except (ValueError, RecursionError, MemoryError):
        raise InputError("malformed") from None


def _check(raw: bytes) -> None:
    if not raw or raw[0] != VERSION:
        raise InputError("version")
