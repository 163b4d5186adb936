"""Locks: who looks neither waits nor is mistaken for an owner."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from furcula.errors import FurculaError
from furcula.locks import is_held, lock_now
from furcula.store import owners
from furcula.workers import pid_file
from furcula.workers.pid_file import PidFile
from furcula.workers.run_folder import run_folder


def test_a_lock_is_had_by_one_and_seen_by_all(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one, other = (os.open(path, os.O_CREAT | os.O_RDWR) for _ in range(2))
    assert not is_held(path)
    assert lock_now(one)
    assert not lock_now(other)
    assert is_held(path)
    os.close(one)
    assert not is_held(path)
    assert lock_now(other)
    os.close(other)


def test_a_pipe_that_somebody_else_made_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    trap = Path(tempfile.mkdtemp(prefix="furcula-"))
    os.mkfifo(trap / "run.lock")
    try:
        with run_folder() as folder:
            assert (folder / "run.lock").exists()
    finally:
        for path in trap.glob("*"):
            path.unlink()
        if trap.exists():
            trap.rmdir()


def test_a_pid_file_that_somebody_looks_at_is_taken_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, False])
    monkeypatch.setattr(pid_file, "lock_now", lambda fd: next(looks, True) and lock_now(fd))
    with PidFile(tmp_path / "pid"):
        assert is_held(tmp_path / "pid")
        with pytest.raises(FurculaError, match="runs already"), PidFile(tmp_path / "pid"):
            pass


def test_the_file_of_an_owner_is_not_removed_while_somebody_has_it(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    ownership = owners.Ownership(store)
    owners.remove(store, ownership.name)
    assert owners.is_alive(store, ownership.name)
    fd = os.open(tmp_path / ownership.name, os.O_RDWR)
    ownership._let_go()  # as it is when its process dies
    fcntl.flock(fd, fcntl.LOCK_EX)
    owners.remove(store, ownership.name)
    assert (tmp_path / ownership.name).exists()
    os.close(fd)
    owners.remove(store, ownership.name)
    assert not (tmp_path / ownership.name).exists()
