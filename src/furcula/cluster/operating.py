"""What operators see of a cluster and want of it: figures, pauses, dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
from nats.js.errors import APIError, KeyDeletedError, KeyNotFoundError, KeyWrongLastSequenceError, NotFoundError

from furcula.cluster.client import Access, Client, tried
from furcula.cluster.layout import Layout
from furcula.cluster.members import Beat, decode_beat
from furcula.cluster.worker import CONTROL, Order
from furcula.codecs import decode_events
from furcula.engine.crossed import Parcel
from furcula.errors import FurculaError, InputError
from furcula.flow import FlowGraph
from furcula.store import Letter

__all__ = ["DeadLetter", "Operator", "StageStatus", "Status", "operating"]

#: Workers say that they live more often than this.
LISTEN_PARTS = 5
#: So long nothing may be left before all is said to be done. Workers look at what they have twice a second.
QUIET_S = 2.5


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
        layout, client = self.layout, self._client
        async with self._listening() as heard:
            await asyncio.sleep(self._listen_s)
        beats = {id: beat for id, (_, beat) in heard.items()}
        ordered, _ = await self._order()
        stages = []
        for name in await layout.known_stages(client):
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

    @property
    def _listen_s(self) -> float:
        """Each worker that lives has said so within this."""
        return 1.5 * float(self.layout.options.lease) / LISTEN_PARTS

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[dict[str, tuple[float, Beat]]]:
        """By id, the workers that are heard of, and when they were last."""
        beats: dict[str, tuple[float, Beat]] = {}

        async def heard(message: Any) -> None:
            with suppress(ValueError, TypeError):
                beat = decode_beat(message.data)
                if beat.state == "gone":
                    beats.pop(beat.id, None)
                else:
                    beats[beat.id] = (time.monotonic(), beat)

        subscription = await self._client.nats.subscribe(f"{self.layout.subject('beat')}.*", cb=heard)
        try:
            yield beats
        finally:
            await subscription.unsubscribe()

    async def _dead_count(self) -> int:
        try:
            info = await tried(self._client, lambda: self._client.js.stream_info(self.layout.dead))
        except NotFoundError:
            return 0
        return info.state.messages

    # ------------------------------------------------------------------ steering

    async def _order(self) -> tuple[Order, int]:
        """What is ordered now, and its revision; 0: nothing was, ever."""
        try:
            bucket = await tried(self._client, lambda: self._client.js.key_value(self.layout.bucket))
            entry = await tried(self._client, lambda: bucket.get(CONTROL))
        except KeyDeletedError as error:
            return Order(), error.entry.revision or 0
        except (NotFoundError, KeyNotFoundError):
            return Order(), 0
        return msgspec.json.decode(entry.value or b"{}", type=Order), entry.revision or 0

    async def _tell(self, change: Callable[[Order], None]) -> None:
        """Change what is ordered. Two operators at once both have their way."""
        bucket = await self.layout.open_bucket(self._client)
        while True:
            ordered, revision = await self._order()
            change(ordered)
            body = msgspec.json.encode(ordered)
            try:
                await tried(self._client, partial(bucket.update, CONTROL, body, last=revision))
                return
            except APIError as error:
                if not isinstance(error, KeyWrongLastSequenceError) and getattr(error, "err_code", 0) not in (
                    10071,
                    10164,
                ):
                    raise

    async def pause(self, stage: str | None = None) -> None:
        """Let the workers of a stage (None: of all) take nothing more, and their sources admit nothing.

        It holds until `resume`, for workers too that start meanwhile. What is in hand goes on.
        """
        wanted = self._known(stage)

        def change(ordered: Order) -> None:
            ordered.paused = sorted({*ordered.paused, wanted})

        await self._tell(change)

    async def resume(self, stage: str | None = None) -> None:
        """Let a stage (None: all) go on."""
        wanted = self._known(stage)

        def change(ordered: Order) -> None:
            if wanted == "*":
                ordered.paused, ordered.draining = [], False
                return
            paused = {*self.layout.stages} if "*" in ordered.paused else {*ordered.paused}
            ordered.paused = sorted(paused - {wanted})

        await self._tell(change)

    def _known(self, stage: str | None) -> str:
        if stage is not None and stage not in self.layout.stages:
            raise FurculaError(f"there is no stage {stage!r}; the flow has {', '.join(self.layout.stages)}")
        return stage or "*"

    async def drain(self, within_s: float | None = None) -> int:
        """Let all sources admit nothing, and wait until nothing waits and no worker has anything open.

        They stay so until `resume`.

        Returns:
            How much was left after `within_s`: messages that wait, events that are open in workers, and workers whose
            sources do not know of it yet. 0: nothing.
        """

        def change(ordered: Order) -> None:
            ordered.draining = True

        await self._tell(change)
        layout, client = self.layout, self._client
        began = time.monotonic()
        quiet_since: float | None = None
        async with self._listening() as heard:
            while True:
                left = sum(
                    [sum((await layout.lags(client, stage)).values()) for stage in await layout.known_stages(client)]
                )
                now = time.monotonic()
                beats = [(at, beat) for at, beat in heard.values() if now - at < float(layout.options.lease)]
                left += sum(beat.open + (not beat.held) for _, beat in beats)
                if left:
                    quiet_since = None
                elif quiet_since is None:
                    quiet_since = now
                # What one stage has done another has still to do, and what a worker says is as old as its last look.
                # So nothing is left when nothing was for a while, and each worker has said so since.
                if (
                    quiet_since is not None
                    and now - began > self._listen_s
                    and now - quiet_since > QUIET_S
                    and all(at > quiet_since + QUIET_S / 2 for at, _ in beats)
                ):
                    return 0
                if left and within_s is not None and now - began > within_s:
                    return left
                await asyncio.sleep(0.25)

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
        if number < 1:
            return None
        try:
            message = await tried(self._client, lambda: self._client.js.get_msg(self.layout.dead, number))
        except NotFoundError:
            return None
        return DeadLetter(number, msgspec.msgpack.decode(message.data or b"", type=Letter))

    async def replay(self, number: int) -> None:
        """Send a dead letter's event where it failed, once more, and remove the letter.

        Raises:
            FurculaError: There is no such letter; the flow has no such route any more; or the stream it leads to is not
                set up.
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
        stream = self.layout.stream(entry.stage)
        try:  # where there is none, the server says as little as where it chooses a leader
            await tried(self._client, lambda: self._client.js.stream_info(stream))
        except NotFoundError:
            raise FurculaError(
                f"dead letter {number} goes to {entry.module}, and the stream {stream} that leads there is not set up: "
                f"see `furcula cluster plan`, then `furcula cluster apply`"
            ) from None
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
        """Set up what the flow needs. Returns what was made or changed.

        Raises:
            FurculaError: A change cannot be made while events wait, or while workers are at work that know the flow as
                it was; or not at all.
        """
        layout, client = self.layout, self._client
        unsafe = [change for change in await layout.changes(client) if not change.live and change.possible]
        if unsafe and not await layout.waiting(client):  # if something waits, that has to be handled first
            await self._none_at_work(unsafe[0].what)
        return [change.what for change in await layout.apply(client)]

    async def _none_at_work(self, what: str) -> None:
        """Those who are at work began before the change: none starts while one like this is to be made."""
        async with self._listening() as heard:
            await asyncio.sleep(self._listen_s)
        beats = sorted((beat for _, beat in heard.values()), key=lambda beat: beat.id)
        if beats:
            named = ", ".join(f"{beat.id} ({beat.host}:{beat.pid})" for beat in beats)
            raise FurculaError(
                f"the flow {self.layout.flow.name} is set up otherwise: {what}. These workers are at work as it was: "
                f"{named}. Stop them, then `furcula cluster apply`"
            )


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
