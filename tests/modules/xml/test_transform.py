"""xml.transform: what a stylesheet may say, what it may not reach, and what becomes of its errors."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.hostile_xml import HOSTILE, SECRET, hostile
from tests.modules.conftest import Bench

from furcula import Event, Flow, Options
from furcula.errors import FurculaError, InputError
from furcula.modules.xml.transform import TransformFailed, XmlTransform
from furcula.statuses import UnprocessableContent
from furcula.testing import assert_settled


def sheet(body: str, top: str = "") -> str:
    return (
        '<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform"'
        ' xmlns:exsl="http://exslt.org/common" extension-element-prefixes="exsl">'
        f'{top}<xsl:template match="/">{body}</xsl:template></xsl:stylesheet>'
    )


def made(text: str, bench: Bench, **arguments: Any) -> XmlTransform:
    transform = XmlTransform(text=text, **arguments)
    transform.start(bench)
    return transform


ORDER = b"<order><sku>x</sku></order>"
NAME = sheet('<item><xsl:value-of select="/order/sku"/></item>')


@pytest.mark.parametrize("data", [ORDER, ORDER.decode(), {"order": {"sku": "x"}}])
async def test_bytes_text_and_data_are_transformed(data: Any, bench: Bench) -> None:
    event = made(NAME, bench).process(Event(data))
    assert event.data == b'<?xml version="1.0"?>\n<item>x</item>\n'
    assert event.headers == {"response": {"content-type": "application/xml"}}


async def test_a_root_is_put_around_data_that_has_none(bench: Bench) -> None:
    assert b"<item>x</item>" in made(NAME, bench, root="order").process(Event({"sku": "x", "qty": 2})).data


async def test_a_file_is_found_in_the_flow_s_folder_and_includes_its_neighbours(bench: Bench) -> None:
    folder = bench.folder / "my sheets" / "parts"
    folder.mkdir(parents=True)
    (folder / "line ü.xsl").write_text(sheet("").replace('match="/"', 'match="sku"').replace("></xsl:t", ">SKU</xsl:t"))
    (folder / "both.xsl").write_text(
        sheet("", '<xsl:include href="line%20%C3%BC.xsl"/>').replace('match="/"', 'name="n"')
    )
    (folder.parent / "main.xsl").write_text(
        sheet('<o><xsl:apply-templates select="//sku"/></o>', '<xsl:import href="parts/both.xsl"/>')
    )
    transform = XmlTransform(stylesheet="my sheets/main.xsl")
    transform.start(bench)
    assert b"<o>SKU</o>" in transform.process(Event(ORDER)).data


@pytest.mark.parametrize(
    ("output", "body", "data", "content_type"),
    [
        ('method="html"', "<p>ü<br/></p>", b"<p>\xc3\xbc<br></p>", "text/html; charset=utf-8"),
        ("", "<html><br/></html>", b"<html><br></html>", "text/html; charset=utf-8"),
        ('method="text"', "<p>ü&lt;</p>", "ü<", "text/plain; charset=utf-8"),
        ('method="text" encoding="iso-8859-1" media-type="text/csv"', "ü,1", "ü,1", "text/csv; charset=utf-8"),
        ('encoding="ISO-8859-1" omit-xml-declaration="yes"', "<p>ü</p>", b"<p>\xfc</p>",
         "application/xml; charset=iso-8859-1"),
        ('media-type="application/atom+xml"', "<p/>", b'<?xml version="1.0"?>\n<p/>', "application/atom+xml"),
    ],
)  # fmt: skip
async def test_the_output_is_what_the_stylesheet_says(
    output: str, body: str, data: Any, content_type: str, bench: Bench
) -> None:
    event = made(sheet(body, f"<xsl:output {output}/>" if output else ""), bench).process(Event(ORDER))
    assert event.data.strip() == data
    assert event.headers["response"]["content-type"] == content_type


async def test_a_table_inside_the_stylesheet_is_reached(bench: Bench) -> None:
    table = '<xsl:variable name="t"><row key="x">ex</row><row key="y">why</row></xsl:variable>'
    found = '<o><xsl:variable name="k" select="//sku"/><xsl:value-of select="exsl:node-set($t)/row[@key = $k]"/></o>'
    assert b"<o>ex</o>" in made(sheet(found, table), bench).process(Event(ORDER)).data


def test_in_a_flow_what_is_refused_fails_and_the_rest_goes_on_in_threads_too() -> None:
    flow = Flow("documents")
    refusing = sheet('<xsl:if test="not(//sku)"><xsl:message terminate="yes">no sku</xsl:message></xsl:if><o/>')
    options = Options(thread=True, concurrency=4)
    source = flow.source([ORDER, b"<order/>"] * 50, "source")
    transform = flow.use("xml.transform", "transform", options=options, text=refusing)
    seen: list[Any] = []
    failures: list[tuple[str, int | None]] = []
    source >> transform >> flow.map(seen.append, "see")

    @flow.module
    def reject(event: Event) -> None:
        failures.append((event.failures[0].message, event.failures[0].status))

    transform.failed >> reject
    assert_settled(flow.run())
    assert len(seen) == 50
    assert failures == [("no sku", 422)] * 50


# ------------------------------------------------------------------ parameters

SAID = sheet('<o><xsl:value-of select="$p"/></o>', '<xsl:param name="p"/>')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{{ data.x }}", """a'b"c"""),
        ("'); system(", "'); system("),
        ("concat('a','b')", "concat('a','b')"),
        (7, "7"),
        (0.5, "0.5"),
    ],
)
async def test_a_parameter_is_a_value_and_never_an_expression(value: Any, text: str, bench: Bench) -> None:
    transform = made(SAID, bench, params={"p": value}, root="r")
    assert f"<o>{text}</o>".encode() in transform.process(Event({"x": """a'b"c"""})).data


