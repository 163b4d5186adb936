"""auth.basic: who has the password passes; everybody else gets a 401, and never a 500."""

from __future__ import annotations

import asyncio
import base64
import collections
import logging
import os
import threading
import unicodedata
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from tests.modules.conftest import Bench

from furcula import Director, Flow, Options, Secret
from furcula.errors import FurculaError, Unanswered
from furcula.modules.auth import basic as basic_module
from furcula.modules.auth.basic import Basic
from furcula.modules.auth.passwords import read_hash, scrypt_hash
from furcula.options import Duration
from furcula.statuses import Unauthorized

from .conftest import basic, request, told


def quick(password: str) -> str:
    """A bcrypt hash of the least cost, as htpasswd writes it."""
    return "$2y$" + bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()[4:]


def users(**passwords: str) -> dict[str, Secret]:
    return {name: Secret(password) for name, password in passwords.items()}


async def passes(module: Basic, authorization: str | None) -> Any:
    """What `headers.auth` becomes, or None for a 401."""
    try:
        return (await module.process(request(authorization))).headers["auth"]
    except Unauthorized:
        return None


async def started(bench: Bench, **arguments: Any) -> Basic:
    module = Basic(**arguments)
    module.start(bench)
    return module


# ------------------------------------------------------------------ what a request says


async def test_the_right_password_says_who_it_is_and_travels_no_further() -> None:
    event = request(basic("ada", "s3cret"))
    passed = await Basic(users=users(ada="s3cret")).process(event)
    assert passed is event
    assert passed.headers["auth"] == {"scheme": "basic", "user": "ada"}
    assert passed.headers["request"] == {"host": "example.org"}


async def test_a_wrong_password_is_refused_with_a_challenge_and_travels_no_further_either() -> None:
    event = request(basic("ada", "s3cre"))
    with pytest.raises(Unauthorized) as caught:
        await Basic(users=users(ada="s3cret"), realm='the "shop"').process(event)
    assert caught.value.status == 401
    assert caught.value.headers == {"www-authenticate": 'Basic realm="the \\"shop\\"", charset="UTF-8"'}
    assert "s3cre" not in told(caught.value)
    assert "authorization" not in event.headers["request"]


async def test_an_unknown_name_is_refused_in_the_same_words_as_a_wrong_password() -> None:
    module = Basic(users=users(ada="x"))
    said = []
    for name in ("ada", "bob"):
        with pytest.raises(Unauthorized) as caught:
            await module.process(request(basic(name, "wrong")))
        said.append(caught.value.problem())
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "field",
    [
        "Basic",
        "Basic ",
        "Basic %%%",
        "Basic YWRh",  # no colon
        "Basic YWRhOng",  # its padding is missing
        "Basic YWRhOng=YWRhOng=",
        "Basic YWRhOng= Basic YWRhOng=",
        "Basic YWRhOng=, Basic YWRhOng=",
        "Basic " + base64.b64encode(b"ad\xffa:x").decode(),
        "Basic " + base64.b64encode(b"ada:x\0").decode(),
        "Basic " + base64.b64encode(b"ada:x\r\nset-cookie: a=b").decode(),
        "Basic ÿÿÿÿ",
        "Basic \ud800\ud800\ud800\ud800",
        pytest.param("Basic " + "QUFB" * 100_000, id="huge"),
        "Digest username=ada",
        "Bearer YWRhOng=",
        "",
        "YWRhOng=",
    ],
)
async def test_credentials_that_cannot_be_read_are_refused_and_break_nothing(field: str) -> None:
    assert await passes(Basic(users=users(ada="x")), field) is None


@pytest.mark.parametrize("headers", [{}, {"request": None}, {"request": []}, {"request": {"authorization": 7}}])
async def test_an_event_that_is_no_request_is_refused(headers: dict[str, Any]) -> None:
    event = request()
    event.headers = headers
    with pytest.raises(Unauthorized, match="are needed"):
        await Basic(users=users(ada="x")).process(event)


async def test_credentials_of_another_scheme_are_left_for_another_module() -> None:
    event = request("Bearer abc")
    with pytest.raises(Unauthorized):
        await Basic(users=users(ada="x")).process(event)
    assert event.headers["request"]["authorization"] == "Bearer abc"


