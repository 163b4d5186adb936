"""Runs one stage of a flow as one of many workers, on any machine."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from nats.js.errors import KeyDeletedError, KeyNotFoundError
from nats.js.kv import KeyValue

from furcula.cluster.claims import Row
from furcula.cluster.client import BROKEN, Access, Client, tried
from furcula.cluster.joints import ClusterJoints
from furcula.cluster.layout import Layout
from furcula.engine.assembly import ModuleRun
from furcula.engine.director import Director
from furcula.engine.parts import Spawn
from furcula.errors import ConfigurationError, FurculaError, nearest
from furcula.flow import FlowGraph

__all__ = ["CONTROL", "Order", "StageDirector"]

log = logging.getLogger("furcula.cluster")

#: Between two looks at what was ordered.
LOOK_S = 1.0
CONTROL = "control"


class Order(msgspec.Struct):
    """What operators want of the workers.

    Attributes:
        paused: Stages that take nothing; `*`: all.
        draining: Sources admit nothing; what was admitted goes on.
    """

    paused: list[str] = []
    draining: bool = False


async def order(client: Client, bucket: KeyValue) -> Order:
    """What is ordered now."""
    try:
        entry = await tried(client, lambda: bucket.get(CONTROL))
    except (KeyNotFoundError, KeyDeletedError):
        return Order()
    return msgspec.json.decode(entry.value or b"{}", type=Order)


class _Joints(ClusterJoints):
    """Also runs the sources that run in one worker at a time, and does what operators order."""

    director: Director

    async def open(self, spawn: Spawn) -> None:
        await super().open(spawn)
        # A worker that is started while all is paused is paused.
        self.order = await order(self.client, self._bucket)
        if self._is_paused:
            self.pause()
        self._hold_sources()

    def begin(self) -> None:
        singles = self.singles
        if singles:
            self.claims(f"single.{self._stage}", singles, self._begin, self._hold, single=True)
        super().begin()
        self._spawn(self._obey(), "orders")

    singles: list[str]

    async def _begin(self, name: str, row: Row, died: bool) -> None:
        log.info("%s runs %s from now on", self.id, name)
        self.members.beat.runs = sorted({*self.members.beat.runs, name})
        self.epochs[name] = _Single(self, name, row.epoch)
        try:
            await self.director.begin(name)
        except FurculaError:
            await self.director.hold(name)  # so that it can be begun once more
            raise
        if self._sources_held:
            self._hold_source(self.director.modules[name], True)

    async def _hold(self, name: str) -> None:
        log.info("%s does not run %s any more", self.id, name)
        self.members.beat.runs = [one for one in self.members.beat.runs if one != name]
        await self.director.hold(name)
        claims, entrance = self._claims[f"single.{self._stage}"], self.director.modules[name].entrance
        # What it gave is stored before another gives more.
        while name in claims.mine and entrance is not None and entrance.origin.open and not self._ceased:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def single_lost(self, epoch: _Single) -> None:
        """Another worker runs this source."""
        for leaving in self._leavings:
            leaving.forget(epoch)
        self._changed.set()

    def _tell(self) -> None:
        super()._tell()
        self.members.beat.open = self.director.statistics().total.open

    @property
    def _is_paused(self) -> bool:
        return bool({"*", self._stage} & {*self.order.paused})

    @property
    def _sources_held(self) -> bool:
        return self._is_paused or self.order.draining

    async def _obey(self) -> None:
        while True:
            if self._is_paused != self._paused:
                (self.pause if self._is_paused else self.resume)()
                log.warning("%s is %s", self.id, "paused" if self._is_paused else "resumed")
            self._hold_sources()
            await asyncio.sleep(LOOK_S)
            try:
                self.order = await order(self.client, self._bucket)
            except (*BROKEN, FurculaError) as error:
                log.debug("orders cannot be read: %s", error)

    def _hold_sources(self) -> None:
        """Let them admit nothing, or something again. What comes back to one of them is under way, and goes on."""
        held = self._sources_held
        for run in self.director.modules.values():
            if run.entrance is not None and run.paused != held:
                self._hold_source(run, held)
        self.members.beat.held = held

    def _hold_source(self, run: ModuleRun, held: bool) -> None:
        assert run.entrance is not None
        run.paused = held
        (run.entrance.pause if held else run.entrance.resume)()
        # A client that could not be answered is better told at once than let in to wait.
        tell = getattr(run.instance, "hold_requests", None)
        if tell is not None:
            tell(held)


class _Single:
    """In whose name the events of a source leave that runs in one worker at a time."""

    def __init__(self, joints: _Joints, name: str, number: int):
        self._joints = joints
        self.module = name
        self.partition = 0
        self.number = number

    def lost(self) -> None:
        self._joints.single_lost(self)


class StageDirector(Director):
    """A Director of one stage, joined to the others by a cluster.

    Args:
        flow: The flow.
        stage: Which stage of it.
        access: Where the cluster is.
        version: Of the code, for people who look at the workers.
        settings: See `Director`.

    Raises:
        ConfigurationError: The flow has problems, or no such stage.
    """

    def __init__(self, flow: FlowGraph, stage: str, access: Access, *, version: str = "", **settings: Any):
        layout = Layout(flow)
        if stage not in layout.stages:
            known = nearest(stage, layout.stages) or f"; it has {', '.join(layout.stages)}"
            raise ConfigurationError(f"the flow {flow.name} has no stage {stage!r}{known}")
        self.layout = layout
        self.cluster = _Joints(layout, access, stage, version=version)
        places = [place for place in flow.places.values() if place.stage == stage and place.is_source]
        singles = [place.name for place in places if place.single]
        self.cluster.singles = singles
        self.cluster.director = self
        held = {*settings.pop("held", ()), *singles}
        super().__init__(flow, stage=stage, joints=self.cluster, held=held, **settings)
