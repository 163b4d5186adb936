"""The store's file: what is committed is there, what is damaged is said, and nobody's events are taken from them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.store.using import put, take

from furcula.errors import FurculaError, Stopped, StoreDamaged, StoreError, StoreUnavailable
from furcula.store import Letter, Store, StoreFile
from furcula.store.log import log_state, read_log


def letter(event: bytes = b"x", **changes: Any) -> Letter:
    given: dict[str, Any] = {
        "at": 1.0, "flow": "f", "module": "m", "path": ("s", "m"), "error": "E", "message": "", "traceback": "",
        "attempts": 1, "event": event,
    }  # fmt: skip
    return Letter(**(given | changes))


# ------------------------------------------------------------------ queues


def test_bodies_are_taken_in_their_order_and_are_in_one_hand_only(path: Path) -> None:
    one, two = StoreFile(path), StoreFile(path)
    put(one, b"1", b"2", b"3", b"4")
    assert take(one, 2) == [(1, b"1"), (1, b"2")]
    assert take(two, 9) == [(1, b"3"), (1, b"4")]
    assert take(one) == take(two) == []
    one.close()
    assert take(two) == [(1, b"1"), (1, b"2")]  # given back by closing, and not charged
    two.close()


def test_what_comes_back_stands_in_its_old_place(path: Path) -> None:
    file = StoreFile(path)
    put(file, b"1", b"2", b"3")
    taken = file.transaction(lambda: file.take("work", 3))
    file.transaction(lambda: file.back("work", [taken[1].id]))
    file.transaction(lambda: file.back("work", [taken[0].id], charged=False))
    assert take(file) == [(1, b"1"), (2, b"2")]
    file.close()


def test_done_removes_exactly_what_it_names(path: Path) -> None:
    file = StoreFile(path)
    put(file, *[b"%d" % number for number in range(20)])
    ids = [one.id for one in file.transaction(lambda: file.take("work", 20))]
    file.transaction(lambda: file.done("work", [ids[3], ids[0], ids[1], ids[2], ids[9], ids[11]]))
    file.close()
    file = StoreFile(path)
    assert [body for _, body in take(file, 99)] == [b"%d" % n for n in range(20) if n not in (0, 1, 2, 3, 9, 11)]
    file.close()


def test_a_delayed_body_is_handed_out_when_it_is_due(path: Path) -> None:
    file = StoreFile(path)
    put(file, b"1")
    (taken,) = file.transaction(lambda: file.take("work", 1))
    file.transaction(lambda: file.back("work", [taken.id], delay_s=60))
    assert take(file) == []
    due = file.visible_at("work")
    assert due is not None
    assert [one.body for one in file.transaction(lambda: file.take("work", 1, due + 0.001))] == [b"1"]
    file.close()


HOLDS = """
import signal
from furcula.store import StoreFile
file = StoreFile({path!r})
taken = file.transaction(lambda: file.take("work", 3))
file.begun("work", taken[1].id)
print([one.attempts for one in taken], flush=True)
signal.pause()
"""


def test_of_what_a_killed_process_had_in_hand_only_what_it_had_begun_is_charged(path: Path) -> None:
    file = StoreFile(path)
    put(file, b"1", b"2", b"3", b"4")
    process = subprocess.Popen([sys.executable, "-c", HOLDS.format(path=str(path))], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "[1, 1, 1]\n"
    assert file.transaction(file.take_over) == 0
    assert take(file) == [(1, b"4")]
    process.kill()
    process.wait(30)
    process.stdout.close()
    assert file.transaction(file.take_over) == 3
    taken = file.transaction(lambda: file.take("work", 9))
    assert [(one.attempts, one.suspect, one.body) for one in taken] == [(2, 1, b"1"), (2, 1, b"2"), (1, 0, b"3")]
    file.close()
    assert sorted(found.name for found in path.parent.iterdir()) == ["store.db"]


def test_other_connections_of_a_process_that_come_and_go_leave_its_locks_alone(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    script = f"""
        import os, signal, sys
        from furcula.store import StoreFile
        file = StoreFile({str(path)!r})
        for other in ({str(path)!r}, {str(link)!r}):
            StoreFile(other, owns=False).close()
        print("open", flush=True)
        sys.stdin.readline()
        file.transaction(lambda: file.put("work", [b"x"] * 100))
        print("stored", flush=True)
        signal.pause()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "open\n"
    # Another process that closes the store, and believes to be the last to have it, would remove its log.
    visit = f"from furcula.store import StoreFile; StoreFile({str(path)!r}).close()"
    subprocess.run([sys.executable, "-c", visit], check=True, timeout=60)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline() == "stored\n"
    process.kill()
    process.communicate()
    assert len(bodies(path)) == 100


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_that_was_open_at_a_fork_is_refused_in_the_child(path: Path) -> None:
    file = StoreFile(path)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=visit, args=(path, theirs))
    process.start()
    assert ours.poll(30)
    assert "was open when this process was forked" in ours.recv()
    process.join(30)
    put(file, b"1")
    file.close()
    assert bodies(path) == [b"1"]


