"""Read files, once or as they grow, and remember how far.

A *tail* is one file (one inode) being read under one name. When a log is rotated, the name's tail is read to its end,
and a new one begins; the old one stays known until all its events are settled, because until then the name's position
is still in it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import glob
import os
import stat
from typing import Any, ClassVar, Final, Literal

from furcula.codecs import BadFrame, Framing, Reader
from furcula.codecs import codec as codec_named
from furcula.errors import FurculaError, Stopped
from furcula.event import MISSING, Event
from furcula.module import Context, Source
from furcula.modules.positions import Batch, Position, Positions, Progress
from furcula.modules.received import admit_both, invalid
from furcula.options import Duration, Size
from furcula.receipt import Slot

__all__ = ["FileRead"]

POLL: Final = Duration("250ms")
MAX_FRAME: Final = Size("1MB")
CHUNK: Final = 65536
#: So many chunks of one file are read before the next file has its turn.
TURN: Final = 16
SAVE_EVERY_S: Final = 1.0


class _Tail:
    """One file that is being read under one name."""

    def __init__(self, path: str, fd: int, identity: tuple[int, int], offset: int, reader: Reader):
        self.path = path
        self.fd = fd
        self.identity = identity
        self.base = offset  # where the reader's stream begins
        self.read_to = offset
        self.admitted_to = offset
        self.reader = reader
        self.progress = Progress(offset)
        self.missing = False  # is there no file of this name now?

    @property
    def position(self) -> Position:
        return Position(self.identity[1], self.progress.offset)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FileRead(Source):
    """Read events from files, to their end or as they grow.

    With `follow`, files that are rotated are read to their end before their successors, files that are cut are read
    from the start again, and files that are not there yet are waited for. A last line without an end waits for
    its end, or, without `follow`, is taken as it is. What cannot be read leaves by `invalid`. Headers: `file` and
    `offset`.

    With `positions`, reading goes on after a restart where everything before was settled; some events come twice then.

    Args:
        path: The file, or a pattern (`logs/*.log`); relative to the flow's folder.
        codec: What a value looks like: json, msgpack, text, binary.
        framing: Where it ends: lines, {delimiter: ";"}, length-prefix or {length-prefix: 2}, none (all of it).
        follow: Go on when a file ends: wait for more.
        positions: A file in which to keep how far was read; one for each module.
        from_start: False: of files that are there at the start, only what is added, where no position is known.
        poll: How often to look for more.
        max_frame: Bytes that a value may have.
        charset: Of text and JSON.
        on_refused: What the position does at an event that failed and that nothing caught: `skip`: pass it; `hold`:
            stay, so that it is read again after a restart.
    """

    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)

    _context: Context

    def __init__(
        self,
        *,
        path: str,
        codec: str = "text",
        framing: str | dict[str, Any] = "lines",
        follow: bool = False,
        positions: str | None = None,
        from_start: bool = True,
        poll: Duration = POLL,
        max_frame: Size = MAX_FRAME,
        charset: str = "utf-8",
        on_refused: Literal["skip", "hold"] = "skip",
    ):
        self._pattern = path
        self._codec = codec_named(codec, charset)
        self._framing = Framing.of(framing)
        self._follow = follow
        self._positions_path = positions
        self._from_start = from_start
        self._poll_s = float(poll) or 0.001
        self._max_frame = max_frame
        self._on_refused = on_refused
        #: Events that failed and that nothing caught.
        self.refused = 0
        self._kept: Positions | None = None
        self._known: dict[str, Position] = {}
        self._tails: dict[str, _Tail] = {}
        self._older: list[_Tail] = []  # read to their end; until they are settled, their name's position is in them
        self._done: set[tuple[int, int]] = set()  # files read to their end that may be seen again under another name
        self._first = True
        self._saved_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._ceased = asyncio.Event()

    # ------------------------------------------------------------------ phases

    async def start(self, context: Context) -> None:
        self._context = context
        pattern = str(context.folder / self._pattern)
        if self._positions_path is not None:
            self._kept = Positions(context.folder / self._positions_path)
            self._known = self._kept.load()
        if not self._follow:
            self._check(pattern)
        self._task = asyncio.ensure_future(self._run(pattern))

    def _check(self, pattern: str) -> None:
        paths = [path for path in _matching(pattern) if os.path.exists(path)]
        if not paths:
            raise FurculaError(
                f"{self._context.name} cannot read {pattern}: "
                + ("no file is like that" if glob.has_magic(pattern) else "there is no such file")
                + "; with follow: true it would be waited for"
            )
        for path in paths:
            if not os.path.isfile(path):
                raise FurculaError(f"{self._context.name} cannot read {path}: it is not a file")
            if not os.access(path, os.R_OK):
                raise FurculaError(f"{self._context.name} cannot read {path}: that is not permitted")

    async def _run(self, pattern: str) -> None:
        try:
            await self._resume(pattern)
            while not self._ceased.is_set():
                busy = await self._round(_matching(pattern))
                self._save(SAVE_EVERY_S)
                if not self._follow:
                    break
                if not busy:
                    await self._wait()
        except Stopped:
            pass
        except Exception:
            self._context.log.exception("reading %s", pattern)
        finally:
            self._context.finished()

    async def _round(self, paths: list[str]) -> bool:
        """Look at each name, and read of each file what is there, up to a turn's worth. Returns: was there anything?"""
        busy = False
        present: set[tuple[int, int]] = set()
        for path in paths:
            identity = await self._look(path)
            if identity is not None:
                present.add(identity)
            tail = self._tails.get(path)
            if tail is not None and self._follow:
                busy |= await self._read(tail)
            elif tail is not None:
                await self._finish(tail)
        self._done &= present
        self._first = False
        return busy

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._poll_s):
                await self._ceased.wait()
        except TimeoutError:
            pass

    def cease(self) -> None:
        """Read no more."""
        self._ceased.set()

    async def stop(self) -> None:
        self._ceased.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for tail in self._tails.values():
            tail.close()
        self._save(0)

    # ------------------------------------------------------------------ which files

    async def _resume(self, pattern: str) -> None:
        """Read what is left of files that were rotated away while we were not running."""
        for path, position in list(self._known.items()):
            if path != pattern and not fnmatch.fnmatchcase(path, pattern):
                continue
            there = os.path.exists(path)
            if there and os.stat(path).st_ino == position.inode:
                continue
            renamed = _find_inode(path, position.inode)
            if renamed is not None:
                if (tail := self._open(renamed, position.offset, name=path)) is not None:
                    await self._finish(tail)
                continue
            self._context.log.warning("%s is gone, with what was not read of it", path)
            if not there:
                del self._known[path]

    async def _look(self, path: str) -> tuple[int, int] | None:
        """See what has this name now: the file we know, another one, the same one cut, or nothing. Returns which."""
        tail = self._tails.get(path)
        try:
            found = os.stat(path)
        except OSError:
            if tail is not None and not tail.missing:
                tail.missing = True
                self._context.log.warning("%s is gone; waiting for it to come back", path)
            return None
        identity = (found.st_dev, found.st_ino)
        offset = 0
        if tail is None:
            if identity in self._done or any(other.identity == identity for other in self._tails.values()):
                return identity  # a file we know, under the name that it has now
            offset = self._beginning(path, found)
        elif identity != tail.identity:
            self._context.log.info("%s was rotated", path)
            await self._finish(tail)
        elif found.st_size < tail.read_to:
            self._context.log.warning("%s was cut to %d bytes; reading it from the start", path, found.st_size)
            tail.close()
            self._older.append(tail)
        else:
            tail.missing = False
            return identity
        if not self._ceased.is_set() and (opened := self._open(path, offset)) is not None:
            self._tails[path] = opened
        return identity

    def _beginning(self, path: str, found: os.stat_result) -> int:
        """Where to begin in a file that is seen for the first time."""
        position = self._known.get(path)
        if position is not None:
            return position.offset if position.inode == found.st_ino and position.offset <= found.st_size else 0
        return 0 if self._from_start or not self._first else found.st_size

    def _open(self, path: str, offset: int, name: str = "") -> _Tail | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._context.log.error("cannot read %s: %s", path, error.strerror)
            return None
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            self._context.log.error("cannot read %s: it is not a file", path)
            return None
        offset = offset if offset <= found.st_size else 0
        os.lseek(fd, offset, os.SEEK_SET)
        reader = Reader.of(self._framing.framer(self._max_frame), self._codec)
        return _Tail(name or path, fd, (found.st_dev, found.st_ino), offset, reader)

    async def _finish(self, tail: _Tail) -> None:
        """Read a file to its end, and what stands behind its last delimiter too: nothing more will be written to it."""
        while await self._read(tail):
            if self._ceased.is_set():
                return
        await self._admit(tail, tail.reader.end())
        tail.close()
        self._tails.pop(tail.path, None)
        self._older.append(tail)
        self._done.add(tail.identity)

    # ------------------------------------------------------------------ reading

    async def _read(self, tail: _Tail) -> bool:
        """Read a turn's worth. Returns: was there anything?"""
        for turn in range(TURN):
            if self._ceased.is_set():
                return True
            chunk = os.read(tail.fd, CHUNK)
            if not chunk:
                return turn > 0
            tail.read_to += len(chunk)
            await self._admit(tail, tail.reader.feed(chunk))
        return True

    async def _admit(self, tail: _Tail, items: list[Any]) -> None:
        if not items:
            return
        good: list[Event[Any]] = []
        bad: list[Event[Any]] = []
        begin = tail.admitted_to
        for item, end in zip(items, tail.reader.ends, strict=True):
            headers = {"file": tail.path, "offset": begin}
            if type(item) is BadFrame:
                bad.append(invalid(item, headers))
            elif item is not MISSING:
                good.append(Event(item, headers))
            begin = tail.base + end
        tail.admitted_to = begin
        settled = None
        if self._kept is not None:
            # Opened before it is admitted: a flow without queues has settled it when `admit` returns.
            batch = tail.progress.begin(begin, len(good) + len(bad))
            settled = functools.partial(self._settled, tail, batch)
        waits = admit_both(self._context, good, bad, settled)
        if waits is None:
            await asyncio.sleep(0)
        else:
            await asyncio.shield(waits)

    def _settled(self, tail: _Tail, batch: Batch, slot: Slot) -> None:
        if slot.fate == "failed":
            if slot.reason in ("abandoned", "lost"):
                return  # nobody's fault: the position stays, and it is read again
            self.refused += 1
            self._context.log.warning("an event of %s failed: %s", tail.path, slot.failure or slot.reason)
            if self._on_refused == "hold":
                return
        tail.progress.settle(batch)

    # ------------------------------------------------------------------ positions

    def _save(self, every_s: float) -> None:
        """Write the positions, unless that was done less than `every_s` ago. A name's position is in its oldest file
        that is not settled."""
        if self._kept is None:
            self._older.clear()
            return
        now = asyncio.get_running_loop().time()
        if now - self._saved_at < every_s:
            return
        self._saved_at = now
        decided: set[str] = set()
        for tail in (*self._older, *self._tails.values()):
            if tail.path not in decided:
                self._known[tail.path] = tail.position
                if not tail.progress.settled:
                    decided.add(tail.path)
        self._older = [tail for tail in self._older if not tail.progress.settled]
        try:
            self._kept.save(self._known)
        except OSError as error:
            self._context.log.error("the positions could not be saved: %s", error)


def _matching(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]


def _find_inode(path: str, inode: int) -> str | None:
    """The file that had this name, under the name it has now: beside it, and beginning with it (`app.log.1`)."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(name) and entry.inode() == inode:
                    return entry.path
    except OSError:
        pass
    return None
