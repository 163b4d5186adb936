"""file.write: what is in the file, what is not when the disk is full, and how files follow each other."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from furcula.errors import FurculaError
from furcula.event import Event, Failure
from furcula.module import BatchFailed
from furcula.modules.file import FileWrite
from furcula.options import Duration, Size


def written(bench: Any, *batches: list[Any], **arguments: Any) -> FileWrite:
    write = FileWrite(**{"path": "out.ndjson", **arguments})
    write.start(bench)
    for datas in batches:
        events = [data if isinstance(data, Event) else Event(data) for data in datas]
        assert write.process_batch(events) is events
    write.stop()
    return write


async def test_each_event_is_a_line_of_json(bench: Any) -> None:
    written(bench, [{"a": 1}, "two\nlines"], [None])
    assert (bench.folder / "out.ndjson").read_text() == '{"a":1}\n"two\\nlines"\nnull\n'


async def test_what_is_delivered_is_in_the_file_at_once(bench: Any) -> None:
    write = FileWrite(path="deep/er/out.txt", codec="text", fsync="batch")
    write.start(bench)
    write.process_batch([Event("a")])
    assert (bench.folder / "deep/er/out.txt").read_text() == "a\n"
    write.stop()


@pytest.mark.parametrize(
    ("arguments", "data", "raw"),
    [
        ({"codec": "msgpack", "framing": "length-prefix"}, {"a": 1}, b"\0\0\0\4\x81\xa1a\1"),
        ({"codec": "binary", "framing": "none"}, b"\xff\n", b"\xff\n"),
        ({"codec": "text", "charset": "latin-1", "framing": {"delimiter": "\0"}}, "ü", b"\xfc\0"),
    ],
)
async def test_codecs_framings_and_charsets(bench: Any, arguments: Any, data: Any, raw: bytes) -> None:
    written(bench, [data], **arguments)
    assert (bench.folder / "out.ndjson").read_bytes() == raw


async def test_an_event_that_failed_is_written_whole_so_that_it_can_be_replayed(bench: Any) -> None:
    failed = Event({"n": 1}, {"h": 1}, failures=(Failure("price", "KeyError", "'sku'", attempts=3),))
    written(bench, [failed, Event({"n": 2})])
    first, second = (bench.folder / "out.ndjson").read_text().splitlines()
    assert second == '{"n":2}'
    back = Event.from_wire(json.loads(first))
    assert (back.id, back.data, back.headers, back.failures) == (failed.id, {"n": 1}, {"h": 1}, failed.failures)
    written(bench, [failed], what="data", append=False)
    assert (bench.folder / "out.ndjson").read_text() == '{"n":1}\n'
    written(bench, [Event(5)], what="event", append=False)
    assert msgspec.json.decode((bench.folder / "out.ndjson").read_bytes())["data"] == 5


async def test_an_event_that_cannot_be_written_fails_alone(bench: Any) -> None:
    write = FileWrite(path="out.ndjson")
    write.start(bench)
    with pytest.raises(BatchFailed) as caught:
        write.process_batch([Event(1), Event({"x": object()}), Event(3)])
    assert {index: str(error)[:48] for index, error in caught.value.errors.items()} == {
        1: "JSON cannot hold a value of type object at x: En"
    }
    assert (bench.folder / "out.ndjson").read_text() == "1\n3\n"
    write.stop()


async def test_a_file_is_continued_and_half_a_line_of_a_crash_is_ended_first(bench: Any) -> None:
    (bench.folder / "out.ndjson").write_text('1\n{"half')
    written(bench, [2])
    assert (bench.folder / "out.ndjson").read_text() == '1\n{"half\n2\n'
    written(bench, [3], append=False)
    assert (bench.folder / "out.ndjson").read_text() == "3\n"


async def test_a_file_that_cannot_be_opened_is_named_at_the_start(bench: Any) -> None:
    (bench.folder / "out.ndjson").mkdir()
    with pytest.raises(FurculaError, match=r"bench cannot write to .*out\.ndjson: Is a directory"):
        FileWrite(path="out.ndjson").start(bench)


# ------------------------------------------------------------------ a disk that is full


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
async def test_on_a_full_disk_events_fail_and_the_message_names_the_file(bench: Any) -> None:
    write = FileWrite(path="/dev/full")
    write.start(bench)
    with pytest.raises(BatchFailed) as caught:
        write.process_batch([Event(1), Event(2)])
    assert set(caught.value.errors) == {0, 1}
    assert str(caught.value.errors[0]) == "[Errno 28] /dev/full: No space left on device"
    write.stop()


@pytest.fixture
def small_disk() -> Iterator[int]:
    """No file may be larger than 1,000 bytes. Python ignores the signal, so a write is cut, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_no_half_a_line_is_left_when_the_disk_becomes_full(bench: Any, small_disk: int) -> None:
    write = FileWrite(path="out.ndjson", codec="text")
    write.start(bench)
    path = bench.folder / "out.ndjson"
    write.process_batch([Event("x" * 899)])
    with pytest.raises(BatchFailed) as caught:
        write.process_batch([Event("y" * 60), Event("z" * 60)])
    assert set(caught.value.errors) == {0, 1}
    assert path.read_text() == "x" * 899 + "\n"
    write.process_batch([Event("w" * 50)])  # and there is room for less
    assert path.read_text() == "x" * 899 + "\n" + "w" * 50 + "\n"
    write.stop()


