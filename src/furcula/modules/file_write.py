"""Write events to a file, and start a new one when it is full or old.

An event is delivered when its bytes are with the operating system, or on the disk where `fsync: batch` says so. When
the disk is full, what was begun is taken back, so that no half a line is left between whole ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from furcula.codecs import Framing
from furcula.codecs import codec as codec_named
from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import BatchFailed, Context, Module
from furcula.options import Duration, Size

__all__ = ["FileWrite"]

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


class FileWrite(Module):
    """Write events to a file, one on each line.

    An event is delivered when the system has its bytes, or, with `fsync: batch`, when they are on the disk. What cannot
    be written (the disk is full, the data cannot be said in the codec) fails, and nothing of it stays in the file. A
    file that somebody moved away (logrotate) is opened anew.

    Args:
        path: The file; relative to the flow's folder. Folders are made.
        codec: json, msgpack, text or binary.
        framing: What ends an event: lines, {delimiter: ";"}, length-prefix or {length-prefix: 2}, none.
        what: `data`: the event's data. `event`: the whole event, with headers, id and failures. `auto`: the whole event
            if it failed somewhere, else its data; so a dead-letter file has all that a replay needs.
        fsync: When the disk must have confirmed: never, after each batch, or when the file is closed.
        rotate_size: A file that would be larger becomes `path.1`, and a new one is begun.
        rotate_every: A file that is open for longer does, too.
        keep: So many rotated files are kept: `path.1` is the youngest.
        append: False: what the file had before is removed at the start.
        charset: Of text and JSON.
    """

    def __init__(
        self,
        *,
        path: str,
        codec: str = "json",
        framing: str | dict[str, Any] = "lines",
        what: Literal["auto", "data", "event"] = "auto",
        fsync: Literal["never", "batch", "close"] = "never",
        rotate_size: Size | None = None,
        rotate_every: Duration | None = None,
        keep: int = 5,
        append: bool = True,
        charset: str = "utf-8",
    ):
        if keep < 0:
            raise ValueError("keep must not be negative")
        if not path:
            raise ValueError("path must not be empty")
        if rotate_size is not None and not rotate_size:
            raise ValueError("rotate_size must be more than 0")
        self._given_path = path
        self._encode = codec_named(codec, charset).encode
        self._framing = Framing.of(framing)
        self._what = what
        self._fsync = fsync
        self._rotate_size = rotate_size
        self._rotate_every = rotate_every
        self._keep = keep
        self._append = append
        self._path = Path(path)
        self._fd = -1
        self._regular = True  # not a device or a pipe: it has a size, and can be cut and renamed
        self._identity = (0, 0)
        self._size = 0
        self._opened_at = 0.0

    _context: Context

    def start(self, context: Context) -> None:
        self._context = context
        self._path = context.folder / self._given_path
        try:
            self._open(truncate=not self._append)
        except OSError as error:
            raise FurculaError(f"{context.name} cannot write to {self._path}: {error.strerror}") from error

    def _open(self, *, truncate: bool = False) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, _FLAGS | (os.O_TRUNC if truncate else 0), 0o666)
        found = os.fstat(self._fd)
        self._regular = stat.S_ISREG(found.st_mode)
        self._identity = (found.st_dev, found.st_ino)
        self._size = found.st_size if self._regular else 0
        self._opened_at = self._context.now()
        if self._size and self._framing.kind in ("lines", "delimiter"):
            self._end_last_frame()

    def _end_last_frame(self) -> None:
        """A crash may have left half a line. What comes now must not become part of it."""
        delimiter = self._framing.delimiter
        with open(self._path, "rb") as file:
            file.seek(max(0, self._size - len(delimiter)))
            if file.read() != delimiter:
                self._size += os.write(self._fd, delimiter)

    def stop(self) -> None:
        if self._fd >= 0:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        try:
            if self._fsync != "never" and self._regular:
                os.fsync(fd)
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ writing

    def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        frames, indices, errors = self._encoded(events)
        written = 0
        try:
            if frames:
                self._reopen_if_moved()
            for begin, end in self._portions(frames):
                self._write(b"".join(frames[begin:end]))
                written = end
        except OSError as error:
            errors.update(dict.fromkeys(indices[written:], self._explained(error)))
        try:
            if written and self._fsync == "batch" and self._regular:
                os.fsync(self._fd)
        except OSError as error:  # which of them are on the disk, nobody knows
            errors.update(dict.fromkeys(indices, self._explained(error)))
        if errors:
            raise BatchFailed(errors)
        return events

    def _encoded(self, events: list[Event[Any]]) -> tuple[list[bytes], list[int], dict[int, BaseException]]:
        """The frames, which event each is of, and what could not be encoded."""
        frames: list[bytes] = []
        indices: list[int] = []
        errors: dict[int, BaseException] = {}
        encode, frame = self._encode, self._framing.frame
        whole, never = self._what == "event", self._what == "data"
        for index, event in enumerate(events):
            try:
                data = event.to_wire() if whole or (event.failures and not never) else event.data
                frames.append(frame(encode(data)))
                indices.append(index)
            except ValueError as error:
                errors[index] = error
        return frames, indices, errors

    def _write(self, raw: bytes) -> None:
        view, done = memoryview(raw), 0
        try:
            while done < len(raw):
                done += os.write(self._fd, view[done:])
        except OSError:
            self._take_back(done)
            raise
        self._size += done

    def _take_back(self, begun: int) -> None:
        """Cut off what was begun, unless somebody else has written behind it."""
        if begun and self._regular:
            try:
                if os.fstat(self._fd).st_size == self._size + begun:
                    os.ftruncate(self._fd, self._size)
            except OSError as error:
                self._context.log.error("%s ends with half an event now: %s", self._path, error)

    def _explained(self, error: OSError) -> OSError:
        return OSError(error.errno, f"{self._path}: {error.strerror or error}")

    def _reopen_if_moved(self) -> None:
        if self._fd < 0:
            self._open()
        elif self._regular:
            try:
                found = os.stat(self._path)
                if (found.st_dev, found.st_ino) == self._identity:
                    return
            except FileNotFoundError:
                pass
            self._close()
            self._open()

    # ------------------------------------------------------------------ rotation

    def _portions(self, frames: list[bytes]) -> Iterator[tuple[int, int]]:
        """The stretches of `frames` that go into one file each. The next file is begun when the next is asked for."""
        if self._rotate_every is not None and self._context.now() - self._opened_at >= self._rotate_every:
            self._rotate()
        begin, size = 0, self._size
        for index, frame in enumerate(frames if self._rotate_size is not None else ()):
            if size and self._rotate_size is not None and size + len(frame) > self._rotate_size:
                if index > begin:
                    yield begin, index
                self._rotate()
                begin, size = index, self._size
            size += len(frame)
        if begin < len(frames):
            yield begin, len(frames)

    def _rotate(self) -> None:
        if not self._regular or not self._size:
            return
        self._close()
        try:
            if self._keep:
                for number in range(self._keep - 1, 0, -1):
                    if os.path.exists(f"{self._path}.{number}"):
                        os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
                os.replace(self._path, f"{self._path}.1")
            else:
                os.remove(self._path)
        except OSError as error:  # a file that grows too large is better than events that are lost
            self._rotate_size = self._rotate_every = None
            self._context.log.error("%s cannot be rotated, and will only grow: %s", self._path, error)
        self._open()
