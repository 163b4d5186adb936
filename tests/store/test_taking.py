"""Taking: what somebody waits for is put and taken in one commit, and nothing known of a queue is stale."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.store.using import put, take

from furcula.errors import StoreUnavailable
from furcula.store import Store, StoreFile


def put_and_take(file: StoreFile, bodies: list[bytes], most: int) -> list[Any]:
    def work() -> list[Any]:
        file.put("work", bodies)
        return file.take("work", most)

    return list(file.transaction(work))


# ------------------------------------------------------------------ put and taken in one transaction


def test_what_is_put_is_taken_in_the_same_transaction_behind_what_was_there_before(path: Path) -> None:
    file = StoreFile(path)
    put(file, b"1", b"2")
    taken = put_and_take(file, [b"3", b"4", b"5"], 4)
    assert [(one.attempts, one.suspect, one.body) for one in taken] == [(1, 0, b"%d" % n) for n in (1, 2, 3, 4)]
    assert [one.id for one in taken] == [1, 2, 3, 4]
    assert file.transaction(lambda: file.count("work")) == 5
    other = StoreFile(path)
    assert take(other) == [(1, b"5")]
    other.close()
    file.transaction(lambda: file.done("work", [one.id for one in taken]))
    assert file.transaction(lambda: file.count("work")) == 1
    file.close()


@pytest.mark.parametrize("count", [1, 3, 1023, 1024, 5000])
def test_each_body_has_the_row_that_its_taker_was_told(path: Path, count: int) -> None:
    file = StoreFile(path)
    bodies = [b"%d" % number for number in range(count)]
    taken = put_and_take(file, bodies, count - count // 3)
    assert [one.body for one in taken] == bodies[: count - count // 3]
    file.transaction(lambda: file.done("work", [one.id for one in taken if one.id % 2]))
    file.transaction(lambda: file.back("work", [one.id for one in taken if not one.id % 2], charged=False))
    left = [one.body for one in taken if not one.id % 2] + bodies[count - count // 3 :]
    assert take(file, count) == [(1, body) for body in left]
    file.close()


DIES = """
import os, signal
from furcula.store import StoreFile
file = StoreFile({path!r})
def work():
    file.put("work", [b"1", b"2", b"3"])
    return file.take("work", 3)
taken = file.transaction(work)
file.begun("work", taken[0].id)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_put_as_taken_is_charged_to_a_dead_process_only_as_far_as_it_had_begun(path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES.format(path=str(path))], check=False, timeout=60)
    file = StoreFile(path)
    taken = file.transaction(lambda: file.take("work", 9))
    assert [(one.attempts, one.suspect, one.body) for one in taken] == [(2, 1, b"1"), (1, 0, b"2"), (1, 0, b"3")]
    file.close()


def test_what_was_put_in_a_transaction_that_failed_is_not_there(path: Path) -> None:
    file = StoreFile(path)
    put(file, b"1")

    def work() -> None:
        file.put("work", [b"2"])
        assert [one.body for one in file.take("work", 9)] == [b"1", b"2"]
        file.put("work", [b"3"])
        raise LookupError

    with pytest.raises(LookupError):
        file.transaction(work)
    assert take(file) == [(1, b"1")]
    put(file, b"4")
    assert take(file) == [(1, b"4")]
    file.close()


# ------------------------------------------------------------------ what is known is not stale


