"""`mqtt.subscribe`: topics."""

from __future__ import annotations

from collections import deque
from typing import Any, ClassVar, Final, Literal

from furcula.module import Context
from furcula.modules.consuming import Arrivals, Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.mqtt.client import MQTTMessage, Session, endpoint_of
from furcula.modules.producing import TIMEOUT
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Taken, Told
from furcula.options import Duration, Secret
from furcula.verdict import MAX_DELIVERIES

__all__ = ["Subscribe"]

SESSION: Final = Duration("1h")
MOST: Final = 65535


class _Entry:
    """A message that is to be acknowledged in its turn."""

    __slots__ = ("done", "message")

    def __init__(self, message: MQTTMessage):
        self.message = message
        self.done = False


class _Subscribed:
    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.session: Session | None = None
        self.unacknowledged: deque[_Entry] = deque()


class Subscribe(Consuming[_Subscribed]):
    """Make an event of each message on topics of an MQTT 5 broker.

    With `qos` 1 or 2 a message is acknowledged when its event is settled, and all that came before it are: MQTT wants
    acknowledgements in the order of arrival. The broker keeps the session under `client_id`, and after a connection
    that was lost, or a restart within `session`, sends what is not acknowledged once more. MQTT cannot refuse a
    message: one that failed in a way that is worth another try is admitted again here after `again_after`, each time
    twice as late, `max_deliveries` times in all; one that failed otherwise is logged, counted and acknowledged. With
    `qos` 0 nobody is told anything, and what comes beyond `prefetch` is dropped, logged and counted (`dropped`).

    Headers: the user properties, `topic`, `qos`, `retain`, and where the message has them `content_type` and
    `reply_to` (its response topic). What cannot be read leaves by `invalid`, and is acknowledged when that is settled.

    Args:
        url: mqtt://host:1883, or mqtts://…
        topic: May have wildcards: `orders/+`, `orders/#`.
        client_id: By what the broker knows us, and keeps our session. No two connections may have the same.
        share: A group: each message goes to one of the clients that share a subscription by this name.
        qos: 0, 1 or 2: at most, as messages may have been published with less.
        session: Seconds that the broker keeps the session while we are away. 0: not at all.
        codec: What a message looks like: json, msgpack, text, binary.
        prefetch: So many messages may be unsettled; the broker sends no more.
        max_deliveries: So often a message may be tried.
        again_after: Seconds before the second try of what failed.
        user: Who we are, with `password`.
        password: See `user`.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting may take.
    """

    acknowledges: ClassVar[str] = "message"
    forgets = True

    def __init__(
        self,
        *,
        url: str,
        topic: str,
        client_id: str,
        share: str | None = None,
        qos: Literal[0, 1, 2] = 1,
        session: Duration = SESSION,
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
        if not client_id:
            raise ValueError("client_id must not be empty: the broker keeps our session by it")
        if prefetch > MOST:
            raise ValueError(f"prefetch must be {MOST} or less")
        if share is not None and (not share or set(share) & set("/+#")):
            raise ValueError(f"share: {share!r} cannot be the name of a group: it must have no '/', '+' or '#'")
        self._topic = topic if share is None else f"$share/{share}/{topic}"
        self._client_id = client_id
        self._qos = qos
        self._session_s = int(session)
        #: Messages of QoS 0 that came while there was no room.
        self.dropped = 0

    def _taking(self, context: Context) -> Taken:
        return Taken(
            context,
            decode=self._decode,
            prefetch=self._prefetch,
            max_deliveries=self._max_deliveries,
            again_after=self._again_after,
            tell=self._tell,
            again="admit",
        )

    async def _connect(self, lost: Lost) -> _Subscribed:
        subscribed = _Subscribed()

        def ended(error: BaseException | str | None) -> None:
            subscribed.arrivals.end(ConnectionError("the connection was lost"))
            lost(error)

        session = subscribed.session = Session(
            self._endpoint,
            tls=self._tls,
            folder=self._context.folder,
            client_id=self._client_id,
            keep_s=self._session_s,
            receive=self._prefetch,
            lost=ended,
            arrived=lambda message: self._arrived(subscribed, message),
        )
        await session.open()
        try:
            await session.subscribe(self._topic, self._qos)
        except BaseException:
            await session.close()
            raise
        return subscribed

    def _arrived(self, subscribed: _Subscribed, message: MQTTMessage) -> None:
        entry = _Entry(message)
        if message.qos:
            subscribed.unacknowledged.append(entry)
        elif len(subscribed.arrivals) >= self._prefetch:
            if not self.dropped:
                self._context.log.warning("there is no room for what comes on %s: it is dropped", self._topic)
            self.dropped += 1
            return
        properties: Any = message.properties
        headers: dict[str, Any] = dict(getattr(properties, "UserProperty", ()))
        headers.update(topic=message.topic, qos=message.qos, retain=bool(message.retain))
        for name, theirs in (("content_type", "ContentType"), ("reply_to", "ResponseTopic")):
            if hasattr(properties, theirs):
                headers[name] = getattr(properties, theirs)
        subscribed.arrivals.put(Message(bytes(message.payload), headers, (subscribed, entry)))

    async def _disconnect(self, client: _Subscribed) -> None:
        if self._taken is not None:
            self._taken.forget(lambda message: message.token[0] is client)
        if client.session is not None:
            await client.session.close()

    async def _next(self, client: _Subscribed, room: int) -> list[Message]:
        return await client.arrivals.some(room)

    async def _cease(self, client: _Subscribed) -> list[Message]:
        return client.arrivals.rest()

    async def _say(self, client: _Subscribed, batch: list[Told]) -> None:
        for told in batch:
            subscribed, entry = told.message.token
            if subscribed is client:
                # What is released keeps its place, and all behind it theirs: the session has them for the next time.
                entry.done = told.verdict in ("ack", "reject")
        while client.unacknowledged and client.unacknowledged[0].done and client.session is not None:
            client.session.acknowledge(client.unacknowledged.popleft().message)