@pytest.mark.parametrize("value", [True, False])
async def test_a_boolean_is_true_or_false(value: bool, bench: Bench) -> None:
    text = sheet('<xsl:if test="$p">yes</xsl:if><o/>', '<xsl:param name="p"/><xsl:output method="text"/>')
    assert made(text, bench, params={"p": value}).process(Event(ORDER)).data == ("yes" if value else "")


async def test_a_parameter_that_no_xml_can_hold_makes_the_event_fail(bench: Bench) -> None:
    with pytest.raises(ValueError, match="XML compatible"):
        made(SAID, bench, params={"p": "{{ headers.x }}"}).process(Event(ORDER, {"x": "\x00"}))


def test_a_parameter_that_the_stylesheet_has_not_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="<xsl:param name='limt'>, did you mean 'limit'"):
        XmlTransform(text=sheet("<o/>", '<xsl:param name="limit"/>'), params={"limt": 1})


# ------------------------------------------------------------------ errors


async def test_a_terminating_message_refuses_the_document(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    transform = made(
        sheet(
            '<xsl:message>looking</xsl:message><o/><xsl:if test="not(//sku)">'
            '<xsl:message terminate="yes">no sku in <xsl:value-of select="name(/*)"/></xsl:message></xsl:if>'
        ),
        bench,
    )
    for _ in range(2):
        with pytest.raises(UnprocessableContent) as caught:
            transform.process(Event(b"<order/>"))
        assert caught.value.detail == "no sku in order"
        assert b"<o/>" in transform.process(Event(ORDER)).data
    assert caplog.messages == ["looking"] * 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<xsl:value-of select="unknown()"/>', r"Unregistered function \(line 1\)"),
        ('<xsl:value-of select="$x"/>', r"Variable 'x' has not been declared. \(line 1\)"),
        ('<xsl:apply-templates select="/"/>', r"infinite template recursion.* \(line 1\)"),
    ],
)
async def test_an_error_of_the_stylesheet_fails_the_event_with_its_words_and_line(
    body: str, message: str, bench: Bench
) -> None:
    transform = made(sheet(body), bench)
    with pytest.raises(TransformFailed, match=message):
        transform.process(Event(ORDER))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs one of: stylesheet, text"),
        ({"text": "x", "stylesheet": "y"}, "needs one of: stylesheet, text"),
        ({"text": "<a>"}, r"not XML: .*line 1, column"),
        ({"text": "<a/>"}, r"it does not compile: .*not a stylesheet \(line 1\)"),
        ({"text": sheet('<xsl:value-of select="/["/>')}, "it does not compile: .*"),
        ({"text": sheet("", '<xsl:include href="a.xsl"/>')}, "line 1 includes 'a.xsl'; put the text into a file"),
        ({"text": f"<!DOCTYPE a>{sheet('')}"}, "<!DOCTYPE"),
    ],
)
def test_a_stylesheet_that_is_none_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XmlTransform(**arguments)


async def test_a_file_that_is_missing_or_wrong_is_named_at_the_start(bench: Bench) -> None:
    with pytest.raises(FurculaError, match=r"bench cannot read its stylesheet .*gone\.xsl"):
        XmlTransform(stylesheet="gone.xsl").start(bench)
    (bench.folder / "bad.xsl").write_text("<a>\n<b>")
    with pytest.raises(FurculaError, match=r"bench: the stylesheet .*bad\.xsl: not XML: .*line 2"):
        XmlTransform(stylesheet="bad.xsl").start(bench)