async def test_the_scheme_is_read_in_any_case_and_a_password_may_have_colons_and_be_empty() -> None:
    module = Basic(users=users(ada="a:b:c", bob=""))
    assert await passes(module, basic("ada", "a:b:c").replace("Basic ", "bASIC   "))
    assert await passes(module, basic("bob", ""))
    assert await passes(module, basic("nobody", "")) is None


async def test_names_and_passwords_are_the_same_however_their_characters_are_composed() -> None:
    name, password = "Zoë", "naïve ☂"
    module = Basic(users={name: Secret(password)})
    for form in ("NFC", "NFD"):
        given = basic(unicodedata.normalize(form, name), unicodedata.normalize(form, password))
        assert await passes(module, given) == {"scheme": "basic", "user": unicodedata.normalize("NFC", name)}


async def test_requests_that_share_header_fields_lose_nothing_of_each_other() -> None:
    event = request(basic("ada", "x"))
    shared = event.headers["request"]
    await Basic(users=users(ada="x")).process(event)
    assert "authorization" in shared


# ------------------------------------------------------------------ a file


async def test_users_of_a_file_by_both_forms_of_hash(bench: Bench) -> None:
    (bench.folder / "users").write_text(
        f"# the shop\n\nada:{quick('one')}\r\n  Zoë:{scrypt_hash('zwei', ln=4, p=1)}  \n"
        f"old:{quick('x').replace('2y', '2a', 1)}"
    )
    module = await started(bench, users_file="users")
    assert await passes(module, basic("ada", "one")) == {"scheme": "basic", "user": "ada"}
    assert await passes(module, basic("Zoë", "zwei")) == {"scheme": "basic", "user": "Zoë"}
    assert await passes(module, basic("old", "x"))
    for name, password in (("ada", "zwei"), ("Zoë", "one"), ("bob", "one"), ("ada", ""), ("", "")):
        assert await passes(module, basic(name, password)) is None
    module.stop()


async def test_bcrypt_looks_at_72_bytes_and_a_longer_password_breaks_nothing(bench: Bench) -> None:
    (bench.folder / "users").write_text(f"ada:{quick('x' * 72)}")
    module = await started(bench, users_file="users")
    assert await passes(module, basic("ada", "x" * 100))
    assert await passes(module, basic("ada", "x" * 71 + "y" * 29)) is None
    module.stop()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ada:s3cret", "plain text or an unknown hash is not taken"),
        ("ada:$apr1$s3cret$0123456789", "MD5"),
        ("ada:{SHA}s3cret", "SHA-1"),
        ("ada:$6$s3cret$0123456789", "SHA-512"),
        ("ada:$argon2id$s3cret", "Argon2"),
        ("ada:$2y$05$s3cret", "damaged"),
        ("ada:$2y$99$" + "s3cret" * 9, "damaged"),
        ("ada:$scrypt$s3cret", "damaged"),
        ("ada:$scrypt$ln=30,r=8,p=1$s3cret$s3cret", "256 MiB"),
        ("ada:$scrypt$ln=0,r=0,p=0$s3cret$s3cret", "not possible"),
        ("ada:$scrypt$ln=4,r=8,p=1$s3cret12$s3cret12", "shorter than 16"),
        ("ada:$scrypt$ln=4,r=8,p=1$s3cre$s3cre", "base64"),
        ("s3cret", "write name:hash"),
        (":s3cret", "write name:hash"),
        ("ada:", "write name:hash"),
        ("eve:s3cret", "a second time"),
    ],
)
async def test_a_file_with_a_bad_line_is_refused_with_its_place_and_shows_nothing(
    bench: Bench, line: str, says: str
) -> None:
    (bench.folder / "users").write_text(f"eve:{quick('x')}\n{line}\n")
    with pytest.raises(FurculaError) as caught:
        await started(bench, users_file="users")
    assert str(caught.value).startswith(f"bench: {bench.folder / 'users'}:2: ")
    assert says in str(caught.value)
    assert "s3cre" not in told(caught.value)


async def test_a_file_that_is_not_there_or_no_text_is_refused(bench: Bench) -> None:
    with pytest.raises(FurculaError, match="users cannot be read: No such file"):
        await started(bench, users_file="users")
    (bench.folder / "users").write_bytes(b"\xff")
    with pytest.raises(FurculaError, match="users cannot be read: it is not UTF-8"):
        await started(bench, users_file="users")


