"""What is decided before a request enters the flow: where it goes, and which texts are read."""

from __future__ import annotations

import encodings
import time
from typing import Any

import pytest

from furcula.modules.http import media
from furcula.modules.http.routes import Route, Routes
from furcula.statuses import NotFound, UnsupportedMediaType, UpgradeRequired


def found(route: str, path: str, base: str = "") -> Any:
    """The parameters that a route finds in a path; None: it is not the route's."""
    try:
        _, params = Routes(base, [(Route.of(f"GET {route}"), "here")]).find("GET", path)
    except NotFound:
        return None
    return params


@pytest.mark.parametrize(
    ("route", "path", "params"),
    [
        ("/a/{x}", "/a/1", {"x": "1"}),
        ("/a/{x}", "/a/", None),
        ("/a/{x}", "/a/1/2", None),
        ("/a/{x:int}", "/a/17", {"x": 17}),
        ("/a/{x:int}", "/a/x17", None),
        ("/{a}/x/{b}/", "/1/x/2/", {"a": "1", "b": "2"}),
        ("/{a}/{b}", "/1.2/3", {"a": "1.2", "b": "3"}),
        ("/{rest:path}", "/", {"rest": ""}),
        ("/a/{rest:path}", "/a/b/c", {"rest": "b/c"}),
        ("/{rest:path}.json", "/a.json/b.v2.json", {"rest": "a.json/b.v2"}),
        ("/{rest:path}/edit", "/a/b/edit", {"rest": "a/b"}),
        ("/{rest:path}/edit", "/a/b/edited", None),
        ("/{kind}.{rest:path}.json", "/a/b.json", None),
        ("/{kind}-{rest:path}.json", "/a-b/c.json", {"kind": "a", "rest": "b/c"}),
        ("/files/{name}.json", "/files/a.b.json", {"name": "a.b"}),
        ("/files/{name}.{ext}", "/files/a.txt", {"name": "a", "ext": "txt"}),
        ("/files/{name}.{ext}", "/files/a.tar.gz", {"name": "a.tar", "ext": "gz"}),
        ("/files/{name}.{ext}", "/files/a", None),
        ("/files/{name}.{ext}/raw", "/files/a.b.txt/raw", {"name": "a.b", "ext": "txt"}),
        ("/{slug}-{id:int}", "/a-long-title-42", {"slug": "a-long-title", "id": 42}),
        ("/{slug}-{id:int}.{ext}", "/a-long-title-42.html", {"slug": "a-long-title", "id": 42, "ext": "html"}),
        ("/{y:int}-{m:int}-{d:int}", "/2024-02-29", {"y": 2024, "m": 2, "d": 29}),
        ("/{a}-{b}.json", "/x-y-z.json", {"a": "x-y", "b": "z"}),
        ("/{a}--{b}", "/x--y-z", {"a": "x", "b": "y-z"}),
        ("/{a}.{b}.{c}", "/1.2.3.4", {"a": "1.2", "b": "3", "c": "4"}),
        ("/v{a}x{b}/y/z{c}", "/v1x2/y/z3", {"a": "1", "b": "2", "c": "3"}),
        ("/v{a}x{b}/y/z{c}", "/v1x2/z3", None),
    ],
)
def test_a_path_gives_its_parameters(route: str, path: str, params: Any) -> None:
    assert found(route, path) == params
    assert found(route, f"/base.v1{path}", base="/base.v1") == params


@pytest.mark.parametrize(
    ("route", "says"),
    [
        ("/{a}{b}", "nothing stands between 'a' and 'b'"),
        ("/{a:int}{b}", "nothing stands between 'a' and 'b'"),
        ("/{a:path}/{b}", "'a' takes all the rest, so 'b' cannot come after it"),
        ("/{a:path}/x/{b:path}", "'a' takes all the rest, so 'b' cannot come after it"),
        ("/{a}/{a}", "has two parameters 'a'"),
        ("/{a:number}", "there is no kind of parameter 'number'"),
        ("/{a-b}", "a parameter is written"),
        ("/a}", "a parameter is written"),
    ],
)
def test_a_route_that_could_not_be_told_apart_is_refused(route: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        found(route, "/")


@pytest.mark.parametrize(
    "route",
    [
        "/{a}.{b}",
        "/{a}.{b}.json",
        "/{a}-{b}.{c}",
        "/{a}-{b}.{c}/{d}.{e}-{f}",
        "/{a}.{b}.{c}.{d}.{e}",
        "/{a}--{b}--{c}",
        "/{a}-{id:int}.{b}",
        "/{a}1{id:int}.{b}",
        "/{a}.{rest:path}",
        "/{a}.{rest:path}.json",
        "/{a}-{b}.{rest:path}/x",
        "/{rest:path}.json",
        "/{rest:path}-.-.-.",
    ],
)
@pytest.mark.parametrize("text", [".", "-", "1", ".-", "-.", "-1.", "a.b-", "--.", "1-", "x/", "-./", ".json", "-1.x/"])
def test_no_path_takes_long_to_be_told_from_a_route(route: str, text: str) -> None:
    """What was quadratic took seconds for paths much shorter than these."""
    table = Routes("", [(Route.of(f"GET {route}"), "here")])
    for end in ("", "/", "//", "\n", ".jso", ".json"):
        path = "/" + text * (64_000 // len(text)) + end
        began = time.process_time()
        table.allowed(path)
        assert time.process_time() - began < 0.5, path[-20:]


def test_a_websocket_asked_for_without_an_upgrade_says_which_upgrade() -> None:
    with pytest.raises(UpgradeRequired) as caught:
        Routes("", [(Route.of("WS /chat"), "here")]).find("GET", "/chat")
    assert caught.value.headers == {"upgrade": "websocket"}


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        *((charset, "grüße") for charset in ("utf-8", "UTF8", "utf_16", "UTF-16LE", "utf-16be", "utf-32", "Latin-1")),
        *((charset, "grüße") for charset in ("ISO-8859-1", "iso8859_15", "windows-1252", "CP1252")),
        *((charset, "привет") for charset in ("koi8-r", "KOI8-U", "windows-1251", "iso-8859-5")),
        *((charset, "日本") for charset in ("Shift_JIS", "euc-jp", "ISO-2022-JP", "gb2312", "GBK", "gb18030", "big5")),
        ("euc-kr", "한국"),
        ("us-ascii", "plain"),
    ],
)
def test_a_text_is_read_in_any_charset_that_texts_are_written_in(charset: str, text: str) -> None:
    assert media.decode(f'text/plain; charset="{charset}"', text.encode(charset)) == text


def test_each_charset_that_is_read_is_one() -> None:
    for name in ("iso-8859-16", "windows-1250", "cp1258", "utf-32-be"):
        assert media.decode(f"text/plain; charset={name}", "".encode(name)) == ""
    for python_name in media._CHARSETS.values():
        assert "x".encode(python_name).decode(python_name) == "x"


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "rot13", "iso-8859-12", "made-up", ""])
def test_another_charset_is_not_even_looked_up(charset: str) -> None:
    before = set(encodings._cache)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedMediaType):
        media.decode(f"text/plain; charset={charset}", b"a" * 1_000_000 + b"-" + b"a" * 1_000_000)
    assert set(encodings._cache) == before  # type: ignore[attr-defined]
