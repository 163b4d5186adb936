"""The joints of one worker: its own sockets, and its connections to the workers of the other stages."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from pathlib import Path

from furcula.engine.crossed import Homes
from furcula.engine.outlets import Consumer
from furcula.engine.parts import Arrivals, Cut, Refuse, Spawn
from furcula.workers.lines.far import Far
from furcula.workers.lines.near import Leaving, Peer

__all__ = ["Lines"]

#: After so long without a parcel or a report, what is missing may be held back by ourselves.
QUIET_S = 1.0


class Lines:
    """The joints of one worker.

    Args:
        folder: Where the workers' sockets are; one folder for each run.
        stage: Of this worker.
        index: Which of the stage's workers it is.
        counts: How many workers each stage has.
    """

    keeps = False

    def __init__(self, folder: Path, stage: str, index: int, counts: Mapping[str, int]):
        self._folder = folder
        self._stage = stage
        self._index = index
        self._counts = counts
        self._homes = Homes(f"{stage}/{index}")
        self._home_path = folder / self._homes.name.partition("#")[2]
        self._peers: dict[tuple[str, int], Peer] = {}
        self._leaving: list[Leaving] = []
        self._arrivals: dict[str, Arrivals] = {}
        #: The place among the stage's workers, and our home.
        self._fars: list[Far] = []
        self._spawn: Spawn | None = None

    def leaving(self, cut: Cut, refuse: Refuse) -> Consumer:
        peers = [self._peer(cut.to_stage, number) for number in range(self._count(cut))]
        leaving = Leaving(cut, refuse, peers, self._homes, self._home)
        self._leaving.append(leaving)
        return leaving

    def _count(self, cut: Cut) -> int:
        return self._counts.get(cut.to_stage, 1)

    def _peer(self, stage: str, index: int) -> Peer:
        peer = self._peers.get((stage, index))
        if peer is None:
            peer = self._peers[stage, index] = Peer(self._path(stage, index), f"{stage}/{index}")
        return peer

    def _home(self, home: str) -> Peer:
        """The very process that has who asked."""
        peer = self._peers.get((home, -1))
        if peer is None:
            peer = self._peers[home, -1] = Peer(self._folder / home.partition("#")[2], home, gone=self._gone)
            assert self._spawn is not None
            peer.open(self._spawn)
        return peer

    def _gone(self, peer: Peer) -> None:
        self._peers.pop((peer.name, -1), None)
        for leaving in self._leaving:
            leaving.forget(peer)

    def _path(self, stage: str, index: int) -> Path:
        # The name of a socket has 107 bytes at most, and a stage's may have 64 of them.
        return self._folder / f"{zlib.crc32(stage.encode()):08x}.{index}"

    def arriving(self, arrivals: Arrivals) -> None:
        self._arrivals[arrivals.cut.name] = arrivals

    async def open(self, spawn: Spawn) -> None:
        self._spawn = spawn
        for peer in self._peers.values():
            peer.open(spawn)
        if self._arrivals:
            for path in (self._home_path, self._path(self._stage, self._index)):
                self._fars.append(Far(path, self._arrivals, self._homes, spawn))
            for far in self._fars:
                await far.open()

    def begin(self) -> None:
        for far in self._fars:
            far.begin()

    async def cease(self) -> None:
        for far in self._fars[1:]:  # what comes home is awaited by somebody
            far.cease()

    def idle(self) -> bool:
        return all(far.idle() for far in self._fars)

    def quiet(self) -> bool:
        moved = [*(peer.moved_at for peer in self._peers.values()), *(far.moved_at for far in self._fars)]
        latest = max(moved, default=0.0)
        return asyncio.get_running_loop().time() - latest > QUIET_S

    def settled(self) -> bool:
        return all(leaving.settled() for leaving in self._leaving)

    def dry(self) -> bool:
        return all(far.dry() for far in self._fars)

    def abandon(self) -> dict[str, int]:
        left: dict[str, int] = {}
        for leaving in self._leaving:
            left[leaving.cut.target] = left.get(leaving.cut.target, 0) + leaving.abandon()
        return left

    async def close(self) -> None:
        await asyncio.sleep(0)  # the last reports are told from the loop
        for peer in self._peers.values():
            peer.close()
        for far in self._fars:
            far.close()

    def unready(self) -> str | None:
        missing = [peer.name for (_, index), peer in self._peers.items() if index >= 0 and not peer.present]
        return f"no word from {', '.join(missing)}" if missing else None
