"""`redis.subscribe` and `redis.publish`: channels, which keep nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec
from redis.asyncio.client import PubSub

from furcula.modules.consuming import Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.producing import TIMEOUT
from furcula.modules.redis.client import BROKEN, Redis, ResponseError, connect, endpoint_of
from furcula.modules.redis.pipeline import Pipeline
from furcula.modules.sending import Destination, Outgoing
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Told
from furcula.options import Duration, Secret

__all__ = ["Publish", "Subscribe"]


class _Subscribed(msgspec.Struct):
    redis: Redis
    channel: PubSub


class Subscribe(Consuming[_Subscribed]):
    """Make an event of each message on a Redis channel.

    Redis keeps nothing: what is published while nobody listens, or while this connection is down, is lost, and nobody
    is told what became of a message. Where the flow has no room, no more than `prefetch` messages are read; the others
    wait in the server, which ends the connection when they become too many (`client-output-buffer-limit pubsub`).

    Headers: `channel`. What cannot be read leaves by `invalid`.

    Args:
        url: redis://host:6379/0, or rediss://…
        channel: The channel, or with `pattern` a pattern: `orders.*`.
        pattern: `channel` is a pattern.
        codec: What a message looks like: json, msgpack, text, binary.
        prefetch: So many messages may be unsettled.
        user: Who we are, with `password`.
        password: See `user`; a password alone is that of the default user.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting may take.
    """

    acknowledges: ClassVar[str] = "none"
    broken = (*BROKEN, ResponseError, RuntimeError)
    patient = False

    def __init__(
        self,
        *,
        url: str,
        channel: str,
        pattern: bool = False,
        codec: str = "json",
        prefetch: int = PREFETCH,
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            codec=codec,
            prefetch=prefetch,
            max_deliveries=1,
            again_after=AGAIN_AFTER,
            timeout=timeout,
            tls=tls,
        )
        self._channel = channel
        self._pattern = pattern

    async def _connect(self, lost: Lost) -> _Subscribed:
        redis = await connect(self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout)
        channel = redis.pubsub()
        try:
            await (channel.psubscribe if self._pattern else channel.subscribe)(self._channel)
            await channel.get_message(timeout=float(self._timeout))  # that it is subscribed, or why not
        except BaseException:
            await redis.aclose()
            raise
        return _Subscribed(redis, channel)

    async def _disconnect(self, client: _Subscribed) -> None:
        try:
            await client.channel.aclose()  # type: ignore[no-untyped-call]
        finally:
            await client.redis.aclose()

    async def _next(self, client: _Subscribed, room: int) -> list[Message]:
        found: list[Message] = []
        wait_s = 0.5
        while len(found) < min(room, 256):
            message: Any = await client.channel.get_message(timeout=wait_s)
            if message is None:
                break
            if message["type"] in ("message", "pmessage"):
                found.append(Message(message["data"], {"channel": message["channel"].decode()}, None))
            wait_s = 0.0
        return found

    async def _say(self, client: _Subscribed, batch: list[Told]) -> None:
        """There is nobody to tell."""


class Publish(Pipeline):
    """Publish each event's data on a Redis channel.

    A batch is one round trip. An event is delivered when the server has answered; whether anybody was listening is not
    looked at. A channel has no place for headers.

    An event fails with `Unavailable` while the server is away (a `retry` waits for it).

    Args:
        url: redis://host:6379/0, or rediss://…
        channel: Where to.
        channel_from: A dotted path to the name of a channel in the event; where it has nothing, `channel` is used.
        codec: What a message looks like: json, msgpack, text, binary.
        user: Who we are, with `password`.
        password: See `user`; a password alone is that of the default user.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    def __init__(
        self,
        *,
        url: str,
        channel: str | None = None,
        channel_from: str | None = None,
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            Destination("channel", channel, channel_from, codec),
            timeout=timeout,
            tls=tls,
        )

    def _command(self, pipeline: Any, sent: Outgoing) -> None:
        pipeline.publish(sent.to, sent.body)
