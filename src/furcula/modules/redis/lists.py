"""`redis.pop` and `redis.push`: lists as queues."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

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
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Told, Tries
from furcula.options import Duration, Secret
from furcula.verdict import MAX_DELIVERIES

__all__ = ["Pop", "Push"]


class Pop(Consuming[Redis]):
    """Make an event of each item of a Redis list, taken from its left end.

    An item moves to a second list, `<list>:processing:<consumer>`, in the same step in which it is taken (LMOVE), and
    is removed from there when its event is settled as delivered or dropped. If it failed in a way that is worth another
    try it is put back after `again_after`, each time twice as late, `max_deliveries` times in all; if not, it goes to
    the list `dead_letter` (where there is one). What is unsettled when the flow stops is put back at once; what was
    left by one that died is put back when it starts again under the same name. So each process needs a `consumer` of
    its own, and the same one after a restart. How often an item was delivered is remembered by this process.

    Headers: `list`, `deliveries`. What cannot be read leaves by `invalid`, and is removed when that is settled.

    Args:
        url: redis://host:6379/0, or rediss://…
        list: The list.
        consumer: This process, among those that take from the list. Default: the host name.
        dead_letter: A list for items that are rejected.
        codec: What an item looks like: json, msgpack, text, binary.
        prefetch: So many items may be unsettled.
        max_deliveries: So often an item may be delivered.
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
        list: str,
        consumer: str | None = None,
        dead_letter: str | None = None,
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
        self._list = list
        self._processing = f"{list}:processing:{consumer or host_name()}"
        self._dead_letter = dead_letter
        #: Items that are the same are not told apart.
        self._tries = Tries()

    async def _connect(self, lost: Lost) -> Redis:
        redis = await connect(self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout)
        try:
            await self._put_back(redis)
        except BaseException:
            await redis.aclose()
            raise
        return redis

    async def _put_back(self, redis: Redis) -> None:
        """What we took before a crash, or in an answer that was lost with its connection, is to be taken once more."""
        items: Any = await redis.lrange(self._processing, 0, -1)
        ours = Counter(message.body for message in self._taken.open) if self._taken else Counter[bytes]()
        left = []
        for item in items:
            if ours[item]:
                ours[item] -= 1
            else:
                left.append(item)
        pipeline: Any = redis.pipeline(transaction=True)
        for item in reversed(left):
            pipeline.lrem(self._processing, -1, item)
            pipeline.lpush(self._list, item)
        if left:
            await pipeline.execute()
            self._context.log.info("%d items that were taken and not settled are put back", len(left))

    async def _disconnect(self, client: Redis) -> None:
        await client.aclose()

    async def _next(self, client: Redis, room: int) -> list[Message]:
        first: Any = await client.blmove(self._list, self._processing, BLOCK_S)  # type: ignore[arg-type]
        if first is None:
            return []
        items = [first]
        if room > 1:
            pipeline = client.pipeline(transaction=False)
            for _ in range(min(room - 1, 255)):
                pipeline.lmove(self._list, self._processing)
            items += [item for item in await pipeline.execute() if item is not None]
        return [self._message(item) for item in items]

    def _message(self, item: bytes) -> Message:
        deliveries = self._tries.deliveries(item)
        return Message(item, {"list": self._list, "deliveries": deliveries}, None, deliveries)

    async def _say(self, client: Redis, batch: list[Told]) -> None:
        pipeline: Any = client.pipeline(transaction=True)
        for told in reversed(batch):  # so that what is put back stands as it stood
            item = told.message.body
            pipeline.lrem(self._processing, 1, item)
            if told.verdict == "release":
                pipeline.lpush(self._list, item)
            elif told.verdict == "again":
                pipeline.rpush(self._list, item)
            elif told.verdict == "reject" and self._dead_letter is not None:
                pipeline.rpush(self._dead_letter, item)
        await pipeline.execute()
        for told in batch:
            self._tries.note(told.message.body, told)


class Push(Pipeline):
    """Push each event's data to the right end of a Redis list.

    A batch is one round trip. An event is delivered when the server has answered; that it is on the disk then is the
    server's business (`appendfsync always`). A list has no place for headers.

    An event fails with `Unavailable` while the server is away or has no memory left (a `retry` waits for it), with
    `Refused` where the key is no list.

    Args:
        url: redis://host:6379/0, or rediss://…
        list: Where to.
        list_from: A dotted path to the name of a list in the event; where it has nothing, `list` is used.
        codec: What an item looks like: json, msgpack, text, binary.
        user: Who we are, with `password`.
        password: See `user`; a password alone is that of the default user.
        tls: {ca_file, cert_file, key_file, verify}.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    def __init__(
        self,
        *,
        url: str,
        list: str | None = None,
        list_from: str | None = None,
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password), Destination("list", list, list_from, codec), timeout=timeout, tls=tls
        )

    def _command(self, pipeline: Any, sent: Outgoing) -> None:
        pipeline.rpush(sent.to, sent.body)
