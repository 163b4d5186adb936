"""file.read: whole files, growing files, rotated and cut files, and positions that pass only what is settled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from furcula.errors import FurculaError
from furcula.modules.file import FileRead
from furcula.options import Duration, Size

from .conftest import Bench, turns, until


async def begun(bench: Any, **arguments: Any) -> FileRead:
    read = FileRead(**{"path": "in.log", "poll": Duration("2ms"), **arguments})
    await read.start(bench)
    return read


async def ended(read: FileRead) -> None:
    read.cease()
    await read.stop()


async def whole(bench: Any, **arguments: Any) -> list[Any]:
    read = await begun(bench, **arguments)
    await bench.until_ended()
    await read.stop()
    return bench.datas()


# ------------------------------------------------------------------ once


async def test_a_file_is_read_to_its_end_and_the_source_ends(bench: Any) -> None:
    (bench.folder / "in.log").write_text("a\nb\r\n\nlast")
    assert await whole(bench) == ["a", "b", "", "last"]
    path = str(bench.folder / "in.log")
    assert [event.headers for event in bench.admitted["outbox"]] == [
        {"file": path, "offset": 0},
        {"file": path, "offset": 2},
        {"file": path, "offset": 5},
        {"file": path, "offset": 6},
    ]


async def test_files_of_a_pattern_are_read_one_after_the_other(bench: Any) -> None:
    for name in ("b.log", "a.log", "c.txt"):
        (bench.folder / name).write_text(f"1 {name}\n2 {name}")
    assert await whole(bench, path="*.log") == ["1 a.log", "2 a.log", "1 b.log", "2 b.log"]


async def test_what_cannot_be_read_is_invalid_with_its_place(bench: Any) -> None:
    (bench.folder / "in.log").write_bytes(b'{"a":1}\n\n{oops\n' + b"x" * 200 + b"\n[2]\n")
    assert await whole(bench, codec="json", max_frame=Size(100)) == [{"a": 1}, [2]]
    path = str(bench.folder / "in.log")
    first, second = bench.admitted["invalid"]
    assert first.data == "{oops"
    assert first.headers["offset"] == 9
    assert first.headers["file"] == path
    assert first.headers["reason"].startswith("not JSON")
    assert second.headers["reason"] == "longer than 100 bytes"


async def test_a_large_file_is_read_in_pieces_that_wait_for_room(bench: Any) -> None:
    numbers = list(range(100_000))
    (bench.folder / "in.log").write_text("\n".join(map(str, numbers)))
    bench.room.clear()
    read = await begun(bench, codec="json")
    await turns(50)
    assert 0 < len(bench.datas()) < 50_000
    bench.room.set()
    await bench.until_ended()
    assert bench.datas() == numbers
    await read.stop()


async def test_a_file_that_is_not_there_is_named_at_the_start_with_the_next_step(bench: Any) -> None:
    with pytest.raises(FurculaError, match=r"bench cannot read .*in\.log: there is no such file; with follow: true"):
        await begun(bench)
    with pytest.raises(FurculaError, match="no file is like that"):
        await begun(bench, path="*.log")
    (bench.folder / "in.log").mkdir()
    with pytest.raises(FurculaError, match="it is not a file"):
        await begun(bench)


# ------------------------------------------------------------------ as they grow


async def test_a_growing_file_is_followed_and_half_a_line_waits_for_its_end(bench: Any) -> None:
    with open(bench.folder / "in.log", "w", buffering=1) as file:
        file.write("a\nhal")
        file.flush()
        read = await begun(bench, follow=True)
        await bench.until(1)
        await turns(50)
        assert bench.datas() == ["a"]
        file.write("f\nb\n")
        assert await bench.until(3) == ["a", "half", "b"]
    assert not bench.ended.is_set()
    await ended(read)
    assert bench.ended.is_set()


async def test_a_rotated_file_is_read_to_its_end_before_its_successor(bench: Any) -> None:
    path = bench.folder / "in.log"
    with open(path, "w", buffering=1) as old:
        old.write("1\n")
        read = await begun(bench, follow=True)
        await bench.until(1)
        path.rename(bench.folder / "in.log.1")
        old.write("2\nlast")
        path.write_text("3\n")
        assert await bench.until(4) == ["1", "2", "last", "3"]
        with open(path, "a") as new:
            new.write("4\n")
        assert (await bench.until(5))[-1] == "4"
    await ended(read)


async def test_a_file_that_was_cut_is_read_from_the_start_again(bench: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = bench.folder / "in.log"
    path.write_text("first line\nsecond\n")
    read = await begun(bench, follow=True)
    await bench.until(2)
    with open(path, "r+") as file:
        file.truncate(0)
        file.write("new\n")
    assert await bench.until(3) == ["first line", "second", "new"]
    assert "was cut" in caplog.text
    await ended(read)


async def test_a_file_that_is_not_there_yet_or_vanishes_is_waited_for(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = bench.folder / "in.log"
    read = await begun(bench, follow=True)
    await turns(20)
    path.write_text("a\n")
    await bench.until(1)
    path.unlink()
    await until(lambda: "is gone; waiting" in caplog.text)
    path.write_text("b\n")
    assert await bench.until(2) == ["a", "b"]
    await ended(read)


async def test_files_that_come_later_are_found_by_a_pattern_and_renamed_ones_are_not_read_twice(bench: Any) -> None:
    (bench.folder / "a.log").write_text("1\n")
    read = await begun(bench, path="*.log*", follow=True)
    await bench.until(1)
    (bench.folder / "b.log").write_text("2\n")
    await bench.until(2)
    (bench.folder / "a.log").rename(bench.folder / "a.log.1")
    (bench.folder / "a.log").write_text("3\n")
    await bench.until(3)
    with open(bench.folder / "b.log", "a") as file:
        file.write("4\n")
    assert await bench.until(4) == ["1", "2", "3", "4"]
    await ended(read)


async def test_only_what_is_added_is_read_when_not_from_the_start(bench: Any) -> None:
    (bench.folder / "a.log").write_text("old\n")
    read = await begun(bench, path="*.log", follow=True, from_start=False)
    await turns(20)
    with open(bench.folder / "a.log", "a") as file:
        file.write("added\n")
    await bench.until(1)
    (bench.folder / "b.log").write_text("all of a new file\n")
    assert await bench.until(2) == ["added", "all of a new file"]
    await ended(read)


async def test_after_cease_nothing_more_is_read(bench: Any) -> None:
    path = bench.folder / "in.log"
    path.write_text("a\n")
    read = await begun(bench, follow=True)
    await bench.until(1)
    read.cease()
    path.write_text("a\nb\n")
    await bench.until_ended()
    assert bench.datas() == ["a"]
    await read.stop()


# ------------------------------------------------------------------ positions


def positions(bench: Bench) -> Any:
    path = bench.folder / "state/positions.json"
    return {Path(name).name: kept["offset"] for name, kept in json.loads(path.read_text()).items()}


async def rest(bench: Bench, **arguments: Any) -> list[Any]:
    """What a new run reads, everything settled."""
    again = Bench(bench.folder)
    read = await begun(again, positions="state/positions.json", **arguments)
    await again.ended.wait()
    again.settle(len(again.slots))
    await read.stop()
    return again.datas()


async def test_what_was_settled_is_not_read_again(bench: Any) -> None:
    path = bench.folder / "in.log"
    path.write_text("a\nb\n")
    read = await begun(bench, positions="state/positions.json")
    await bench.until_ended()
    bench.settle(2)
    await read.stop()
    assert positions(bench) == {"in.log": 4}
    with open(path, "a") as file:
        file.write("c\n")
    assert await rest(bench) == ["c"]
    assert await rest(bench) == []


async def test_what_was_not_settled_is_read_again(bench: Any) -> None:
    path = bench.folder / "in.log"
    path.write_text("a\n")
    read = await begun(bench, positions="state/positions.json", follow=True)
    await bench.until(1)
    with open(path, "a") as file:
        file.write("b\nc\n")
    await bench.until(3)
    first, *others = bench.slots
    for slot in others:
        slot.settle("delivered")  # out of order: the position must not pass the first
    await ended(read)
    assert positions(bench) == {"in.log": 0}
    assert await rest(bench) == ["a", "b", "c"]
    first.settle("delivered")


@pytest.mark.parametrize(
    ("fate", "reason", "on_refused", "again"),
    [
        ("dropped", "filtered", "skip", []),
        ("failed", "error", "skip", []),
        ("failed", "error", "hold", ["a"]),
        ("failed", "abandoned", "skip", ["a"]),
        ("failed", "lost", "skip", ["a"]),
    ],
)
async def test_what_the_fate_of_an_event_means_for_the_position(
    bench: Any, fate: str, reason: str, on_refused: Any, again: list[str]
) -> None:
    (bench.folder / "in.log").write_text("a\n")
    read = await begun(bench, positions="state/positions.json", on_refused=on_refused)
    await bench.until_ended()
    bench.settle(1, fate, reason)
    await read.stop()
    assert read.refused == (1 if reason == "error" else 0)
    assert await rest(bench) == again


async def test_lines_that_are_invalid_or_blank_hold_no_position_up(bench: Any) -> None:
    (bench.folder / "in.log").write_text("\n\noops\n\n")
    read = await begun(bench, positions="state/positions.json", codec="json")
    await bench.until_ended()
    bench.settle(1)
    await read.stop()
    assert positions(bench) == {"in.log": 8}


async def test_a_file_rotated_between_two_runs_is_read_to_its_end_first(bench: Any) -> None:
    path = bench.folder / "in.log"
    path.write_text("a\nb\n")
    read = await begun(bench, positions="state/positions.json")
    await bench.until_ended()
    bench.settle(2)
    await read.stop()
    with open(path, "a") as file:
        file.write("c\n")
    path.rename(bench.folder / "in.log.1")
    path.write_text("d\n")
    assert await rest(bench) == ["c", "d"]
    assert await rest(bench) == []


async def test_the_position_stays_in_a_rotated_file_until_that_is_settled(bench: Any) -> None:
    path = bench.folder / "in.log"
    path.write_text("old\n")
    read = await begun(bench, positions="state/positions.json", follow=True)
    await bench.until(1)
    path.rename(bench.folder / "in.log.1")
    path.write_text("new\n")
    await bench.until(2)
    old, new = bench.slots
    new.settle("delivered")
    await ended(read)
    assert await rest(bench) == ["old", "new"]
    old.settle("delivered")


async def test_a_file_gone_between_two_runs_is_logged_and_its_successor_read(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = bench.folder / "in.log"
    path.write_text("a\n")
    read = await begun(bench, positions="state/positions.json")
    await bench.until_ended()
    bench.settle(1)
    await read.stop()
    (bench.folder / "keep its inode busy").hardlink_to(path)
    path.unlink()
    path.write_text("b\n")
    assert await rest(bench) == ["b"]
    assert "is gone, with what was not read of it" in caplog.text


async def test_positions_are_written_while_reading_and_replaced_as_a_whole(moved: Any) -> None:
    (moved.folder / "in.log").write_text("a\n")
    read = await begun(moved, positions="state/positions.json", follow=True)
    await moved.until(1)
    moved.settle(1)
    await until(lambda: (moved.folder / "state/positions.json").exists() and positions(moved) == {"in.log": 2})
    assert os.listdir(moved.folder / "state") == ["positions.json"]
    await ended(read)


async def test_damaged_positions_are_reported_and_not_taken_for_none(bench: Any) -> None:
    (bench.folder / "in.log").write_text("a\n")
    (bench.folder / "p.json").write_text('{"in.log": {"inode"')
    with pytest.raises(FurculaError, match=r"the positions .*p\.json are damaged .* remove the file"):
        await begun(bench, positions="p.json")
