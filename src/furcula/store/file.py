"""The store's file: its tables, what is done with them, and what is checked before anything of it is trusted.

A queue is a table of its own, so taking from its head is a walk along the primary key. A row that somebody has in hand
bears the number of its owner; when that owner's process has gone, the row is anybody's again, with the attempt charged.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from furcula.errors import StoreDamaged, StoreError, StoreUnavailable
from furcula.store.log import LogState, read_log
from furcula.store.owners import Ownership, is_alive, owners

__all__ = ["APPLICATION_ID", "VERSION", "Letter", "StoreFile", "Taken"]

#: "furc": tells a store from any other SQLite file.
APPLICATION_ID = 0x66757263
#: The version of the tables and of the bytes in them. One that is not this one is not touched.
VERSION = 1
#: Files that were not closed in order are read through once, unless they are larger than this.
CHECKED_BYTES = 256 * 1024 * 1024

_log = logging.getLogger("furcula.store")

#: Rows that are inserted by one statement.
_ROWS = (256, 32, 4, 1)

_TABLES = """
CREATE TABLE channel (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, flow TEXT NOT NULL, module TEXT NOT NULL,
    path TEXT NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL,
    queue TEXT NOT NULL, replay INTEGER NOT NULL DEFAULT 0, owner INTEGER NOT NULL DEFAULT 0, event BLOB NOT NULL
);
"""
_QUEUE = """CREATE TABLE IF NOT EXISTS queue_{} (
    id INTEGER PRIMARY KEY, owner INTEGER NOT NULL DEFAULT 0, visible REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL
)"""


class Taken(msgspec.Struct, frozen=True, gc=False):
    """One body that was taken from a queue.

    Attributes:
        id: Its row.
        attempts: How often it was handed out, this time included.
    """

    id: int
    attempts: int
    body: bytes


class Letter(msgspec.Struct, frozen=True):
    """One event that could not be delivered.

    Attributes:
        id: Its number in the store; 0 before it is stored.
        at: Unix time in seconds when it failed.
        flow: The flow's name.
        module: The module where it failed.
        path: Where it came from and where it failed on its way: the origin, then the modules named in its failures.
        error: The exception's class name.
        message: The exception's text.
        traceback: The formatted traceback, or empty.
        attempts: How often it was tried.
        queue: The durable queue it was rejected from; empty: it came by a route.
        replay: Somebody has asked that it be tried again.
        event: The event, as `codecs.encode_events` makes it of one event.
    """

    at: float
    flow: str
    module: str
    path: tuple[str, ...]
    error: str
    message: str
    traceback: str
    attempts: int
    event: bytes
    queue: str = ""
    replay: bool = False
    id: int = 0


_LETTER = "id, at, flow, module, path, error, message, traceback, attempts, queue, replay, event"


class StoreFile:
    """One store, opened. For one thread at a time.

    Args:
        path: The file. It is made if it is not there.
        busy_s: Seconds to wait for another program that is writing.
        owns: May take from queues. Whoever only looks or brings says False.

    Raises:
        StoreDamaged: It is no store, one of another version, or damaged.
        StoreUnavailable: The file cannot be opened or written now.
        StoreError: It cannot be there: no such folder, no permission.
    """

    def __init__(self, path: str | Path, *, busy_s: float = 5.0, owns: bool = True):
        self.path = Path(path).absolute()
        self._channels: dict[str, int] = {}
        self._ownership: Ownership | None = None
        self._owner = 0
        log = self._look_first()
        try:
            self._db = sqlite3.connect(self.path, timeout=busy_s, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self.explained(error) from error
        try:
            self._prepare(log)
            if owns:
                self._own()
        except sqlite3.Error as error:
            self.close()
            raise self.explained(error) from error
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ opening and closing

    def _look_first(self) -> LogState | None:
        """What must be known before SQLite opens the file: once it has, the end of a damaged log is gone."""
        if not self.path.parent.is_dir():
            raise StoreError(f"the store {self.path} cannot be made: there is no folder {self.path.parent}")
        try:
            with open(self.path, "rb") as file:
                head = file.read(16)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be read: {error.strerror}") from None
        if head and head != b"SQLite format 3\0":
            raise StoreDamaged(f"{self.path} is no store of furcula, nor any SQLite file; name another path")
        if self._in_use():
            return None  # somebody else has checked it, and is writing
        log = read_log(self._log_path)
        if log.torn_commits > 1 or log.header_torn:
            raise StoreDamaged(
                f"the write-ahead log {self._log_path} is damaged after page {log.pages}: {log.torn_commits} commits "
                f"cannot be read whole. Copy {self.path} and {self._log_path} to a safe place; then, to go on with "
                f"what stands before the damage: sqlite3 {self.path} 'PRAGMA wal_checkpoint(TRUNCATE)'"
            )
        return log

    @property
    def _log_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    def _in_use(self) -> bool:
        return any(is_alive(self.path, name) for name in owners(self.path))

    def _prepare(self, log: LogState | None) -> None:
        db = self._db
        new = self._is_new()
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        if new:
            db.execute("BEGIN IMMEDIATE")
            if self._is_new():  # still: another process may have been quicker
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        if log is not None and (log.pages or log.torn):
            self._check(log)

    def _is_new(self) -> bool:
        """Has the file no tables yet? Raises if it has, and they are not ours."""
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables:
            return True
        if application != APPLICATION_ID:
            raise StoreDamaged(f"{self.path} is an SQLite file, but no store of furcula; name another path")
        if version != VERSION:
            raise StoreDamaged(
                f"{self.path} is a store of version {version}; this furcula reads version {VERSION}. Drain it with "
                "the furcula that wrote it, or name another path"
            )
        return False

    def _check(self, log: LogState) -> None:
        """The last one to use it did not close it: read it through, and say what was found."""
        if log.torn:
            _log.warning(
                "%s: the last %d page(s) of the write-ahead log are of a commit that was cut off; it is undone. "
                "Nobody was told that it had succeeded",
                self.path,
                log.torn,
            )
        if self.path.stat().st_size > CHECKED_BYTES:
            return
        found = [row[0] for row in self._db.execute("PRAGMA quick_check(3)")]
        if found != ["ok"]:
            raise StoreDamaged(
                f"{self.path} is damaged: {'; '.join(found)}. Copy it to a safe place; `sqlite3 {self.path} .recover` "
                "writes what can be read of it"
            )

    def _own(self) -> None:
        self._ownership = Ownership(self.path)
        self._owner = self._ownership.number
        with_owner = (self._owner, self._ownership.name)
        self.transaction(lambda: self._db.execute("INSERT OR REPLACE INTO owner VALUES (?, ?)", with_owner))
        self.transaction(self.take_over)

    def close(self) -> None:
        """Let go of what was taken and not spoken of, and close. May be repeated."""
        ownership, self._ownership = self._ownership, None
        if ownership is not None:
            try:
                self.transaction(lambda: self._disown(self._owner, charged=False))
            except (StoreError, sqlite3.Error) as error:  # whoever opens it next sees that the owner has gone
                _log.warning("%s: what was in hand could not be given back: %s", self.path, error)
            ownership.release()
        self._db.close()

    def explained(self, error: Exception) -> StoreError:
        """SQLite's error in our words."""
        code = getattr(error, "sqlite_errorcode", None) or 0
        primary = code & 0xFF
        if primary == sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"the store {self.path} has no room: the disk is full. Nothing was stored")
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreUnavailable(f"the store {self.path} is locked by another program. Nothing was stored")
        if primary == sqlite3.SQLITE_IOERR:
            return StoreUnavailable(f"the store {self.path} cannot be written: {error}. Nothing was stored")
        if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreError(f"the store {self.path} cannot be opened for writing: {error}")
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StoreDamaged(f"{self.path} is damaged: {error}. Copy it to a safe place before anything else")
        return StoreError(f"the store {self.path}: {error}")

    def transaction(self, work: Callable[[], Any]) -> Any:
        """Do `work` in a commit of its own. On return it is on the disk; if this raises, nothing was done."""
        self.begin()
        try:
            result = work()
            self.commit()
        except BaseException:
            self.roll_back()
            raise
        return result

    def begin(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def commit(self) -> None:
        try:
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def roll_back(self) -> None:
        self._channels.clear()  # what was made within may be gone
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            _log.error("%s: %s", self.path, error)

    def seen_version(self) -> int:
        """A number that changes when another connection has committed something."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    # ------------------------------------------------------------------ queues: all of it within a transaction

    def _queue(self, channel: str) -> int:
        number = self._channels.get(channel)
        if number is None:
            self._db.execute("INSERT OR IGNORE INTO channel (name) VALUES (?)", (channel,))
            (number,) = self._db.execute("SELECT id FROM channel WHERE name = ?", (channel,)).fetchone()
            self._db.execute(_QUEUE.format(number))
            self._channels[channel] = number
        return number

    def put(self, channel: str, bodies: Sequence[bytes]) -> None:
        """Add bodies to the end of a queue, in their order."""
        insert = f"INSERT INTO queue_{self._queue(channel)} (body) VALUES "
        at = 0
        # Many rows in one statement: between two statements Python's lock is let go and taken again, and whoever has
        # it meanwhile (the event loop) keeps it for a while. A handful of sizes, so that statements are prepared once.
        for size in _ROWS:
            values = ",".join(["(?)"] * size)
            while len(bodies) - at >= size:
                self._db.execute(insert + values, bodies[at : at + size])
                at += size

    def take(self, channel: str, most: int, now: float | None = None) -> list[Taken]:
        """The next bodies of a queue, at most `most`; they are this owner's, and an attempt is charged for each."""
        table = f"queue_{self._queue(channel)}"
        now = time.time() if now is None else now
        rows = self._db.execute(
            f"SELECT id, attempts + 1, body FROM {table} WHERE owner = 0 AND visible <= ? ORDER BY id LIMIT ?",
            (now, most),
        ).fetchall()
        if rows:
            self._db.execute(
                f"UPDATE {table} SET owner = ?, attempts = attempts + 1 "
                "WHERE id BETWEEN ? AND ? AND owner = 0 AND visible <= ?",
                (self._owner, rows[0][0], rows[-1][0], now),
            )
        return [Taken(*row) for row in rows]

    def done(self, channel: str, ids: Iterable[int]) -> None:
        """Remove what this owner has taken."""
        table = f"queue_{self._queue(channel)}"
        self._db.executemany(
            f"DELETE FROM {table} WHERE id BETWEEN ? AND ? AND owner = ?",
            [(first, last, self._owner) for first, last in _ranges(ids)],
        )

    def back(self, channel: str, ids: Iterable[int], *, delay_s: float = 0.0, charged: bool = True) -> None:
        """Give back what this owner has taken: to its old place, to be handed out after `delay_s` seconds."""
        visible = time.time() + delay_s if delay_s else 0.0
        self._db.executemany(
            f"UPDATE queue_{self._queue(channel)} SET owner = 0, visible = ?, attempts = attempts - ? "
            "WHERE id = ? AND owner = ?",
            [(visible, not charged, number, self._owner) for number in ids],
        )

    def count(self, channel: str) -> int:
        """How many bodies are in a queue, those in hand included."""
        (count,) = self._db.execute(f"SELECT count(*) FROM queue_{self._queue(channel)}").fetchone()
        return int(count)

    def peek(self, channel: str, most: int = -1) -> list[bytes]:
        """The first bodies of a queue, those in hand included; they stay where they are."""
        rows = self._db.execute(f"SELECT body FROM queue_{self._queue(channel)} ORDER BY id LIMIT ?", (most,))
        return [row[0] for row in rows]

    def has_unread(self, channel: str) -> bool:
        """Is there a body in a queue that nobody has in hand?"""
        found = self._db.execute(f"SELECT 1 FROM queue_{self._queue(channel)} WHERE owner = 0 LIMIT 1").fetchone()
        return found is not None

    def visible_at(self, channel: str) -> float | None:
        """The Unix time at which the next body may be taken; None: there is none that nobody has in hand."""
        (found,) = self._db.execute(f"SELECT min(visible) FROM queue_{self._queue(channel)} WHERE owner = 0").fetchone()
        return found if found is None else float(found)

    def channels(self) -> list[str]:
        """The names of the queues."""
        return [row[0] for row in self._db.execute("SELECT name FROM channel ORDER BY name")]

    def take_over(self) -> int:
        """Give back what owners had in hand that have gone. Returns how many bodies that were."""
        found = 0
        for number, name in self._db.execute("SELECT id, name FROM owner").fetchall():
            if number != self._owner and not is_alive(self.path, name):
                found += self._disown(number, charged=True)
        return found

    def _disown(self, number: int, *, charged: bool) -> int:
        found = 0
        for (table,) in self._db.execute("SELECT id FROM channel").fetchall():
            found += self._db.execute(
                f"UPDATE queue_{table} SET owner = 0, attempts = attempts - ? WHERE owner = ?", (not charged, number)
            ).rowcount
        found += self._db.execute("UPDATE letter SET owner = 0 WHERE owner = ?", (number,)).rowcount
        self._db.execute("DELETE FROM owner WHERE id = ?", (number,))
        return found

    # ------------------------------------------------------------------ dead letters

    def bury(self, letters: Iterable[Letter]) -> None:
        """Keep letters."""
        self._db.executemany(
            "INSERT INTO letter (at, flow, module, path, error, message, traceback, attempts, queue, event) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    one.at, one.flow, one.module, json.dumps(one.path), one.error, one.message, one.traceback,
                    one.attempts, one.queue, one.event,
                )
                for one in letters
            ],
        )  # fmt: skip

    def reject(self, channel: str, number: int, make: Callable[[bytes], Letter]) -> None:
        """Turn what this owner has taken from a queue into a letter, which `make` writes from the body."""
        table = f"queue_{self._queue(channel)}"
        row = self._db.execute(f"SELECT body FROM {table} WHERE id = ? AND owner = ?", (number, self._owner)).fetchone()
        if row is not None:
            self.bury([make(row[0])])
            self._db.execute(f"DELETE FROM {table} WHERE id = ?", (number,))

    def letters(
        self, *, module: str | None = None, flow: str | None = None, after: int = 0, most: int = -1
    ) -> list[Letter]:
        """Letters in the order in which they came, those with a number above `after`."""
        rows = self._db.execute(
            f"SELECT {_LETTER} FROM letter WHERE id > ? AND (? IS NULL OR module = ?) AND (? IS NULL OR flow = ?) "
            "ORDER BY id LIMIT ?",
            (after, module, module, flow, flow, most),
        )
        return [_letter(row) for row in rows]

    def letter(self, number: int) -> Letter | None:
        """One letter, or None."""
        row = self._db.execute(f"SELECT {_LETTER} FROM letter WHERE id = ?", (number,)).fetchone()
        return None if row is None else _letter(row)

    def discard(self, numbers: Iterable[int]) -> int:
        """Remove letters for good. Those that somebody is replaying now stay. Returns how many were removed."""
        return self._db.executemany(
            "DELETE FROM letter WHERE id = ? AND owner IN (0, ?)", [(number, self._owner) for number in numbers]
        ).rowcount

    def replay(self, numbers: Iterable[int]) -> list[tuple[int, Literal["queue", "waits", "gone"], str]]:
        """Try letters again: those of a durable queue go back to its end, others wait for `dead_letter.replay`.

        Returns:
            For each its number, what becomes of it, and the queue or module it is for.
        """
        found: list[tuple[int, Literal["queue", "waits", "gone"], str]] = []
        for number in numbers:
            letter = self.letter(number)
            if letter is None:
                found.append((number, "gone", ""))
            elif letter.queue:
                self.put(letter.queue, [letter.event])
                self._db.execute("DELETE FROM letter WHERE id = ?", (number,))
                found.append((number, "queue", letter.queue))
            else:
                self._db.execute("UPDATE letter SET replay = 1 WHERE id = ?", (number,))
                found.append((number, "waits", letter.module))
        return found

    def wanted(self, most: int, *, flow: str, modules: Sequence[str] = ()) -> list[Letter]:
        """Take letters of a flow that are to be tried again; they are this owner's until `discard` or `keep`.

        Args:
            modules: Only those that failed in these modules; empty: in any.
        """
        among = f"AND module IN ({', '.join('?' * len(modules))})" if modules else ""
        rows = self._db.execute(
            f"SELECT {_LETTER} FROM letter WHERE replay = 1 AND owner = 0 AND flow = ? {among} ORDER BY id LIMIT ?",
            (flow, *modules, most),
        ).fetchall()
        self._db.executemany("UPDATE letter SET owner = ? WHERE id = ?", [(self._owner, row[0]) for row in rows])
        return [_letter(row) for row in rows]

    def keep(self, numbers: Iterable[int], *, replay: bool = False) -> None:
        """Put letters that were taken by `wanted` back.

        Args:
            replay: They are still to be tried again.
        """
        self._db.executemany(
            "UPDATE letter SET owner = 0, replay = ?, attempts = attempts + ? WHERE id = ? AND owner = ?",
            [(replay, not replay, number, self._owner) for number in numbers],
        )


def _letter(row: tuple[Any, ...]) -> Letter:
    number, at, flow, module, path, error, message, trace, attempts, queue, replay, event = row
    return Letter(
        at, flow, module, tuple(json.loads(path)), error, message, trace, attempts, event, queue, bool(replay), number
    )


def _ranges(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, as first and last: one statement removes a whole batch."""
    found: list[tuple[int, int]] = []
    for number in sorted(ids):
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
