"""The contract of everything that carries events between processes.

A transport has two forms of carrying. *To every subscriber*: `publish` hands a body to whoever has subscribed to the
channel at that moment. *To one worker*: `put` hands a body to a work queue, from which exactly one `take` gets it, and
which keeps it until that taker has said what became of it.

A body is bytes; what stands in it is the business of the two ends (`codecs.encode_events` makes one of many events). A
channel is any text that UTF-8 can say, of up to `MAX_CHANNEL` bytes. What a keeper promises beyond the contract, it
says in its `Promises`; asked for what it does not promise, it raises a FurculaError that says what to use instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, Literal, Protocol

import msgspec

__all__ = ["MAX_CHANNEL", "Carries", "Loss", "Message", "Promises", "Subscription", "Transport"]

#: What happens when a subscriber is too slow: publishers wait for it, or bodies are dropped and counted.
Loss = Literal["block", "drop"]
#: A form of carrying: to every subscriber, or to one worker.
Carries = Literal["all", "one"]

#: Bytes of UTF-8 that the name of a channel may have.
MAX_CHANNEL: Final = 1024


class Promises(msgspec.Struct, frozen=True):
    """What one keeper promises.

    Attributes:
        order: Bodies put or published by one sender on one channel arrive in its order.
        durable: What `put` has returned for is still there after the process is killed.
        replay: Subscribers may ask for what was published before they came.
        loss: What a subscriber may choose to happen when it is too slow; the first is the default.
        reports: What the taker says of a message comes back to the one who put it.
        max_body: The largest body in bytes.
        carries: The forms of carrying it has: `all` (publish and subscribe), `one` (put and take).
    """

    order: bool = True
    durable: bool = False
    replay: bool = False
    loss: tuple[Loss, ...] = ("block", "drop")
    reports: bool = False
    max_body: int = 64 * 1024 * 1024
    carries: tuple[Carries, ...] = ("all", "one")


class Message(Protocol):
    """One body taken from a work queue. Say exactly one of the four, once; a second word is ignored."""

    body: bytes
    #: How often it was handed out, this time included.
    attempts: int

    async def ack(self, report: bytes = b"") -> None:
        """It is done. `report` goes back to the sender where the keeper `reports`."""

    async def again(self, delay_s: float = 0.0) -> None:
        """Hand it out once more, not before `delay_s` seconds; an attempt is charged."""

    async def reject(self, report: bytes = b"") -> None:
        """It is refused for good."""

    async def release(self) -> None:
        """Hand it out once more; no attempt is charged. For a taker that is stopping."""


class Subscription(Protocol):
    """The receiving side of a channel. It is effective when `subscribe` has returned it."""

    def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        """Channel and body of each message, in the order of arrival. Ends when the subscription is closed.

        What had arrived before the closing is still given.
        """

    async def close(self) -> None:
        """Receive nothing more. Publishers that waited for this subscriber go on. May be repeated."""

    @property
    def replayed(self) -> int:
        """How many of the first bodies are the replay that was asked for; known when `subscribe` has returned."""

    @property
    def lost(self) -> int:
        """Bodies that were dropped because this subscriber was too slow."""


class Transport(Protocol):
    """Carries bodies. All methods belong to one event loop, except where a keeper says more."""

    promises: Promises

    async def open(self) -> None:
        """Connect. Raises a FurculaError that names the address if that is not possible."""

    async def close(self) -> None:
        """Close all subscriptions and connections. What was taken and not spoken of is released. May be repeated."""

    async def publish(self, channel: str, body: bytes) -> None:
        """Hand `body` to every present subscriber of the channel.

        Returns when the keeper has accepted it. Waits while a subscriber that chose `block` is full. One that is
        cancelled while it waits may be published all the same, later; whoever goes on after that is in order behind it.
        """

    async def subscribe(
        self, *channels: str, prefix: bool = False, replay: int = 0, when_slow: Loss | None = None
    ) -> Subscription:
        """Receive what is published on these channels from now on.

        Args:
            channels: Names; those that match exactly, or with `prefix` those that begin so. `""` with `prefix`: all.
            prefix: The names are beginnings.
            replay: Begin with the last so many bodies of each channel that matches, as far as the keeper still has
                them; only where it promises `replay`.
            when_slow: What happens when this subscriber is too slow. None: the first that the keeper promises.
        """

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        """Hand `body` to the channel's work queue. Returns when it is stored by the keeper's promise; waits when full.

        One that is cancelled while it waits may be stored all the same, later.

        Args:
            reported: Called once when the taker has said `ack` (True) or `reject` (False), with its report; only where
                the keeper `reports`.
        """

    async def take(self, channel: str) -> Message:
        """The next message of the channel's work queue. Waits for one. Cancelling loses none."""
