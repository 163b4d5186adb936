"""http.reply, and the functions that say the same: status, header fields, places and cookies of an answer."""

from __future__ import annotations

import doctest
from http.cookies import SimpleCookie
from typing import Any

import jinja2
import pytest

from furcula import Event
from furcula.config import loads
from furcula.errors import ConfigurationError
from furcula.module import bind_arguments
from furcula.modules.http import reply as reply_module
from furcula.modules.http.cookie import Cookie
from furcula.modules.http.reply import Reply, created, no_content, set_cookie
from furcula.modules.http.urls import compile_url
from furcula.testing import run_module


def reply(**arguments: Any) -> Reply:
    values, problems = bind_arguments(Reply, arguments)  # as a flow does it, with conversion
    assert problems == []
    return Reply(**values)


def said(event: Event | None = None, **arguments: Any) -> dict[str, Any]:
    return reply(**arguments).process(event or Event({"id": 7})).headers


def test_status_and_header_fields() -> None:
    headers = said(status=202, headers={"X-Order": "{{ data.id }}", "x-fixed": " a "}, content_type="text/csv")
    assert headers == {
        "status": 202,
        "response": {"x-order": "7", "x-fixed": "a", "content-type": "text/csv"},
    }


def test_what_is_not_given_stays_as_it_is() -> None:
    event = Event(1, {"status": 418, "response": {"x-a": "1"}})
    assert said(event, headers={"x-b": "2"}) == {"status": 418, "response": {"x-a": "1", "x-b": "2"}}
    assert said(Event(1)) == {}
    assert said(Event(1, {"response": "nonsense"}), headers={"a": "b"}) == {"response": {"a": "b"}}


def test_what_has_a_place_was_created_unless_another_status_is_given() -> None:
    assert said(location="/orders/{{ data.id }}") == {"status": 201, "response": {"location": "/orders/7"}}
    assert said(location="/orders", status=303)["status"] == 303


def test_empty_answers_have_no_data() -> None:
    event = reply(empty=True).process(Event({"id": 7}))
    assert (event.data, event.headers) == (None, {"status": 204})
    assert said(empty=True, status=202)["status"] == 202


# ------------------------------------------------------------------ places


@pytest.mark.parametrize(
    ("text", "data", "url"),
    [
        ("/orders/{{ data }}", "a b/c?d#e&f=g", "/orders/a%20b%2Fc%3Fd%23e%26f%3Dg"),
        ("/orders/{{ data }}", "Zoë", "/orders/Zo%C3%AB"),
        ("/orders/{{ data }}", "7\r\nset-cookie: a=b", "/orders/7%0D%0Aset-cookie%3A%20a%3Db"),
        ("/orders/{{ data }}", "50%", "/orders/50%25"),
        ("/{{ data }}/x", "//evil.example", "/%2F%2Fevil.example/x"),
        ("/orders?ids={{ data[0] }},{{ data[1] }}", ["a,b", 7], "/orders?ids=a%2Cb,7"),
        ("/größe {{ data }}", 1.5, "/gr%C3%B6%C3%9Fe%201.5"),
        ("/größe\r\nx: y", 1, "/gr%C3%B6%C3%9Fe%0D%0Ax:%20y"),
        ("{{ data | safe }}/x", "https://example.org/a?b=%20", "https://example.org/a?b=%20/x"),
        ("{{ data | safe }}", "/a\r\nb é", "/a%0D%0Ab%20%C3%A9"),
        ("/x?back={{ data }}", "..", "/x?back=.."),
        ("{% if data %}/yes{% else %}/no{% endif %}", True, "/yes"),
        ("/{{ data }}", "...", "/..."),
    ],
)
def test_a_value_in_a_url_is_never_more_than_a_value(text: str, data: Any, url: str) -> None:
    assert compile_url(text)(Event(data)) == url


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("/users/{{ data }}/private", ".."),
        ("/users/{{ data }}", "."),
        ("/users/{{ data[0] }}{{ data[1] }}/x", [".", "."]),
        ("/users/{{ data | safe }}/x", "%2e%2E"),
        ("/users/{{ data }}", None),
        ("/users/{{ data }}", {"a": 1}),
        ("/users/{{ data }}", ["a"]),
        ("/users/{{ data }}", b"a"),
        ("/users/{{ data }}", "\ud800"),
    ],
)
def test_what_would_lead_elsewhere_makes_the_event_fail(text: str, data: Any) -> None:
    with pytest.raises(ValueError):
        compile_url(text)(Event(data))


def test_what_a_template_names_and_the_event_has_not_makes_it_fail_and_leaves_it_as_it_came() -> None:
    event = Event({})
    with pytest.raises(jinja2.UndefinedError):
        reply(location="/orders/{{ data.id }}", status=200, cookies={"a": {"value": "b"}}).process(event)
    assert event.headers == {}


def test_a_line_break_in_a_header_field_makes_the_event_fail_and_nothing_is_put() -> None:
    for char in "\r\n\0\x7f":
        event = Event(f"a{char}set-cookie: b")
        with pytest.raises(ValueError, match="header field x-a would have a line break"):
            reply(status=200, headers={"x-a": "{{ data }}"}).process(event)
        assert event.headers == {}


# ------------------------------------------------------------------ cookies


def test_cookies_are_written_safely_unless_told_otherwise() -> None:
    headers = said(cookies={"session": {"value": "s{{ data.id }}"}, "lang": {"value": "de", "http_only": False}})
    assert headers == {
        "response": {
            "set-cookie": ["session=s7; HttpOnly; Path=/; SameSite=Lax", "lang=de; Path=/; SameSite=Lax"],
        }
    }


