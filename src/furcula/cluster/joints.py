"""What joins a stage to the others over JetStream: the near and far ends of its cuts, and the balance of partitions."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from nats.js.kv import KeyValue

from furcula.cluster.asking import Asking
from furcula.cluster.claims import Claims, Row
from furcula.cluster.client import BROKEN, Access, Client
from furcula.cluster.in_hand import InHand
from furcula.cluster.layout import Layout
from furcula.cluster.members import Members, worker_id
from furcula.cluster.sending import Epoch, Leaving, Outputs
from furcula.cluster.taking import Partition
from furcula.engine.outlets import Consumer
from furcula.engine.parts import Arrivals, Cut, Refuse, Spawn
from furcula.errors import FurculaError
from furcula.receipt import Carrier
from furcula.transports.nats import token

__all__ = ["ClusterJoints"]

log = logging.getLogger("furcula.cluster")

#: Between two looks at who has what.
LOOK_S = 0.5


class ClusterJoints:
    """The joints of one worker.

    Args:
        layout: What the flow needs of the cluster.
        access: Where that is.
        stage: Of this worker.
        version: Of its code, for people who look.
    """

    keeps = True

    def __init__(self, layout: Layout, access: Access, stage: str, *, version: str = ""):
        self.id = worker_id(stage)
        self.client = Client(access, f"furcula {layout.flow.name} {self.id}")
        self.members = Members(access, layout, stage, self.id, version)
        self.partitions: dict[tuple[str, int], Partition] = {}
        self._layout = layout
        self._stage = stage
        self._asking = Asking(layout, self.client, self.members, stage)
        self._leavings: list[Leaving] = []
        #: Of the sources that run in one worker at a time, and in this one now or last.
        self.epochs: dict[str, Epoch] = {}
        self._arrivals: dict[str, Arrivals] = {}
        self._claims: dict[str, Claims] = {}
        self._bucket: KeyValue
        self._spawn: Spawn
        self._opened = False
        self._ceased = False
        self._paused = False
        self._begun = False
        self._changed = asyncio.Event()
        self._rates: dict[str, tuple[float, int]] = {}

    # ------------------------------------------------------------------ as it is built

    def leaving(self, cut: Cut, refuse: Refuse) -> Consumer:
        leaving = Leaving(
            cut,
            self._layout.entries[cut.target],
            self._layout,
            self.client,
            refuse,
            _outputs,
            self._asking.ask,
            self._asking.is_asked,
            self.epochs,
        )
        self._asking.refusing(cut.name, refuse)
        self._leavings.append(leaving)
        return leaving

    def arriving(self, arrivals: Arrivals) -> None:
        self._arrivals[arrivals.cut.name] = arrivals

    # ------------------------------------------------------------------ its beginning

    async def open(self, spawn: Spawn) -> None:
        self._spawn = spawn
        await self.client.open()
        self._opened = True
        for change in await self._layout.apply(self.client, make_only=True):
            log.warning("left as it is: %s (`furcula cluster apply` changes it)", change.what)
        self._bucket = await self._layout.open_bucket(self.client)
        await self.members.open(self._changed.set)
        await self._asking.open(self._arrivals, self._stage)

    def claims(
        self,
        key: str,
        rows: list[str],
        taken: Callable[[str, Row, bool], Awaitable[None]],
        leave: Callable[[str], Awaitable[None]],
        *,
        single: bool = False,
    ) -> None:
        """Share the rows of a table with the other workers of the stage. Called before `begin`."""
        self._claims[key] = Claims(
            self.client, self._bucket, key, rows, self.members, self._stage, taken, leave, single=single
        )

    def begin(self) -> None:
        self._spawn(self._balance(), "partitions")

    async def _balance(self) -> None:
        await self._asking.begin()
        shared: list[int] = []
        for name, entry in self._layout.entries.items():
            if entry.stage != self._stage:
                continue
            if entry.mode == "shared":
                await self._take(name, 0, None, False)
                shared.append(0)
                continue
            self.claims(
                f"table.{self._stage}.{token(name)}",
                [str(number) for number in range(entry.partitions)],
                lambda row, claim, died, name=name: self._take(name, int(row), claim, died),  # type: ignore[misc]
                lambda row, name=name: self._leave(name, int(row)),  # type: ignore[misc]
            )
        self._begun = True
        while not self._ceased:
            self._changed.clear()
            for key, claims in self._claims.items():
                try:
                    await claims.look()
                except BROKEN as error:
                    log.debug("%s cannot be read: %s", key, error)
                except FurculaError as error:
                    log.warning("%s: %s", key, error)
            self._asking.look()
            await self._look_behind()
            self._tell()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _take(self, module: str, number: int, row: Row | None, died: bool) -> None:
        if self._ceased:  # it was won while we began to leave, and is given back at the end
            return
        arrivals = {name: one for name, one in self._arrivals.items() if one.cut.target == module}
        claims = self._claims.get(f"table.{self._stage}.{token(module)}")

        async def note(deaths: int, first: int) -> None:
            if claims is not None:
                await claims.note(str(number), deaths, first)

        async def holds() -> bool:
            return claims is not None and await claims.holds(str(number))

        partition = Partition(
            self._layout.entries[module],
            number,
            arrivals=arrivals,
            layout=self._layout,
            client=self.client,
            bucket=self._bucket,
            hands=self.members,
            row=row,
            died=died,
            note=note,
            holds=holds,
            leavings=self._leavings,
        )
        self.partitions[module, number] = partition
        if self._paused:
            partition.pause()
        try:
            await partition.open_(self._spawn)
        except BaseException:
            self.partitions.pop((module, number), None)
            await partition.close()
            raise
        if self._ceased:
            await partition.cease()

    async def _leave(self, module: str, number: int) -> None:
        """Give up a partition, or see that it is another's."""
        partition = self.partitions.get((module, number))  # it is one of ours until it has nothing left
        if partition is None:
            return
        claims = self._claims[f"table.{self._stage}.{token(module)}"]
        if str(number) not in claims.mine:
            partition.lose()
        await partition.cease()
        while not partition.dry():  # noqa: ASYNC110 -- many things make it so, and it is seldom waited for
            await asyncio.sleep(0.01)
        await partition.close()
        self.partitions.pop((module, number), None)

    async def _look_behind(self) -> None:
        """Where events go round, what first sends them has to wait before the streams are full, or all would stand."""
        circling = {leaving.entry.stage for leaving in self._leavings if leaving.cut.back}
        if not any(cut.back for cut in self._layout.cuts):
            return
        for leaving in self._leavings:
            if leaving.cut.back or leaving.entry.stage in circling:
                continue
            try:
                lag = sum((await self._layout.lags(self.client, leaving.entry.stage)).values())
            except (*BROKEN, FurculaError):
                continue
            leaving.behind = lag > self._layout.options.max_messages // 2
            leaving.left(0)

    def _tell(self) -> None:
        """Keep up what the other workers hear of us."""
        beat, now = self.members.beat, time.monotonic()
        has: dict[str, int] = {}
        handled: dict[str, int] = {}
        for (module, _), partition in self.partitions.items():
            has[module] = has.get(module, 0) + 1
            handled[module] = handled.get(module, 0) + partition.handled
        for module, count in handled.items():
            at, before = self._rates.get(module, (now, count))
            if now - at >= 1.0 or module not in self._rates:
                beat.rates = {**beat.rates, module: max(0.0, (count - before) / (now - at)) if now > at else 0.0}
                self._rates[module] = (now, count)
        beat.has = has

    # ------------------------------------------------------------------ in between

    def pause(self) -> None:
        """Take nothing more until `resume`."""
        self._paused = True
        self.members.beat.state = "paused"
        self._asking.pause()
        for partition in self.partitions.values():
            partition.pause()

    def resume(self) -> None:
        self._paused = False
        self.members.beat.state = "running"
        self._asking.resume()
        for partition in self.partitions.values():
            partition.resume()

    def unready(self) -> str | None:
        if not self.client.connected:
            return f"no connection to {self.client.shown}"
        return None if self._begun else "the partitions are not shared out"

    # ------------------------------------------------------------------ its end

    async def cease(self) -> None:
        self._ceased = True
        self._changed.set()
        self.members.beat.state = "leaving"
        await self._asking.cease()
        for partition in list(self.partitions.values()):
            await partition.cease()

    def idle(self) -> bool:
        return all(partition.idle() for partition in self.partitions.values())

    def quiet(self) -> bool:
        return True

    def settled(self) -> bool:
        return self._asking.settled() and all(leaving.settled() for leaving in self._leavings)

    def dry(self) -> bool:
        return self._asking.dry() and all(partition.dry() for partition in self.partitions.values())

    def abandon(self) -> Mapping[str, int]:
        left = self._asking.abandon()
        for leaving in self._leavings:
            left[leaving.cut.target] = left.get(leaving.cut.target, 0) + leaving.abandon()
        return left

    async def close(self) -> None:
        if not self._opened:
            return
        self._opened = False
        self._ceased = True
        for partition in self.partitions.values():
            await partition.close()
        self.partitions.clear()
        await self._asking.close()
        for claims in self._claims.values():
            await claims.close()
        await self.members.close()
        await self.client.close()


def _outputs(carrier: Carrier | None) -> Outputs | None:
    held = getattr(carrier, "held", None)
    return held if isinstance(held, InHand) else None
