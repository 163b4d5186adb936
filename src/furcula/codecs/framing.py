"""Framing: where in a stream of bytes one value ends and the next begins.

`Framing` is what the user wrote, as a value. `framing.framer(max_frame)` makes a `Framer`, which holds the state of one
stream: feed it what came, get whole frames back. A frame above the limit is reported once, with its first bytes, and
skipped without being kept, so memory stays at the limit whatever a peer sends; then the framer is in step again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from furcula.errors import nearest

__all__ = ["EXCERPT", "BadFrame", "Frame", "Framer", "Framing"]

#: So many bytes of a bad frame are shown.
EXCERPT = 1000


class BadFrame(msgspec.Struct, frozen=True):
    """Bytes that are no frame, or no value. Becomes an event on `invalid`.

    Attributes:
        reason: Why, in a few words.
        raw: The first bytes of it, `EXCERPT` at most.
    """

    reason: str
    raw: bytes = b""

    @classmethod
    def of(cls, reason: str, raw: bytes | bytearray) -> BadFrame:
        return cls(reason, bytes(raw[:EXCERPT]))


Frame: TypeAlias = bytes | BadFrame


class Framer(Protocol):
    """The state of one stream.

    Attributes:
        ends: For each frame of the last answer, how far into the stream (in bytes) it reached, its delimiter included.
    """

    @property
    def ends(self) -> list[int]: ...

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that are complete now, in order."""

    def end(self) -> list[Frame]:
        """The stream has ended: what is left of it. The framer is then as new."""


Kind = Literal["lines", "delimiter", "length-prefix", "none"]
_KINDS = ("lines", "delimiter", "length-prefix", "none")


class Framing(msgspec.Struct, frozen=True):
    """How frames are told apart.

    Attributes:
        kind: `lines`: each ends with LF, or CRLF. `delimiter`: each ends with `delimiter`. `length-prefix`: its length
            goes before it, as `size` bytes, the highest first. `none`: the whole stream, or datagram, is one frame.
        delimiter: Those bytes.
        size: 1, 2, 4 or 8.
    """

    kind: Kind = "lines"
    delimiter: bytes = b"\n"
    size: int = 4

    @classmethod
    def of(cls, spec: Any) -> Framing:
        """From what is written: `lines`, `none`, `length-prefix`, `{delimiter: ";"}` or `{length-prefix: 2}`.

        Raises:
            ValueError: It is none of these.
        """
        if isinstance(spec, Framing):
            return spec
        name, value = spec, None
        if isinstance(spec, Mapping) and len(spec) == 1:
            name, value = next(iter(spec.items()))
        if name not in _KINDS:
            hint = nearest(str(name), _KINDS)
            raise ValueError(f"there is no framing {name!r}{hint or '; there are ' + ', '.join(_KINDS)}")
        if name == "delimiter":
            delimiter = value.encode() if isinstance(value, str) else value
            if not isinstance(delimiter, bytes) or not delimiter:
                raise ValueError("the framing 'delimiter' needs one: {delimiter: \";\"}")
            return cls("delimiter", delimiter)
        if name == "length-prefix":
            size = 4 if value is None else value
            if isinstance(size, bool) or size not in (1, 2, 4, 8):
                raise ValueError(f"a length prefix has 1, 2, 4 or 8 bytes, not {size!r}")
            return cls("length-prefix", size=size)
        if value is not None:
            raise ValueError(f"the framing {name!r} takes no value")
        return cls(name)

    def framer(self, max_frame: int = 1_000_000) -> Framer:
        """A framer for one stream. `max_frame` is the most bytes that a frame may have."""
        if self.kind == "length-prefix":
            return _Prefixed(self.size, max_frame)
        if self.kind == "none":
            return _Whole(max_frame)
        return _Delimited(self.delimiter, max_frame, lines=self.kind == "lines")

    def frame(self, raw: bytes) -> bytes:
        """`raw` as a frame, for writing.

        Raises:
            ValueError: A reader would not see it as one frame: it has the delimiter inside, or is too long.
        """
        if self.kind == "none":
            return raw
        if self.kind == "length-prefix":
            if len(raw) >> (8 * self.size):
                raise ValueError(f"{len(raw)} bytes are too many for a length prefix of {self.size} byte(s)")
            return len(raw).to_bytes(self.size, "big") + raw
        if self.delimiter in raw:
            raise ValueError(f"it has the delimiter {self.delimiter!r} inside, so a reader would see two frames")
        return raw + self.delimiter


