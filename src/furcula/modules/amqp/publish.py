"""`amqp.publish`: an exchange."""

from __future__ import annotations

import asyncio
from typing import Final

import aio_pika
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, PublishError
from aio_pika.exceptions import DeliveryError as NotTaken

from furcula.modules.amqp.client import BROKEN, Declare, DeclareExchange, Session, connect, endpoint_of
from furcula.modules.connecting import first_line
from furcula.modules.consuming import Lost
from furcula.modules.endpoint import Tls
from furcula.modules.producing import TIMEOUT, Producing
from furcula.modules.sending import Destination, Outgoing, Refused, Unavailable
from furcula.options import Duration, Secret

__all__ = ["Publish"]

_TYPES: Final = {"json": "application/json", "msgpack": "application/msgpack", "text": "text/plain", "xml": "text/xml"}


class Publish(Producing[Session]):
    """Publish each event's data to an AMQP exchange.

    An event is delivered when the broker has confirmed it: it is in every queue that it was routed to, and on the disk
    where the queue is durable. A batch is sent at once, and its confirms are waited for together. Headers that are
    text, numbers or booleans go along, and the event's id as `furcula-id` and as message id.

    An event fails with `Unavailable` while the broker is away, or did not take it (a `retry` waits for it); with
    `Refused` where there is no such exchange, or with `mandatory` no queue to route it to.

    Args:
        url: amqp://host:5672/vhost, or amqps://…; no path is the virtual host `/`.
        exchange: Where to; the default exchange routes to the queue that the routing key names.
        routing_key: By what it is routed.
        routing_key_from: A dotted path to a routing key in the event; where it has nothing, `routing_key` is used.
        declare_exchange: {type, durable, auto_delete, arguments}: make the exchange where it does not exist.
        queue: Make this queue too, and bind it to the exchange by `routing_key`.
        declare: {durable, exclusive, auto_delete, arguments} of that queue.
        mandatory: An event that no queue gets is refused. False: it is delivered to nobody.
        persistent: Durable queues keep it over a restart of the broker.
        codec: What a message looks like: json, msgpack, text, binary.
        user: Who we are, with `password`. Default: guest.
        password: See `user`.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    broken = BROKEN

    def __init__(
        self,
        *,
        url: str,
        exchange: str = "",
        routing_key: str | None = None,
        routing_key_from: str | None = None,
        declare_exchange: DeclareExchange | None = None,
        queue: str | None = None,
        declare: Declare | None = None,
        mandatory: bool = True,
        persistent: bool = True,
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            # Only a named exchange may do without: one that sends everything everywhere has no use for it.
            Destination(
                "routing_key",
                "" if exchange and routing_key is None and routing_key_from is None else routing_key,
                routing_key_from,
                codec,
                required=not exchange,
            ),
            timeout=timeout,
            tls=tls,
        )
        if declare_exchange is not None and not exchange:
            raise ValueError("declare_exchange needs an exchange")
        if declare is not None and queue is None:
            raise ValueError("declare says how a queue is made; write which one as queue")
        self._exchange = exchange
        self._routing_key = routing_key or ""
        self._declare_exchange = declare_exchange
        self._queue = queue
        self._declare = declare or Declare()
        self._mandatory = mandatory
        self._mode = aio_pika.DeliveryMode.PERSISTENT if persistent else aio_pika.DeliveryMode.NOT_PERSISTENT
        self._content_type = _TYPES.get(codec, "application/octet-stream")

    async def _connect(self, lost: Lost) -> Session:
        session = await connect(
            self._endpoint,
            tls=self._tls,
            folder=self._context.folder,
            timeout_s=self._timeout,
            lost=lost,
            returned=True,
        )
        try:
            await self._prepare(session)
        except BaseException:
            await session.close()
            raise
        return session

    async def _prepare(self, session: Session) -> None:
        channel = session.channel
        if not self._exchange:
            session.exchange = channel.default_exchange
        elif self._declare_exchange is None:
            session.exchange = await channel.get_exchange(self._exchange, ensure=False)
        else:
            made = self._declare_exchange
            session.exchange = await channel.declare_exchange(
                self._exchange,
                made.type,
                durable=made.durable,
                auto_delete=made.auto_delete,
                arguments=made.arguments or None,
            )
        if self._queue is not None:
            queue = await channel.declare_queue(
                self._queue,
                durable=self._declare.durable,
                exclusive=self._declare.exclusive,
                auto_delete=self._declare.auto_delete,
                arguments=self._declare.arguments or None,
            )
            if self._exchange:
                await queue.bind(self._exchange, self._routing_key)

    async def _disconnect(self, client: Session) -> None:
        await client.close()

    async def _send(self, client: Session, batch: list[Outgoing]) -> dict[int, BaseException]:
        tasks = [asyncio.ensure_future(self._publish(client, sent)) for sent in batch]
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
        errors: dict[int, BaseException] = {}
        for sent, task in zip(batch, tasks, strict=True):
            # The library cancels what waits for a confirm when the connection is lost.
            error = ConnectionError("the connection was lost") if task.cancelled() else task.exception()
            if error is not None:
                errors[sent.index] = self._failure(client, sent, error)
        return errors

    async def _publish(self, client: Session, sent: Outgoing) -> None:
        message = aio_pika.Message(
            sent.body,
            headers=dict(sent.headers),
            message_id=sent.event.id,
            content_type=self._content_type,
            delivery_mode=self._mode,
        )
        await client.exchange.publish(message, sent.to, mandatory=self._mandatory)

    def _failure(self, client: Session, sent: Outgoing, error: BaseException) -> BaseException:
        where = f"{self._endpoint}: exchange {self._exchange!r}, routing key {sent.to!r}"
        if isinstance(error, PublishError):
            return Refused(f"{where}: no queue gets it")
        if isinstance(error, NotTaken):
            return Unavailable(f"{where}: the broker did not take it")
        if isinstance(error, ChannelNotFoundEntity):
            if self._line is not None:
                self._line.lost(client, error)
            return Refused(f"{where}: {first_line(error)}")
        if isinstance(error, AMQPError | OSError | RuntimeError):
            if self._line is not None:
                self._line.lost(client, error)
            return Unavailable(f"{where}: {first_line(error)}")
        return error
