"""Dead letters of a stage: what its modules refuse for good, and what no version of the flow here can read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec
from nats.js.errors import APIError

from furcula.cluster.client import BROKEN, Client
from furcula.cluster.layout import Entry, Layout
from furcula.codecs import encode_events
from furcula.event import Event, Failure
from furcula.store import Letter

__all__ = ["Letters"]

log = logging.getLogger("furcula.cluster")

#: Characters of an error's text and of its traceback that a letter has: with the event it must fit a message.
MOST_SAID, MOST_SHOWN = 500, 2000
#: Between two tries to store one.
AGAIN_S = 0.5


class Letters:
    """Writes those of one module. Each has the id of what it is about, so it is stored once however often it is said.

    Args:
        given_up: Asks whether what they are about is ours no more; then none is written.
    """

    def __init__(self, entry: Entry, layout: Layout, client: Client, given_up: Callable[[], bool]):
        self._module = entry.module
        self._flow = layout.flow.name
        self._subject = layout.subject("dead", entry.stage, entry.module)
        self._stream = layout.stream(entry.stage)
        self._client = client
        self._given_up = given_up

    async def refused(self, sequence: int, index: int, event: Event, failure: Failure, attempts: int, cut: str) -> None:
        """An event that failed for good. Returns once it is stored.

        Args:
            sequence: Of the message that it came in.
            index: Its place there.
        """
        letter = Letter(
            failure.at or time.time(), self._flow, failure.module, (cut, failure.module), failure.type,
            failure.message[:MOST_SAID], failure.traceback[-MOST_SHOWN:], attempts, encode_events([event]), cut,
        )  # fmt: skip
        await self._write(letter, f"dead-{self._stream}-{sequence}-{index}")

    async def unreadable(self, sequence: int, bodies: list[bytes], why: str, cut: str) -> None:
        """What this flow cannot take is a letter as it came. With the route it may be one for another version."""
        log.error("%s: %d that cannot be read go to the dead letters: %s", self._module, len(bodies), why)
        for index, body in enumerate(bodies):
            letter = Letter(
                time.time(), self._flow, self._module, (cut, self._module), "InputError",
                why[:MOST_SAID], "", 1, body, cut,
            )  # fmt: skip
            await self._write(letter, f"unread-{self._stream}-{sequence}-{index}")

    async def _write(self, letter: Letter, id: str) -> None:
        body = msgspec.msgpack.encode(letter)
        while not self._given_up():
            try:
                await self._client.js.publish(self._subject, body, headers={"Nats-Msg-Id": id}, timeout=5)
                return
            except (*BROKEN, APIError) as error:
                log.warning("a dead letter of %s cannot be stored, and is tried again: %s", letter.module, error)
                await asyncio.sleep(AGAIN_S)
