"""How far each file has been read, kept over a restart.

A position passes only what is settled: it stands before the first batch of which an event is still open, so after a
crash everything unsettled is read again, and some of what came after it too.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import msgspec

from furcula.errors import FurculaError

__all__ = ["Batch", "Position", "Positions", "Progress"]


class Position(msgspec.Struct, frozen=True):
    """A place in a file, and which file that was: names change when logs are rotated, inodes do not."""

    inode: int
    offset: int


class Batch(msgspec.Struct):
    """Events that were admitted together: where in the file they end, and how many are not settled."""

    end: int
    open: int


class Progress:
    """What of one file is settled: the longest prefix without an open batch.

    Attributes:
        offset: Everything before it is settled.
    """

    def __init__(self, offset: int = 0):
        self.offset = offset
        self._batches: deque[Batch] = deque()

    @property
    def settled(self) -> bool:
        """Is nothing open?"""
        return not self._batches

    def begin(self, end: int, count: int) -> Batch:
        """A batch of `count` events that reaches up to `end` has been admitted."""
        batch = Batch(end, count)
        self._batches.append(batch)
        self._move()
        return batch

    def settle(self, batch: Batch) -> None:
        """One event of the batch is settled."""
        batch.open -= 1
        if not batch.open:
            self._move()

    def _move(self) -> None:
        while self._batches and not self._batches[0].open:
            self.offset = self._batches.popleft().end


class Positions:
    """The file in which positions are kept: JSON, replaced as a whole, so a crash leaves the old one or the new."""

    def __init__(self, path: Path):
        self._path = path
        self._written: dict[str, Position] = {}

    def load(self) -> dict[str, Position]:
        """The positions by the path of the file they are in.

        Raises:
            FurculaError: The file is there and is no such file. To read it as empty would read everything again.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FurculaError(f"the positions {self._path} cannot be read: {error.strerror}") from error
        try:
            self._written = msgspec.json.decode(raw, type=dict[str, Position])
        except (msgspec.DecodeError, ValueError) as error:
            raise FurculaError(
                f"the positions {self._path} are damaged ({error}); remove the file to read everything from the start"
            ) from None
        return dict(self._written)

    def save(self, positions: dict[str, Position]) -> None:
        """Write them, if they have changed. On return they are on the disk."""
        if positions == self._written:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        with open(new, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(positions), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name itself
        finally:
            os.close(folder)
        self._written = dict(positions)
