"""auth.key: who has a key passes, wherever the key stands."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest
from tests.modules.conftest import Bench

from furcula import Secret
from furcula.errors import FurculaError
from furcula.event import Event
from furcula.modules.auth.credentials import Lookup, digest_of
from furcula.modules.auth.key import Key
from furcula.statuses import Unauthorized
from furcula.testing import run_module

from .conftest import request, told

KEYS = {"ada": Secret("k-ada"), "Zoë": Secret("k-zoë")}


def test_the_key_says_whose_it_is_and_travels_no_further() -> None:
    event = Key(keys=KEYS).process(request(request={"x-api-key": "k-ada"}))
    assert event.headers["auth"] == {"scheme": "key", "user": "ada"}
    assert event.headers["request"] == {"host": "example.org"}
    event = Key(keys=KEYS, header="X-Shop").process(request(request={"x-shop": "k-zoë"}))
    assert event.headers["auth"]["user"] == "Zoë"


def test_a_key_in_the_query() -> None:
    event = Key(keys=KEYS, query="key").process(request(query={"key": "k-ada", "page": "2"}))
    assert event.headers["auth"]["user"] == "ada"
    assert event.headers["query"] == {"page": "2"}


def test_a_key_in_a_cookie_is_taken_out_of_the_cookie_field_too() -> None:
    event = request(cookies={"key": "k-ada", "lang": "de"}, request={"cookie": "key=k-ada; lang=de;  key=k-ada"})
    passed = Key(keys=KEYS, cookie="key").process(event)
    assert passed.headers["auth"]["user"] == "ada"
    assert passed.headers["cookies"] == {"lang": "de"}
    assert passed.headers["request"] == {"host": "example.org", "cookie": "lang=de"}
    event = request(cookies={"key": "k-ada"}, request={"cookie": "key=k-ada"})
    assert Key(keys=KEYS, cookie="key").process(event).headers["request"] == {"host": "example.org"}


@pytest.mark.parametrize(
    "given",
    [
        "k-ad",
        "k-adaa",
        "K-ADA",
        "",
        " k-ada",
        "k-ada, k-ada",
        "Zoë",
        "\ud800",
        ["k-ada"],
        7,
        pytest.param("k" * 1_000_000, id="huge"),
    ],
)
def test_another_key_is_refused_and_travels_no_further(given: Any) -> None:
    event = request(request={"x-api-key": given})
    with pytest.raises(Unauthorized) as caught:
        Key(keys=KEYS, realm="shop").process(event)
    assert caught.value.headers == {"www-authenticate": 'ApiKey realm="shop"'}
    assert "x-api-key" not in event.headers["request"]


def test_a_key_that_comes_twice_in_a_query_is_refused() -> None:
    with pytest.raises(Unauthorized):
        Key(keys=KEYS, query="key").process(request(query={"key": ["k-ada", "k-ada"]}))


@pytest.mark.parametrize("event", [request(), Event(1), Event(1, {"request": 3, "query": [], "cookies": None})])
@pytest.mark.parametrize("place", [{}, {"query": "key"}, {"cookie": "key"}])
def test_without_a_key_the_request_is_refused(event: Event, place: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="is needed"):
        Key(keys=KEYS, **place).process(event)


async def test_keys_of_a_file_in_plain_and_as_digests_until_it_changes(bench: Bench) -> None:
    path = bench.folder / "keys"
    path.write_text(f"# shop\nada:k:ada\r\n\nbob:sha256:{hashlib.sha256(b'k-bob').hexdigest().upper()}\n")
    module = Key(keys_file="keys")
    module.start(bench)
    for key, user in (("k:ada", "ada"), ("k-bob", "bob")):
        assert module.process(request(request={"x-api-key": key})).headers["auth"]["user"] == user
    os.replace(write(bench, "new", "ada:k2\n"), path)
    with pytest.raises(Unauthorized):
        module.process(request(request={"x-api-key": "k:ada"}))
    assert module.process(request(request={"x-api-key": "k2"})).headers["auth"]["user"] == "ada"


async def test_the_digest_that_stands_in_a_file_is_no_key(bench: Bench) -> None:
    digest = hashlib.sha256(b"k").hexdigest()
    write(bench, "keys", f"ada:sha256:{digest}\n")
    module = Key(keys_file="keys")
    module.start(bench)
    for key in (digest, f"sha256:{digest}"):
        with pytest.raises(Unauthorized):
            module.process(request(request={"x-api-key": key}))


def write(bench: Bench, name: str, text: str) -> Any:
    (bench.folder / name).write_text(text)
    return bench.folder / name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("s3cret\n", "keys:1: write name:key"),
        ("ada:\n", "keys:1: write name:key"),
        ("ada:s3cret\nada:s3cret\n", "keys:2: 'ada' is named a second time (first in line 1)"),
        ("a:x\nada:sha256:s3cret\n", "keys:2: the SHA-256 of 'ada' is damaged"),
        ("ada:s3cret\nbob:s3cret\n", "keys: 'ada' and 'bob' have the same one"),
    ],
)
async def test_a_file_that_cannot_be_is_refused_with_its_place_and_shows_no_key(
    bench: Bench, text: str, says: str
) -> None:
    write(bench, "keys", text)
    with pytest.raises(FurculaError) as caught:
        Key(keys_file="keys").start(bench)
    assert says in str(caught.value)
    assert "s3cret" not in told(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs one of: keys, keys_file$"),
        ({"keys": KEYS, "keys_file": "x"}, "not keys and keys_file"),
        ({"keys": {}}, "there is none"),
        ({"keys": {"ada": Secret("")}}, "that of 'ada' is empty"),
        ({"keys": {"ada": Secret("s3cret"), "bob": Secret("s3cret")}}, "'ada' and 'bob' have the same one"),
        ({"keys": KEYS, "header": "a", "query": "b"}, "one place"),
        ({"keys": KEYS, "header": "a b"}, "not the name of a header field"),
        ({"keys": KEYS, "cookie": "a;b"}, "not the name of a cookie"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Key(**arguments)
    assert "s3cret" not in told(caught.value)


def test_of_many_tokens_each_finds_its_owner() -> None:
    lookup = Lookup((number, digest_of(f"token {number}")) for number in range(5000))
    assert [lookup.owner(f"token {number}") for number in range(5000)] == [(number,) for number in range(5000)]
    assert lookup.owner("token 5000") is None


def test_what_is_compared_is_not_the_token_but_a_mark_that_no_client_can_choose() -> None:
    one, other = (Lookup([("ada", digest_of("token"))]) for _ in range(2))
    assert not set(one._owners) & set(other._owners)
    assert not {digest_of("token"), b"token"} & set(one._owners)


def test_in_the_engine_who_has_no_key_fails_with_the_401() -> None:
    events = [request(request={"x-api-key": "a"}), request(request={"x-api-key": "b"})]
    result = run_module("auth.key", events, keys={"ada": "a"})
    assert [event.headers["auth"]["user"] for event in result["outbox"]] == ["ada"]
    assert [(failure.type, failure.status) for failure in result.failures] == [("Unauthorized", 401)]
    assert result.failed[0].headers["request"] == {"host": "example.org"}
