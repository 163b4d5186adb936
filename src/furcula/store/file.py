"""The store's file: its tables, what is done with them, and what is checked before anything of it is trusted.

A queue is a table of its own, so taking from its head is a walk along the primary key; what waits for its time stands
in another, so that nobody walks past it. A row that somebody has in hand bears the number of its owner; when that
owner's process has gone, the row is anybody's again.

SQLite's locks are the process's, not the connection's, and closing *any* descriptor of the file drops them all. So
nothing here opens the file but SQLite, which knows of that; and a child that was forked while its parent had the store
open is refused, because what it inherited of SQLite believes to have locks that it does not have.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from furcula.errors import StoreDamaged, StoreError, StoreUnavailable
from furcula.store.log import LogState, read_log
from furcula.store.owners import Ownership, begun_by, channel_mark, is_alive, owners, remove

__all__ = ["APPLICATION_ID", "VERSION", "Letter", "StoreFile", "Taken"]

#: "furc": tells a store from any other SQLite file.
APPLICATION_ID = 0x66757263
#: The version of the tables and of the bytes in them. One that is not this one is not touched.
VERSION = 1
#: Files that were not closed in order are read through once, unless they are larger than this.
CHECKED_BYTES = 256 * 1024 * 1024

_log = logging.getLogger("furcula.store")

#: Rows that are inserted by one statement, as long as SQLite's limit of its parameters allows.
_ROWS = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
#: Statements that are kept prepared: those above for some queues, and all others.
_STATEMENTS = 256

_TABLES = """
CREATE TABLE channel (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE letter (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, flow TEXT NOT NULL, module TEXT NOT NULL,
    path TEXT NOT NULL, error TEXT NOT NULL, message TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL,
    queue TEXT NOT NULL, replay INTEGER NOT NULL DEFAULT 0, owner INTEGER NOT NULL DEFAULT 0, event BLOB NOT NULL
);
"""
_QUEUE = (
    """CREATE TABLE IF NOT EXISTS queue_{} (
        id INTEGER PRIMARY KEY AUTOINCREMENT, owner INTEGER NOT NULL DEFAULT 0, suspect INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS later_{} (
        id INTEGER PRIMARY KEY, due REAL NOT NULL, attempts INTEGER NOT NULL, body BLOB NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS later_{}_due ON later_{} (due)",
)


class Taken(msgspec.Struct, frozen=True, gc=False):
    """One body that was taken from a queue.

    Attributes:
        id: Its row.
        attempts: How often it was handed out, this time included.
        suspect: Whoever had it in hand before has died.
    """

    id: int
    attempts: int
    suspect: int
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


class _Known:
    """What a connection knows of a queue, as long as no other one writes to the file.

    Attributes:
        unread: No row before this one may be taken; None: there is none that may.
        due: When the first one is due of those that wait for their time, as Unix time; None: that is not known.
    """

    __slots__ = ("due", "unread")

    def __init__(self) -> None:
        self.unread: int | None = 0
        self.due: float | None = None


_LETTER = "id, at, flow, module, path, error, message, traceback, attempts, queue, replay, event"


class StoreFile:
    """One store, opened. For one thread at a time.

    Args:
        path: The file. It is made if it is not there.
        busy_s: Seconds to wait for another program that is writing.
        owns: May take from queues. Whoever only looks or brings says False.
        exists: It must be there already.

    Raises:
        StoreDamaged: It is no store, one of another version, or damaged.
        StoreUnavailable: The file cannot be opened or written now.
        StoreError: It cannot be there: no such folder, no permission.
    """

    def __init__(self, path: str | Path, *, busy_s: float = 2.0, owns: bool = True, exists: bool = False):
        self.path = Path(path).resolve()
        self._channels: dict[str, int] = {}
        #: What was put and what is done within this transaction, by queue. It is written when it must be, at the latest
        #: by `commit`: all of one queue at once.
        self._put: dict[int, list[bytes]] = {}
        self._done: dict[int, list[int]] = {}
        #: What this connection knows of its queues, as long as no other has written to the file.
        self._known: dict[int, _Known] = {}
        self._known_of = -1
        self._looked = False
        self._took_over_at = -math.inf
        self._ownership: Ownership | None = None
        self._owner = 0
        self._identity: tuple[int, int] | None = None
        log = self._look_first(exists)
        try:
            self._db = sqlite3.connect(
                self.path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=_STATEMENTS
            )
            self._rows = tuple(
                rows for rows in _ROWS if rows <= self._db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
            )
        except sqlite3.Error as error:
            raise self.explained(error) from error
        try:
            self._prepare_soon(log, busy_s)
            self._identity = note_open(self.path)
            if owns:
                self._own()
        except sqlite3.Error as error:
            self.close()
            raise self.explained(error) from error
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ opening and closing

    def _look_first(self, exists: bool) -> LogState | None:
        """What must be known before SQLite opens the file: once it has, the end of a damaged log is gone."""
        if not self.path.parent.is_dir():
            raise StoreError(f"the store {self.path} cannot be made: there is no folder {self.path.parent}")
        try:
            found = self.path.stat()
        except FileNotFoundError:
            found = None
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be read: {error.strerror}") from None
        if found is None or not found.st_size:
            if exists:
                raise StoreError(f"{self.path} is no store of furcula: {'it is empty' if found else 'no such file'}")
            if found is None:
                return None
        if self.path.is_dir():
            raise StoreError(f"the store {self.path} cannot be read: it is a folder")
        if (found.st_dev, found.st_ino) in _inherited:
            raise StoreError(
                f"the store {self.path} was open when this process was forked, and SQLite's locks do not survive that; "
                "start the process by spawn, or open the store only after the fork"
            )
        if found.st_size:
            self._must_be_sqlite()
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

    def _must_be_sqlite(self) -> None:
        try:
            # Looks at the file as it is, without a lock and without its log.
            looking = sqlite3.connect(f"{self.path.as_uri()}?mode=ro&immutable=1", uri=True)
            try:
                looking.execute("PRAGMA schema_version").fetchone()
            finally:
                looking.close()
        except sqlite3.Error as error:  # anything else may be a moment's: somebody is writing it
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
                text = f"{self.path} is no store of furcula, nor any SQLite file; name another path"
                raise StoreDamaged(text) from None

    @property
    def _log_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    def _in_use(self) -> bool:
        return any(is_alive(self.path, name) for name in owners(self.path))

    def _prepare_soon(self, log: LogState | None, within_s: float) -> None:
        """SQLite waits for others in most cases, but not when the log's mode is changed."""
        ends = time.monotonic() + within_s
        while True:
            try:
                self._prepare(log)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= ends:
                    raise
            self.roll_back()
            time.sleep(0.01)

    def _prepare(self, log: LogState | None) -> None:
        db = self._db
        # Its three answers must be of one moment: another process may be making the store.
        db.execute("BEGIN")
        new = self._is_new()
        db.execute("COMMIT")
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
            # What is left of it would be taken for more damage after the next crash.
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
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
        self._remove_dead()

    def close(self) -> None:
        """Let go of what was taken and not spoken of, and close. May be repeated."""
        ownership, self._ownership = self._ownership, None
        if ownership is not None:
            try:
                self.transaction(lambda: self._disown(self._owner, {}))
            except (StoreError, sqlite3.Error) as error:  # whoever opens it next sees that the owner has gone
                _log.warning("%s: what was in hand could not be given back: %s", self.path, error)
            ownership.release()
            with suppress(sqlite3.Error, OSError):
                self._remove_dead()
        self._db.close()
        identity, self._identity = self._identity, None
        if identity is not None:
            note_closed(identity)

    def hurry(self) -> None:
        """Wait no more than a moment for another program that is writing: it is time to end."""
        self._db.execute("PRAGMA busy_timeout = 200")

    def begun(self, channel: str, last: int) -> None:
        """Note that what was taken from a queue, up to this row, is being handled from now on. For any thread.

        When this process dies, only that is charged an attempt, and handed out one by one.
        """
        if self._ownership is not None:
            self._ownership.begun(channel, last)

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
        self._looked = False
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def commit(self) -> None:
        """End the transaction. On return it is on the disk."""
        try:
            for number in {*self._put, *self._done}:
                self._write(number)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self.explained(error) from error

    def roll_back(self) -> None:
        self._channels.clear()  # what was made within may be gone
        self._known.clear()
        self._put.clear()
        self._done.clear()
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            _log.error("%s: %s", self.path, error)

    def others_wrote(self) -> bool:
        """Has another connection, of this process or another, committed something since this one last took?"""
        try:
            return self._version() != self._known_of
        except sqlite3.Error:  # whoever takes next meets it too, and says it
            return False

    def _version(self) -> int:
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(version)

    # ------------------------------------------------------------------ queues: all of it within a transaction

    def _queue(self, channel: str) -> int:
        number = self._channels.get(channel)
        if number is None:
            self._db.execute("INSERT OR IGNORE INTO channel (name) VALUES (?)", (channel,))
            (number,) = self._db.execute("SELECT id FROM channel WHERE name = ?", (channel,)).fetchone()
            for statement in _QUEUE:
                self._db.execute(statement.format(number, number))
            self._channels[channel] = number
        return number

    def _table(self, channel: str) -> int:
        """The number of a queue's tables, in which everything stands that was put and is not done."""
        number = self._queue(channel)
        self._write(number)
        return number

    def _write(self, number: int) -> None:
        """Write what was put and what is done within this transaction."""
        ids = self._done.pop(number, None)
        if ids:
            self._db.executemany(
                f"DELETE FROM queue_{number} WHERE id BETWEEN ? AND ? AND owner = {self._owner}", _ranges(ids)
            )
        bodies = self._put.pop(number, None)
        if bodies:
            last = self._insert(number, "(body)", "(?)", bodies)
            known = self._known.get(number)
            if known is not None and known.unread is None:
                known.unread = last - len(bodies) + 1

    def _insert(self, number: int, columns: str, values: str, bodies: Sequence[bytes]) -> int:
        """Add rows to the end of a queue, and return the last one's number; they follow each other.

        Many rows in one statement: between two statements Python's lock is let go and taken again, and whoever has it
        meanwhile (the event loop) keeps it for a while. A handful of sizes, so that statements are prepared once.
        """
        insert = f"INSERT INTO queue_{number} {columns} VALUES "
        at = 0
        last = 0
        for size in self._rows:
            while len(bodies) - at >= size:
                # As bytearrays: for bytes the module looks each time whether somebody has registered an adapter, which
                # takes as long as all the rest.
                rows = [*map(bytearray, bodies[at : at + size])]
                last = self._db.execute(insert + ",".join([values] * size), rows).lastrowid or 0
                at += size
        return last

    def _knowledge(self, number: int) -> _Known:
        """What is known of a queue. Within a transaction, which keeps others from writing, one look is enough."""
        if not (self._looked and self._db.in_transaction):
            self._looked = True
            version = self._version()
            if version != self._known_of:
                self._known_of = version
                self._known.clear()
        known = self._known.get(number)
        if known is None:
            known = self._known[number] = _Known()
        return known

    def put(self, channel: str, bodies: Sequence[bytes]) -> None:
        """Add bodies to the end of a queue, in their order."""
        self._put.setdefault(self._queue(channel), []).extend(bodies)

    def take(self, channel: str, most: int, now: float | None = None) -> list[Taken]:
        """The next bodies of a queue, at most `most`; they are this owner's, and an attempt is charged for each.

        An attempt that was not `begun` when this process dies is taken back. What was put in the same transaction is
        written once, as taken.
        """
        number = self._queue(channel)
        known = self._knowledge(number)
        self._bring_due(number, known, time.time() if now is None else now)
        taken = self._take_stored(number, known, most)
        fresh = self._put.get(number)
        if fresh and len(taken) < most:
            bodies = fresh[: most - len(taken)]
            del fresh[: len(bodies)]
            last = self._insert(number, "(owner, attempts, body)", f"({self._owner}, 1, ?)", bodies)
            taken += [Taken(id, 1, 0, body) for id, body in enumerate(bodies, last - len(bodies) + 1)]
        return taken

    def _take_stored(self, number: int, known: _Known, most: int) -> list[Taken]:
        if known.unread is None:
            return []
        rows = self._db.execute(
            f"SELECT id, attempts + 1, suspect, body FROM queue_{number} WHERE id >= ? AND owner = 0 "
            "ORDER BY id LIMIT ?",
            (known.unread, most),
        ).fetchall()
        if rows:
            self._db.execute(
                f"UPDATE queue_{number} SET owner = ?, attempts = attempts + 1 WHERE id BETWEEN ? AND ? AND owner = 0",
                (self._owner, rows[0][0], rows[-1][0]),
            )
        known.unread = rows[-1][0] + 1 if len(rows) == most else None
        return [Taken(*row) for row in rows]

    def _bring_due(self, number: int, known: _Known, now: float) -> None:
        """Put back what has waited long enough, to its old place."""
        if self._due(number, known) > now:
            return
        self._db.execute(
            f"INSERT INTO queue_{number} (id, attempts, body) SELECT id, attempts, body FROM later_{number} "
            "WHERE due <= ?",
            (now,),
        )
        self._db.execute(f"DELETE FROM later_{number} WHERE due <= ?", (now,))
        known.unread = 0
        known.due = None

    def done(self, channel: str, ids: Iterable[int]) -> None:
        """Remove what this owner has taken."""
        self._done.setdefault(self._queue(channel), []).extend(ids)

    def back(self, channel: str, ids: Iterable[int], *, delay_s: float = 0.0, charged: bool = True) -> None:
        """Give back what this owner has taken: to its old place, to be handed out after `delay_s` seconds.

        What is not charged was not tried either, so what is suspect of it stays that.
        """
        number = self._queue(channel)
        rows = [(row, self._owner) for row in ids]
        self._known.pop(number, None)
        if delay_s:
            due = time.time() + delay_s
            self._db.executemany(
                f"INSERT INTO later_{number} (id, due, attempts, body) "
                f"SELECT id, ?, attempts - ?, body FROM queue_{number} WHERE id = ? AND owner = ?",
                [(due, not charged, *row) for row in rows],
            )
            self._db.executemany(f"DELETE FROM queue_{number} WHERE id = ? AND owner = ?", rows)
        else:
            self._db.executemany(
                f"UPDATE queue_{number} SET owner = 0, suspect = suspect AND ?, attempts = attempts - ? "
                "WHERE id = ? AND owner = ?",
                [(not charged, not charged, *row) for row in rows],
            )

    def count(self, channel: str) -> int:
        """How many bodies are in a queue, those in hand and those that wait for their time included."""
        number = self._table(channel)
        (count,) = self._db.execute(
            f"SELECT (SELECT count(*) FROM queue_{number}) + (SELECT count(*) FROM later_{number})"
        ).fetchone()
        return int(count)

    def peek(self, channel: str, most: int = -1) -> list[bytes]:
        """The first bodies of a queue, those in hand included; they stay where they are."""
        number = self._table(channel)
        rows = self._db.execute(
            f"SELECT id, body FROM queue_{number} UNION ALL SELECT id, body FROM later_{number} ORDER BY id LIMIT ?",
            (most,),
        )
        return [row[1] for row in rows]

    def has_unread(self, channel: str) -> bool:
        """Is there a body in a queue that nobody has in hand?"""
        return self.visible_at(channel) is not None

    def visible_at(self, channel: str) -> float | None:
        """The Unix time at which the next body may be taken; None: there is none that nobody has in hand."""
        number = self._table(channel)
        known = self._knowledge(number)
        if known.unread is not None:
            found = self._db.execute(
                f"SELECT id FROM queue_{number} WHERE id >= ? AND owner = 0 ORDER BY id LIMIT 1", (known.unread,)
            ).fetchone()
            known.unread = None if found is None else found[0]
            if found is not None:
                return 0.0
        due = self._due(number, known)
        return None if due == math.inf else due

    def _due(self, number: int, known: _Known) -> float:
        if known.due is None:
            (due,) = self._db.execute(f"SELECT min(due) FROM later_{number}").fetchone()
            known.due = math.inf if due is None else float(due)
        return known.due

    def channels(self) -> list[str]:
        """The names of the queues."""
        return [row[0] for row in self._db.execute("SELECT name FROM channel ORDER BY name")]

    def take_over(self) -> int:
        """Give back what owners had in hand that have gone. Returns how many bodies that were."""
        self._took_over_at = time.monotonic()
        found = 0
        for number, name in self._db.execute("SELECT id, name FROM owner").fetchall():
            if number != self._owner and not is_alive(self.path, name):
                found += self._disown(number, begun_by(self.path, name))
        return found

    def take_over_soon(self, every_s: float) -> float:
        """`take_over`, unless that was done less than `every_s` seconds ago. Returns seconds until it is due again."""
        if time.monotonic() >= self._took_over_at + every_s:
            self.take_over()
        return self._took_over_at + every_s - time.monotonic()

    def _disown(self, number: int, begun: Mapping[int, int]) -> int:
        """What an owner has in hand is anybody's. What it had begun is charged, and suspect."""
        found = 0
        self._known.clear()
        for table, name in self._db.execute("SELECT id, name FROM channel").fetchall():
            last = begun.get(channel_mark(name), 0)
            self._db.execute(
                f"UPDATE queue_{table} SET attempts = attempts - 1 WHERE owner = ? AND id > ?", (number, last)
            )
            self._db.execute(f"UPDATE queue_{table} SET suspect = 1 WHERE owner = ? AND id <= ?", (number, last))
            found += self._db.execute(f"UPDATE queue_{table} SET owner = 0 WHERE owner = ?", (number,)).rowcount
        found += self._db.execute("UPDATE letter SET owner = 0 WHERE owner = ?", (number,)).rowcount
        self._db.execute("DELETE FROM owner WHERE id = ?", (number,))
        return found

    def _remove_dead(self) -> None:
        """Remove the files of those that have gone, and of which the store knows nothing any more."""
        known = {row[0] for row in self._db.execute("SELECT name FROM owner")}
        for name in owners(self.path):
            if name not in known and not is_alive(self.path, name):
                remove(self.path, name)

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


# ------------------------------------------------------------------ what is open in this process

_open: Counter[tuple[int, int]] = Counter()
#: Files that were open when this process was forked.
_inherited: set[tuple[int, int]] = set()


def note_open(path: Path) -> tuple[int, int]:
    """Note that a connection to this file is open. Returns what to say when it is closed."""
    found = path.stat()
    identity = (found.st_dev, found.st_ino)
    _open[identity] += 1
    return identity


def note_closed(identity: tuple[int, int]) -> None:
    """Note that it is closed."""
    _open[identity] -= 1
    if _open[identity] <= 0:
        del _open[identity]


def _after_fork() -> None:
    _inherited.update(_open)
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)