# ------------------------------------------------------------------ one file after another


def lines(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text().replace("\n", " ") for path in sorted(folder.iterdir())}


async def test_a_file_that_is_full_is_followed_by_a_new_one_and_some_old_ones_are_kept(bench: Any) -> None:
    written(bench, list(range(10, 20)), [20, 21], path="n", rotate_size=Size(9), keep=2)
    assert lines(bench.folder) == {"n": "19 20 21 ", "n.1": "16 17 18 ", "n.2": "13 14 15 "}


async def test_without_old_ones_to_keep_a_full_file_begins_anew(bench: Any) -> None:
    written(bench, [10, 11, 12, 13], path="n", rotate_size=Size(9), keep=0)
    assert lines(bench.folder) == {"n": "13 "}


async def test_an_event_larger_than_a_file_has_one_for_itself(bench: Any) -> None:
    written(bench, [1, 123456789, 2], path="n", rotate_size=Size(5))
    assert lines(bench.folder) == {"n": "2 ", "n.1": "123456789 ", "n.2": "1 "}


async def test_a_file_that_is_old_is_followed_by_a_new_one(moved: Any) -> None:
    now_s = 0.0
    moved.now = lambda: now_s
    write = FileWrite(path="n", rotate_every=Duration("1h"))
    write.start(moved)
    for now_s in (0.0, 3599.0, 3600.0, 7199.0, 7200.0):
        write.process_batch([Event(int(now_s))])
    write.stop()
    assert lines(moved.folder) == {"n": "7200 ", "n.1": "3600 7199 ", "n.2": "0 3599 "}


async def test_a_file_that_somebody_moved_away_is_opened_anew(bench: Any) -> None:
    write = FileWrite(path="n")
    write.start(bench)
    write.process_batch([Event(1)])
    (bench.folder / "n").rename(bench.folder / "old")
    write.process_batch([Event(2)])
    (bench.folder / "n").unlink()
    write.process_batch([Event(3)])
    write.stop()
    assert lines(bench.folder) == {"n": "3 ", "old": "1 "}


async def test_a_file_that_cannot_be_rotated_grows_and_loses_nothing(
    bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.folder / "n.1").mkdir()
    (bench.folder / "n.1" / "something").touch()
    written(bench, [1, 2, 3], path="n", rotate_size=Size(2), keep=1)
    assert (bench.folder / "n").read_text() == "1\n2\n3\n"
    assert "cannot be rotated" in caplog.text


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="no codec"):
        FileWrite(path="x", codec="yaml")
    with pytest.raises(ValueError, match="keep"):
        FileWrite(path="x", keep=-1)
    with pytest.raises(ValueError, match="path"):
        FileWrite(path="")
    with pytest.raises(ValueError, match="rotate_size"):
        FileWrite(path="x", rotate_size=Size(0))
