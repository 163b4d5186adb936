"""Compysition's modules for HTTP and XML: WSGIServer, BasicAuth, Transformer."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from furcula.compat.compysition import Actor, Director, Event
from furcula.compat.compysition.module import WSGI, BasicAuth, Transformer, WSGIServer
from furcula.modules.auth.passwords import scrypt_hash
from furcula.testing import assert_settled

LIMIT_S = 20


@contextmanager
def running(director: Director) -> Iterator[None]:
    """The director runs inside the block; what it took in is accounted for at its end."""
    director.start()
    try:
        yield
    finally:
        statistics = director.stop()
    assert statistics is not None
    assert_settled(statistics)


def ask(
    wsgi: WSGIServer, body: Any = None, path: str = "/", *, method: str = "POST", **headers: str
) -> tuple[int, Any, http.client.HTTPMessage]:
    """The status, the body (JSON decoded) and the header fields that a request is answered with."""
    host, port = wsgi.addresses[0]
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, fields)
        response = connection.getresponse()
        raw = response.read()
        return (
            response.status,
            json.loads(raw) if "json" in response.headers.get_content_type() else raw,
            response.headers,
        )
    finally:
        connection.close()


def basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


class Echo(Actor):
    """Answers with what it sees of the event."""

    def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        user = event.lookup("headers.auth.user")
        event.data = {"data": event.data, "path": event.lookup("headers.path"), "origin": origin, "user": user}
        self.send_event(event)


# ------------------------------------------------------------------ WSGIServer


def test_a_request_is_an_event_and_what_comes_back_answers_it() -> None:
    director = Director()
    wsgi = director.register_module(WSGI, "wsgi", 0)
    echo = director.register_module(Echo, "echo")
    director.connect(wsgi, echo)
    director.connect(echo, wsgi)
    with running(director):
        status, said, _ = ask(wsgi, '{"a": 1}', "/x?y=1", content_type="application/json")
    assert (status, said) == (200, {"data": {"a": 1}, "path": "/x", "origin": "wsgi", "user": None})


class Teapot(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        event.headers["status"] = 418
        event.headers["response"] = {"content-type": "text/plain", "x-kind": "pot"}
        event.data = "short and stout"
        self.send_event(event)


class Lose(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        pass


class Break(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the secret reason")


class Reject(Actor):
    def consume(self, event: Event, *args: Any, **kwargs: Any) -> None:
        self.send_error(event)


@pytest.mark.parametrize("caught", [True, False], ids=["error queue to wsgi", "no error queue"])
@pytest.mark.parametrize(("kind", "status"), [(Teapot, 418), (Lose, 204), (Break, 500), (Reject, 500)])
def test_every_request_is_answered_whatever_becomes_of_its_event(kind: Any, status: int, caught: bool) -> None:
    director = Director()
    wsgi, module = director.register_module(WSGIServer, "wsgi", 0), director.register_module(kind, "module")
    director.connect(wsgi, module)
    director.connect(module, wsgi)
    if caught:
        director.connect_error(module, wsgi)
    with running(director):
        answered, said, headers = ask(wsgi, "x")
    assert answered == status
    assert "secret" not in str(said)
    if kind is Teapot:
        assert (said, headers["x-kind"]) == (b"short and stout", "pot")


def test_routes_lead_to_queues_below_a_base_path() -> None:
    director = Director()
    routes = [{"route": "GET /orders/{id:int}", "outbox": "reads"}, {"route": "POST /orders", "outbox": "writes"}]
    wsgi = director.register_module(WSGIServer, "wsgi", 0, base_path="/api/", routes=routes)
    reads, writes = director.register_module(Echo, "reader"), director.register_module(Teapot, "writer")
    director.connect((wsgi, "reads"), (reads, "by_path"))
    director.connect((wsgi, "writes"), writes)
    director.connect([reads, writes], wsgi)
    with running(director):
        status, said, _ = ask(wsgi, None, "/api/orders/7", method="GET")
        assert (status, said["path"], said["origin"]) == (200, "/api/orders/7", "by_path")
        assert ask(wsgi, "x", "/api/orders")[0] == 418
        assert ask(wsgi, "x", "/orders")[0] == 404
        status, _, headers = ask(wsgi, None, "/api/orders", method="DELETE")
        assert status == 405
        assert "POST" in headers["allow"]


def test_arguments_are_those_of_http_listen_converted_and_checked() -> None:
    assert WSGIServer("wsgi").arguments["port"] == 8080
    assert WSGIServer("wsgi", timeout="2s").arguments["timeout"] == 2.0
    assert "port" not in WSGIServer("wsgi", unix="x.sock").arguments
    for wrong, message in (
        ({"timeut": 1}, "there is no argument 'timeut', did you mean 'timeout'"),
        ({"timeout": "soon"}, "timeout: 'soon' is not a duration"),
        ({"routes": ["nonsense"]}, "nonsense"),
        ({"port": 70_000}, "70000 is not a port"),
    ):
        with pytest.raises(ValueError, match=message):
            WSGIServer("wsgi", **wrong)  # type: ignore[arg-type]


class EightyEightyOne(WSGIServer):
    port = 8081


def test_a_class_may_have_a_port_of_its_own() -> None:
    assert EightyEightyOne("wsgi").arguments["port"] == 8081
    assert EightyEightyOne("wsgi", 9).arguments["port"] == 9


# ------------------------------------------------------------------ BasicAuth


class OnlyAda(BasicAuth):
    def verify(self, user: str, password: str) -> Any:
        return {"team": "engines"} if (user, password) == ("ada", "lovelace") else None


class OnlyAdaSoon(BasicAuth):
    async def verify(self, user: str, password: str) -> Any:
        return (user, password) == ("ada", "lovelace")


class Broken(BasicAuth):
    def verify(self, user: str, password: str) -> Any:
        raise RuntimeError("the directory is away")


def with_auth(kind: type[BasicAuth], *args: Any, **kwargs: Any) -> tuple[Director, WSGIServer]:
    director = Director()
    wsgi, auth = (
        director.register_module(WSGIServer, "wsgi", 0),
        director.register_module(kind, "auth", *args, **kwargs),
    )
    echo = director.register_module(Echo, "echo")
    director.connect(wsgi, auth)
    director.connect_error(auth, wsgi)
    director.connect(auth, echo)
    director.connect(echo, wsgi)
    return director, wsgi


@pytest.mark.parametrize("way", ["method", "coroutine", "function", "users", "file"])
def test_who_is_right_passes_and_who_is_not_is_challenged(way: str, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ada:{scrypt_hash('lovelace', ln=4)}\n")
    kind, arguments = {
        "method": (OnlyAda, {}),
        "coroutine": (OnlyAdaSoon, {}),
        "function": (BasicAuth, {"verify": lambda user, password: (user, password) == ("ada", "lovelace")}),
        "users": (BasicAuth, {"users": {"ada": "lovelace"}}),
        "file": (BasicAuth, {"users_file": str(tmp_path / "users")}),
    }[way]
    director, wsgi = with_auth(kind, **arguments, realm="shop")  # type: ignore[arg-type]
    with running(director):
        status, said, _ = ask(wsgi, "x", content_type="text/plain", authorization=basic("ada", "lovelace"))
        assert (status, said["user"], said["data"]) == (200, "ada", "x")
        for headers in ({}, {"authorization": basic("ada", "x")}, {"authorization": "Basic !"}):
            status, said, answered = ask(wsgi, "x", **headers)
            assert (status, said["status"]) == (401, 401)
            assert answered["www-authenticate"] == 'Basic realm="shop", charset="UTF-8"'


def test_a_verifier_that_breaks_lets_nobody_in() -> None:
    director, wsgi = with_auth(Broken)
    with running(director):
        assert ask(wsgi, "x", authorization=basic("ada", "lovelace"))[0] == 500


def test_a_door_without_a_doorkeeper_is_refused() -> None:
    with pytest.raises(ValueError, match="auth has nobody to let in: override verify"):
        Director().register_module(BasicAuth, "auth")
    with pytest.raises(ValueError, match="one of"):
        BasicAuth("auth", users={}, users_file="x")


# ------------------------------------------------------------------ Transformer

SHEET = """<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:param name="who"/>
<xsl:template match="/"><o by="{$who}"><xsl:value-of select="/a/b"/></o></xsl:template></xsl:stylesheet>"""


@pytest.mark.parametrize("form", ["text", "bytes", "str path", "path"])
def test_a_stylesheet_is_given_as_itself_or_as_its_file(form: str, tmp_path: Path) -> None:
    (tmp_path / "a.xsl").write_text(SHEET)
    given = {"text": SHEET, "bytes": SHEET.encode(), "str path": str(tmp_path / "a.xsl"), "path": tmp_path / "a.xsl"}
    director = Director()
    wsgi = director.register_module(WSGIServer, "wsgi", 0)
    transform = director.register_module(Transformer, "transform", given[form], params={"who": "{{ headers.path }}"})
    director.connect(wsgi, transform)
    director.connect([transform], wsgi)
    director.connect_error(transform, wsgi)
    with running(director):
        status, said, headers = ask(wsgi, "<a><b>x</b></a>", "/'\"", content_type="application/xml")
        assert (status, headers["content-type"]) == (200, "application/xml")
        assert said.endswith(b"""<o by="/'&quot;">x</o>\n""")
        status, said, _ = ask(wsgi, '{"a": {"b": "y"}}', content_type="application/json")
        assert said.endswith(b'<o by="/">y</o>\n')
        for hostile in ("<a>", '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a><b>&x;</b></a>'):
            status, said, _ = ask(wsgi, hostile, content_type="application/xml")
            assert (status, said["title"]) == (400, "Bad Request")


def test_a_stylesheet_that_is_wrong_is_refused_when_it_is_registered() -> None:
    with pytest.raises(ValueError, match="it does not compile"):
        Director().register_module(Transformer, "transform", "<a/>")


# ------------------------------------------------------------------ all of them


def test_the_part_without_http_needs_no_library() -> None:
    program = (
        "import sys; sys.modules['lxml'] = sys.modules['uvicorn'] = None\n"
        "from furcula.compat.compysition import Director\n"
        "from furcula.compat.compysition.module import STDOUT, TestEvent\n"
        "from furcula.errors import ConfigurationError\n"
        "try: from furcula.compat.compysition.module import Transformer\n"
        "except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "XML needs an optional library: pip install 'furcula[xml]'\n"


def test_what_is_no_module_of_ours_is_no_attribute() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Transformr'"):
        exec("from furcula.compat.compysition.module import Transformr")
