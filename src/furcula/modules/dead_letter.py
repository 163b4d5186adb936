"""Dead letters: keep events that failed, in a file, with all that is known; and try them again."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

import msgspec

from furcula.codecs import decode_events, encode_each
from furcula.errors import InputError, Stopped, StoreError
from furcula.event import Event
from furcula.module import BatchFailed, Context, Module, Source
from furcula.receipt import Slot, origin_of
from furcula.store import Letter, Store

__all__ = ["DeadLetterReplay", "DeadLetterWrite", "letter_of"]

#: Letters that are replayed together.
TURN = 64


class DeadLetterWrite(Module):
    """Keep each event in a file, with its failures: error, traceback, attempts, where it came from, where it failed.

    An event is delivered when it is on the disk. `furcula dlq` lists, shows and discards what is there, and asks that
    it be tried again. Events that came without a failure are kept too.

    Args:
        store: The file, relative to the flow's folder. Durable queues may share it.
    """

    outboxes: ClassVar[tuple[str, ...]] = ()

    _context: Context
    _store: Store

    def __init__(self, *, store: str):
        if not store:
            raise ValueError("store must be the path of a file")
        self._path = store
        #: What is being written. It is written also if the flow stops and nobody waits for that any more.
        self.in_hand: list[Event[Any]] = []

    async def start(self, context: Context) -> None:
        self._context = context
        self._store = Store(context.folder / self._path)
        await self._store.open()

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        letters: list[Letter] = []
        errors: dict[int, BaseException] = {}
        for index, event in enumerate(events):
            try:
                letters.append(letter_of(event, flow=self._context.flow, now=self._context.now()))
            except (ValueError, TypeError, RecursionError) as error:
                errors[index] = InputError(f"the event cannot be stored: {error}")
        if letters:
            self.in_hand = events
            try:
                await self._store.bury(letters)
            except StoreError:
                self.in_hand = []
                raise
            self.in_hand = []
        if errors:
            raise BatchFailed(errors)
        return events

    async def stop(self) -> None:
        await self._store.close()


def letter_of(event: Event[Any], *, flow: str, now: float) -> Letter:
    """The dead letter that is made of an event and its failures.

    Args:
        flow: The name of its flow.
        now: Unix time in seconds, for an event that came without a failure.

    Raises:
        ValueError, TypeError, RecursionError: Its data cannot be stored.
    """
    last = event.failures[-1] if event.failures else None
    origin = origin_of(event.carrier())
    return Letter(
        at=last.at if last else now,
        flow=flow,
        module=last.module if last else "",
        path=(*([origin.name] if origin else ()), *(failure.module for failure in event.failures)),
        error=last.type if last else "",
        message=last.message if last else "",
        traceback=last.traceback if last else "",
        attempts=sum(failure.attempts for failure in event.failures),
        event=encode_each([event])[0],
    )


class DeadLetterReplay(Source):
    """Admit dead letters of this flow again that somebody has asked for with `furcula dlq replay`.

    A letter is removed when its event is settled well; when it fails again it stays a letter. The event has its old id
    and its history of failures.

    Args:
        store: The file that `dead_letter.write` keeps, relative to the flow's folder.
        module: Only letters that failed in this module, or in one of these; default: in any.
    """

    acknowledges: ClassVar[str] = "message"

    _context: Context
    _store: Store

    def __init__(self, *, store: str, module: str | list[str] = ""):
        if not store:
            raise ValueError("store must be the path of a file")
        self._path = store
        self._modules = [module] if isinstance(module, str) and module else list(module)
        self._task: asyncio.Task[None] | None = None

    async def start(self, context: Context) -> None:
        self._context = context
        self._store = Store(context.folder / self._path)
        await self._store.open()
        self._task = asyncio.get_running_loop().create_task(self._replay(), name=f"furcula replay {context.name}")

    async def _replay(self) -> None:
        letters: list[Letter] = []
        try:
            while True:
                try:
                    letters = await self._wanted()
                    if not letters:
                        await self._store.changed("")
                    while letters:
                        await self._admit(letters.pop(0))
                except StoreError as error:
                    self._context.log.error("%s", error)
                    await asyncio.sleep(1.0)
        except Stopped:
            pass
        finally:
            self._put_back(letters)

    async def _wanted(self) -> list[Letter]:
        flow, modules = self._context.flow, self._modules
        taking = self._store.do(lambda file: file.wanted(TURN, flow=flow, modules=modules))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            await asyncio.wait([taking])
            if not taking.cancelled() and taking.exception() is None:
                self._put_back(taking.result())
            raise

    def _put_back(self, letters: list[Letter]) -> None:
        """These were taken, and not admitted."""
        numbers = [letter.id for letter in letters]
        if numbers:
            with suppress(Stopped):
                self._store.do(lambda file: file.keep(numbers, replay=True), stubborn=True)

    async def _admit(self, letter: Letter) -> None:
        try:
            (event,) = decode_events(letter.event)
        except (InputError, ValueError) as error:
            self._context.log.error("letter %d holds no event: %s", letter.id, error)
            self._store.do(lambda file: file.keep([letter.id]), stubborn=True)
            return
        # The way to the dead letters is open to it once more.
        event.failures = tuple([msgspec.structs.replace(failure, route="") for failure in event.failures])
        try:
            wait = self._context.admit([event], settled=partial(self._settled, letter.id))
        except Stopped:
            self._put_back([letter])
            raise
        if wait is not None:
            await wait

    def _settled(self, number: int, slot: Slot) -> None:
        if slot.fate != "failed":
            self._store.do(lambda file: file.discard([number]), stubborn=True)
        else:
            released = slot.reason == "abandoned"
            self._store.do(lambda file: file.keep([number], replay=released), stubborn=True)

    async def cease(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def stop(self) -> None:
        await self._store.close()