@pytest.mark.parametrize("seed", range(12))
def test_three_that_put_take_settle_and_fail_at_random_see_what_a_simple_model_says(path: Path, seed: int) -> None:
    draw = random.Random(seed)
    files = [StoreFile(path) for _ in range(3)]
    rows: dict[
        int, tuple[int, int, bytes]
    ] = {}  # by number: who has it (-1: nobody), how often it was handed out, body
    last = 0
    for turn in range(250):
        who = draw.randrange(3)
        file = files[who]
        before = (dict(rows), last)
        file.begin()
        for _ in range(draw.randrange(1, 5)):
            what = draw.choice(("put", "put", "take", "take", "done", "back", "count", "unread"))
            mine = [number for number, row in rows.items() if row[0] == who]
            some = draw.sample(mine, draw.randrange(len(mine) + 1))
            if what == "put":
                bodies = [b"%d-%d" % (turn, number) for number in range(draw.choice((1, 2, 7, 40)))]
                file.put("work", bodies)
                for body in bodies:
                    last += 1
                    rows[last] = (-1, 0, body)
            elif what == "take":
                most = draw.choice((1, 3, 20))
                free = sorted(number for number, row in rows.items() if row[0] == -1)[:most]
                for number in free:
                    rows[number] = (who, rows[number][1] + 1, rows[number][2])
                taken = file.take("work", most)
                assert [(one.id, one.attempts, one.body) for one in taken] == [(n, *rows[n][1:]) for n in free]
            elif what == "done":
                file.done("work", some)
                for number in some:
                    del rows[number]
            elif what == "back":
                charged = draw.random() < 0.5
                file.back("work", some, charged=charged)
                for number in some:
                    rows[number] = (-1, rows[number][1] - (not charged), rows[number][2])
            elif what == "count":
                assert file.count("work") == len(rows)
            else:
                assert file.has_unread("work") == any(row[0] == -1 for row in rows.values())
        if draw.random() < 0.15:
            file.roll_back()
            # A number that was not used may be given again.
            rows, last = before
        else:
            file.commit()
        if draw.random() < 0.02:  # somebody ends, and gives back what it had
            files[who].close()
            rows = {n: (-1, row[1] - 1, row[2]) if row[0] == who else row for n, row in rows.items()}
            files[who] = StoreFile(path)
    assert files[0].transaction(lambda: files[0].peek("work")) == [rows[number][2] for number in sorted(rows)]
    for file in files:
        file.close()


def test_what_waits_for_its_time_is_due_also_for_who_has_looked_before(path: Path) -> None:
    one, two = StoreFile(path), StoreFile(path)
    put(one, b"1")
    (taken,) = one.transaction(lambda: one.take("work", 1))
    assert take(two) == take(one) == []
    one.transaction(lambda: one.back("work", [taken.id], delay_s=60))
    due = two.transaction(lambda: two.visible_at("work"))
    assert due == one.transaction(lambda: one.visible_at("work"))
    assert due > time.time()
    assert one.transaction(lambda: one.take("work", 9, due - 1)) == []
    assert [found.body for found in two.transaction(lambda: two.take("work", 9, due + 1))] == [b"1"]
    assert one.transaction(lambda: one.take("work", 9, due + 1)) == []
    one.close()
    two.close()


# ------------------------------------------------------------------ who waits


async def test_an_event_that_somebody_waits_for_is_stored_and_taken_in_one_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    insert = StoreFile._insert

    def note(self: StoreFile, number: int, columns: str, values: str, bodies: list[bytes]) -> int:
        last = insert(self, number, columns, values, bodies)
        # Taken already when it is written: it is in this owner's hand.
        row = self._db.execute(f"SELECT owner FROM queue_{number} WHERE id = ?", (last,)).fetchone()
        written.append(row[0] != 0)
        return last

    store = Store(path)
    await store.open()
    await store.put("work", [b"0"])
    assert [one.body for one in await store.take("work", 5)] == [b"0"]
    monkeypatch.setattr(StoreFile, "_insert", note)
    for number in range(20):
        taking = asyncio.ensure_future(store.take("work", 5))
        assert await store.count("work") == number + 1  # so that it is seen to wait
        await store.put("work", [b"%d" % number])
        (taken,) = await taking
        assert taken.body == b"%d" % number
        assert taken.attempts == 1
    assert written == [True] * 20
    await store.close()


async def test_those_who_wait_are_served_in_turn(path: Path) -> None:
    store = Store(path)
    await store.open()
    takers = [asyncio.ensure_future(store.take("work", 2)) for _ in range(4)]
    await store.count("work")
    for number in range(8):
        await store.put("work", [b"%d" % number])
        if number % 3 == 0:
            await store.count("other")
    found = [body for taker in takers for body in [one.body for one in await taker]]
    more = await store.take("work", 9) if len(found) < 8 else []
    assert found + [one.body for one in more] == [b"%d" % number for number in range(8)]
    await store.close()


async def test_who_waits_no_more_takes_nothing(path: Path) -> None:
    store = Store(path)
    await store.open()
    for _ in range(20):
        waits = asyncio.ensure_future(store.take("work", 5))
        await store.count("work")
        waits.cancel()
        await asyncio.wait([waits])
        assert waits.cancelled()
        await store.put("work", [b"x"])
        (taken,) = await store.take("work", 5)
        assert taken.attempts == 1
        await store.done("work", [taken.id])
    await store.close()


