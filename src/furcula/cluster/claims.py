"""Who has what: one table for each module, of which each row belongs to one worker at a time.

A table is one value of a bucket, changed only as it was read (compare and set), so two workers never both get a row.
A row passes to another worker when its owner gives it back, or is dead. Each time it passes its *epoch* grows: what a
worker does in the name of an epoch that has passed, the servers refuse (see `sending.py`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from furcula.cluster.client import BROKEN, Client, tried
from furcula.cluster.members import Members
from furcula.errors import FurculaError

__all__ = ["Claims", "Row"]

log = logging.getLogger("furcula.cluster")


class Row(msgspec.Struct, array_like=True):
    """One row.

    Attributes:
        owner: The worker that has it; empty: nobody.
        epoch: How often it has passed.
        deaths: How many owners in a row have died with the same messages in hand.
        last: The stream's number of the last of those.
    """

    owner: str = ""
    epoch: int = 0
    deaths: int = 0
    last: int = 0


_decode = msgspec.json.Decoder(dict[str, Row]).decode
_encode = msgspec.json.encode


class Claims:
    """This worker's part of one table.

    Args:
        client: For the bucket.
        bucket: Where the table is.
        key: Under which name.
        rows: Its rows.
        members: Who is there.
        stage: Whose workers share the rows.
        taken: Called with a row that is ours from now on, its epoch, and whether its last owner died.
        leave: Called to make us give up a row: it returns when nothing of it is in hand.
        single: What stands behind a row must not run twice: where we are cut off, we stop it before others begin it.
    """

    def __init__(
        self,
        client: Client,
        bucket: KeyValue,
        key: str,
        rows: list[str],
        members: Members,
        stage: str,
        taken: Callable[[str, Row, bool], Awaitable[None]],
        leave: Callable[[str], Awaitable[None]],
        *,
        single: bool = False,
    ):
        #: By row, the epoch in which it is ours.
        self.mine: dict[str, int] = {}
        self._client = client
        self._bucket = bucket
        self._key = key
        self._rows = rows
        self._members = members
        self._stage = stage
        self._taken = taken
        self._leave = leave
        self._single = single
        #: Ours, but `taken` has not succeeded yet.
        self._untold: dict[str, tuple[Row, bool]] = {}
        self._leaving: set[str] = set()
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen_at = time.monotonic()

    async def _read(self) -> tuple[dict[str, Row], int]:
        try:
            entry = await self._bucket.get(self._key)
        except (KeyNotFoundError, KeyDeletedError):
            return {}, 0
        return _decode(entry.value or b"{}"), entry.revision or 0

    async def _write(self, table: dict[str, Row], revision: int) -> bool:
        try:
            if revision:
                await self._bucket.update(self._key, _encode(table), last=revision)
            else:
                await self._bucket.create(self._key, _encode(table))
        except (KeyWrongLastSequenceError, APIError) as error:
            if isinstance(error, KeyWrongLastSequenceError) or getattr(error, "err_code", 0) in (10071, 10164):
                return False  # another worker was quicker
            raise
        return True

    async def look(self) -> None:
        """See what is ours, take what is free and our share, begin to give back what is more than that.

        Raises:
            FurculaError: There is no answer, or a row that was won could not be begun; it is tried again next time.
        """
        try:
            async with asyncio.timeout(self._members.lease_s / 4):
                table, revision = await self._read()
        except BROKEN:
            if self._single and time.monotonic() - self._seen_at > 0.7 * self._members.lease_s:
                await self._part_with_all()
            raise
        self._seen_at = time.monotonic()
        me = self._members.id
        for name in [name for name in self.mine if (row := table.get(name)) is None or row.owner != me]:
            # Another has taken it: for so long nothing was heard of us.
            log.warning("%s of %s is another worker's now", name, self._key)
            self._forget(name)
            await self._leave(name)
        room, surplus = self._share(table)
        won: dict[str, tuple[Row, bool]] = {}
        for name in self._rows:
            row = table.get(name) or Row()
            if row.owner == me:
                if name not in self.mine and name not in self._leaving:
                    won[name] = (row, False)  # we took it, and did not hear that we had
            elif len(won) < room and (not row.owner or self._members.dead(row.owner)):
                died = bool(row.owner)
                row = Row(me, row.epoch + 1, row.deaths if died else 0, row.last if died else 0)
                table[name] = row
                won[name] = (row, died)
        if won and await self._write(table, revision):
            for name, (row, _) in won.items():
                self.mine[name] = row.epoch
            self._untold.update(won)
        await self._tell()
        if surplus:
            for name in [name for name in self.mine if name not in self._leaving][-surplus:]:
                self._aside(self.give_back(name))

    def _share(self, table: dict[str, Row]) -> tuple[int, int]:
        """How many rows we may take, and how many of ours are for others.

        None has two more than another. Who has one more keeps it as long as nobody has two less, so that a row
        does not pass because a worker has come that could have it as well.
        """
        me = self._members.id
        workers = [beat.id for beat in self._members.alive(self._stage) if beat.state != "leaving" or beat.id == me]
        counts = dict.fromkeys(workers, 0)
        for name in self._rows:
            row = table.get(name)
            if row is not None and row.owner in counts:
                counts[row.owner] += 1
        counts[me] = len(self.mine)
        low, high = len(self._rows) // len(workers), -(-len(self._rows) // len(workers))
        free = len(self._rows) - sum(counts.values())
        lacking = sum(max(0, low - count) for id, count in counts.items() if id != me)
        room = max(low - counts[me], min(high - counts[me], free - lacking), 0)
        # What is for others: all above the most that one may have; then one of each that has more than the least,
        # in the order of their names, for as many as are lacking still.
        above = {id: count - high for id, count in counts.items() if count > high}
        lacking += max(0, low - counts[me]) - free - sum(above.values())
        givers = sorted(id for id, count in counts.items() if min(count, high) > low)
        surplus = above.get(me, 0) + (me in givers[: max(0, lacking)])
        return room, max(0, surplus - len(self._leaving))

    async def _tell(self) -> None:
        """Let what was won begin."""

        async def begin(name: str, row: Row, died: bool) -> None:
            await self._taken(name, row, died)
            self._untold.pop(name, None)

        waiting = [(name, row, died) for name, (row, died) in self._untold.items()]
        answers = await asyncio.gather(*(begin(*one) for one in waiting), return_exceptions=True)
        for (name, _, _), answer in zip(waiting, answers, strict=True):
            if isinstance(answer, (*BROKEN, APIError)):
                raise FurculaError(f"{name} could not be begun, and is tried again: {answer}") from answer
            if isinstance(answer, BaseException):
                raise answer

    def _forget(self, name: str) -> None:
        self.mine.pop(name, None)
        self._untold.pop(name, None)

    async def _part_with_all(self) -> None:
        """We are cut off, and about to be taken for dead: what only one worker may do, another will soon."""
        for name in list(self.mine):
            log.warning("%s of %s is left to others: no word from %s", name, self._key, self._client.shown)
            self._forget(name)
            await self._leave(name)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def holds(self, name: str) -> bool:
        """Is this row still ours, in the epoch that we know of?

        Raises:
            FurculaError: No answer.
        """
        table, _ = await tried(self._client, self._read)
        row = table.get(name)
        return row is not None and row.owner == self._members.id and row.epoch == self.mine.get(name)

    async def note(self, name: str, deaths: int, last: int) -> None:
        """Note how many owners have died, and the last message that may be to blame."""

        async def change() -> bool:
            table, revision = await self._read()
            row = table.get(name)
            if row is None or row.epoch != self.mine.get(name):
                return True
            row.deaths, row.last = deaths, last
            return await self._write(table, revision)

        while not await tried(self._client, change):
            pass

    async def give_back(self, name: str) -> None:
        """Leave a row, and say that it is free."""
        if name in self._leaving or name not in self.mine:
            return
        self._leaving.add(name)
        try:
            await self._leave(name)
            await self._free([name])
        except (*BROKEN, APIError, FurculaError) as error:
            log.warning("%s of %s could not be given back, so it is free after a lease: %s", name, self._key, error)
        finally:
            self._leaving.discard(name)

    async def _free(self, names: list[str]) -> None:
        epochs = {name: self.mine[name] for name in names if name in self.mine}
        for name in names:
            self._forget(name)

        async def change() -> bool:
            table, revision = await self._read()
            for name, epoch in epochs.items():
                row = table.get(name)
                if row is not None and row.owner == self._members.id and row.epoch == epoch:
                    row.owner, row.deaths, row.last = "", 0, 0
            return await self._write(table, revision)

        async with self._writing:  # one at a time, so that only other workers can be quicker
            while epochs and not await tried(self._client, change, for_s=5.0):
                pass

    async def close(self) -> None:
        """Give back all that is ours."""
        for task in self._tasks:
            task.cancel()
        names = list(self.mine)
        await asyncio.gather(*(self._leave(name) for name in names if name not in self._leaving))
        try:
            await self._free(names)
        except (*BROKEN, APIError, FurculaError) as error:
            log.warning("%s could not be given back, so it is free after a lease: %s", self._key, error)
