"""http.method: each method its own way."""

from __future__ import annotations

from typing import Any

import pytest

from furcula import Event, Flow
from furcula.errors import ConfigurationError
from furcula.modules.http.method import Method
from furcula.statuses import MethodNotAllowed
from furcula.testing import run_module


def asked(method: Any) -> Event:
    return Event(method, {"method": method})


def test_each_method_leaves_by_its_own_outbox() -> None:
    module = Method(methods=["GET", "post", "M-SEARCH"])
    assert [module.choose(asked(name)) for name in ("GET", "POST", "M-SEARCH")] == ["get", "post", "m-search"]


def test_head_goes_where_get_goes_unless_it_is_named() -> None:
    assert Method(methods=["GET"]).choose(asked("HEAD")) == "get"
    assert Method(methods=["GET", "HEAD"]).choose(asked("HEAD")) == "head"
    with pytest.raises(MethodNotAllowed):
        Method(methods=["POST"]).choose(asked("HEAD"))


@pytest.mark.parametrize("method", ["DELETE", "get", "", "GET\r\n", 7, None, ["GET"]])
def test_other_methods_are_answered_with_those_that_are_allowed(method: Any) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        Method(methods=["GET", "POST"]).choose(asked(method))
    assert caught.value.headers == {"allow": "GET, POST, HEAD"}


def test_an_event_that_is_no_request_fails_and_says_what_is_missing() -> None:
    with pytest.raises(KeyError, match=r"headers\.method"):
        Method(methods=["GET"]).choose(Event())


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "at least one"),
        (["GET", "get"], "twice"),
        (["GE T"], "is not a method"),
        ([""], "is not a method"),
        (["FAILED"], "for what went wrong"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(methods: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Method(methods=methods)


def test_the_outboxes_of_a_flow_are_the_methods() -> None:
    events = [asked("GET"), asked("POST"), asked("HEAD"), asked("PUT")]
    result = run_module("http.method", events, methods=["GET", "POST"])
    assert result.data("get") == ["GET", "HEAD"]
    assert result.data("post") == ["POST"]
    assert [failure.status for failure in result.failures] == [405]
    flow = Flow("shop")
    way = flow.use("http.method", methods=["GET"])
    flow.source([], "in") >> way
    way["put"] >> flow.use("null")
    with pytest.raises(ConfigurationError, match="put"):
        flow.check()
