"""What operators see of a cluster and want of it: figures, pauses, dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
from nats.js.errors import NotFoundError

from furcula.cluster.client import Access, Client, tried
from furcula.cluster.layout import Layout
from furcula.cluster.members import Beat, decode_beat
from furcula.cluster.worker import CONTROL, Order, order
from furcula.codecs import decode_events
from furcula.engine.crossed import Parcel
from furcula.errors import FurculaError, InputError
from furcula.flow import FlowGraph
from furcula.store import Letter

__all__ = ["DeadLetter", "Operator", "StageStatus", "Status", "operating"]

#: Workers say that they live more often than this.
LISTEN_PARTS = 5


class StageStatus(msgspec.Struct):
    """One stage.

    Attributes:
        workers: Those that were heard of.
        lag: By module, messages that wait for it or are in hand.
        in_hand: Messages that workers have and have not acknowledged.
        redelivered: Of those, messages that were handed out before.
        rate: Events that all its workers together take in a second.
        paused: It takes nothing.
    """

    name: str
    workers: list[Beat] = []
    lag: dict[str, int] = {}
    in_hand: int = 0
    redelivered: int = 0
    rate: float = 0.0
    paused: bool = False


class Status(msgspec.Struct):
    """A flow on its cluster.

    Attributes:
        dead_letters: How many are kept.
        draining: Sources admit nothing.
    """

    flow: str
    cluster: str
    stages: list[StageStatus]
    dead_letters: int = 0
    draining: bool = False


class DeadLetter(msgspec.Struct):
    """One dead letter, and its number in their stream."""

    number: int
    letter: Letter


class Operator:
    """What can be asked and told from outside. Made by `operating`."""

    def __init__(self, layout: Layout, client: Client):
        self.layout = layout
        self._client = client

    # ------------------------------------------------------------------ seeing

    async def status(self) -> Status:
        """The figures now. Takes as long as it may be until each worker has said that it lives."""
        beats: dict[str, Beat] = {}

        async def heard(message: Any) -> None:
            with suppress(ValueError, TypeError):
                beat = decode_beat(message.data)
                beats[beat.id] = beat
                if beat.state == "gone":
                    del beats[beat.id]

        layout, client = self.layout, self._client
        subscription = await client.nats.subscribe(f"{layout.subject('beat')}.*", cb=heard)
        await asyncio.sleep(1.5 * float(layout.options.lease) / LISTEN_PARTS)
        await subscription.unsubscribe()
        ordered = await self._order()
        stages = []
        for name in layout.stages:
            workers = sorted((beat for beat in beats.values() if beat.stage == name), key=lambda beat: beat.id)
            stage = StageStatus(name, workers, await layout.lags(client, name))
            stage.rate = sum(sum(beat.rates.values()) for beat in workers)
            stage.paused = bool({"*", name} & {*ordered.paused})
            with suppress(NotFoundError):
                offset = 0
                while True:
                    found = await tried(
                        client,
                        lambda name=name, offset=offset: client.js.consumers_info(layout.stream(name), offset),  # type: ignore[misc]
                    )
                    stage.in_hand += sum(info.num_ack_pending or 0 for info in found)
                    stage.redelivered += sum(info.num_redelivered or 0 for info in found)
                    offset += len(found)
                    if len(found) < 256:
                        break
            stages.append(stage)
        return Status(layout.flow.name, client.shown, stages, await self._dead_count(), ordered.draining)

    async def _dead_count(self) -> int:
        try:
            info = await tried(self._client, lambda: self._client.js.stream_info(self.layout.dead))
        except NotFoundError:
            return 0
        return info.state.messages

    # ------------------------------------------------------------------ steering

    async def _order(self) -> Order:
        try:
            bucket = await tried(self._client, lambda: self._client.js.key_value(self.layout.bucket))
        except NotFoundError:
            return Order()
        return await order(self._client, bucket)

    async def _tell(self, ordered: Order) -> None:
        bucket = await self.layout.open_bucket(self._client)
        await tried(self._client, lambda: bucket.put(CONTROL, msgspec.json.encode(ordered)))

    async def pause(self, stage: str | None = None) -> None:
        """Let the workers of a stage (None: of all) take nothing more, and their sources admit nothing.

        It holds until `resume`, for workers too that start meanwhile. What is in hand goes on.
        """
        ordered = await self._order()
        ordered.paused = sorted({*ordered.paused, self._known(stage)})
        await self._tell(ordered)

    async def resume(self, stage: str | None = None) -> None:
        """Let a stage (None: all) go on."""
        ordered = await self._order()
        wanted = self._known(stage)
        ordered.paused = [] if wanted == "*" else [one for one in ordered.paused if one not in (wanted, "*")]
        if wanted == "*":
            ordered.draining = False
        await self._tell(ordered)

    def _known(self, stage: str | None) -> str:
        if stage is not None and stage not in self.layout.stages:
            raise FurculaError(f"there is no stage {stage!r}; the flow has {', '.join(self.layout.stages)}")
        return stage or "*"

    async def drain(self, within_s: float | None = None) -> int:
        """Let all sources admit nothing, and wait until no stage has anything left.

        They stay so until `resume`.

        Returns:
            How many messages were left after `within_s`; 0: none.
        """
        ordered = await self._order()
        ordered.draining = True
        await self._tell(ordered)
        deadline = None if within_s is None else time.monotonic() + within_s
        quiet = 0
        while True:
            lag = 0
            for stage in self.layout.stages:
                lag += sum((await self.layout.lags(self._client, stage)).values())
            # Sources hear of it within two seconds, and what one stage has done another has still to do.
            quiet = 0 if lag else quiet + 1
            if quiet >= 5:
                return 0
            if deadline is not None and time.monotonic() > deadline:
                return lag
            await asyncio.sleep(0.5)

    # ------------------------------------------------------------------ dead letters

    async def letters(self, first: int = 1) -> AsyncIterator[DeadLetter]:
        """All dead letters, the oldest first."""
        try:
            info = await tried(self._client, lambda: self._client.js.stream_info(self.layout.dead))
        except NotFoundError:
            return
        for number in range(max(first, info.state.first_seq), info.state.last_seq + 1):
            found = await self.letter(number)
            if found is not None:
                yield found

    async def letter(self, number: int) -> DeadLetter | None:
        """One of them; None: it is not there any more."""
        try:
            message = await tried(self._client, lambda: self._client.js.get_msg(self.layout.dead, number))
        except NotFoundError:
            return None
        return DeadLetter(number, msgspec.msgpack.decode(message.data or b"", type=Letter))

    async def replay(self, number: int) -> None:
        """Send a dead letter's event where it failed, once more, and remove the letter.

        Raises:
            FurculaError: There is no such letter, or the flow has no such route any more.
        """
        found = await self._found(number)
        letter = found.letter
        cut = next((cut for cut in self.layout.cuts if cut.name == letter.queue), None)
        if cut is None:
            raise FurculaError(f"dead letter {number} came over {letter.queue or 'no route'!r}, which the flow lacks")
        try:
            event = decode_events(letter.event)[0]
        except (InputError, IndexError) as error:
            raise FurculaError(f"dead letter {number} holds no event: {error}") from None
        entry = self.layout.entries[cut.target]
        partition = self.layout.partition(cut, event)
        body = msgspec.msgpack.encode(Parcel(cut.name, letter.event))
        subject = self.layout.to(entry, partition)
        headers = {"Nats-Msg-Id": f"replay-{number}"}
        await tried(self._client, lambda: self._client.js.publish(subject, body, headers=headers))
        await self.drop(number)

    async def drop(self, number: int) -> None:
        """Remove a dead letter."""
        await self._found(number)
        with suppress(NotFoundError):
            await tried(self._client, lambda: self._client.js.delete_msg(self.layout.dead, number))

    async def _found(self, number: int) -> DeadLetter:
        found = await self.letter(number)
        if found is None:
            raise FurculaError(f"there is no dead letter {number}")
        return found

    # ------------------------------------------------------------------ set-up

    async def changes(self) -> list[str]:
        """What `apply` would make or change."""
        return [change.what for change in await self.layout.changes(self._client)]

    async def apply(self) -> list[str]:
        """Set up what the flow needs. Returns what was made or changed."""
        return [change.what for change in await self.layout.apply(self._client)]


@asynccontextmanager
async def operating(flow: FlowGraph, access: Access) -> AsyncIterator[Operator]:
    """Connect as an operator.

    Raises:
        FurculaError: No server answers, or it refuses us.
        ConfigurationError: The flow cannot run in stages.
    """
    layout = Layout(flow)
    client = Client(access, f"furcula operates {flow.name}")
    await client.open()
    try:
        yield Operator(layout, client)
    finally:
        await client.close()