def test_all_that_a_cookie_can_say() -> None:
    cookie = {
        "value": "a=b%20c", "path": "/shop", "domain": "example.org", "max_age": "30d", "secure": True,
        "same_site": "none",
    }  # fmt: skip
    (field,) = said(cookies={"a.b": cookie})["response"]["set-cookie"]
    assert field == "a.b=a=b%20c; Domain=example.org; HttpOnly; Max-Age=2592000; Path=/shop; SameSite=None; Secure"
    assert SimpleCookie(field)["a.b"].value == "a=b%20c"


def test_a_cookie_is_removed_by_an_age_of_nothing() -> None:
    assert said(cookies={"a": {"max_age": 0}})["response"]["set-cookie"] == [
        "a=; HttpOnly; Max-Age=0; Path=/; SameSite=Lax"
    ]


def test_cookies_join_those_that_are_there() -> None:
    event = Event(1, {"response": {"set-cookie": "a=1"}})
    assert said(event, cookies={"b": {"value": "2"}})["response"]["set-cookie"][0] == "a=1"
    assert len(set_cookie(event, "c", "3").headers["response"]["set-cookie"]) == 3


@pytest.mark.parametrize("value", ["a b", "a;b", "a,b", 'a"b', "a\\b", "é", "a\r\nset-cookie: b", "\0"])
def test_a_value_that_cannot_stand_in_a_cookie_makes_the_event_fail_and_is_not_shown(value: str) -> None:
    event = Event(value)
    with pytest.raises(ValueError, match="percent-encode it") as caught:
        reply(cookies={"session": {"value": "{{ data }}"}}).process(event)
    assert value not in str(caught.value)
    assert event.headers == {}
    with pytest.raises(ValueError, match="percent-encode it"):
        set_cookie(Event(), "session", value)


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("", {}, "not the name of a cookie"),
        ("a b", {}, "not the name of a cookie"),
        ("a=b", {}, "not the name of a cookie"),
        ("é", {}, "not the name of a cookie"),
        ("path", {}, "not the name of a cookie"),
        ("a", {"path": "x"}, "path: 'x'"),
        ("a", {"path": "/a;b"}, "path"),
        ("a", {"path": "/a\r\nb"}, "path"),
        ("a", {"domain": "a b"}, "domain"),
        ("a", {"domain": "a;b"}, "domain"),
        ("a", {"domain": ""}, "domain"),
        ("a", {"same_site": "some"}, "same_site"),
        ("a", {"same_site": "None"}, "needs secure: true"),
        ("a", {"max_age": -1}, "not a duration"),
        ("__Secure-a", {}, "needs secure: true"),
        ("__Host-a", {}, "needs secure: true"),
        ("__Host-a", {"secure": True, "path": "/x"}, "needs path: /"),
        ("__Host-a", {"secure": True, "domain": "example.org"}, "needs path: /"),
    ],
)
def test_what_browsers_would_not_take_is_refused(name: str, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_cookie(Event(), name, "x", **attributes)
    with pytest.raises(ValueError, match=message):
        Reply(cookies={name: Cookie(value="x", **attributes)})


# ------------------------------------------------------------------ arguments, functions, flows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status": 199}, "not the status of an answer"),
        ({"status": 600}, "not the status of an answer"),
        ({"empty": True, "content_type": "text/plain"}, "has no type"),
        ({"content_type": "text"}, "not a media type"),
        ({"content_type": "text/plain\r\nx: y"}, "not a media type"),
        ({"headers": {"a b": "c"}}, "not the name of a header field"),
        ({"headers": {"a\r\n": "c"}}, "not the name of a header field"),
        ({"headers": {"a": "b\r\nc"}}, "line break"),
        ({"headers": {"a": "{{"}}, "headers: a: the template is wrong"),
        ({"headers": {"Content-Length": "5"}}, r"http\.listen writes content-length itself"),
        ({"headers": {"Set-Cookie": "a=b"}}, "by cookies"),
        ({"location": "{{ data"}, "location: the template is wrong"),
        ({"cookies": {"a": Cookie(value="a b")}}, "cookies: the value of the cookie a"),
        ({"cookies": {"a": Cookie(value="{{ data")}}, "cookies: a: the template is wrong"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Reply(**arguments)


def test_an_attribute_that_cookies_have_not_is_named() -> None:
    _, problems = bind_arguments(Reply, {"cookies": {"a": {"valu": "b"}}})
    assert "valu" in str(problems[0])


def test_functions_say_the_same() -> None:
    assert created(Event(1), "/a b\r\n").headers == {"status": 201, "response": {"location": "/a%20b%0D%0A"}}
    event = no_content(Event(1))
    assert (event.data, event.headers) == (None, {"status": 204})


def test_the_examples_of_the_functions_run() -> None:
    assert doctest.testmod(reply_module).attempted == 2
    assert doctest.testmod(reply_module).failed == 0


def test_in_a_flow_an_event_that_cannot_be_answered_so_fails() -> None:
    result = run_module("http.reply", [{"id": "a/b"}, {}], location="/orders/{{ data.id }}", cookies={"a": {}})
    (event,) = result["outbox"]
    assert event.headers["response"]["location"] == "/orders/a%2Fb"
    assert [failure.type for failure in result.failures] == ["UndefinedError"]


def test_a_flow_file_says_cookies_attribute_by_attribute() -> None:
    flow = loads("""
        flow: shop
        modules:
          in: inlet
          reply:
            use: http.reply
            with: {cookies: {__Host-a: {value: b, max_age: 1h, same_site: none, secure: true}}}
    """)
    flow.check()
    with pytest.raises(ConfigurationError, match="needs secure: true"):
        loads(
            "{flow: x, modules: {in: inlet, reply: {use: http.reply, with: {cookies: {a: {same_site: none}}}}}}"
        ).check()