async def test_one_user_of_a_store_closes_it_while_another_waits(path: Path) -> None:
    one, two = Store(path), Store(path)
    await one.open()
    await two.open()
    gone = asyncio.ensure_future(one.take("work", 5))
    stays = asyncio.ensure_future(two.take("work", 5))
    await two.count("work")
    await one.close()
    assert (await asyncio.gather(gone, return_exceptions=True))[0].args == (f"the store {path} is closed",)
    await two.put("work", [b"x"])
    assert [found.body for found in await stays] == [b"x"]
    await two.close()


async def test_who_waits_hears_that_the_file_cannot_be_used_and_may_wait_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("furcula.store.writer.StoreFile", lambda path: StoreFile(path, busy_s=0.05))
    store = Store(path)
    await store.open()
    taking = asyncio.ensure_future(store.take("work", 5))
    await store.count("work")
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked by another program"):
        await store.put("work", [b"1"])
    with pytest.raises(StoreUnavailable, match="locked by another program"):
        await taking
    locker.execute("ROLLBACK")
    locker.close()
    taking = asyncio.ensure_future(store.take("work", 5))
    await store.put("work", [b"2"])
    assert [one.body for one in await taking] == [b"2"]
    await store.close()


HOLDS = """
import signal
from furcula.store import StoreFile
file = StoreFile({path!r})
file.transaction(lambda: file.put("work", [b"held"]))
print(len(file.transaction(lambda: file.take("work", 1))), flush=True)
signal.pause()
"""


async def test_what_a_dead_process_had_in_hand_is_handed_out_also_while_the_queue_is_busy(path: Path) -> None:
    command = (sys.executable, "-c", HOLDS.format(path=str(path)))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"1\n"
    store = Store(path)
    await store.open()
    process.kill()
    await process.wait()
    found = b""
    async with asyncio.timeout(30):
        while found != b"held":
            await store.put("work", [b"x", b"y"])  # there is always more than is taken
            (taken,) = await store.take("work", 1)
            found = taken.body
    assert taken.attempts == 1
    await store.close()


def test_what_is_given_back_untried_stays_suspect(path: Path) -> None:
    dead = "import sys; from furcula.store import StoreFile; f = StoreFile(sys.argv[1]); "
    dead += "f.transaction(lambda: f.put('work', [b'1', b'2'])); f.transaction(lambda: f.take('work', 9)); "
    subprocess.run([sys.executable, "-c", dead + "f.begun('work', 1); import os; os._exit(0)", str(path)], check=True)
    file = StoreFile(path)
    for _ in range(2):  # an orderly stop, before they were begun with
        file.transaction(file.take_over)
        taken = file.transaction(lambda: file.take("work", 9))
        assert [(one.body, one.attempts, one.suspect) for one in taken] == [(b"1", 2, 1), (b"2", 1, 0)]
        ids = [one.id for one in taken]
        file.transaction(lambda ids=ids: file.back("work", ids, charged=False))  # type: ignore[misc]
    taken = file.transaction(lambda: file.take("work", 1))
    file.transaction(lambda: file.back("work", [taken[0].id]))
    assert file.transaction(lambda: file.take("work", 1))[0].suspect == 0  # it was tried, and has come back
    file.close()


async def test_what_comes_too_late_for_who_waited_goes_back_untried_and_untold(path: Path) -> None:
    store = Store(path)
    await store.open()
    told: list[int] = []
    await store.count("work")  # so that the queue is there to be looked at
    waiting = asyncio.create_task(store.take("work", 10, told.append))
    while not store._taking:
        await asyncio.sleep(0)
    store.do(lambda file: file.put("work", [b"1", b"2"]))
    look = sqlite3.connect(path)
    while not look.execute("SELECT count(*) FROM queue_1 WHERE owner != 0").fetchone()[0]:
        time.sleep(0.001)  # noqa: ASYNC251 -- the loop must not turn: it would hand over what was taken
    waiting.cancel()
    await asyncio.wait([waiting])
    look.close()
    taken = await asyncio.wait_for(store.take("work", 10), 20)
    assert [(one.body, one.attempts) for one in taken] == [(b"1", 1), (b"2", 1)]
    assert sum(told) == 0
    await store.close()
