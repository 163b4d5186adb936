"""Standard input and output."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal

from furcula.codecs import Framing, Reader
from furcula.codecs import codec as codec_named
from furcula.errors import Stopped
from furcula.event import Event
from furcula.module import BatchFailed, Context, Module, Source
from furcula.modules.received import admit
from furcula.options import Size

__all__ = ["Stdin", "Stdout"]

MAX_FRAME: Final = Size("1MB")


class Stdin(Source):
    """Read events from standard input, until it ends.

    Pipes, files and terminals are read alike, by a thread, so that the flow goes on while nothing comes. A flow without
    room makes whoever writes to us wait. What cannot be read leaves by `invalid`, with its reason.

    Args:
        codec: What a value looks like: json, msgpack, text, binary.
        framing: Where it ends: lines, {delimiter: ";"}, length-prefix or {length-prefix: 2}, none (all of it).
        max_frame: Bytes that a value may have.
        charset: Of text and JSON.
    """

    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)

    #: The file descriptor that is read.
    FD: ClassVar[int] = 0

    def __init__(
        self,
        *,
        codec: str = "text",
        framing: str | dict[str, Any] = "lines",
        max_frame: Size = MAX_FRAME,
        charset: str = "utf-8",
    ):
        self._reader = Reader.of(Framing.of(framing).framer(max_frame), codec_named(codec, charset))
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None
        self._taken = threading.Semaphore(1)  # one chunk at a time is read ahead
        self._task: asyncio.Task[None] | None = None
        self._ceased = False

    async def start(self, context: Context) -> None:
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()

        def hand_over(chunk: bytes | OSError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed under us
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        self._wake = os.pipe()
        self._task = asyncio.ensure_future(self._admit(context, chunks))
        # A daemon: a thread that stands in a read of a terminal must not keep the process from ending.
        self._thread = threading.Thread(
            target=_read_all, args=(self.FD, self._wake[0], self._taken, hand_over), name="furcula-stdin", daemon=True
        )
        self._thread.start()

    async def _admit(self, context: Context, chunks: asyncio.Queue[bytes | OSError]) -> None:
        try:
            while not self._ceased:
                chunk = await chunks.get()
                if isinstance(chunk, OSError):
                    context.log.error("standard input cannot be read: %s", chunk)
                    chunk = b""
                items = self._reader.feed(chunk) if chunk else self._reader.end()
                waits = admit(context, items, {}) if items else None
                if waits is not None:
                    await asyncio.shield(waits)
                if not chunk:
                    break
                self._taken.release()
        except Stopped:
            pass
        except Exception:
            context.log.exception("reading standard input")
        finally:
            context.finished()

    def cease(self) -> None:
        """Read no more. What is left in the pipe is for the next who reads it."""
        if not self._ceased and self._wake is not None:
            os.write(self._wake[1], b"x")
            self._taken.release()
        self._ceased = True

    async def stop(self) -> None:
        self.cease()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._thread is not None:
            self._thread.join(timeout=1)
            if self._thread.is_alive():
                return  # it still looks at the pipe
        if self._wake is not None:
            for fd in self._wake:
                os.close(fd)
            self._wake = None


def _read_all(fd: int, wake: int, taken: threading.Semaphore, hand_over: Callable[[bytes | OSError], None]) -> None:
    """The reading thread: hands over chunks, then `b""` at the end, or the error. Ends when `wake` can be read."""
    while True:
        taken.acquire()
        try:
            if os.name == "posix" and wake in select.select([fd, wake], [], [])[0]:
                return
            chunk = os.read(fd, 65536)
        except OSError as error:
            hand_over(error)
            return
        hand_over(chunk)
        if not chunk:
            return


class Stdout(Module):
    """Print each event on a line of its own: `[2015-02-13 16:56:35.850659] prefix text`.

    An event is delivered when the line is out of our buffers. When nobody reads standard output any more, events fail.

    Args:
        prefix: Stands before the data.
        timestamp: Begin each line with the local time.
        codec: `text`: strings as they are, bytes decoded, other data as JSON. `json`: strings in quotes too.
    """

    def __init__(self, *, prefix: str = "", timestamp: bool = False, codec: Literal["text", "json"] = "text"):
        self._prefix = f"{prefix} " if prefix else ""
        self._timestamp = timestamp
        self._encode = codec_named("json").encode
        self._plain = codec == "text"
        self._now: Callable[[], float] = time.time
        self._closed = False

    def start(self, context: Context) -> None:
        self._now = context.now

    def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        before = self._prefix
        if self._timestamp:
            before = f"[{datetime.datetime.fromtimestamp(self._now()):%Y-%m-%d %H:%M:%S.%f}] {before}"
        lines: list[str] = []
        errors: dict[int, BaseException] = {}
        for index, event in enumerate(events):
            try:
                lines.append(f"{before}{self._text(event.data)}\n")
            except ValueError as error:
                errors[index] = error
        self._write("".join(lines))
        if errors:
            raise BatchFailed(errors)
        return events

    def _text(self, data: Any) -> str:
        if self._plain:
            if type(data) is str:
                return data
            if isinstance(data, bytes | bytearray):
                return data.decode("utf-8", "backslashreplace")
        return self._encode(data).decode()

    def _write(self, text: str) -> None:
        if self._closed:
            raise BrokenPipeError("nobody reads standard output any more")
        # sys.stdout is looked up now: tests and shells put another one there.
        out = sys.stdout
        if out is None:
            raise OSError("this process has no standard output: it was closed before it began")
        try:
            try:
                out.write(text)
            except UnicodeEncodeError:  # the terminal cannot show it: show its number, and lose nothing else
                encoding = out.encoding or "ascii"
                out.write(text.encode(encoding, "backslashreplace").decode(encoding))
            out.flush()
        except BrokenPipeError:
            self._closed = True
            # What is left in Python's buffer would be written at exit, fail again, and change the exit status.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, out.fileno())
                os.close(nowhere)
            raise BrokenPipeError("nobody reads standard output any more") from None
