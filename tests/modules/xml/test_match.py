"""xml.match."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.hostile_xml import HOSTILE, hostile

from furcula import Event, Flow
from furcula.errors import ConfigurationError, InputError
from furcula.modules.xml.match import XmlMatch
from furcula.testing import assert_settled

ROUTES = {"big": "count(//line) > 1", "order": "/order", "named": "string(/*/@name)", "ours": "/n:*"}
NAMESPACES = {"n": "urn:ours"}


@pytest.mark.parametrize(
    ("data", "outbox"),
    [
        (b"<order><line/><line/></order>", "big"),
        ("<order><line/></order>", "order"),
        ({"order": None}, "order"),
        ({"a": {"@name": "x"}}, "named"),
        (b"<a name=''/>", "nomatch"),
        (b"<a xmlns='urn:ours'/>", "ours"),
        (b"<a/>", "nomatch"),
    ],
)
def test_the_first_expression_that_holds_names_the_outbox(data: Any, outbox: str) -> None:
    event = Event(data)
    assert XmlMatch(routes=ROUTES, namespaces=NAMESPACES).choose(event) == outbox
    assert event.data is data


@pytest.mark.parametrize(("path", "holds"), [("number('x')", False), ("0", False), ("1", True), ("'a'", True)])
def test_a_number_or_a_text_holds_as_xpath_says(path: str, holds: bool) -> None:
    assert XmlMatch(routes={"yes": path}).choose(Event(b"<a/>")) == ("yes" if holds else "nomatch")


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({}, "at least one outbox"),
        ({"a": "/["}, r"a: '/\[' is not an XPath expression"),
        ({"a": "1) or (1"}, "is not an XPath expression"),
        ({"a": "/n:b"}, "is not an XPath expression: Undefined namespace prefix"),
        ({"a": "document('/etc/passwd')"}, "is not an XPath expression: Unregistered function"),
        ({"failed": "/a"}, "an outbox cannot be named 'failed'"),
    ],
)
def test_what_is_no_route_is_refused(routes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XmlMatch(routes=routes)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_fails(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="<!DOCTYPE"):
        XmlMatch(routes=ROUTES, namespaces=NAMESPACES).choose(Event(hostile(name, tmp_path)))


def test_in_a_flow_its_outboxes_are_those_of_its_routes() -> None:
    flow = Flow("documents")
    match = flow.use("xml.match", "match", routes={"a": "/a", "b": "/b"})
    flow.source([b"<a/>", b"<b/>", b"<c/>", b"<"], "source") >> match
    seen: dict[str, list[bytes]] = {"a": [], "b": []}
    for name, kept in seen.items():
        match[name] >> flow.map(kept.append, f"see_{name}")
    statistics = flow.run()
    assert_settled(statistics)
    assert seen == {"a": [b"<a/>"], "b": [b"<b/>"]}
    assert (statistics.delivered, statistics.dropped, statistics.failed) == (2, 1, 1)


def test_a_route_from_an_outbox_that_it_has_not_is_an_error() -> None:
    flow = Flow("documents")
    match = flow.use("xml.match", "match", routes={"big": "/a"})
    flow.source([b"<a/>"], "source") >> match
    match["bigg"] >> flow.map(print, "see")
    with pytest.raises(ConfigurationError, match=r"bigg.*did you mean 'big'"):
        flow.run()