def visit(path: Path, told: Any) -> None:
    try:
        StoreFile(path)
        told.send("no error")
    except StoreError as error:
        told.send(str(error))


def test_a_store_that_many_processes_make_at_once_is_made_once(path: Path) -> None:
    script = f"""
from furcula.store import StoreFile
file = StoreFile({str(path)!r})
file.transaction(lambda: file.put("w", [b"x"]))
file.close()
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
    file = StoreFile(path)
    assert file.transaction(lambda: file.count("w")) == 6
    file.close()


def test_what_waits_for_its_time_is_not_walked_past_and_keeps_its_number(path: Path) -> None:
    file = StoreFile(path)
    put(file, b"1", b"2")
    taken = file.transaction(lambda: file.take("work", 2))
    file.transaction(lambda: file.back("work", [one.id for one in taken], delay_s=60))
    put(file, b"3")
    assert file.transaction(lambda: file.count("work")) == 3
    assert file.peek("work") == [b"1", b"2", b"3"]
    assert take(file) == [(1, b"3")]
    due = file.visible_at("work")
    assert due is not None
    found = file.transaction(lambda: file.take("work", 9, due + 60))
    assert [(one.id, one.attempts, one.body) for one in found] == [
        (taken[0].id, 2, b"1"), (taken[1].id, 2, b"2"),
    ]  # fmt: skip
    file.close()


def count(path: Path) -> int:
    """How many bodies there are, by a process that is killed: it does not close the store in order."""
    script = f"""
        import os, signal
        from furcula.store import StoreFile
        file = StoreFile({str(path)!r})
        print(file.transaction(lambda: file.count("work")), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return int(subprocess.run(command, check=False, timeout=60, capture_output=True, text=True).stdout)


def test_a_log_that_was_cut_off_twice_is_no_damage(path: Path) -> None:
    for expected in (29, 58):
        killed(path, 30)
        log = path.with_name("store.db-wal")
        os.truncate(log, log.stat().st_size - 100)
        assert count(path) == expected


async def test_a_taker_hears_of_what_another_process_puts(path: Path) -> None:
    store = Store(path)
    await store.open()
    taking = asyncio.ensure_future(store.take("work", 5))
    done, _ = await asyncio.wait([taking], timeout=0.1)
    assert not done
    script = (
        f"from furcula.store import StoreFile as S; f = S({str(path)!r}); f.transaction(lambda: f.put('work', [b'x']))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
    async with asyncio.timeout(30):
        assert [one.body for one in await taking] == [b"x"]
        assert await process.wait() == 0
    await store.close()


async def test_a_cancelled_take_loses_nothing_and_charges_nothing(path: Path) -> None:
    store = Store(path)
    await store.open()
    for number in range(50):
        await store.put("work", [b"%d" % number])
        taking = asyncio.ensure_future(store.take("work", 1))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.wait([taking])
        if not taking.cancelled():
            (one,) = taking.result()
            store.back("work", [one.id], charged=False)
    found = []
    while len(found) < 50:
        found += [(one.attempts, one.body) for one in await store.take("work", 50)]
    assert sorted(found, key=lambda one: int(one[1])) == [(1, b"%d" % number) for number in range(50)]
    await store.close()


async def test_a_closed_store_wakes_who_waits_and_takes_nothing_more(path: Path) -> None:
    store = Store(path)
    await store.open()
    taking = asyncio.ensure_future(store.take("work", 1))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    with pytest.raises(Stopped):
        await taking
    with pytest.raises(Stopped):
        await store.put("work", [b"x"])


async def test_one_piece_of_work_that_fails_spoils_no_other(path: Path) -> None:
    store = Store(path)
    await store.open()
    works = [store.do(lambda file, n=n: file.put("work", [b"%d" % n])) for n in range(5)]  # type: ignore[misc]
    works.insert(2, store.do(lambda file: 1 / 0))
    works.insert(4, store.do(lambda file: file._db.execute("SELECT * FROM nothing")))
    results = await asyncio.gather(*works, return_exceptions=True)
    assert [type(result).__name__ for result in results if result is not None] == ["ZeroDivisionError", "StoreError"]
    assert [one.body for one in await store.take("work", 9)] == [b"0", b"1", b"2", b"3", b"4"]
    await store.close()


# ------------------------------------------------------------------ what is no store


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda path: path.write_text("hello, I am a text file"), StoreDamaged, "no store of furcula"),
        (lambda path: sqlite(path, "CREATE TABLE mine (x)"), StoreDamaged, "an SQLite file, but no store"),
        (lambda path: version(path, 99), StoreDamaged, "version 99; this furcula reads version 1"),
        (lambda path: path.mkdir(), StoreError, "cannot be read: it is a folder"),
        (lambda path: os.truncate(whole(path), 5000), StoreDamaged, "damaged"),
        (lambda path: garble(whole(path)), StoreDamaged, "damaged"),
    ],
)
def test_what_is_no_sound_store_is_refused_and_left_as_it_is(path: Path, make: Any, error: Any, says: str) -> None:
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(error, match=says) as raised:
        use(path)
    assert str(path) in str(raised.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


def use(path: Path) -> None:
    file = StoreFile(path)
    try:
        put(file, b"x")
        file.transaction(lambda: [file.take(name, 10_000) for name in file.channels()])
    finally:
        file.close()


def sqlite(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()


def version(path: Path, number: int) -> None:
    StoreFile(path).close()
    sqlite(path, f"PRAGMA user_version = {number}")


def whole(path: Path) -> Path:
    """A store that was closed in order, with something in it."""
    file = StoreFile(path)
    put(file, *[b"%d" % number * 100 for number in range(500)])
    file.close()
    return path


def garble(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[4096:] = os.urandom(len(raw) - 4096)
    path.write_bytes(raw)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no folder .*nowhere"):
        StoreFile(tmp_path / "nowhere" / "store.db")


# ------------------------------------------------------------------ the write-ahead log


def killed(path: Path, commits: int) -> None:
    """A store whose process was killed after so many commits, all in its log."""
    script = f"""
        import os, signal
        from furcula.store import StoreFile
        file = StoreFile({str(path)!r})
        for number in range({commits}):
            file.transaction(lambda: file.put("work", [b"%d" % number * 50]))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=60)


def bodies(path: Path) -> list[bytes]:
    file = StoreFile(path)
    found = [body for _, body in take(file, 1000)]
    file.close()
    return found


def test_what_was_committed_is_there_after_a_kill(path: Path) -> None:
    killed(path, 30)
    assert read_log(path.with_name("store.db-wal")).torn == 0
    assert bodies(path) == [b"%d" % number * 50 for number in range(30)]


def test_a_commit_that_was_cut_off_is_undone_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed(path, 30)
    log = path.with_name("store.db-wal")
    os.truncate(log, log.stat().st_size - 100)
    assert bodies(path) == [b"%d" % number * 50 for number in range(29)]
    assert "a commit that was cut off; it is undone" in caplog.text


def test_a_last_commit_that_is_garbled_is_undone_and_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    killed(path, 30)
    log = path.with_name("store.db-wal")
    raw = bytearray(log.read_bytes())
    raw[-50] ^= 255
    log.write_bytes(raw)
    assert bodies(path) == [b"%d" % number * 50 for number in range(29)]
    assert "a commit that was cut off; it is undone" in caplog.text


def test_damage_before_the_last_commit_is_refused_so_that_nothing_is_forgotten(path: Path) -> None:
    killed(path, 30)
    log = path.with_name("store.db-wal")
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 255
    log.write_bytes(raw)
    with pytest.raises(StoreDamaged, match=r"write-ahead log .* is damaged after page \d+: \d+ commits") as raised:
        StoreFile(path)
    assert "PRAGMA wal_checkpoint" in str(raised.value)
    assert log.read_bytes() == bytes(raw)


def test_a_log_whose_header_is_garbled_is_refused(path: Path) -> None:
    killed(path, 5)
    log = path.with_name("store.db-wal")
    raw = bytearray(log.read_bytes())
    raw[10] ^= 255
    log.write_bytes(raw)
    with pytest.raises(StoreDamaged, match="write-ahead log"):
        StoreFile(path)


def test_our_reading_of_a_log_is_sqlites(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE t (a, b)")
    for number in range(2500):  # so many that the log begins anew over its old pages
        db.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 300))
        if number % 500 == 0:
            state = log_state(path.with_name("store.db-wal").read_bytes())
            _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            assert (state.pages, state.torn) == (pages, 0)
    db.close()


# ------------------------------------------------------------------ a disk that is full, a file that is locked


def test_a_full_disk_is_said_and_loses_nothing(path: Path) -> None:
    script = f"""
        import asyncio, resource, signal
        from furcula.errors import StoreUnavailable
        from furcula.store import Store

        async def main():
            store = Store({str(path)!r})
            await store.open()
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            stored = 0
            try:
                while True:
                    await store.put("work", [b"%06d" % stored * 100])
                    stored += 1
            except StoreUnavailable as error:
                print(stored, error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            await store.put("work", [b"after"])
            await store.close()

        asyncio.run(main())
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    count, _, text = ran.stdout.partition(" ")
    assert int(count) > 20
    assert str(path) in text
    assert "Nothing was stored" in text
    found = bodies(path)
    assert found == [*[b"%06d" % number * 100 for number in range(int(count))], b"after"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_is_really_full_is_said_and_what_was_taken_is_settled_later(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        asyncio.run(fill(disk))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


async def fill(disk: Path) -> None:
    store = Store(disk / "store.db")
    await store.open()
    stored: list[bytes] = []

    async def put_until_full() -> None:
        while True:
            body = b"%06d" % len(stored) * 100
            await store.put("work", [body])
            stored.append(body)

    with pytest.raises(StoreUnavailable, match=r"the disk is full|cannot be written"):
        await put_until_full()
    enlarging = await asyncio.create_subprocess_exec("mount", "-o", "remount,size=8m", str(disk))
    assert await enlarging.wait() == 0
    found: list[bytes] = []
    while len(found) < len(stored):
        taken = await store.take("work", 10)
        found += [one.body for one in taken]
        await store.done("work", [one.id for one in taken])
    assert found == stored
    assert await store.count("work") == 0
    await store.close()


async def test_what_was_settled_while_the_file_was_locked_is_noted_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("furcula.store.writer.StoreFile", lambda path: StoreFile(path, busy_s=0.05))
    store = Store(path)
    await store.open()
    await store.put("work", [b"1", b"2"])
    (one, _) = await store.take("work", 2)
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked by another program"):
        await store.put("work", [b"3"])
    done = store.done("work", [one.id])
    await asyncio.wait([done], timeout=0.2)
    assert not done.done()
    locker.execute("ROLLBACK")
    locker.close()
    async with asyncio.timeout(30):
        await done
    assert await store.count("work") == 1
    await store.close()


# ------------------------------------------------------------------ dead letters


def test_letters_are_kept_found_replayed_and_discarded(path: Path) -> None:
    file = StoreFile(path)
    letters = [letter(b"1"), letter(b"2", module="other", queue="work"), letter(b"3", flow="g")]
    file.transaction(lambda: file.bury(letters))
    found = file.letters()
    assert [(one.id, one.event, one.path) for one in found] == [(n, b"%d" % n, ("s", "m")) for n in (1, 2, 3)]
    assert [one.id for one in file.letters(module="m")] == [1, 3]
    assert [one.id for one in file.letters(flow="g")] == [3]
    assert file.transaction(lambda: file.replay([1, 2, 9])) == [
        (1, "waits", "m"),
        (2, "queue", "work"),
        (9, "gone", ""),
    ]
    assert take(file) == [(1, b"2")]
    (wanted,) = file.transaction(lambda: file.wanted(9, flow="f"))
    assert wanted.id == 1
    assert file.transaction(lambda: file.wanted(9, flow="f")) == []
    other = StoreFile(path)
    assert other.transaction(lambda: other.discard([1, 3])) == 1  # 1 is being replayed
    other.close()
    file.transaction(lambda: file.keep([1]))
    assert [(one.id, one.attempts, one.replay) for one in file.letters()] == [(1, 2, False)]
    file.close()


def test_errors_of_the_store_are_furculas(path: Path) -> None:
    assert issubclass(StoreUnavailable, FurculaError)
    assert StoreUnavailable("x").retryable
    assert not StoreDamaged("x").retryable
