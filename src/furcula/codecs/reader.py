"""A stream of bytes read as values: a framer and a decoder together, whole chunks at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from furcula.codecs.codec import Codec, Json
from furcula.codecs.framing import BadFrame, Frame, Framer
from furcula.errors import InputError
from furcula.event import MISSING

__all__ = ["Reader", "sorted_out"]


class Reader:
    """Reads one stream.

    Args:
        framer: Where values end.
        decode: What they say; raises InputError.
        blank: Give blank frames to `decode` too. False: they are nothing, as JSON between empty lines is.
    """

    def __init__(self, framer: Framer, decode: Callable[[bytes], Any], *, blank: bool = True):
        self._framer = framer
        self._decode = decode
        self._blank = blank

    @classmethod
    def of(cls, framer: Framer, codec: Codec) -> Reader:
        return cls(framer, codec.decode, blank=not isinstance(codec, Json))

    @property
    def ends(self) -> list[int]:
        """For each item of the last answer, how far into the stream it reached."""
        return self._framer.ends

    def feed(self, chunk: bytes) -> list[Any]:
        """One item for each frame: its data, a `BadFrame`, or MISSING for a blank one."""
        return self._read(self._framer.feed(chunk))

    def end(self) -> list[Any]:
        """The same for what is left when the stream has ended."""
        return self._read(self._framer.end())

    def _read(self, frames: list[Frame]) -> list[Any]:
        if not _ALL_BYTES.issuperset(map(type, frames)):
            return [frame if isinstance(frame, BadFrame) else self._one(frame) for frame in frames]
        # The iterator goes on behind a frame that raised, and what it had given before is kept.
        items: list[Any] = []
        decoded = map(self._decode, frames)  # type: ignore[arg-type]
        while True:
            try:
                items.extend(decoded)
                return items
            except InputError as error:
                items.append(self._refused(frames[len(items)], error))

    def _one(self, frame: bytes) -> Any:
        try:
            return self._decode(frame)
        except InputError as error:
            return self._refused(frame, error)

    def _refused(self, frame: Any, error: InputError) -> Any:
        if not self._blank and not frame.strip():
            return MISSING
        return BadFrame.of(str(error), frame)


_ALL_BYTES = frozenset((bytes,))


def sorted_out(items: list[Any]) -> tuple[list[Any], list[BadFrame]]:
    """The items of a reader, parted: the data, and what was bad."""
    bad = [item for item in items if type(item) is BadFrame]
    if bad or MISSING in items:
        return [item for item in items if type(item) is not BadFrame and item is not MISSING], bad
    return items, bad
