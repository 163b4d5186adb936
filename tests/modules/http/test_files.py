"""http.files: the files of a folder, all of them, and nothing else."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.modules.conftest import Bench

from furcula import Event
from furcula.errors import FurculaError
from furcula.modules.http.conditional import http_date
from furcula.modules.http.files import AT_ONCE, Files
from furcula.statuses import HttpError, MethodNotAllowed, NotFound, RangeNotSatisfiable
from furcula.testing import run_module

AT = 1_700_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what is to be seen, beside what is not."""
    folder = tmp_path / "public"
    (folder / "docs" / "empty").mkdir(parents=True)
    (folder / ".well-known").mkdir()
    (folder / ".git").mkdir()
    for name, text in {
        "index.html": "<h1>",
        "hello.txt": "0123456789",
        "docs/index.html": "docs",
        "Zoë & co.txt": "zoë",
        ".well-known/security.txt": "well known",
        ".git/config": "hidden",
        ".htpasswd": "hidden",
    }.items():
        (folder / name).write_text(text)
        os.utime(folder / name, (AT, AT))
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "public-not").mkdir()
    (tmp_path / "public-not" / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to("hello.txt")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "circle").symlink_to("circle")
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    return folder


def files(folder: Path, **arguments: Any) -> Files:
    module = Files(folder="public", **arguments)
    module.start(Bench(folder.parent))
    return module


def asked(path: Any, method: str = "GET", **fields: str) -> Event:
    request = {name.replace("_", "-"): value for name, value in fields.items()}
    return Event(None, {"method": method, "params": {"path": path}, "request": request})


async def read(event: Event) -> bytes:
    return event.data if isinstance(event.data, bytes) else b"".join([chunk async for chunk in event.data])


# ------------------------------------------------------------------ what is there


async def test_a_file_is_answered_with_its_type_its_length_and_its_version(folder: Path) -> None:
    event = files(folder, cache_control="max-age=60").process(asked("hello.txt"))
    assert event.data == b"0123456789"
    assert event.headers["status"] == 200
    etag = event.headers["response"].pop("etag")
    assert etag.startswith('"')
    assert event.headers["response"] == {
        "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "cache-control": "max-age=60",
        "content-type": "text/plain; charset=utf-8",
        "content-length": "10",
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
    }


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", b"<h1>"),
        ("index.html", b"<h1>"),
        ("docs/", b"docs"),
        ("docs/index.html", b"docs"),
        ("Zoë & co.txt", "zoë".encode()),
        ("link.txt", b"0123456789"),
        ("up/public/hello.txt", b"0123456789"),  # out by a link, and in again
        (".well-known/security.txt", b"well known"),
    ],
)
async def test_what_is_in_the_folder_is_found(folder: Path, path: str, body: bytes) -> None:
    assert files(folder).process(asked(path)).data == body


async def test_a_folder_without_the_slash_at_its_end_is_pointed_to(folder: Path) -> None:
    event = files(folder).process(asked("docs"))
    assert (event.headers["status"], event.headers["response"], event.data) == (308, {"location": "./docs/"}, None)
    (folder / "//evil.example".strip("/")).mkdir()
    (folder / "a:b").mkdir()
    assert files(folder).process(asked("evil.example")).headers["response"] == {"location": "./evil.example/"}
    assert files(folder).process(asked("a:b")).headers["response"] == {"location": "./a%3Ab/"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.mjs", "text/javascript; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.svg", "image/svg+xml"),
        ("a.wasm", "application/wasm"),
        ("a.woff2", "font/woff2"),
        ("a.tar.gz", "application/gzip"),
        ("a.html.br", "application/octet-stream"),
        ("a.unheard-of", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("data:text,html", "application/octet-stream"),
    ],
)
async def test_types_by_name(folder: Path, name: str, kind: str) -> None:
    (folder / name).write_text("x")
    assert files(folder).process(asked(name)).headers["response"]["content-type"] == kind


async def test_header_fields_that_others_have_set_stay(folder: Path) -> None:
    event = asked("hello.txt")
    event.headers["response"] = {"set-cookie": ["a=b"], "content-type": "x/y"}
    response = files(folder).process(event).headers["response"]
    assert response["set-cookie"] == ["a=b"]
    assert response["content-type"] == "text/plain; charset=utf-8"


# ------------------------------------------------------------------ what is not there

ATTACKS = [
    "..",
    "../",
    "../secret.txt",
    "docs/../../secret.txt",
    "docs/../hello.txt",
    "./hello.txt",
    ".",
    "/etc/passwd",
    "//etc/passwd",
    "docs//index.html",
    "..\\secret.txt",
    "docs\\index.html",
    "C:\\secret.txt",
    "..%2fsecret.txt",
    "%2e%2e/secret.txt",
    "....//secret.txt",
    "../public-not/secret.txt",
    "hello.txt\0",
    "hello.txt\0.html",
    "hello.txt/",
    "hello.txt/x",
    "hello.txt\n",
    ".git/config",
    ".htpasswd",
    ".well-known/.x",
    ".well-known/",
    "out.txt",
    "up/secret.txt",
    "up/",
    "up",
    "circle",
    "circle/x",
    "dangling",
    "pipe",
    "docs/empty/",
    "nothing",
    "~root",
    "x" * 300,
    "x/" * 5000,
    "\ud800",
    "\u2025/secret.txt",
    "\uff0e\uff0e/secret.txt",
]