# ------------------------------------------------------------------ what it may not reach


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_document_is_not_transformed(name: str, bench: Bench) -> None:
    with pytest.raises(InputError, match="<!DOCTYPE"):
        made(sheet('<o><xsl:copy-of select="/"/></o>'), bench).process(Event(hostile(name, bench.folder)))


@pytest.mark.parametrize("place", ["{file}", "file://{file}", "http://127.0.0.1:9/x", ""])
async def test_a_stylesheet_reads_no_other_document(place: str, bench: Bench) -> None:
    (bench.folder / "secret").write_text(f"<s>{SECRET}</s>")
    href = place.replace("{file}", str(bench.folder / "secret"))
    transform = made(sheet(f"<o><xsl:copy-of select=\"document('{href}')\"/></o>"), bench)
    with pytest.raises(TransformFailed, match=r"file read for .* refused \(line 1\)"):
        transform.process(Event(ORDER))


async def test_a_document_cannot_name_what_the_stylesheet_reads(bench: Bench) -> None:
    (bench.folder / "secret").write_text(f"<s>{SECRET}</s>")
    transform = made(sheet('<o><xsl:copy-of select="document(//sku)"/></o>'), bench)
    with pytest.raises(TransformFailed, match="refused"):
        transform.process(Event(f"<order><sku>{bench.folder}/secret</sku></order>"))


async def test_a_stylesheet_writes_no_file(bench: Bench) -> None:
    target = bench.folder / "written"
    transform = made(sheet(f'<exsl:document href="{target}" method="text">x</exsl:document>'), bench)
    with pytest.raises(TransformFailed, match=r"File write for .* refused \(line 1\)"):
        transform.process(Event(ORDER))
    assert not target.exists()


@pytest.mark.parametrize("href", ["../outside.xsl", "{file}", "file://{file}", "http://127.0.0.1:9/x.xsl", "//host/x"])
@pytest.mark.parametrize("link", ["include", "import"])
async def test_a_stylesheet_includes_nothing_from_outside_its_folder(href: str, link: str, bench: Bench) -> None:
    outside = bench.folder / "outside.xsl"
    outside.write_text(sheet("<o/>"))
    inner = bench.folder / "inner"
    inner.mkdir()
    (inner / "main.xsl").write_text(sheet("", f'<xsl:{link} href="{href.replace("{file}", str(outside))}"/>'))
    with pytest.raises(FurculaError, match=r"main\.xsl:1 includes .* which is not in .*inner; put a copy of it there"):
        XmlTransform(stylesheet="inner/main.xsl").start(bench)


async def test_a_link_of_the_file_system_leads_not_outside_either(bench: Bench) -> None:
    (bench.folder / "outside.xsl").write_text(sheet("<o/>"))
    inner = bench.folder / "inner"
    inner.mkdir()
    (inner / "link.xsl").symlink_to(bench.folder / "outside.xsl")
    (inner / "main.xsl").write_text(sheet("", '<xsl:import href="link.xsl"/>'))
    with pytest.raises(FurculaError, match="which is not in"):
        XmlTransform(stylesheet="inner/main.xsl").start(bench)


async def test_a_hostile_document_is_not_included(bench: Bench) -> None:
    (bench.folder / "bad.xsl").write_bytes(hostile("entity of a file", bench.folder))
    (bench.folder / "main.xsl").write_text(sheet("", '<xsl:include href="bad.xsl"/>'))
    with pytest.raises(FurculaError, match=r"bad\.xsl: .*<!DOCTYPE"):
        XmlTransform(stylesheet="main.xsl").start(bench)


async def test_stylesheets_that_include_each_other_end_in_an_error(bench: Bench) -> None:
    (bench.folder / "a.xsl").write_text(sheet("", '<xsl:include href="b.xsl"/>'))
    (bench.folder / "b.xsl").write_text(sheet("", '<xsl:include href="a.xsl"/>'))
    with pytest.raises(FurculaError, match=r"it does not compile: .*recursion"):
        XmlTransform(stylesheet="a.xsl").start(bench)


async def test_xinclude_in_a_document_is_only_an_element(bench: Bench) -> None:
    (bench.folder / "secret").write_text(SECRET)
    include = f"<x:include xmlns:x='http://www.w3.org/2001/XInclude' parse='text' href='{bench.folder}/secret'/>"
    event = made(sheet('<o><xsl:copy-of select="/"/></o>'), bench).process(Event(f"<a>{include}</a>"))
    assert SECRET.encode() not in event.data
