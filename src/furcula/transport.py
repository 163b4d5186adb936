"""The contract of everything that carries events between processes.

A transport has two forms of carrying. *To every subscriber*: `publish` hands a body to whoever has subscribed to the
channel at that moment. *To one worker*: `put` hands a body to a work queue, from which exactly one `take` gets it, and
which keeps it until that taker has said what became of it.

A body is bytes; what stands in it is the business of the two ends (`codecs.encode_events` makes one of many events).
What a keeper promises beyond the contract, it says in its `Promises`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Literal, Protocol

import msgspec

__all__ = ["Message", "Promises", "Subscription", "Transport"]


class Promises(msgspec.Struct, frozen=True):
    """What one keeper promises.

    Attributes:
        order: Bodies put or published by one sender on one channel arrive in its order.
        durable: What `put` has returned for is still there after the process is killed.
        replay: Subscribers may ask for what was published before they came.
        loss: What happens to a subscriber that is too slow: `block` (publishers wait) or `drop` (counted).
        reports: What the taker says of a message comes back to the one who put it.
        max_body: The largest body in bytes.
    """

    order: bool = True
    durable: bool = False
    replay: bool = False
    loss: Literal["block", "drop"] = "block"
    reports: bool = False
    max_body: int = 64 * 1024 * 1024


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
        """Channel and body of each message, in the order of arrival. Ends when the subscription is closed."""

    async def close(self) -> None: ...

    @property
    def lost(self) -> int:
        """Messages that were dropped because this subscriber was too slow."""


class Transport(Protocol):
    """Carries bodies. All methods belong to one event loop, except where a keeper says more."""

    promises: Promises

    async def open(self) -> None:
        """Connect. Raises a FurculaError that names the address if that is not possible."""

    async def close(self) -> None:
        """Close all subscriptions and connections. What was taken and not spoken of is released. May be repeated."""

    async def publish(self, channel: str, body: bytes) -> None:
        """Hand `body` to every present subscriber of the channel. Returns when the keeper has accepted it."""

    async def subscribe(self, *channels: str) -> Subscription:
        """Receive what is published on exactly these channels from now on."""

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        """Hand `body` to the channel's work queue. Returns when it is stored by the keeper's promise; waits when full.

        Args:
            reported: Called once when the taker has said `ack` (True) or `reject` (False), with its report; only where
                the keeper `reports`.
        """

    async def take(self, channel: str) -> Message:
        """The next message of the channel's work queue. Waits for one. Cancelling loses none."""