async def test_a_file_that_changes_is_read_again_and_what_was_remembered_is_forgotten(bench: Bench) -> None:
    path = bench.folder / "users"
    path.write_text(f"ada:{quick('old')}\n")
    module = await started(bench, users_file="users")
    assert await passes(module, basic("ada", "old"))
    replace(path, f"ada:{quick('new')}\nbob:{quick('bob')}\n")
    assert await passes(module, basic("ada", "old")) is None
    assert await passes(module, basic("ada", "new"))
    assert await passes(module, basic("bob", "bob"))
    module.stop()


def replace(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


async def test_a_change_that_cannot_be_used_is_logged_once_and_the_old_users_stay(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    path = bench.folder / "users"
    path.write_text(f"ada:{quick('x')}\n")
    module = await started(bench, users_file="users")
    replace(path, "ada:plain\n")
    for _ in range(3):
        assert await passes(module, basic("ada", "x"))
    path.unlink()
    assert await passes(module, basic("ada", "x"))
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert [error.partition("users")[2][:15] for error in errors] == [":1: the passwor", " cannot be read"]
    assert "plain\n" not in caplog.text
    module.stop()


async def test_an_empty_file_lets_nobody_in(bench: Bench) -> None:
    (bench.folder / "users").write_text("# nobody yet\n")
    module = await started(bench, users_file="users")
    assert await passes(module, basic("ada", "")) is None
    module.stop()


class Counted:
    """In the place of the hashes: counts how often one is looked at, and in which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.looks: collections.Counter[str] = collections.Counter()
        self.threads: set[int] = set()
        monkeypatch.setattr(basic_module, "read_hash", self.read)

    def read(self, text: str) -> Any:
        fits = read_hash(text)

        def counted(password: bytes) -> bool:
            self.looks[text] += 1
            self.threads.add(threading.get_ident())
            return fits(password)

        return counted


async def test_for_a_name_that_nobody_has_somebodys_hash_is_looked_at(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    (bench.folder / "users").write_text(f"ada:{quick('a')}\nbob:{scrypt_hash('b', ln=4, p=1)}\n")
    module = await started(bench, users_file="users")
    for number in range(40):
        assert await passes(module, basic(f"nobody {number}", "a")) is None
    assert sum(counted.looks.values()) == 40
    assert len(counted.looks) == 2  # so that the times of unknown names are spread as those of the known are
    before = counted.looks.copy()
    for _ in range(5):
        await passes(module, basic("nobody 1", "a"))
    assert len(counted.looks - before) == 1  # and each always takes the same
    module.stop()


async def test_hashes_are_looked_at_in_threads_and_the_loop_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    (bench.folder / "users").write_text(f"ada:{quick('a')}")
    module = await started(bench, users_file="users")
    await passes(module, basic("ada", "a"))
    assert threading.get_ident() not in counted.threads
    module.stop()


async def test_a_password_that_was_right_is_remembered_for_a_while_and_a_wrong_one_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    (tmp_path / "users").write_text(f"ada:{quick('a')}")
    time_s = 1000.0
    bench = Bench(tmp_path, lambda: time_s)
    module = await started(bench, users_file="users", remember=Duration("1m"))
    for _ in range(3):
        assert await passes(module, basic("ada", "a"))
    assert sum(counted.looks.values()) == 1
    for number in range(3):
        assert await passes(module, basic("ada", "b")) is None
        assert sum(counted.looks.values()) == 2 + number
    time_s += 61
    assert await passes(module, basic("ada", "a"))
    assert sum(counted.looks.values()) == 5
    module.stop()


async def test_nothing_is_remembered_with_remember_0(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    (bench.folder / "users").write_text(f"ada:{quick('a')}")
    module = await started(bench, users_file="users", remember=Duration(0))
    for _ in range(2):
        assert await passes(module, basic("ada", "a"))
    assert sum(counted.looks.values()) == 2
    module.stop()


async def test_of_many_requests_at_once_with_one_password_only_a_few_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    (bench.folder / "users").write_text(f"ada:{bcrypt.hashpw(b'a', bcrypt.gensalt(8)).decode()}")
    module = await started(bench, users_file="users")
    assert all(await asyncio.gather(*(passes(module, basic("ada", "a")) for _ in range(200))))
    assert sum(counted.looks.values()) < 100
    module.stop()


async def test_no_more_than_so_many_passwords_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basic_module, "MOST_REMEMBERED", 2)
    asked: list[str] = []

    async def verify(name: str, password: str) -> bool:
        asked.append(name)
        return True

    module = await started(bench, verify=verify)
    for name in ("a", "b", "c", "b", "a"):
        assert await passes(module, basic(name, "x"))
    assert asked == ["a", "b", "c", "a"]
    module.stop()


# ------------------------------------------------------------------ a function


async def test_a_function_may_say_what_else_is_known_and_is_called_in_a_thread(bench: Bench) -> None:
    threads = []

    def verify(name: str, password: str) -> Any:
        threads.append(threading.get_ident())
        return {"roles": ["admin"], "user": "not this"} if password == "x" else None

    module = await started(bench, verify=verify)
    assert await passes(module, basic("ada", "x")) == {"scheme": "basic", "user": "ada", "roles": ["admin"]}
    assert await passes(module, basic("ada", "y")) is None
    assert threading.get_ident() not in threads
    module.stop()


@pytest.mark.parametrize("answer", [False, None, {}])
async def test_a_function_refuses_by_false_none_or_nothing(bench: Bench, answer: Any) -> None:
    module = await started(bench, verify=lambda name, password: answer)
    assert await passes(module, basic("ada", "x")) is None
    module.stop()


@pytest.mark.parametrize("answer", ["wrong password", 1, ["ada"]])
async def test_nobody_is_let_in_by_a_function_that_answers_nonsense(bench: Bench, answer: Any) -> None:
    module = await started(bench, verify=lambda name, password: answer)
    with pytest.raises(TypeError, match="it gives True, False, None or a dict"):
        await module.process(request(basic("ada", "x")))
    module.stop()


async def test_a_function_is_found_by_its_name_beside_the_flow(bench: Bench) -> None:
    (bench.folder / "shop_users_7.py").write_text("async def known(name, password): return password == name * 2")
    module = await started(bench, verify="shop_users_7:known")
    assert await passes(module, basic("ada", "adaada"))
    assert await passes(module, basic("ada", "ada")) is None
    module.stop()


@pytest.mark.parametrize("name", ["shop_nowhere:known", "os:nothing", "os:sep"])
async def test_a_name_of_no_function_is_refused_at_the_start(bench: Bench, name: str) -> None:
    with pytest.raises(FurculaError, match=f"bench: .*{name}"):
        await started(bench, verify=name)


# ------------------------------------------------------------------ arguments, flows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs one of: users_file, users, verify$"),
        ({"users": users(ada="x"), "users_file": "y"}, "not users_file and users"),
        ({"users": users(ada="x"), "realm": "a\nb"}, "printable"),
        ({"users": users(ada="x"), "realm": "ä"}, "printable"),
        ({"users": {"a:b": Secret("x")}}, "cannot be a name"),
        ({"users": {"": Secret("x")}}, "cannot be a name"),
        ({"verify": "verify"}, "write package.module:name"),
        ({"verify": 7}, "write package.module:name"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Basic(**arguments)


async def test_in_a_flow_who_has_no_password_is_answered_with_the_401(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ada:{quick('x')}")
    flow = Flow("shop", folder=tmp_path)
    http = flow.use("inlet", "http")
    login = flow.use("auth.basic", "login", users_file="users", options=Options(concurrency=20))
    http >> login >> http
    async with Director(flow) as director:
        replies = await asyncio.gather(*(director.ask("http", request(basic("ada", "x"))) for _ in range(50)))
        assert {reply.headers["auth"]["user"] for reply in replies} == {"ada"}
        with pytest.raises(Unanswered) as caught:
            await director.ask("http", request(basic("ada", "s3cret")))
    failure = caught.value.failure
    assert (failure.status, failure.headers) == (401, {"www-authenticate": 'Basic realm="furcula", charset="UTF-8"'})
    assert failure.problem == {"detail": "the name or the password is wrong"}
    assert director.statistics().balanced
