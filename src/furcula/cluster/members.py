"""Who is there: each worker tells the others, from a thread of its own.

A worker that says nothing for the length of a lease is taken for dead. So what says it must not depend on the loop in
which modules run: one that holds the loop is slow, not dead. The same thread tells the server that we are still at the
messages in hand. Word goes over core NATS: a cluster that is choosing a leader for a stream still passes it on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from furcula.cluster.client import Access, Client
from furcula.cluster.layout import Layout
from furcula.errors import FurculaError

__all__ = ["Beat", "Members", "worker_id"]

log = logging.getLogger("furcula.cluster")

#: Between two tries to be heard.
AGAIN_S = 0.5
#: Parts of a lease after which a worker says that it lives.
BEATS = 5


class Beat(msgspec.Struct, omit_defaults=True):
    """What a worker says of itself.

    Attributes:
        id: Its name; no two are alike.
        version: Of its code, where it was told one.
        has: By module, how many partitions of it.
        runs: The sources that only one worker runs.
        open: Events in hand: all that its part of the flow has admitted and not settled.
        held: Its sources admit nothing.
        rates: By module, events handled in a second.
        state: `running`, `paused`, `leaving`.
    """

    id: str
    stage: str
    host: str = ""
    pid: int = 0
    version: str = ""
    since: float = 0.0
    has: dict[str, int] = {}
    runs: list[str] = []
    open: int = 0
    held: bool = False
    rates: dict[str, float] = {}
    state: str = "running"


decode_beat = msgspec.msgpack.Decoder(Beat).decode


def worker_id(stage: str) -> str:
    return f"{stage}-{os.urandom(4).hex()}"


class Members:
    """The workers of a flow.

    Args:
        access: Of the cluster.
        layout: Of the flow.
        stage: Of this worker.
        id: Of this worker.
        version: Of its code.
    """

    def __init__(self, access: Access, layout: Layout, stage: str, id: str, version: str = ""):
        self.id = id
        self.beat = Beat(id, stage, socket.gethostname(), os.getpid(), version, time.time())
        #: Subjects on which the server waits for word of a message that is in hand.
        self.in_hand: set[str] = set()
        #: Held while something is handled that may kill the worker.
        self.alone = asyncio.Lock()
        self.lease_s = float(layout.options.lease)
        self._access = access
        self._subject = layout.subject("beat")
        self._ack_wait_s = float(layout.options.ack_wait)
        self._heard: dict[str, tuple[float, Beat]] = {}
        #: Since when nothing can have escaped us.
        self._listening_since = math.inf
        self._turned_at = 0.0
        self._connected = False
        self._changed: Callable[[], None]
        self._main: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None

    async def open(self, changed: Callable[[], None]) -> None:
        """Hear of the others, and let them hear of us.

        Args:
            changed: Told when a worker has come, or leaves.
        """
        self._changed = changed
        self._main = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"furcula {self.id}", daemon=True)
        self._thread.start()

    def alive(self, stage: str) -> list[Beat]:
        """The workers of a stage that have been heard of within a lease, this one included."""
        since = time.monotonic() - self.lease_s
        heard = list(self._heard.values())
        found = [beat for at, beat in heard if at > since and beat.stage == stage and beat.id != self.id]
        return [*found, self.beat] if stage == self.beat.stage else found

    def dead(self, id: str) -> bool:
        """Has nothing been heard of this worker for a lease, though we have listened for so long?"""
        now = time.monotonic()
        if id == self.id or now - self._turned_at > self.lease_s / 2:  # we were frozen ourselves
            return False
        at, _ = self._heard.get(id, (0.0, self.beat))
        return now - max(at, self._listening_since) > self.lease_s

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                asyncio.run(self._tell())
            except FurculaError as error:
                log.warning("nobody hears of this worker: %s", error)
            except Exception:
                log.exception("nobody hears of this worker; its thread begins anew")
            self._listening_since = math.inf
            self._ended.wait(AGAIN_S)

    async def _hear(self, message: Any) -> None:
        try:
            beat = decode_beat(message.data)
        except (ValueError, TypeError):
            return
        _, known = self._heard.get(beat.id, (0.0, None))
        if beat.state == "gone":
            self._heard.pop(beat.id, None)
        else:
            self._heard[beat.id] = (time.monotonic(), beat)
        if known is None or known.state != beat.state or beat.state == "gone":
            try:
                self._main.call_soon_threadsafe(self._changed)
            except RuntimeError:  # its loop has ended
                pass

    def _turn(self, client: Client) -> None:
        """Note what we may have missed: all that was said while we stood still, or had no connection."""
        now = time.monotonic()
        connected = client.connected
        if now - self._turned_at > self.lease_s / 2 or (connected and not self._connected):
            self._listening_since = now
        elif not connected:
            self._listening_since = math.inf
        self._turned_at, self._connected = now, connected

    async def _tell(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        client = Client(self._access, f"{self.id} lives", second=True)
        await client.open()
        try:
            await client.nats.subscribe(f"{self._subject}.*", cb=self._hear)
            self._connected = False
            client.reconnected.append(self._wake.set)
            renewed = time.monotonic()
            while not self._ended.is_set():
                self._wake.clear()
                self._turn(client)
                if client.connected:  # what is said later would be no word of now
                    await self._say(client)
                    if time.monotonic() - renewed > self._ack_wait_s / 4:
                        renewed = time.monotonic()
                        for reply in list(self.in_hand):
                            await client.say(reply, b"+WPI")
                try:
                    async with asyncio.timeout(min(self.lease_s / BEATS, self._ack_wait_s / 5)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            self.beat.state = "gone"
            await self._say(client)
        finally:
            await client.close()

    async def _say(self, client: Client) -> None:
        await client.say(f"{self._subject}.{self.id}", msgspec.msgpack.encode(self.beat))

    async def close(self) -> None:
        """Let the others know that we have gone."""
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._loop is not None and self._wake is not None:
            try:
                self._loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # its loop has ended
                pass
        await asyncio.to_thread(thread.join, 5.0)
