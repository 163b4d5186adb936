"""`kafka.consume`: topics, as a member of a group."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any, ClassVar, Final, Literal

from furcula.module import Context
from furcula.modules.consuming import Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.kafka.client import (
    BROKEN,
    Caller,
    Consumer,
    KafkaError,
    KafkaException,
    Mechanism,
    TopicPartition,
    Troubles,
    brokers_of,
    settings_of,
)
from furcula.modules.producing import TIMEOUT
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Taken, Told
from furcula.options import Duration, Secret
from furcula.verdict import MAX_DELIVERIES

__all__ = ["Consume", "Progress"]

SESSION: Final = Duration("45s")
#: How long a member may ask for nothing, unless `settings` say otherwise; what librdkafka takes by default.
MOST_SILENT_MS: Final = 300_000
#: A read waits so long for something to come, then looks whether it is to stop.
WAIT_S: Final = 0.25


class Progress:
    """What of one partition is settled: the longest prefix without an open message.

    Attributes:
        position: The offset of the first message that is not settled; None: nothing was taken yet.
        told: The position that the broker has been told.
    """

    def __init__(self) -> None:
        self.position: int | None = None
        self.told: int | None = None
        self._open: deque[list[Any]] = deque()
        self._by_offset: dict[int, list[Any]] = {}

    def taken(self, offset: int) -> None:
        entry = [offset, False]
        self._open.append(entry)
        self._by_offset[offset] = entry

    def settled(self, offset: int) -> None:
        self._by_offset[offset][1] = True
        while self._open and self._open[0][1]:
            done = self._open.popleft()[0]
            del self._by_offset[done]
            self.position = done + 1


class _Member:
    """A consumer, the thread its calls are made in, and how far its partitions have come."""

    def __init__(self, consumer: Consumer, caller: Caller):
        self.consumer = consumer
        self.caller = caller
        #: Tells the broker positions, beside the caller, which waits for records: the library allows that.
        self.teller = Caller("positions")
        self.partitions: dict[tuple[str, int], Progress] = {}
        self.closing = threading.Event()
        self.polled_at = time.monotonic()
        #: Partitions that are not read for now, and records that came nevertheless.
        self.paused: list[TopicPartition] = []
        self.early: list[Any] = []
        #: Partitions that are read no further, because what failed in them is to stay; and those that have gone since
        #: the last read began.
        self.held: set[tuple[str, int]] = set()
        self.gone: set[tuple[str, int]] = set()
        self.beat: asyncio.Task[None] | None = None

    def positions(self, only: list[TopicPartition] | None = None) -> list[TopicPartition]:
        """Those that have moved since they were told; of these partitions, or of all."""
        names = [(one.topic, one.partition) for one in only] if only is not None else list(self.partitions)
        found = []
        for name in names:
            progress = self.partitions.get(name)
            if progress is not None and progress.position is not None and progress.position != progress.told:
                found.append(TopicPartition(*name, progress.position))
                progress.told = progress.position
        return found


class Consume(Consuming[_Member]):
    """Make an event of each record of Kafka topics, as a member of a consumer group.

    A partition's position is committed past the records whose events are settled, and never past one that is not: after
    a crash, or when a partition goes to another member, records from the first unsettled one on come again. A record
    whose event failed in a way that is worth another try is admitted again here after `again_after`, each time twice as
    late, `max_deliveries` times in all. What failed otherwise is logged, counted and passed (`on_refused: skip`), or
    its partition's position stays there (`hold`): the partition is read no further, and all from there on come again
    when the flow has been restarted or another member has the partition. The order of a partition is that of its
    records, but for those that are tried again.

    The event's key is the record's, as text where it is that. Headers: those of the record, `topic`, `partition`,
    `offset`, `timestamp` (Unix time in seconds). A record without a value has None for data. What cannot be read leaves
    by `invalid`, and is passed when that is settled.

    Args:
        url: kafka://host:9092,other:9092, or kafkas://…
        topics: The topics; one that begins with ^ is a regular expression.
        group: The consumer group.
        begin: Where a group without a position begins: earliest or latest.
        member: A name of this member that stays: a restart within `session` gets its partitions back at once.
        session: Seconds without a word after which the group takes a member for dead.
        on_refused: skip or hold, see above.
        codec: What a value looks like: json, msgpack, text, binary.
        prefetch: So many records may be unsettled.
        max_deliveries: So often a record may be tried.
        again_after: Seconds before the second try of what failed.
        user: Who we are, with `password` (SASL).
        password: See `user`.
        mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
        tls: {ca_file, cert_file, key_file, verify}.
        settings: librdkafka's own, by its names.
        timeout: Seconds that connecting, or a commit, may take.
    """

    acknowledges: ClassVar[str] = "position"
    shared: ClassVar[bool] = True
    broken = BROKEN
    forgets = True
    patient = False

    def __init__(
        self,
        *,
        url: str,
        topics: list[str],
        group: str,
        begin: Literal["earliest", "latest"] = "earliest",
        member: str | None = None,
        session: Duration = SESSION,
        on_refused: Literal["skip", "hold"] = "skip",
        codec: str = "json",
        prefetch: int = PREFETCH,
        max_deliveries: int = MAX_DELIVERIES,
        again_after: Duration = AGAIN_AFTER,
        user: str | None = None,
        password: Secret | None = None,
        mechanism: Mechanism = "PLAIN",
        tls: Tls | None = None,
        settings: dict[str, str | int | float | bool] | None = None,
        timeout: Duration = TIMEOUT,
    ):
        endpoint, self._brokers = brokers_of(url, user, password)
        super().__init__(
            endpoint,
            codec=codec,
            prefetch=prefetch,
            max_deliveries=max_deliveries,
            again_after=again_after,
            timeout=timeout,
            tls=tls,
        )
        if not topics:
            raise ValueError("topics must name one at least")
        self._topics = topics
        self._group = group
        self._begin = begin
        self._member = member
        self._session_ms = int(session * 1000)
        self._hold = on_refused == "hold"
        self._mechanism: Mechanism = mechanism
        self._settings = settings or {}
        self._noted: set[str] = set()
        # A third of the time after which the group takes one for dead that asks for nothing.
        self._place_s = float(self._settings.get("max.poll.interval.ms", MOST_SILENT_MS)) / 3000

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

    # ------------------------------------------------------------------ connecting

    async def _connect(self, lost: Lost) -> _Member:
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
            "group.id": self._group,
            "auto.offset.reset": self._begin,
            "session.timeout.ms": self._session_ms,
            "heartbeat.interval.ms": max(100, min(3000, self._session_ms // 3)),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "error_cb": troubles.heard,
            **({"group.instance.id": self._member} if self._member else {}),
            **self._settings,
        }
        member = _Member(Consumer(settings), Caller(self._context.name))
        loop = asyncio.get_running_loop()

        def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            # In the caller's thread, within `consume`: the partitions are ours until this returns.
            moved = member.positions(partitions)
            if moved:
                self._committed(member, moved)
            self._gone(member, partitions, loop)

        def taken_away(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            self._gone(member, partitions, loop)  # they are another's already: nothing can be said of them

        try:
            await member.caller.do(self._reach, member)
            member.consumer.subscribe(self._topics, on_revoke=revoked, on_lost=taken_away)
        except BaseException as error:
            await self._disconnect(member)
            if troubles.last and isinstance(error, KafkaException):
                raise ConnectionError(troubles.last) from error
            raise
        member.beat = asyncio.ensure_future(self._keep_place(member))
        return member

    async def _keep_place(self, member: _Member) -> None:
        """While the flow has no room we ask for nothing, and the group would take us for dead. So show that we live."""
        while True:
            await asyncio.sleep(self._place_s / 2)
            if time.monotonic() - member.polled_at >= self._place_s:
                await member.caller.do(self._show, member)

    def _show(self, member: _Member) -> None:
        """In the caller's thread: ask, with all partitions paused. What is assigned just then may bring a record."""
        member.paused = member.consumer.assignment()
        member.consumer.pause(member.paused)
        record = member.consumer.poll(0)
        if record is not None:
            member.early += self._ours(member, [record])
        member.polled_at = time.monotonic()

    def _read(self, member: _Member, room: int) -> list[tuple[Any, Progress | None]]:
        """In the caller's thread: records, each with the progress of its partition; what is an error has none."""
        member.polled_at = time.monotonic()
        if member.paused:
            paused, member.paused = member.paused, []
            ours = {(one.topic, one.partition) for one in member.consumer.assignment()}
            ours -= member.held
            member.consumer.resume([one for one in paused if (one.topic, one.partition) in ours])
        records, member.early = member.early, []
        if not records:
            member.gone.clear()
            records = self._ours(member, member.consumer.consume(min(room, 1000), WAIT_S))
        return [(record, self._begun(member, record)) for record in records]

    def _ours(self, member: _Member, records: list[Any]) -> list[Any]:
        """In the caller's thread: without the records of partitions that were revoked while they were read. Another has
        those, and the position that they would make us commit is an old one."""
        back: dict[tuple[str, int], int] = {}
        found = []
        for record in records:
            name = record.topic(), record.partition()
            if record.error() is None and name in member.gone:
                back[name] = min(record.offset(), back.get(name, record.offset()))
            else:
                found.append(record)
        for one in member.consumer.assignment() if back else ():
            if (one.topic, one.partition) in back:  # it is ours again already: so read them once more
                member.consumer.seek(TopicPartition(one.topic, one.partition, back[one.topic, one.partition]))
        return found

    def _begun(self, member: _Member, record: Any) -> Progress | None:
        if record.error() is not None:
            return None
        progress = member.partitions.setdefault((record.topic(), record.partition()), Progress())
        progress.taken(record.offset())
        return progress

    def _stay(self, member: _Member, names: set[tuple[str, int]]) -> None:
        """In the caller's thread: read these partitions no further."""
        names &= {(one.topic, one.partition) for one in member.consumer.assignment()}
        member.held |= names
        member.consumer.pause([TopicPartition(*name) for name in names])

    def _reach(self, member: _Member) -> None:
        """In the caller's thread: is there a broker? A little at a time, so that it can be given up."""
        left_s = 0.8 * self._timeout  # less than the line waits, so that what went wrong can be told
        while True:
            try:
                member.consumer.list_topics(timeout=min(0.25, left_s))
                return
            except KafkaException:
                left_s -= 0.25
                member.consumer.poll(0)  # hands over what went wrong
                if left_s <= 0 or member.closing.is_set():
                    raise

    def _gone(self, member: _Member, partitions: list[TopicPartition], loop: asyncio.AbstractEventLoop) -> None:
        gone = {(one.topic, one.partition) for one in partitions}
        member.gone |= gone
        member.held -= gone
        member.early = [one for one in member.early if (one.topic(), one.partition()) not in gone]
        old = [progress for name in gone if (progress := member.partitions.pop(name, None)) is not None]

        def forget() -> None:
            if self._taken is not None:
                self._taken.forget(lambda message: message.token[1] in old)

        loop.call_soon_threadsafe(forget)

    async def _disconnect(self, client: _Member) -> None:
        client.closing.set()
        if client.beat is not None:
            client.beat.cancel()
        if self._taken is not None:
            self._taken.forget(lambda message: message.token[0] is client)
        try:
            await client.caller.do(client.consumer.close)
        finally:
            client.caller.end()
            client.teller.end()

    # ------------------------------------------------------------------ taking and telling

    async def _next(self, client: _Member, room: int) -> list[Message]:
        if client.closing.is_set():  # it was given up while we waited for room
            raise ConnectionError("the connection was lost")
        records = await client.caller.do(self._read, client, room)
        found = []
        for record, progress in records:
            error = record.error()
            if progress is not None:
                found.append(self._message(client, record, progress))
            elif error.code() != KafkaError._PARTITION_EOF:
                if error.fatal():
                    raise KafkaException(error)
                # A topic that is missing or not allowed, for instance: the library looks for it again by itself.
                if error.str() not in self._noted:
                    self._noted.add(error.str())
                    self._context.log.error("%s: %s", self._endpoint, error.str())
        return found

    def _message(self, client: _Member, record: Any, progress: Progress) -> Message:
        name = record.topic(), record.partition()
        offset = record.offset()
        headers = {key: _text(value) for key, value in record.headers() or ()}
        headers.update(topic=name[0], partition=name[1], offset=offset, timestamp=max(0, record.timestamp()[1]) / 1000)
        message = Message(record.value() or b"", headers, (client, progress, offset), key=_text(record.key()))
        if record.value() is None:
            message.decoded = None
        return message

    async def _cease(self, client: _Member) -> list[Message]:
        return []

    async def _say(self, client: _Member, batch: list[Told]) -> None:
        held: set[tuple[str, int]] = set()
        for told in batch:
            member, progress, offset = told.message.token
            if member is not client:
                continue
            if told.verdict == "ack" or (told.verdict == "reject" and not self._hold):
                progress.settled(offset)
            elif told.verdict == "reject":
                held.add((told.message.headers["topic"], told.message.headers["partition"]))
        if held - client.held:
            await client.caller.do(self._stay, client, held)
        moved = client.positions()
        if moved:
            try:
                async with asyncio.timeout(self._timeout):
                    await client.teller.do(self._committed, client, moved)
            except TimeoutError:
                raise ConnectionError(f"a commit was not answered within {self._timeout:g} s") from None

    def _committed(self, member: _Member, positions: list[TopicPartition]) -> None:
        """In a thread. A commit that is refused is no harm: what it says is said by the next one, or done again."""
        try:
            member.consumer.commit(offsets=positions, asynchronous=False)
        except KafkaException as error:
            self._context.log.debug("kafka: %d positions were not committed: %s", len(positions), error)
            for position in positions:
                progress = member.partitions.get((position.topic, position.partition))
                if progress is not None:
                    progress.told = None
        except RuntimeError:  # the consumer is closed
            pass


def _text(value: bytes | None) -> Any:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
