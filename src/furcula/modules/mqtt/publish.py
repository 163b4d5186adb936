"""`mqtt.publish`: topics."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal

from furcula.modules.consuming import Lost
from furcula.modules.endpoint import Tls
from furcula.modules.mqtt.client import PacketTypes, Properties, Session, endpoint_of
from furcula.modules.producing import TIMEOUT, Producing
from furcula.modules.sending import Destination, Outgoing, Refused, Unavailable
from furcula.options import Duration, Secret

__all__ = ["Publish"]

_TYPES: Final = {"json": "application/json", "msgpack": "application/msgpack", "text": "text/plain", "xml": "text/xml"}
#: Reason codes that say "not now": the server is busy, or shuts down, or has a quota exceeded.
_LATER: Final = frozenset((0x88, 0x89, 0x8B, 0x97))
#: Bytes of a packet beside topic, body and properties.
_AROUND: Final = 32


class Publish(Producing[Session]):
    """Publish each event's data on a topic of an MQTT 5 broker.

    With `qos` 1 or 2 an event is delivered when the broker has acknowledged it. A batch is sent at once, and its
    acknowledgements are waited for together. With `qos` 0 it is delivered when the system has its bytes. Headers that
    are text, numbers or booleans go along as user properties, and the event's id as `furcula-id`.

    An event fails with `Unavailable` while the broker is away (a `retry` waits for it), with `Refused` if the broker
    will not have it: its topic is none or not allowed, or it is larger than the broker takes.

    Args:
        url: mqtt://host:1883, or mqtts://…
        topic: Where to.
        topic_from: A dotted path to a topic in the event; where it has nothing, `topic` is used.
        qos: 0, 1 or 2.
        retain: The broker keeps the last message of a topic for who subscribes later.
        expiry: Seconds after which the broker forgets a message that nobody could be given. Default: never.
        client_id: By what the broker knows us. Default: it gives us a name.
        codec: What a message looks like: json, msgpack, text, binary.
        user: Who we are, with `password`.
        password: See `user`.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    def __init__(
        self,
        *,
        url: str,
        topic: str | None = None,
        topic_from: str | None = None,
        qos: Literal[0, 1, 2] = 1,
        retain: bool = False,
        expiry: Duration | None = None,
        client_id: str = "",
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password), Destination("topic", topic, topic_from, codec), timeout=timeout, tls=tls
        )
        self._qos = qos
        self._retain = retain
        self._expiry_s = None if expiry is None else int(expiry)
        self._client_id = client_id
        self._content_type = _TYPES.get(codec, "application/octet-stream")

    async def _connect(self, lost: Lost) -> Session:
        session = Session(
            self._endpoint, tls=self._tls, folder=self._context.folder, client_id=self._client_id, lost=lost
        )
        await session.open()
        return session

    async def _disconnect(self, client: Session) -> None:
        await client.close()

    async def _send(self, client: Session, batch: list[Outgoing]) -> dict[int, BaseException]:
        errors: dict[int, BaseException] = {}
        waiting: dict[asyncio.Future[Any], Outgoing] = {}
        for sent in batch:
            size = _AROUND + len(sent.to.encode()) + len(sent.body)
            size += sum(5 + len(name.encode()) + len(value.encode()) for name, value in sent.headers.items())
            if client.max_packet and size > client.max_packet:
                errors[sent.index] = Refused(
                    f"{self._endpoint} takes {client.max_packet} bytes at most, and the event has {size}"
                )
                continue
            try:
                waiting[client.publish(sent.to, sent.body, self._qos, self._retain, self._properties(sent))] = sent
            except ValueError as error:
                errors[sent.index] = Refused(f"{sent.to!r} cannot be published on: {error}")
        if waiting:
            await asyncio.wait(list(waiting))
        for future, sent in waiting.items():
            reason = future.result()
            if reason is not None and reason.is_failure:
                kind = Unavailable if reason.value in _LATER else Refused
                errors[sent.index] = kind(f"{self._endpoint}: {sent.to}: {reason}")
        return errors

    def _properties(self, sent: Outgoing) -> Properties:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = self._content_type
        properties.UserProperty = list(sent.headers.items())
        if self._expiry_s is not None:
            properties.MessageExpiryInterval = self._expiry_s
        return properties
