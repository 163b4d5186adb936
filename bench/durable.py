"""A durable queue against bare sqlite3 that stores, takes and removes the same bodies in batches (WAL, FULL)."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import msgspec

from furcula import Flow

__all__ = ["bare_sqlite", "durable_queue"]

#: What a batch has in bare sqlite3; about what the engine forms by itself.
BATCH = 256
_DATA = {"sku": "a7-4411-x", "price": 12.5, "count": 3, "note": "x" * 40}


def durable_queue(events: int) -> None:
    """A source, a module behind a durable queue, that module again a sink."""
    with tempfile.TemporaryDirectory() as folder:
        flow = Flow("bench")
        source = flow.source(lambda: (dict(_DATA) for _ in range(events)), "source")
        source >> flow.module(lambda event: None, "sink", queue={"durable": f"{folder}/queue.db"})
        statistics = flow.run()
        assert statistics.origins["queue(sink)"].delivered == events


def bare_sqlite(events: int) -> None:
    """What a careful person writes by hand: one commit to store a batch, one to take and remove it."""
    with tempfile.TemporaryDirectory() as folder:
        db = sqlite3.connect(Path(folder) / "queue.db", isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, body BLOB NOT NULL)")
        encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
        done = 0
        while done < events:
            count = min(BATCH, events - done)
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO queue (body) VALUES (?)", [(encode(dict(_DATA)),) for _ in range(count)])
            db.execute("COMMIT")
            rows = db.execute("SELECT id, body FROM queue ORDER BY id LIMIT ?", (count,)).fetchall()
            for _, body in rows:
                decode(body)
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM queue WHERE id BETWEEN ? AND ?", (rows[0][0], rows[-1][0]))
            db.execute("COMMIT")
            done += count
        db.close()
