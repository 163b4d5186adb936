"""`redis.consume` and `redis.append`: streams, with consumer groups."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, ClassVar, Final

import msgspec

from furcula.modules.consuming import Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.producing import TIMEOUT
from furcula.modules.redis.client import (
    BLOCK_S,
    BROKEN,
    Redis,
    ResponseError,
    connect,
    endpoint_of,
    host_name,
)
from furcula.modules.redis.pipeline import Pipeline
from furcula.modules.sending import Destination, Outgoing
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Told
from furcula.options import Duration, Secret
from furcula.verdict import MAX_DELIVERIES

__all__ = ["Append", "Consume"]

CLAIM_AFTER: Final = Duration("30s")
#: So often it is looked what others have left.
CLAIM_EVERY_S: Final = 1.0
#: The field of an entry that holds the data.
FIELD: Final = "data"


class _Group(msgspec.Struct):
    """A connection with its consumer in the group."""

    redis: Redis
    claimed_at: float = 0.0
    cursor: Any = "0-0"
    beat: Any = None


class Consume(Consuming[_Group]):
    """Make an event of each entry of a Redis stream, taken as a consumer of a group.

    An entry is acknowledged (XACK) when its event is settled as delivered or dropped. If it failed in a way that is
    worth another try it is delivered again after `again_after`, each time twice as late, `max_deliveries` times in all;
    if not, it is added to `dead_letter` (where there is one) and acknowledged. What is unsettled when the flow stops
    may be claimed by others at once, and is not charged. What a consumer that died had taken is claimed by another
    after `claim_after`; what takes longer than that in a live one stays its own. It says so from the event loop: a
    module that holds the loop for longer than `claim_after` (one that blocks and is not in a thread) keeps it from
    saying so, and another consumer may be given the same entries.

    The data is the entry's field `data`, read by the codec; an entry without it becomes a dict of its fields, as text.
    Headers: the other fields, `stream`, `entry` (its id), `deliveries`. What cannot be read leaves by `invalid`, and is
    acknowledged when that is settled.

    Args:
        url: redis://host:6379/0, or rediss://…
        stream: The stream; made where it does not exist.
        group: The consumer group; made where it does not exist.
        consumer: This consumer's name in it. Default: host name and process id.
        begin: Where a group that is made begins: `0` is the first entry, `$` what comes from now on.
        claim_after: Seconds after which what a silent consumer has taken is given to another.
        delete: Delete entries that are settled, too.
        dead_letter: A stream for entries that are rejected.
        codec: What the field looks like: json, msgpack, text, binary.
        field: The name of the field.
        prefetch: So many entries may be unsettled.
        max_deliveries: So often an entry may be delivered.
        again_after: Seconds before the second delivery of what failed.
        user: Who we are, with `password`.
        password: See `user`; a password alone is that of the default user.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or a request, may take.
    """

    acknowledges: ClassVar[str] = "message"
    shared: ClassVar[bool] = True
    broken = (*BROKEN, ResponseError)
    patient = False

    def __init__(
        self,
        *,
        url: str,
        stream: str,
        group: str,
        consumer: str | None = None,
        begin: str = "0",
        claim_after: Duration = CLAIM_AFTER,
        delete: bool = False,
        dead_letter: str | None = None,
        codec: str = "json",
        field: str = FIELD,
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
        if claim_after < 0.1:
            raise ValueError("claim_after must be 0.1 s or more")
        self._stream = stream
        self._group = group
        self._consumer = consumer or f"{host_name()}-{os.getpid()}"
        self._begin = begin
        self._claim_after_ms = int(claim_after * 1000)
        self._delete = delete
        self._dead_letter = dead_letter
        self._field = field.encode()
        self._look_now = False

    async def _connect(self, lost: Lost) -> _Group:
        redis = await connect(self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout)
        try:
            await redis.xgroup_create(self._stream, self._group, id=self._begin, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # it exists, as it should
                await redis.aclose()
                raise
        group = _Group(redis)
        group.beat = asyncio.ensure_future(self._keep_ours(group, lost))
        return group

    async def _disconnect(self, client: _Group) -> None:
        client.beat.cancel()
        await client.redis.aclose()

    async def _next(self, client: _Group, room: int) -> list[Message]:
        if self._look_now or time.monotonic() - client.claimed_at > min(CLAIM_EVERY_S, self._claim_after_ms / 2000):
            found = await self._claimed(client, room)
            if found:
                return found
        answer: Any = await client.redis.xreadgroup(
            self._group, self._consumer, {self._stream: ">"}, count=room, block=int(BLOCK_S * 1000)
        )
        return [self._message(entry, fields, 1) for _, entries in answer for entry, fields in entries]

    async def _claimed(self, client: _Group, room: int) -> list[Message]:
        """What nobody has said anything about for `claim_after`."""
        self._look_now = False
        client.claimed_at = time.monotonic()
        answer: Any = await client.redis.xautoclaim(
            self._stream, self._group, self._consumer, self._claim_after_ms, client.cursor, count=min(room, 100)
        )
        client.cursor = answer[0]
        if client.cursor not in (b"0-0", "0-0"):
            self._look_now = True
        ours = {message.token for message in self._taken.open} if self._taken else set()
        entries = [(entry, fields) for entry, fields in answer[1] if entry not in ours and fields is not None]
        pipeline: Any = client.redis.pipeline(transaction=False)
        for entry, _ in entries:
            pipeline.xpending_range(self._stream, self._group, min=entry, max=entry, count=1)
        counts: Any = await pipeline.execute() if entries else []
        return [
            self._message(entry, fields, pending[0]["times_delivered"] if pending else 1)
            for (entry, fields), pending in zip(entries, counts, strict=True)
        ]

    def _message(self, entry: bytes, fields: dict[bytes, bytes], deliveries: int) -> Message:
        texts = {
            name.decode(errors="replace"): value.decode(errors="replace")
            for name, value in fields.items()
            if name != self._field
        }
        headers = {"stream": self._stream, "entry": entry.decode(), "deliveries": deliveries}
        body = fields.get(self._field)
        if body is None:
            return Message(b"", headers, entry, deliveries, decoded=texts)
        return Message(body, {**texts, **headers}, entry, deliveries)

    async def _say(self, client: _Group, batch: list[Told]) -> None:
        pipeline: Any = client.redis.pipeline(transaction=False)
        done = [told.message.token for told in batch if told.verdict in ("ack", "reject")]
        for told in batch:
            message = told.message
            if told.verdict == "reject" and self._dead_letter is not None:
                reason = {"reason": told.why, "stream": self._stream, "entry": message.headers["entry"]}
                pipeline.xadd(self._dead_letter, {self._field: message.body, **_flat(message.decoded), **reason})
            elif told.verdict in ("again", "release"):
                # As if it had been silent for long enough: whoever looks next has it.
                pipeline.xclaim(
                    self._stream,
                    self._group,
                    self._consumer,
                    0,
                    [message.token],
                    idle=self._claim_after_ms,
                    retrycount=message.deliveries - (told.verdict == "release"),
                    justid=True,
                )
                self._look_now = True
        if done:
            pipeline.xack(self._stream, self._group, *done)
            if self._delete:
                pipeline.xdel(self._stream, *done)
        await pipeline.execute()

    async def _keep_ours(self, client: _Group, lost: Lost) -> None:
        """What takes long is not to be given to another."""
        while True:
            await asyncio.sleep(self._claim_after_ms / 3000)
            ours = [message.token for message in self._taken.open] if self._taken else []
            try:
                for begin in range(0, len(ours), 500):
                    await client.redis.xclaim(
                        self._stream, self._group, self._consumer, 0, ours[begin : begin + 500], idle=0, justid=True
                    )
            except self.broken as error:
                lost(error)
                return


def _flat(decoded: Any) -> dict[Any, Any]:
    return decoded if isinstance(decoded, dict) else {}


class Append(Pipeline):
    """Append each event's data to a Redis stream (XADD).

    A batch is one round trip. An event is delivered when the server has answered; that it is on the disk then is the
    server's business (`appendfsync always`). The entry has the data in its field `data`; headers that are text, numbers
    or booleans are fields beside it, and the event's id as `furcula-id`.

    An event fails with `Unavailable` while the server is away or has no memory left (a `retry` waits for it), with
    `Refused` where the key is no stream.

    Args:
        url: redis://host:6379/0, or rediss://…
        stream: Where to.
        stream_from: A dotted path to the name of a stream in the event; where it has nothing, `stream` is used.
        max_length: Keep about so many entries in the stream, and drop older ones.
        codec: What the field looks like: json, msgpack, text, binary.
        field: The name of the field.
        user: Who we are, with `password`.
        password: See `user`; a password alone is that of the default user.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    def __init__(
        self,
        *,
        url: str,
        stream: str | None = None,
        stream_from: str | None = None,
        max_length: int | None = None,
        codec: str = "json",
        field: str = FIELD,
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            Destination("stream", stream, stream_from, codec),
            timeout=timeout,
            tls=tls,
        )
        self._max_length = max_length
        self._field = field

    def _command(self, pipeline: Any, sent: Outgoing) -> None:
        pipeline.xadd(sent.to, {**sent.headers, self._field: sent.body}, maxlen=self._max_length)