@pytest.mark.parametrize("path", ATTACKS, ids=range(len(ATTACKS)))
async def test_everything_else_is_a_404_that_tells_nothing(folder: Path, path: str) -> None:
    with pytest.raises(NotFound) as caught:
        files(folder).process(asked(path))
    assert caught.value.problem() == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(
    steps=st.lists(
        st.sampled_from(["..", ".", "", "docs", "up", "index.html", "secret.txt", "public", "\\", "%2e%2e", "out.txt"]),
        max_size=6,
    )
)
def test_no_path_leads_out_of_the_folder(folder: Path, steps: list[str]) -> None:
    try:
        event = files(folder).process(asked("/".join(steps)))
    except HttpError:
        return
    assert event.data != b"secret"
    assert event.data in (b"<h1>", b"docs", None)


async def test_a_folder_has_no_index_if_none_is_wanted(folder: Path) -> None:
    for path in ("", "docs/"):
        with pytest.raises(NotFound):
            files(folder, index=None).process(asked(path))
    assert files(folder, index="hello.txt").process(asked("")).data == b"0123456789"


async def test_a_file_that_may_not_be_read_is_a_404(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: Any) -> int:
        raise PermissionError(13, "denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(NotFound):
        files(folder).process(asked("hello.txt"))


async def test_a_system_without_room_for_another_open_file_is_not_a_404(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="too many"):
        files(folder).process(asked("hello.txt"))


async def test_files_can_only_be_read(folder: Path) -> None:
    assert files(folder).process(asked("hello.txt", "HEAD")).headers["response"]["content-length"] == "10"
    with pytest.raises(MethodNotAllowed) as caught:
        files(folder).process(asked("hello.txt", "PUT"))
    assert caught.value.headers == {"allow": "GET, HEAD"}


async def test_a_route_without_the_parameter_is_a_mistake_of_the_flow_unless_it_has_none_at_all(folder: Path) -> None:
    event = Event(None, {"params": {"rest": "hello.txt"}})
    with pytest.raises(KeyError, match="no path at 'path'"):
        files(folder).process(event)
    assert files(folder, param="rest").process(event).data == b"0123456789"
    assert files(folder).process(Event(None, {"params": {}})).data == b"<h1>"
    for headers in ({}, {"params": None}, {"params": {"path": 7}}):
        with pytest.raises(KeyError):
            files(folder).process(Event(None, headers))


# ------------------------------------------------------------------ only if it has changed


def version(folder: Path, path: str = "hello.txt") -> str:
    return str(files(folder).process(asked(path)).headers["response"]["etag"])


async def test_who_has_the_file_is_told_so(folder: Path) -> None:
    etag = version(folder)
    for fields in (
        {"if_none_match": etag},
        {"if_none_match": f"W/{etag}"},
        {"if_none_match": f'"other", {etag}'},
        {"if_none_match": "*"},
        {"if_modified_since": http_date(AT)},
        {"if_modified_since": http_date(AT + 1000)},
        {"if_modified_since": "Tuesday, 14-Nov-23 22:13:20 GMT"},
        {"if_none_match": etag, "if_modified_since": http_date(AT - 1000)},
        {"if_none_match": etag, "range": "bytes=0-1"},
    ):
        event = files(folder, cache_control="no-cache").process(asked("hello.txt", **fields))
        assert (event.headers["status"], event.data) == (304, None)
        assert event.headers["response"] == {
            "etag": etag, "last-modified": http_date(AT), "cache-control": "no-cache",
        }  # fmt: skip


async def test_who_has_another_version_gets_the_file(folder: Path) -> None:
    for fields in (
        {"if_none_match": '"other"'},
        {"if_none_match": '"other"', "if_modified_since": http_date(AT)},
        {"if_none_match": version(folder).strip('"')},
        {"if_none_match": ""},
        {"if_modified_since": http_date(AT - 1)},
        {"if_modified_since": "yesterday"},
        {"if_modified_since": "Tue, 99 Nov 99999 22:13:20 GMT"},
        {"if_modified_since": ""},
    ):
        assert files(folder).process(asked("hello.txt", **fields)).headers["status"] == 200


async def test_a_file_that_changes_has_another_version(folder: Path) -> None:
    before = version(folder)
    (folder / "hello.txt").write_text("abcdefghij")
    os.utime(folder / "hello.txt", ns=(AT * 10**9 + 1, AT * 10**9 + 1))
    assert version(folder) != before


# ------------------------------------------------------------------ a part of it


@pytest.mark.parametrize(
    ("field", "body", "said"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=0-99", b"0123456789", "bytes 0-9/10"),
        (" Bytes = 2 - 4 ", b"234", "bytes 2-4/10"),
    ],
)
async def test_a_part_of_a_file(folder: Path, field: str, body: bytes, said: str) -> None:
    event = files(folder).process(asked("hello.txt", range=field))
    assert (event.headers["status"], event.data) == (206, body)
    response = event.headers["response"]
    assert (response["content-range"], response["content-length"]) == (said, str(len(body)))


@pytest.mark.parametrize("field", ["bytes=10-", "bytes=10-11", "bytes=99-", "bytes=-0", "bytes=999999999999999999-"])
async def test_a_part_that_is_not_there(folder: Path, field: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        files(folder).process(asked("hello.txt", range=field))
    assert caught.value.headers == {"content-range": "bytes */10"}


@pytest.mark.parametrize(
    "field",
    ["", "bytes", "bytes=", "bytes=-", "bytes=4-2", "bytes=a-b", "bytes=0-1,3-4", "items=0-1", "bytes=٣-", "bytes=--1",
     "bytes=0-1-2", "bytes=" + "0" * 100_000 + "-"],
    ids=range(12),
)  # fmt: skip
async def test_what_is_no_part_means_all_of_it(folder: Path, field: str) -> None:
    event = files(folder).process(asked("hello.txt", range=field))
    assert (event.headers["status"], event.data) == (200, b"0123456789")


async def test_a_part_of_a_version_that_is_gone_means_all_of_it(folder: Path) -> None:
    etag = version(folder)
    for condition, status in (
        (etag, 206),
        (http_date(AT), 206),
        ('"other"', 200),
        (f"W/{etag}", 200),
        (http_date(AT - 1), 200),
        ("nonsense", 200),
    ):
        assert (
            files(folder).process(asked("hello.txt", range="bytes=0-1", if_range=condition)).headers["status"] == status
        )


async def test_of_an_empty_file_there_is_no_part(folder: Path) -> None:
    (folder / "empty").write_bytes(b"")
    assert files(folder).process(asked("empty")).data == b""
    for field in ("bytes=0-", "bytes=-1"):
        with pytest.raises(RangeNotSatisfiable):
            files(folder).process(asked("empty", range=field))


# ------------------------------------------------------------------ long files

LONG = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def long(folder: Path) -> Path:
    (folder / "long.bin").write_bytes(LONG)
    return folder / "long.bin"


async def test_a_long_file_is_read_while_it_is_sent(folder: Path, long: Path) -> None:
    event = files(folder).process(asked("long.bin"))
    assert not isinstance(event.data, bytes)
    assert event.headers["response"]["content-length"] == str(len(LONG))
    assert await read(event) == LONG
    event = files(folder).process(asked("long.bin", range=f"bytes=1000-{AT_ONCE + 1001}"))
    assert await read(event) == LONG[1000 : AT_ONCE + 1002]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
async def test_an_answer_that_is_not_sent_or_breaks_off_leaves_nothing_open(folder: Path, long: Path) -> None:
    module = files(folder)
    await read(module.process(asked("long.bin")))
    gc.collect()
    before = descriptors()
    for _ in range(20):
        module.process(asked("long.bin"))
        module.process(asked("hello.txt"))
        with pytest.raises(NotFound):
            module.process(asked("pipe"))
        stream = module.process(asked("long.bin")).data
        await anext(stream)
        await stream.aclose()
    assert descriptors() == before


async def test_a_file_that_changes_on_the_way_breaks_the_answer_off(folder: Path, long: Path) -> None:
    module = files(folder)
    waiting = module.process(asked("long.bin"))
    begun = module.process(asked("long.bin"))
    await anext(begun.data)
    os.truncate(long, 300_000)
    with pytest.raises(FurculaError, match="has changed before it was sent"):
        await read(waiting)
    with pytest.raises(FurculaError, match="became shorter"):
        await read(begun)
    gone = module.process(asked("long.bin"))
    long.unlink()
    with pytest.raises(NotFound):
        await read(gone)


# ------------------------------------------------------------------ arguments, the engine


@pytest.mark.parametrize(
    "arguments",
    [{"index": ""}, {"index": "a/b"}, {"index": "..\\x"}, {"index": ".hidden"}, {"cache_control": "a\r\nb"}],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"index|cache_control"):
        Files(folder="x", **arguments)


async def test_a_folder_that_is_not_there_is_refused_at_the_start(folder: Path) -> None:
    for name in ("nowhere", "public/hello.txt"):
        with pytest.raises(FurculaError, match=f"bench cannot read the folder .*{name}"):
            Files(folder=name).start(Bench(folder.parent))


def test_in_the_engine_what_is_not_there_fails_with_404(folder: Path) -> None:
    result = run_module("http.files", [asked("hello.txt"), asked("../secret.txt")], folder=str(folder))
    assert result.data() == [b"0123456789"]
    assert [failure.status for failure in result.failures] == [404]
