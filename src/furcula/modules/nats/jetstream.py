"""`jetstream.consume` and `jetstream.publish`: the streams of NATS, which keep what they are given."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar, Final, Literal

import msgspec
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, PubAck
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from furcula.modules.consuming import Arrivals, Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.nats.client import BROKEN, Wire, connect, copied, endpoint_of, settled_down, unsendable
from furcula.modules.producing import TIMEOUT, Producing
from furcula.modules.sending import Destination, Outgoing, Refused, Unavailable
from furcula.modules.taking import AGAIN_AFTER, MAX_DELIVERIES, PREFETCH, Message, Taken, Told
from furcula.options import Duration, Secret

__all__ = ["Consume", "Publish"]

ACK_WAIT: Final = Duration("30s")
#: One request for messages stands so long; then the next is made.
EXPIRES_S: Final = 5.0
#: What makes a repeated publish harmless.
_MSG_ID: Final = "Nats-Msg-Id"
#: For what could not be put among the dead letters.
_AGAIN_LATER: Final = b'-NAK {"delay":30000000000}'


class _Pull:
    """A connection with a consumer, and the request for messages that stands."""

    def __init__(self, wire: Wire, context: JetStreamContext):
        client = wire.client
        self.wire = wire
        self.client = client
        self.js = context
        self.arrivals = Arrivals()
        self.subject = ""
        self.inbox = client.new_inbox()
        self.subscription: Any = None
        self.wanted = 0
        self.asked_at = 0.0
        self.beat: asyncio.Task[None] | None = None


class Consume(Consuming[_Pull]):
    """Make an event of each message of a JetStream stream, taken through a durable consumer.

    A message is acknowledged when its event is settled as delivered or dropped. If it failed in a way that is worth
    another try it is delivered again after `again_after`, each time twice as late, `max_deliveries` times in all; if
    not, it is published on `dead_letter` (where there is one) and the server is told never to deliver it again. What is
    unsettled when the flow stops goes back at once. Messages that are worked on for long are kept ours: the server is
    told so every third of `ack_wait`. Several processes may share one `durable`.

    That is said from the event loop. A module that holds the loop for longer than `ack_wait` (one that blocks and is
    not in a thread) keeps it from being said, so another process that shares the `durable` may be given the same
    messages meanwhile. This process handles a message once all the same.

    The server counts as a delivery also what a process took that crashed, so what crashes processes ends, too. What was
    handed back because a flow stopped is not counted, as long as this process remembers it.

    Headers: those of the message, `subject`, `stream`, `sequence`, `deliveries`. What cannot be read leaves by
    `invalid`, and is acknowledged when that is settled.

    Args:
        url: nats://host:4222, or tls://…
        stream: The stream, which must exist, unless `subjects` says what it is to be made of.
        durable: The name of the consumer; made where it does not exist.
        subject: Only messages of this subject (wildcards allowed).
        subjects: Make the stream of these subjects where it does not exist (in files, one replica).
        deliver: Where a consumer that is made begins: all, new, or last.
        ack_wait: Seconds after which the server takes a message back from a consumer that says nothing.
        dead_letter: A subject of a stream for messages that are rejected.
        codec: What a message looks like: json, msgpack, text, binary.
        prefetch: So many messages may be unsettled.
        max_deliveries: So often a message may be delivered.
        again_after: Seconds before the second delivery of what failed.
        user: Who we are, with `password`.
        password: See `user`.
        token: A token, instead.
        credentials: A file of credentials (JWT and key), instead; relative to the flow's folder.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or a request, may take.
    """

    acknowledges: ClassVar[str] = "message"
    shared: ClassVar[bool] = True
    broken = (*BROKEN, NoRespondersError, ServiceUnavailableError)

    def __init__(
        self,
        *,
        url: str,
        stream: str,
        durable: str,
        subject: str | None = None,
        subjects: list[str] | None = None,
        deliver: Literal["all", "new", "last"] = "all",
        ack_wait: Duration = ACK_WAIT,
        dead_letter: str | None = None,
        codec: str = "json",
        prefetch: int = PREFETCH,
        max_deliveries: int = MAX_DELIVERIES,
        again_after: Duration = AGAIN_AFTER,
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
            max_deliveries=max_deliveries,
            again_after=again_after,
            timeout=timeout,
            tls=tls,
        )
        if not ack_wait:
            raise ValueError("ack_wait must be more than 0")
        self._stream = stream
        self._durable = durable
        self._subject = subject
        self._subjects = subjects
        self._deliver = deliver
        self._ack_wait_s = float(ack_wait)
        self._dead_letter = dead_letter
        self._token = token
        self._credentials = credentials
        #: stream sequence -> how often we have handed it back without a failure, or were given it though we had it
        self._released: dict[int, int] = {}
        #: stream sequence -> what has come and its server has not been told of
        self._hand: dict[int, Message] = {}

    def _taking(self, context: Any) -> Taken:
        return Taken(
            context,
            decode=self._decode,
            prefetch=self._prefetch,
            max_deliveries=self._max_deliveries,
            again_after=self._again_after,
            tell=self._tell,
            again="tell",
        )

    async def _connect(self, lost: Lost) -> _Pull:
        ended: list[_Pull] = []

        def gone(error: BaseException | str | None) -> None:
            for pull in ended:
                pull.arrivals.end(ConnectionError("the connection was lost"))
            lost(error)

        wire = await connect(
            self._endpoint,
            token=self._token,
            credentials=self._credentials,
            tls=self._tls,
            folder=self._context.folder,
            timeout_s=self._timeout,
            lost=gone,
        )
        pull = _Pull(wire, wire.client.jetstream(timeout=self._timeout))
        ended.append(pull)
        try:
            await self._prepare(pull)
        except BaseException:
            await wire.client.close()
            raise
        return pull

    async def _prepare(self, pull: _Pull) -> None:
        js = pull.js
        if self._subjects:
            try:
                await js.stream_info(self._stream)
            except NotFoundError:
                await js.add_stream(name=self._stream, subjects=self._subjects)
        try:
            await js.consumer_info(self._stream, self._durable)
        except NotFoundError as error:
            if "stream" in str(error.description or "").lower():
                raise LookupError(f"there is no stream {self._stream!r}; make it, or say `subjects`") from None
            await js.add_consumer(
                self._stream,
                ConsumerConfig(
                    durable_name=self._durable,
                    ack_policy=AckPolicy.EXPLICIT,
                    ack_wait=self._ack_wait_s,
                    deliver_policy=DeliverPolicy(self._deliver),
                    filter_subject=self._subject,
                    max_deliver=-1,
                    max_ack_pending=max(1000, 10 * self._prefetch),
                ),
            )

        async def arrived(message: Msg) -> None:
            self._arrived(pull, message)

        pull.subscription = await pull.client.subscribe(pull.inbox, cb=arrived)
        pull.subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}"
        pull.beat = asyncio.ensure_future(self._keep_ours(pull))

    def _arrived(self, pull: _Pull, message: Msg) -> None:
        status = message.headers.get("Status") if message.headers and not message.data else None
        if status is not None:
            if status in ("404", "408", "409", "503"):
                pull.wanted = 0
                why = (message.headers or {}).get("Description", "").lower()
                if status == "503" or "deleted" in why or "leadership" in why:
                    pull.arrivals.end(ConnectionError(f"the consumer {self._durable} is gone: {why or status}"))
                else:
                    pull.arrivals.nudge()
            return
        pull.wanted = max(0, pull.wanted - 1)
        metadata = message.metadata
        sequence = metadata.sequence.stream
        known = self._hand.get(sequence)
        if known is not None:  # we have it, but did not say so in time
            known.token = (message.reply, sequence)
            self._released[sequence] = self._released.get(sequence, 0) + 1
            if not pull.wanted:
                pull.arrivals.nudge()
            return
        deliveries = (metadata.num_delivered or 1) - self._released.get(sequence, 0)
        headers = {
            **copied(message.headers),
            "subject": message.subject,
            "stream": self._stream,
            "sequence": sequence,
            "deliveries": deliveries,
        }
        known = self._hand[sequence] = Message(message.data, headers, (message.reply, sequence), max(1, deliveries))
        pull.arrivals.put(known)

    async def _next(self, client: _Pull, room: int) -> list[Message]:
        # Another request is made when the last one is used up, or its time is over without a word from the server.
        now = time.monotonic()
        free = room - len(client.arrivals)
        if free > 0 and (client.wanted == 0 or now - client.asked_at > EXPIRES_S + 1):
            client.wanted, client.asked_at = free, now
            request = {"batch": free, "expires": int(EXPIRES_S * 1e9)}
            await client.client.publish(client.subject, msgspec.json.encode(request), reply=client.inbox)
        try:
            async with asyncio.timeout(EXPIRES_S + 1.5):
                return await client.arrivals.some(room)
        except TimeoutError:
            return []

    async def _cease(self, client: _Pull) -> list[Message]:
        await client.subscription.drain()
        return client.arrivals.rest()

    async def _disconnect(self, client: _Pull) -> None:
        if client.beat is not None:
            client.beat.cancel()
        await client.client.close()

    async def _keep_ours(self, pull: _Pull) -> None:
        """What takes long is not to be given to another."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            for message in self._taken.open if self._taken else []:
                try:
                    await pull.client.publish(message.token[0], b"+WPI")
                except BROKEN:
                    return

    async def _tell(self, batch: list[Told]) -> None:
        try:
            await super()._tell(batch)
        finally:
            for told in batch:
                self._let_go(told.message)

    def _let_go(self, message: Message) -> None:
        sequence = message.token[1]
        if self._hand.get(sequence) is message:
            del self._hand[sequence]

    async def _say(self, client: _Pull, batch: list[Told]) -> None:
        if any(told.verdict in ("again", "release") for told in batch):
            # What was sent to us once more, because we said nothing for too long, is to come before it is asked for.
            await settled_down(client.wire, self._timeout)
        for told in batch:
            reply, sequence = told.message.token
            if told.verdict in ("again", "release"):
                self._let_go(told.message)  # it may come again before we hear that the server has understood
            if told.verdict == "release":
                self._released[sequence] = self._released.get(sequence, 0) + 1
            elif told.verdict != "again":
                self._released.pop(sequence, None)
            word = _word(told)
            if told.verdict == "reject" and self._dead_letter is not None and not await self._buried(client, told):
                word = _AGAIN_LATER
                self._let_go(told.message)
            await client.client.publish(reply, word)
        await settled_down(client.wire, self._timeout)

    async def _buried(self, client: _Pull, told: Told) -> bool:
        message = told.message
        assert self._dead_letter is not None
        headers = {
            _MSG_ID: f"{self._stream}-{message.token[1]}",
            "furcula-subject": message.headers["subject"],
            "furcula-reason": " ".join(told.why.split()),
        }
        try:
            await client.js.publish(self._dead_letter, message.body, headers=headers, timeout=self._timeout)
        except (APIError, NoStreamResponseError) as error:
            # Ending it now would lose it, so it comes again, and is tried again.
            self._context.log.error("the dead-letter subject %s takes nothing: %s", self._dead_letter, error)
            return False
        return True


