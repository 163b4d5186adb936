"""xml.validate."""

from __future__ import annotations

from typing import Any

import pytest
from tests.hostile_xml import HOSTILE, hostile
from tests.modules.conftest import Bench

from furcula import Event
from furcula.errors import FurculaError, InputError
from furcula.modules.xml.validate import XmlValidate
from furcula.statuses import UnprocessableContent


def schema(body: str) -> str:
    return f'<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">{body}</xs:schema>'


QTY = '<xs:simpleType name="qty"><xs:restriction base="xs:integer"/></xs:simpleType>'
ORDER = (
    '<xs:element name="order"><xs:complexType><xs:sequence>'
    '<xs:element name="qty" type="qty" maxOccurs="unbounded"/></xs:sequence>'
    '<xs:attribute name="id" type="xs:integer" default="4"/></xs:complexType></xs:element>'
)


@pytest.fixture
def validate(bench: Bench) -> XmlValidate:
    (bench.folder / "xsd").mkdir()
    (bench.folder / "xsd/types.xsd").write_text(schema(QTY))
    (bench.folder / "xsd/order.xsd").write_text(schema(f'<xs:include schemaLocation="types.xsd"/>{ORDER}'))
    module = XmlValidate(schema="xsd/order.xsd")
    module.start(bench)
    return module


@pytest.mark.parametrize("data", [b"<order><qty>1</qty></order>", "<order><qty>1</qty></order>", {"order": {"qty": 1}}])
async def test_what_the_schema_allows_passes_as_it_is(data: Any, validate: XmlValidate) -> None:
    event = Event(data)
    assert validate.process(event) is event
    assert event.data is data


async def test_what_it_does_not_allow_is_refused_with_lines_and_messages(validate: XmlValidate) -> None:
    with pytest.raises(UnprocessableContent) as caught:
        validate.process(Event("<order id='x'>\n<qty>1</qty>\n<qty>y</qty></order>"))
    wrong = "is not a valid value of the atomic type"
    assert caught.value.extension["errors"] == [
        {"line": 1, "message": f"Element 'order', attribute 'id': 'x' {wrong} 'xs:integer'."},
        {"line": 3, "message": f"Element 'qty': 'y' {wrong} 'qty'."},
    ]
    assert caught.value.detail.startswith("the schema does not allow this document: Element 'order', attribute 'id'")
    assert caught.value.detail.endswith("(line 1)")


async def test_no_more_than_twenty_errors_are_told(validate: XmlValidate) -> None:
    with pytest.raises(UnprocessableContent, match="and there are more") as caught:
        validate.process(Event("<order>" + "<qty>x</qty>" * 30 + "</order>"))
    assert len(caught.value.extension["errors"]) == 20


async def test_what_is_malformed_or_hostile_is_refused(validate: XmlValidate, bench: Bench) -> None:
    with pytest.raises(InputError, match="not XML: "):
        validate.process(Event(b"<order>"))
    for name in HOSTILE:
        with pytest.raises(InputError, match="<!DOCTYPE"):
            validate.process(Event(hostile(name, bench.folder)))


async def test_a_document_cannot_choose_its_schema(validate: XmlValidate, bench: Bench) -> None:
    instance = 'xmlns:x="http://www.w3.org/2001/XMLSchema-instance" x:noNamespaceSchemaLocation="any.xsd"'
    (bench.folder / "any.xsd").write_text(schema('<xs:element name="any"/>'))
    with pytest.raises(UnprocessableContent, match="'any': No matching global declaration"):
        validate.process(Event(f"<any {instance}/>"))


@pytest.mark.parametrize("link", ["include", "redefine", "import"])
@pytest.mark.parametrize("place", ["../outside.xsd", "http://127.0.0.1:9/x.xsd", "file:///etc/x.xsd", "/etc/x.xsd"])
async def test_a_schema_takes_nothing_from_outside_its_folder(link: str, place: str, bench: Bench) -> None:
    (bench.folder / "outside.xsd").write_text(schema(QTY))
    (bench.folder / "in").mkdir()
    namespace = 'namespace="urn:x"' if link == "import" else ""
    (bench.folder / "in/a.xsd").write_text(schema(f'\n<xs:{link} {namespace} schemaLocation="{place}"/>{ORDER}'))
    with pytest.raises(FurculaError, match=r"a\.xsd:2 includes .* which is not in .*in; put a copy of it there"):
        XmlValidate(schema="in/a.xsd").start(bench)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"bench cannot read its schema .*a\.xsd"),
        ("<a>", r"bench: the schema .*a\.xsd: not XML: "),
        ("<a/>", r"bench: the schema .*a\.xsd: .*not a schema document"),
        (schema('<xs:element name="a" type="b"/>'), r"bench: the schema .*a\.xsd: .*'b' does not resolve"),
        (f"<!DOCTYPE a>{schema('')}", "<!DOCTYPE"),
    ],
)
async def test_a_schema_that_is_none_is_named_at_the_start(text: str | None, message: str, bench: Bench) -> None:
    if text is not None:
        (bench.folder / "a.xsd").write_text(text)
    with pytest.raises(FurculaError, match=message):
        XmlValidate(schema="a.xsd").start(bench)
