"""`kafka.produce`: topics."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import msgspec

from furcula.modules.consuming import Lost
from furcula.modules.endpoint import Tls
from furcula.modules.kafka.client import (
    BROKEN,
    Caller,
    KafkaError,
    KafkaException,
    Mechanism,
    Producer,
    Troubles,
    brokers_of,
    settings_of,
)
from furcula.modules.producing import TIMEOUT, Producing
from furcula.modules.sending import Destination, Outgoing, Refused, Unavailable
from furcula.options import Duration, Secret

__all__ = ["Produce"]

#: So often the library is asked what it has to say while there is nothing to send.
ASK_EVERY_S: Final = 1.0
_LATER: Final = frozenset(
    (
        KafkaError._MSG_TIMED_OUT,
        KafkaError._TIMED_OUT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._FATAL,
    )
)


class _Sender(msgspec.Struct):
    producer: Any
    caller: Caller
    beat: Any = None


class Produce(Producing[_Sender]):
    """Produce each event's data to a Kafka topic.

    An event is delivered when all replicas in sync have it (acks=all; the producer is idempotent, so what the library
    sends twice is stored once, in its order). A batch is sent at once, and its reports are waited for together. Headers
    that are text, numbers or booleans go along, and the event's id as `furcula-id`.

    An event fails with `Unavailable` while the brokers are away (a `retry` waits for them), with `Refused` where there
    is no such topic or partition, or the record is too large.

    Args:
        url: kafka://host:9092,other:9092, or kafkas://…
        topic: Where to.
        topic_from: A dotted path to a topic in the event; where it has nothing, `topic` is used.
        key_from: A dotted path to the record's key. What has the same key stays in order, in one partition.
        partition: The partition. Default: by the key, or any.
        codec: What a value looks like: json, msgpack, text, binary.
        user: Who we are, with `password` (SASL).
        password: See `user`.
        mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        tls: {ca_file, cert_file, key_file, verify}.
        settings: librdkafka's own, by its names: `{compression.type: zstd}`.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    broken = BROKEN

    def __init__(
        self,
        *,
        url: str,
        topic: str | None = None,
        topic_from: str | None = None,
        key_from: str = "key",
        partition: int | None = None,
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        mechanism: Mechanism = "PLAIN",
        tls: Tls | None = None,
        settings: dict[str, str | int | float | bool] | None = None,
        timeout: Duration = TIMEOUT,
    ):
        endpoint, self._brokers = brokers_of(url, user, password)
        super().__init__(endpoint, Destination("topic", topic, topic_from, codec), timeout=timeout, tls=tls)
        self._key_from = key_from
        self._partition = -1 if partition is None else partition
        self._mechanism: Mechanism = mechanism
        self._settings = settings or {}

    async def _connect(self, lost: Lost) -> _Sender:
        troubles = Troubles(lost)
        settings: dict[str, Any] = {
            **settings_of(
                self._endpoint,
                self._brokers,
                tls=self._tls,
                folder=self._context.folder,
                mechanism=self._mechanism,
                timeout_s=self._timeout,
            ),
            "enable.idempotence": True,
            "linger.ms": 1,
            # Before we give up ourselves: then the library has given up too, and nothing is sent behind our back.
            "message.timeout.ms": max(1, int(self._timeout * 900)),
            "error_cb": troubles.heard,
            **self._settings,
        }
        sender = _Sender(Producer(settings), Caller(self._context.name))
        try:
            await sender.caller.do(self._reach, sender.producer)
        except BaseException as error:
            await self._disconnect(sender)
            if troubles.last and isinstance(error, KafkaException):
                raise ConnectionError(troubles.last) from error
            raise
        sender.beat = asyncio.ensure_future(self._ask(sender))
        return sender

    def _reach(self, producer: Any) -> None:
        """In the caller's thread: is there a broker? A little at a time, so that it can be given up."""
        left_s = 0.8 * self._timeout  # less than the line waits, so that what went wrong can be told
        while True:
            try:
                producer.list_topics(timeout=min(0.25, left_s))
                return
            except KafkaException:
                left_s -= 0.25
                producer.poll(0)  # hands over what went wrong
                if left_s <= 0:
                    raise

    async def _ask(self, sender: _Sender) -> None:
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            await sender.caller.do(sender.producer.poll, 0)

    async def _disconnect(self, client: _Sender) -> None:
        if client.beat is not None:
            client.beat.cancel()
        try:
            await client.caller.do(client.producer.purge)
        finally:
            client.caller.end()

    async def _send(self, client: _Sender, batch: list[Outgoing]) -> dict[int, BaseException]:
        ready: list[tuple[Outgoing, bytes | None]] = []
        errors: dict[int, BaseException] = {}
        for sent in batch:
            try:
                ready.append((sent, self._key(sent)))
            except Refused as error:
                errors[sent.index] = error
        errors.update(await client.caller.do(self._produced, client.producer, ready))
        return errors

    def _key(self, sent: Outgoing) -> bytes | None:
        key = sent.event.get(self._key_from, None)
        if key is None or isinstance(key, bytes):
            return key
        if isinstance(key, str | int | float):
            return str(key).encode()
        raise Refused(
            f"{self._key_from!r} is {type(key).__name__}; the key of a record must be text, bytes or a number"
        )

    def _produced(self, producer: Any, ready: list[tuple[Outgoing, bytes | None]]) -> dict[int, BaseException]:
        """In the caller's thread: send, and wait for the reports. No longer than `timeout`."""
        errors: dict[int, BaseException] = {}
        open_: set[int] = set()
        end = time.monotonic() + float(self._timeout)
        for sent, key in ready:

            def reported(error: KafkaError | None, _: Any, sent: Outgoing = sent) -> None:
                open_.discard(sent.index)
                if error is not None:
                    errors[sent.index] = self._failure(sent, error)

            headers = [(name, value.encode()) for name, value in sent.headers.items()]
            while True:
                open_.add(sent.index)
                try:
                    producer.produce(sent.to, sent.body, key, self._partition, on_delivery=reported, headers=headers)
                except BufferError:  # the library's queue is full
                    open_.discard(sent.index)
                    if time.monotonic() < end:
                        producer.poll(0.05)
                        continue
                    errors[sent.index] = Unavailable(f"{self._endpoint}: no room for more within the time")
                except KafkaException as error:
                    open_.discard(sent.index)
                    errors[sent.index] = self._failure(sent, error.args[0])
                break
        while open_ and time.monotonic() < end:
            producer.poll(min(0.1, max(0.0, end - time.monotonic())))
        for index in open_:
            errors[index] = Unavailable(f"{self._endpoint}: no report within {float(self._timeout):g} s")
        return errors

    def _failure(self, sent: Outgoing, error: KafkaError) -> BaseException:
        said = f"{self._endpoint}: {sent.to}: {error.str()}"
        later = error.code() in _LATER or error.retriable() or error.fatal()
        # The library calls this one worth another try: it hopes that somebody makes the topic.
        unknown = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)
        if later and error.code() not in unknown:
            return Unavailable(said)
        return Refused(said)
