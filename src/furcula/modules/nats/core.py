"""`nats.subscribe` and `nats.publish`: subjects of core NATS, which keeps nothing."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from nats.aio.msg import Msg
from nats.errors import SlowConsumerError

from furcula.modules.consuming import Arrivals, Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.nats.client import BROKEN, Wire, connect, copied, endpoint_of, settled_down, unsendable
from furcula.modules.producing import TIMEOUT, Producing
from furcula.modules.sending import Destination, Outgoing, Refused
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Told
from furcula.options import Duration, Secret

__all__ = ["Publish", "Subscribe"]


class _Subscribed:
    """A connection with its subscription."""

    def __init__(self) -> None:
        self.arrivals = Arrivals()
        self.wire: Wire | None = None


class Subscribe(Consuming[_Subscribed]):
    """Make an event of each message on a subject of core NATS.

    Core NATS keeps nothing: what is published while nobody listens, or while this connection is down, is lost, and the
    server is told nothing of what became of a message. Where the flow has no room, `prefetch` messages wait here; what
    comes beyond that is dropped, logged and counted (`dropped`). For more than that use `jetstream.consume`.

    Headers: those of the message, `subject`, and `reply_to` where it has one. What cannot be read leaves by `invalid`.

    Args:
        url: nats://host:4222, or tls://…
        subject: May have wildcards: `orders.*`, `orders.>`.
        queue: The name of a queue group: each message goes to one of its members.
        codec: What a message looks like: json, msgpack, text, binary.
        prefetch: So many messages may wait here, and so many more be unsettled.
        user: Who we are, with `password`.
        password: See `user`.
        token: A token, instead.
        credentials: A file of credentials (JWT and key), instead; relative to the flow's folder.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting may take.
    """

    acknowledges: ClassVar[str] = "none"
    broken = BROKEN

    def __init__(
        self,
        *,
        url: str,
        subject: str,
        queue: str = "",
        codec: str = "json",
        prefetch: int = PREFETCH,
        user: str | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        credentials: str | None = None,
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
        self._subject = subject
        self._queue = queue
        self._token = token
        self._credentials = credentials
        #: Messages that came while `prefetch` were waiting.
        self.dropped = 0

    async def _connect(self, lost: Lost) -> _Subscribed:
        subscribed = _Subscribed()

        def ended(error: BaseException | str | None) -> None:
            subscribed.arrivals.end(ConnectionError("the connection was lost"))
            lost(error)

        def noted(error: Exception) -> None:
            if not isinstance(error, SlowConsumerError):
                ended(error)  # "permissions violation" among them

        wire = await connect(
            self._endpoint,
            token=self._token,
            credentials=self._credentials,
            tls=self._tls,
            folder=self._context.folder,
            timeout_s=self._timeout,
            lost=ended,
            error=noted,
        )
        subscribed.wire = wire

        async def arrived(message: Msg) -> None:
            if len(subscribed.arrivals) >= self._prefetch:
                if not self.dropped:
                    self._context.log.warning("there is no room for what comes on %s: it is dropped", self._subject)
                self.dropped += 1
                return
            headers = {**copied(message.headers), "subject": message.subject}
            if message.reply:
                headers["reply_to"] = message.reply
            subscribed.arrivals.put(Message(message.data, headers, None))

        await wire.client.subscribe(self._subject, self._queue, cb=arrived)
        await settled_down(wire, self._timeout)  # a subscription that is not allowed is refused now
        return subscribed

    async def _disconnect(self, client: _Subscribed) -> None:
        if client.wire is not None:
            await client.wire.client.close()

    async def _next(self, client: _Subscribed, room: int) -> list[Message]:
        return await client.arrivals.some(room)

    async def _say(self, client: _Subscribed, batch: list[Told]) -> None:
        """There is nobody to tell."""


class Publish(Producing[Wire]):
    """Publish each event's data on a subject of core NATS.

    An event is delivered when the server has taken it: a batch is followed by a ping, whose answer says that all before
    it has arrived. Whether anybody was listening, core NATS does not tell. Headers that are text, numbers or booleans
    go along, and the event's id as `furcula-id`.

    An event fails with `Unavailable` while the server is away (a `retry` waits for it), with `Refused` if it is larger
    than the server takes.

    Args:
        url: nats://host:4222, or tls://…
        subject: Where to.
        subject_from: A dotted path to a subject in the event; where it has nothing, `subject` is used.
        codec: What a message looks like: json, msgpack, text, binary.
        user: Who we are, with `password`.
        password: See `user`.
        token: A token, instead.
        credentials: A file of credentials (JWT and key), instead; relative to the flow's folder.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    broken = BROKEN

    def __init__(
        self,
        *,
        url: str,
        subject: str | None = None,
        subject_from: str | None = None,
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        credentials: str | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            Destination("subject", subject, subject_from, codec),
            timeout=timeout,
            tls=tls,
        )
        self._token = token
        self._credentials = credentials

    async def _connect(self, lost: Lost) -> Wire:
        self._violation = ""
        return await connect(
            self._endpoint,
            token=self._token,
            credentials=self._credentials,
            tls=self._tls,
            folder=self._context.folder,
            timeout_s=self._timeout,
            lost=lost,
            error=self._noted,
        )

    _violation: str = ""

    def _noted(self, error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            self._violation = str(error)

    async def _disconnect(self, client: Wire) -> None:
        await client.client.close()

    async def _send(self, client: Wire, batch: list[Outgoing]) -> dict[int, BaseException]:
        errors: dict[int, BaseException] = {}
        self._violation = ""
        most = client.client.max_payload
        for sent in batch:
            refusal = unsendable(sent, sent.headers, most)
            if refusal:
                errors[sent.index] = Refused(f"{self._endpoint}: {refusal}")
            else:
                await client.client.publish(sent.to, sent.body, headers=sent.headers)
        await settled_down(client, self._timeout)
        await asyncio.sleep(0)
        if self._violation:  # the server does not say which; what it names is the subject
            for sent in batch:
                if f'"{sent.to}"'.lower() in self._violation.lower():
                    errors[sent.index] = Refused(f"{self._endpoint}: {self._violation}")
        return errors
