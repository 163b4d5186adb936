"""The SQLite transport passes the suite, and keeps what it says beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest

from furcula.testing.transports import TransportSuite
from furcula.transport import Promises
from furcula.transports.sqlite import SqliteTransport


class TestSqlite(TransportSuite):
    promises = Promises(order=True, durable=True, carries=("one",))
    fills_at = 4

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = tmp_path / "work.db"

    def make(self) -> SqliteTransport:
        return SqliteTransport(self.path, size=4)
