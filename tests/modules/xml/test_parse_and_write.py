"""xml.parse and xml.write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.hostile_xml import HOSTILE, hostile

from furcula import Event, Flow
from furcula.codecs.xml import parse
from furcula.errors import ConfigurationError, InputError
from furcula.modules.xml.parse import XmlParse
from furcula.modules.xml.write import XmlWrite
from furcula.options import Size
from furcula.testing import assert_settled

ORDER = b"<order id='7'><sku>x</sku></order>"
DATA = {"order": {"@id": "7", "sku": "x"}}


@pytest.mark.parametrize("document", [ORDER, ORDER.decode(), bytearray(ORDER), parse(ORDER)])
def test_a_document_in_any_form_becomes_data(document: Any) -> None:
    event = Event(bytes(document) if isinstance(document, bytearray) else document)
    assert XmlParse().process(event) is event
    assert event.data == DATA


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"<a", r"line 1, column"), (None, "there is nothing"), ({"a": 1}, "expected bytes or text, not dict")],
)
def test_what_is_no_document_fails(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        XmlParse().process(Event(data))


def test_a_document_may_be_as_long_as_is_said() -> None:
    assert XmlParse(max_size=Size(len(ORDER))).process(Event(ORDER)).data == DATA
    with pytest.raises(InputError, match="the limit is 33"):
        XmlParse(max_size=Size(len(ORDER) - 1)).process(Event(ORDER))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_fails(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="<!DOCTYPE"):
        XmlParse().process(Event(hostile(name, tmp_path)))


def test_data_becomes_a_document_and_says_what_it_is() -> None:
    event = Event(DATA, {"response": {"etag": "x", "content-type": "text/plain"}})
    assert XmlWrite().process(event) is event
    assert event.data == b"<?xml version='1.0' encoding='UTF-8'?>\n<order id=\"7\"><sku>x</sku></order>"
    assert event.headers["response"] == {"etag": "x", "content-type": "application/xml"}
    assert XmlParse().process(event).data == DATA


def test_a_root_is_put_around_any_data() -> None:
    assert (
        XmlWrite(root="answer").process(Event([1, 2])).data.endswith(b"<answer><item>1</item><item>2</item></answer>")
    )
    with pytest.raises(ValueError, match="one root, and here is 2 names"):
        XmlWrite().process(Event({"a": 1, "b": 2}))
    with pytest.raises(ValueError, match="no name: 'no name' is not a name in XML"):
        XmlWrite(root="no name")


def test_both_in_a_flow_where_what_is_malformed_fails_and_the_rest_goes_on() -> None:
    flow = Flow("documents")
    source = flow.source([ORDER, b"<a>", b"<b/>"], "source")
    seen: list[Any] = []
    failed: list[str] = []
    read, write = flow.use("xml.parse", "read"), flow.use("xml.write", "write")
    source >> read >> write >> flow.map(seen.append, "see")

    @flow.module
    def reject(event: Event) -> None:
        failed.append(event.failures[0].message)

    read.failed >> reject
    assert_settled(flow.run())
    assert [data.partition(b"\n")[2] for data in seen] == [b'<order id="7"><sku>x</sku></order>', b"<b/>"]
    assert [message.startswith("not XML: ") for message in failed] == [True]


def test_a_root_that_is_no_name_is_found_when_the_flow_is_checked() -> None:
    flow = Flow("documents")
    flow.source([{}], "source") >> flow.use("xml.write", "write", root="a b")
    with pytest.raises(ConfigurationError, match="is not a name in XML"):
        flow.run()
