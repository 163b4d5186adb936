"""`amqp.consume`: a queue."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar

from aio_pika.abc import AbstractIncomingMessage

from furcula.modules.amqp.client import BROKEN, Declare, DeclareExchange, Session, connect, endpoint_of
from furcula.modules.consuming import Arrivals, Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.producing import TIMEOUT
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Told, Tries
from furcula.options import Duration, Secret
from furcula.verdict import MAX_DELIVERIES

__all__ = ["Consume"]


class Consume(Consuming[Session]):
    """Make an event of each message of an AMQP queue.

    A message is acknowledged when its event is settled as delivered or dropped. If it failed in a way that is worth
    another try it is requeued after `again_after`, each time twice as late, `max_deliveries` times in all; if not, it
    is refused without requeueing, so that the queue's dead-letter exchange gets it, if it has one. What is unsettled
    when the flow stops is requeued at once. How often a message was delivered a quorum queue says; for others this
    process remembers it, by the message's id or its bytes.

    Headers: those of the message, `exchange`, `routing_key`, `deliveries`, and where the message has them `message_id`,
    `correlation_id`, `reply_to` and `content_type`. What cannot be read leaves by `invalid`, and is acknowledged when
    that is settled.

    Args:
        url: amqp://host:5672/vhost, or amqps://…; no path is the virtual host `/`.
        queue: The queue, which must exist, unless `declare` says how it is to be made.
        declare: {durable, exclusive, auto_delete, arguments}; `{}` makes a durable one.
        exchange: Bind the queue to this exchange.
        declare_exchange: {type, durable, auto_delete, arguments}: make that exchange where it does not exist.
        routing_keys: Bind it by these; for a topic exchange with wildcards.
        codec: What a message looks like: json, msgpack, text, binary.
        prefetch: So many messages may be unsettled; the broker sends no more.
        max_deliveries: So often a message may be delivered.
        again_after: Seconds before the second delivery of what failed.
        user: Who we are, with `password`. Default: guest.
        password: See `user`.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or a request, may take.
    """

    acknowledges: ClassVar[str] = "message"
    shared: ClassVar[bool] = True
    broken = BROKEN
    forgets = True

    def __init__(
        self,
        *,
        url: str,
        queue: str,
        declare: Declare | None = None,
        exchange: str | None = None,
        declare_exchange: DeclareExchange | None = None,
        routing_keys: list[str] | None = None,
        codec: str = "json",
        prefetch: int = PREFETCH,
        max_deliveries: int = MAX_DELIVERIES,
        again_after: Duration = AGAIN_AFTER,
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            codec=codec,
            prefetch=prefetch,
            max_deliveries=max_deliveries,
            again_after=again_after,
            timeout=timeout,
            tls=tls,
        )
        if prefetch > 65535:
            raise ValueError("prefetch must be 65535 or less")
        if exchange is None and (routing_keys or declare_exchange):
            raise ValueError("routing_keys and declare_exchange need an exchange")
        self._queue = queue
        self._declare = declare
        self._exchange = exchange
        self._declare_exchange = declare_exchange
        self._routing_keys = routing_keys or [queue]
        self._tries = Tries()

    async def _connect(self, lost: Lost) -> Session:
        if self._taken is not None:
            self._taken.forget()
        session = await connect(
            self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout, lost=lost
        )
        try:
            await self._prepare(session)
        except BaseException:
            await session.close()
            raise
        return session

    async def _prepare(self, session: Session) -> None:
        channel = session.channel
        await channel.set_qos(prefetch_count=self._prefetch)
        if self._declare is None:
            queue = await channel.declare_queue(self._queue, passive=True)
        else:
            queue = await channel.declare_queue(
                self._queue,
                durable=self._declare.durable,
                exclusive=self._declare.exclusive,
                auto_delete=self._declare.auto_delete,
                arguments=self._declare.arguments or None,
            )
        if self._exchange is not None:
            if self._declare_exchange is not None:
                made = self._declare_exchange
                await channel.declare_exchange(
                    self._exchange,
                    made.type,
                    durable=made.durable,
                    auto_delete=made.auto_delete,
                    arguments=made.arguments or None,
                )
            for key in self._routing_keys:
                await queue.bind(self._exchange, key)
        arrivals = Arrivals()

        async def arrived(message: AbstractIncomingMessage) -> None:
            arrivals.put(self._message(session, message))

        session.arrivals, session.queue = arrivals, queue
        session.consumer = await queue.consume(arrived)
        underneath: Any = await channel.get_underlay_channel()
        # A queue that is deleted takes its consumers with it, and leaves the channel open. (Not in old versions.)
        cancelled = getattr(underneath, "on_consumer_cancel_callbacks", None)
        if cancelled is not None:
            cancelled.add(lambda *_: self._cancelled(session))

    def _cancelled(self, session: Session) -> None:
        if self._line is not None:
            self._line.lost(session, f"the broker has ended the consumer of the queue {self._queue!r}")
        session.arrivals.end(ConnectionError("the consumer was ended"))

    def _message(self, session: Session, message: AbstractIncomingMessage) -> Message:
        told: Any = message.headers.get("x-delivery-count")
        identity = message.message_id or hashlib.blake2b(message.body, digest_size=16).digest()
        deliveries = told + 1 if isinstance(told, int) else self._tries.deliveries(identity)
        headers = {name: _plain(value) for name, value in message.headers.items()}
        headers.update(exchange=message.exchange or "", routing_key=message.routing_key or "", deliveries=deliveries)
        for name in ("message_id", "correlation_id", "reply_to", "content_type"):
            value = getattr(message, name)
            if value:
                headers[name] = str(value)
        return Message(message.body, headers, (session, message, identity), deliveries)

    async def _next(self, client: Session, room: int) -> list[Message]:
        found: list[Message] = await client.arrivals.some(room)
        return found

    async def _cease(self, client: Session) -> list[Message]:
        await client.queue.cancel(client.consumer)
        found: list[Message] = client.arrivals.rest()
        return found

    async def _disconnect(self, client: Session) -> None:
        if self._taken is not None:
            self._taken.forget(lambda message: message.token[0] is client)
        await client.close()

    async def _say(self, client: Session, batch: list[Told]) -> None:
        for told in batch:
            session, message, identity = told.message.token
            if session is not client:  # it came over a connection that is gone, and has been requeued
                continue
            self._tries.note(identity, told)
            if told.verdict == "ack":
                await message.ack()
            else:
                await message.nack(requeue=told.verdict != "reject")


def _plain(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