class _Delimited:
    def __init__(self, delimiter: bytes, max_frame: int, *, lines: bool):
        self._delimiter = delimiter
        self._max = max_frame
        self._lines = lines
        self._rest = bytearray()  # the frame that has begun; while skipping, only what a delimiter may begin with
        self._skipping = False
        self._offset = 0
        self._lengths: list[int] = []

    @property
    def ends(self) -> list[int]:
        return list(itertools.accumulate(self._lengths, initial=self._offset - sum(self._lengths)))[1:]

    def feed(self, chunk: bytes) -> list[Frame]:
        delimiter, rest = self._delimiter, self._rest
        self._lengths = []
        if rest:
            overlap = max(0, len(rest) - len(delimiter) + 1)
            rest += chunk
            if rest.find(delimiter, overlap) < 0:
                return self._wait()
            chunk = bytes(rest)
            rest.clear()
        elif delimiter not in chunk:
            rest += chunk
            return self._wait()
        pieces: list[Any] = chunk.split(delimiter)
        rest += pieces.pop()
        width = len(delimiter)
        lengths = [len(piece) + width for piece in pieces]
        if self._skipping:  # the end of a frame that was reported already
            self._skipping = False
            self._offset += lengths.pop(0)
            del pieces[0]
        self._lengths = lengths
        self._offset += sum(lengths)
        if lengths and max(lengths) - width > self._max:
            pieces = [piece if len(piece) <= self._max else self._too_long(piece) for piece in pieces]
        if self._lines and b"\r" in chunk:
            pieces = [p[:-1] if type(p) is bytes and p.endswith(b"\r") else p for p in pieces]
        if len(rest) > self._max:
            lengths_before = self._lengths
            pieces += self._wait()
            self._lengths = lengths_before + self._lengths
        return pieces

    def _wait(self) -> list[Frame]:
        """No end in sight: give up on a frame that is too long, and keep no more of it than could begin an end."""
        rest = self._rest
        if not self._skipping and len(rest) <= self._max:
            return []
        found: list[Frame] = [] if self._skipping else [self._too_long(rest)]
        keep = len(self._delimiter) - 1
        gone = max(0, len(rest) - keep)
        del rest[:gone]
        self._offset += gone
        # What was skipped so far belongs to the bad frame; the rest of it is counted when its end is found.
        self._lengths = [gone] if found else []
        self._skipping = True
        return found

    def _too_long(self, raw: bytes | bytearray) -> BadFrame:
        return BadFrame.of(f"longer than {self._max} bytes", raw)

    def end(self) -> list[Frame]:
        rest, skipping = bytes(self._rest), self._skipping
        self._rest.clear()
        self._skipping = False
        self._offset += len(rest)
        self._lengths = []
        if not rest or skipping:
            return []
        self._lengths = [len(rest)]
        return [rest[:-1] if self._lines and rest.endswith(b"\r") else rest]


class _Prefixed:
    def __init__(self, size: int, max_frame: int):
        self._size = size
        self._max = max_frame
        self._buffer = bytearray()
        self._skip = 0  # bytes still to come of a frame that was reported
        self._offset = 0
        self._ends: list[int] = []

    @property
    def ends(self) -> list[int]:
        return self._ends

    def feed(self, chunk: bytes) -> list[Frame]:
        buffer, size = self._buffer, self._size
        self._ends = []
        if self._skip:
            gone = min(self._skip, len(chunk))
            self._skip -= gone
            self._offset += gone
            chunk = chunk[gone:]
        buffer += chunk
        frames: list[Frame] = []
        at = 0
        while at + size <= len(buffer):
            length = int.from_bytes(buffer[at : at + size], "big")
            start, stop = at + size, at + size + length
            if length > self._max:
                frames.append(BadFrame.of(f"longer than {self._max} bytes: {length}", buffer[start:stop]))
                self._skip = max(0, stop - len(buffer))
                at = min(stop, len(buffer))
            elif stop <= len(buffer):
                frames.append(bytes(buffer[start:stop]))
                at = stop
            else:
                break
            self._ends.append(self._offset + at)
        del buffer[:at]
        self._offset += at
        return frames

    def end(self) -> list[Frame]:
        raw = bytes(self._buffer)
        self._buffer.clear()
        self._offset += len(raw)
        self._skip, skipped = 0, self._skip
        self._ends = []
        if not raw or skipped:
            return []
        self._ends = [self._offset]
        wanted = int.from_bytes(raw[: self._size], "big") if len(raw) >= self._size else None
        reason = "the stream ended inside a length" if wanted is None else "the stream ended inside a frame"
        if wanted is not None:
            reason += f": {len(raw) - self._size} of {wanted} bytes"
        return [BadFrame.of(reason, raw)]


class _Whole:
    def __init__(self, max_frame: int):
        self._max = max_frame
        self._buffer = bytearray()
        self._offset = 0
        self._bad = False
        self._ends: list[int] = []

    @property
    def ends(self) -> list[int]:
        return self._ends

    def feed(self, chunk: bytes) -> list[Frame]:
        self._offset += len(chunk)
        self._ends = []
        if self._bad:
            return []
        self._buffer += chunk
        if len(self._buffer) <= self._max:
            return []
        self._bad = True
        found = BadFrame.of(f"longer than {self._max} bytes", self._buffer)
        self._buffer.clear()
        self._ends = [self._offset]
        return [found]

    def end(self) -> list[Frame]:
        raw, bad = bytes(self._buffer), self._bad
        self._buffer.clear()
        self._bad = False
        self._ends = []
        if bad or not raw:
            return []
        self._ends = [self._offset]
        return [raw]