def _word(told: Told) -> bytes:
    if told.verdict == "ack":
        return b"+ACK"
    if told.verdict == "reject":
        return b"+TERM"
    delay = int(told.delay_s * 1e9) if told.verdict == "again" else 0
    return b"-NAK" if not delay else b"-NAK " + msgspec.json.encode({"delay": delay})


class _Stored(msgspec.Struct):
    """A connection to publish over."""

    wire: Wire
    js: JetStreamContext


class Publish(Producing[_Stored]):
    """Publish each event's data on a subject of a JetStream stream.

    An event is delivered when the stream's server says that it is stored. A batch is sent at once, and its
    acknowledgements are waited for together. The message id is the event's id and the subject, so what is sent twice
    within the stream's window (two minutes, unless it says otherwise) is stored once. Headers that are text, numbers or
    booleans go along, and the event's id as `furcula-id`.

    An event fails with `Unavailable` while the server is away (a `retry` waits for it), with `Refused` where no stream
    has its subject, or the stream will not take it.

    Args:
        url: nats://host:4222, or tls://…
        subject: Where to.
        subject_from: A dotted path to a subject in the event; where it has nothing, `subject` is used.
        stream: The stream it must end in; otherwise it is refused.
        message_id_from: A dotted path to what is used as message id instead.
        codec: What a message looks like: json, msgpack, text, binary.
        user: Who we are, with `password`.
        password: See `user`.
        token: A token, instead.
        credentials: A file of credentials (JWT and key), instead; relative to the flow's folder.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    broken = (*BROKEN, ServiceUnavailableError)

    def __init__(
        self,
        *,
        url: str,
        subject: str | None = None,
        subject_from: str | None = None,
        stream: str | None = None,
        message_id_from: str | None = None,
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
        self._stream = stream
        self._message_id_from = message_id_from
        self._token = token
        self._credentials = credentials

    async def _connect(self, lost: Lost) -> _Stored:
        wire = await connect(
            self._endpoint,
            token=self._token,
            credentials=self._credentials,
            tls=self._tls,
            folder=self._context.folder,
            timeout_s=self._timeout,
            lost=lost,
        )
        return _Stored(wire, wire.client.jetstream(timeout=self._timeout))

    async def _disconnect(self, client: _Stored) -> None:
        await client.wire.client.close()

    async def _send(self, client: _Stored, batch: list[Outgoing]) -> dict[int, BaseException]:
        errors: dict[int, BaseException] = {}
        waiting: dict[asyncio.Future[PubAck], Outgoing] = {}
        most = client.wire.client.max_payload
        try:
            for sent in batch:
                message_id = sent.event.get(self._message_id_from, None) if self._message_id_from else None
                headers = {**sent.headers, _MSG_ID: str(message_id or f"{sent.event.id}:{sent.to}")}
                # Before the library sees it: there it would keep a place among what waits for an acknowledgement.
                refusal = unsendable(sent, headers, most)
                if refusal:
                    errors[sent.index] = Refused(f"{self._endpoint}: {refusal}")
                    continue
                future = await client.js.publish_async(sent.to, sent.body, stream=self._stream, headers=headers)
                waiting[future] = sent
            # A connection that breaks answers none of them.
            if waiting:
                answered: asyncio.Future[Any] = asyncio.ensure_future(asyncio.wait(list(waiting)))
                both: list[asyncio.Future[Any]] = [answered, client.wire.gone]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                answered.cancel()
                if any(not future.done() for future in waiting):
                    raise ConnectionError("the connection was lost before all events were acknowledged")
        finally:
            for future in waiting:
                future.cancel()
        for future, sent in waiting.items():
            error = future.exception()
            if error is not None:
                errors[sent.index] = self._failure(sent, error)
        return errors

    def _failure(self, sent: Outgoing, error: BaseException) -> BaseException:
        if isinstance(error, NoStreamResponseError | NoRespondersError):
            return Refused(f"{self._endpoint}: no stream has the subject {sent.to!r}")
        if isinstance(error, ServiceUnavailableError) or (isinstance(error, APIError) and (error.code or 0) >= 500):
            return Unavailable(f"{self._endpoint}: {sent.to}: {error}")
        return Refused(f"{self._endpoint}: {sent.to}: {error}")
