"""XML to data and back; and whatever a document tries, nothing is fetched and nothing grows."""

from __future__ import annotations

import dataclasses
import datetime
import http.server
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile_xml import HOSTILE, hostile

from furcula.codecs import codec
from furcula.codecs.xml import MAX_DEPTH, MAX_SIZE, BadXml, document, etree, from_dict, parse, to_bytes, to_dict
from furcula.errors import InputError
from furcula.statuses import BadRequest

ORDER = b"""<?xml version="1.0"?>
<order id="7"><!-- from the shop -->
  <line>apple</line>
  <line qty="2">pear<!-- ripe --> tree</line>
  <gift/>
</order>"""


# ------------------------------------------------------------------ as data


def test_a_document_is_a_dict_with_the_name_of_its_root() -> None:
    assert to_dict(parse(ORDER)) == {
        "order": {"@id": "7", "line": ["apple", {"@qty": "2", "#text": "pear tree"}], "gift": None}
    }


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("<a/>", {"a": None}),
        ("<a></a>", {"a": None}),
        ("<a> </a>", {"a": " "}),
        ("<a>x</a>", {"a": "x"}),
        ("<a><![CDATA[<x>]]></a>", {"a": "<x>"}),
        ("<a>&lt;&#65;</a>", {"a": "<A"}),
        ("<a b=''/>", {"a": {"@b": ""}}),
        ("<a b='1'>x</a>", {"a": {"@b": "1", "#text": "x"}}),
        ("<a> <b/> </a>", {"a": {"b": None}}),
        ("<a><b>1</b><c/><b>2</b><b>3</b></a>", {"a": {"b": ["1", "2", "3"], "c": None}}),
        ("<a>Dear <b>Ada</b>,</a>", {"a": {"#content": ["Dear ", {"b": "Ada"}, ","]}}),
        ("<x:a xmlns:x='urn:x' x:y='1' xml:lang='en'><x:b/><c/></x:a>",
         {"{urn:x}a": {"@{urn:x}y": "1", "@{http://www.w3.org/XML/1998/namespace}lang": "en",
                       "{urn:x}b": None, "c": None}}),
        ("<a xmlns='urn:x'><b/></a>", {"{urn:x}a": {"{urn:x}b": None}}),
        ("<a><?go there?>x</a>", {"a": "x"}),
        ("<!-- first --><a/><!-- last -->", {"a": None}),
    ],
)  # fmt: skip
def test_each_kind_of_content_has_its_form_and_comes_back(text: str, data: dict[str, Any]) -> None:
    assert to_dict(parse(text)) == data
    again = to_bytes(data, None)
    assert to_dict(parse(again)) == data


names = st.sampled_from(["a", "b", "c", "ü", "_x", "a-b.c", "{urn:x}a"])
# A carriage return is written as itself only by number, which the library does.
texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff") | st.sampled_from("\n\r\t")
)


@st.composite
def elements(draw: st.DrawFn, depth: int = 3) -> Any:
    element = etree.Element(draw(names))
    for name in draw(st.lists(names, max_size=2, unique=True)):
        element.set(name, draw(texts))
    element.text = draw(texts)
    for _ in range(draw(st.integers(0, 3)) if depth else 0):
        child = draw(elements(depth=depth - 1))
        element.append(child)
        child.tail = draw(st.just("") | texts)
    return element


@given(elements())
def test_writing_what_was_read_and_reading_it_again_gives_the_same_data(element: Any) -> None:
    data = to_dict(element)
    again = to_dict(from_dict(data))
    assert again == data
    assert to_dict(parse(to_bytes(data, None))) == data


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "<r/>"),
        ("x", "<r>x</r>"),
        (True, "<r>true</r>"),
        (3, "<r>3</r>"),
        (0.5, "<r>0.5</r>"),
        (float("-inf"), "<r>-INF</r>"),
        (float("nan"), "<r>NaN</r>"),
        (datetime.datetime(2025, 1, 2, 3, 4, 5, tzinfo=datetime.UTC), "<r>2025-01-02T03:04:05Z</r>"),
        (datetime.date(2025, 1, 2), "<r>2025-01-02</r>"),
        (b"abc", "<r>YWJj</r>"),
        ({"a": [1, 2], "b": []}, "<r><a>1</a><a>2</a></r>"),
        ([1, [2, 3]], "<r><item>1</item><item><item>2</item><item>3</item></item></r>"),
        ({"a": {"@b": 1, "@c": None, "#text": 2}}, '<r><a b="1">2</a></r>'),
        ({"p": {"#content": ["a", 1, {"b": None}, "c", {"b": "d"}]}}, "<r><p>a1<b/>c<b>d</b></p></r>"),
        ({"{urn:x}a": {"@{urn:x}b": "1"}}, '<r><ns0:a xmlns:ns0="urn:x" ns0:b="1"/></r>'),
        ("]]>&<\r", "<r>]]&gt;&amp;&lt;&#13;</r>"),
    ],
)
def test_values_of_python_become_text_as_in_json(value: Any, text: str) -> None:
    assert to_bytes(value, "r", declaration=False).decode() == text


@dataclasses.dataclass
class Line:
    sku: str


class Order(msgspec.Struct):
    lines: list[Line]


def test_structs_and_dataclasses_are_written_as_dicts() -> None:
    assert to_bytes(Order([Line("a"), Line("b")]), "order", declaration=False) == (
        b"<order><lines><sku>a</sku></lines><lines><sku>b</sku></lines></order>"
    )


CYCLE: dict[str, Any] = {}
CYCLE["a"] = CYCLE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b c": 1}}, r"r\.a\.b c: 'b c' is not a name in XML"),
        ({"a": [{}, {"1": 1}]}, r"r\.a\.1\.1: '1' is not a name in XML"),
        ({"x:a": 1}, r"r\.x:a: 'x:a' is not a name in XML; a name in a namespace is written \{uri\}name"),
        ({"a><b": 1}, "is not a name in XML"),
        ({"": 1}, "is not a name in XML"),
        ({1: 1}, r"r\.1: a name in XML is a str, not int"),
        ({"a": {"@b c": 1}}, r"r\.a\.@b c: 'b c' is not a name in XML"),
        ({"a": ["x", "\x00"]}, r"r\.a\.1: the character '\\x00' \(at 0\) may not stand in XML"),
        ({"a": {"@b": "x\x1b"}}, r"r\.a\.@b: the character '\\x1b' \(at 1\)"),
        ({"a": "\ud800"}, r"r\.a: the character '\\ud800'"),
        ({"a": "\uffff"}, r"r\.a: the character '\\uffff'"),
        ({"a": object()}, r"r\.a: XML cannot hold a value of type object"),
        ({"a": {"@b": {}}}, r"r\.a\.@b: only a single value can stand here, not dict"),
        ({"a": {"#text": [1]}}, r"r\.a\.#text: only a single value can stand here, not list"),
        ({"a": {"#text": "x", "b": 1}}, r"r\.a\.#text: text beside elements \(b\) is written as #content"),
        ({"a": {"#content": [], "b": 1}}, r"r\.a\.#content: .*; put b into its list"),
        ({"a": {"#content": "x"}}, "is a list of texts"),
        ({"a": {"#content": [{"b": 1, "c": 1}]}}, r"r\.a\.#content\.0: .*with one name"),
        (CYCLE, f"nested more than {MAX_DEPTH} elements deep, or contains itself"),
    ],
)
def test_what_xml_cannot_say_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_bytes(value, "r")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1, "b": 2}, "2 names"),
        ([], "a list"),
        ("x", "a str"),
        ({"a": [1, 2]}, "a is a list; give a root"),
    ],
)
def test_without_a_root_the_data_has_one_name(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"an XML document has one root, and .*{message}"):
        from_dict(value)


def test_the_codec_of_that_name_reads_and_writes_whole_documents() -> None:
    xml = codec("xml")
    assert xml.encode({"a": {"b": 1}}) == b"<?xml version='1.0' encoding='UTF-8'?>\n<a><b>1</b></a>"
    assert xml.decode(xml.encode({"a": {"b": ["ü", "x"]}})) == {"a": {"b": ["ü", "x"]}}
    latin = codec("xml", "iso-8859-1")
    assert latin.encode({"a": "ü€"}) == b"<?xml version='1.0' encoding='ISO-8859-1'?>\n<a>\xfc&#8364;</a>"
    assert latin.decode(latin.encode({"a": "ü€"})) == {"a": "ü€"}
    with pytest.raises(ValueError, match="one root"):
        xml.encode([1])


def test_a_document_may_be_given_in_any_form() -> None:
    for given_as in (ORDER, ORDER.decode(), bytearray(ORDER), parse(ORDER), to_dict(parse(ORDER))):
        assert to_dict(document(given_as)) == to_dict(parse(ORDER))
    assert to_dict(document(["a"], "r")) == {"r": {"item": "a"}}
    with pytest.raises(BadXml, match="one root, and here is a int"):
        document(3)


# ------------------------------------------------------------------ what is no document


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not XML: it is empty"),
        (b" \n", "not XML: it is empty"),
        (b"<a>\n <b></a>", r"not XML: .*tag mismatch: b .* and a \(line 2, column \d+\)"),
        (b"<a", r"not XML: .* \(line 1, column 3\)"),
        (b"<a/><b/>", r"not XML: extra content at the end of the document \(line 1, column 5\)"),
        (b"<a b='1' b='2'/>", r"not XML: attribute b redefined \(line 1, column \d+\)"),
        (b"<x:a/>", r"not XML: namespace prefix x on a is not defined \(line 1, column \d+\)"),
        (b"<a>&nbsp;</a>", r"not XML: entity 'nbsp' not defined \(line 1, column \d+\)"),
        (b"{}", r"not XML: start tag expected, '<' not found \(line 1, column 1\)"),
        ("<a>\ud800</a>", r"not XML: character 3 is no character \(surrogates not allowed\)"),
        (b"\xff\xfe<", "not XML: byte 2 is not utf-16"),
        (b"<?xml version='1.0' encoding='shift_jis'?><a>\x81</a>", "not XML: byte 45 is not shift_jis"),
        (b"<?xml version='1.0' encoding='UTF-7'?>+ADwAIQ-DOCTYPE a+AD4-<a/>",
         "not taken: a document in the encoding 'UTF-7'; write it in UTF-8"),
        (b"<?xml version='1.0' encoding='nonsense'?><a/>",
         "not taken: a document in the encoding 'nonsense'; write it in UTF-8"),
        (3, "not XML: expected bytes or text, not int"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_with_its_line_and_column(raw: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(raw)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_whoever_sent_a_bad_document_is_answered_with_400_and_the_reason() -> None:
    with pytest.raises(BadRequest) as caught:
        parse(b"<a")
    assert caught.value.status == 400
    assert caught.value.problem() == {"detail": str(caught.value)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1", "windows-1252", "ascii"])
def test_documents_are_read_in_the_encoding_they_declare(encoding: str) -> None:
    declared = encoding.removesuffix("-sig")
    text = f"<?xml version='1.0' encoding='{declared}'?><a>{'x' if encoding == 'ascii' else 'ü'}</a>"
    assert to_dict(parse(text.encode(encoding))) == to_dict(parse(text))


@given(st.binary(max_size=60) | st.text(st.sampled_from("<>/!?&;[]\"'= ab-"), max_size=40))
def test_whatever_is_given_the_answer_is_an_element_or_an_input_error(raw: bytes | str) -> None:
    try:
        to_dict(parse(raw))
    except InputError:
        pass


# ------------------------------------------------------------------ attacks


class _Heard(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.heard.append(self.path)  # type: ignore[attr-defined]
        self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Any]:
    """A web server on loopback that keeps what it is asked for."""
    with http.server.HTTPServer(("127.0.0.1", 0), _Heard) as server:
        server.heard = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_document_is_refused_at_once_and_nothing_is_fetched(name: str, tmp_path: Path, listener: Any) -> None:
    began = time.perf_counter()
    with pytest.raises(InputError, match="<!DOCTYPE"):
        parse(hostile(name, tmp_path, f"http://127.0.0.1:{listener.server_port}"))
    assert time.perf_counter() - began < 2
    assert listener.heard == []


@pytest.mark.parametrize("before", ["", "\n\t", "<!-- <!x -->", "<?p <!?>", "<?xml version='1.0'?>\n<!--a-->\n<?b?>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be"])
def test_a_document_type_is_found_wherever_it_may_stand(before: str, encoding: str) -> None:
    mark = "\ufeff" if encoding.startswith("utf-16") else ""
    with pytest.raises(InputError, match="<!DOCTYPE"):
        parse(f"{mark}{before}<!DOCTYPE a><a/>".encode(encoding))


def test_words_of_a_document_type_inside_text_are_only_words() -> None:
    text = "<!-- <!DOCTYPE a> --><a><![CDATA[<!DOCTYPE a>]]></a>"
    assert to_dict(parse(text)) == {"a": "<!DOCTYPE a>"}


def test_xinclude_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    include = f"<x:include xmlns:x='http://www.w3.org/2001/XInclude' parse='text' href='file://{tmp_path}/secret'/>"
    assert "the secret" not in str(to_dict(parse(f"<a>{include}</a>")))


@pytest.mark.parametrize("opening", [b"<a>", b"<a b='1'>", b"<a>x<a/>"])
def test_what_is_nested_too_deeply_is_refused(opening: bytes) -> None:
    most = opening * (MAX_DEPTH - 1) + b"<a>" + b"</a>" * MAX_DEPTH
    assert to_dict(parse(most))
    for deep in (MAX_DEPTH + 1, 300, 100_000):
        with pytest.raises(InputError, match="elements deep"):
            parse(opening * deep + b"</a>" * deep)


def test_an_element_of_somebody_else_s_may_be_too_deep_too() -> None:
    root = element = etree.Element("a")
    for _ in range(5000):
        element = etree.SubElement(element, "a")
    with pytest.raises(InputError, match="elements deep"):
        to_dict(root)


def test_a_document_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(InputError, match=f"a document of {MAX_SIZE + 7} bytes; the limit is {MAX_SIZE}"):
        parse(b"<a>" + b"x" * MAX_SIZE + b"</a>")
    with pytest.raises(InputError, match="the limit is 6"):
        parse("<a>ü</a>", max_size=6)


def test_an_unclosed_comment_takes_no_longer_the_longer_it_is() -> None:
    for raw in (b"<!--" * 200_000, b"<?" * 200_000, b"<!-- -->" * 100_000 + b"<!--"):
        began = time.perf_counter()
        with pytest.raises(InputError):
            parse(raw)
        assert time.perf_counter() - began < 5


# ------------------------------------------------------------------ the library


def test_without_the_library_the_extra_is_named_and_other_codecs_work() -> None:
    program = (
        "import sys; sys.modules['lxml'] = None\n"
        "from furcula.codecs import codec; print(codec('json').encode(1))\n"
        "from furcula.errors import ConfigurationError\n"
        "try: codec('xml')\n"
        "except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["b'1'", "XML needs an optional library: pip install 'furcula[xml]'"]


def test_importing_the_codecs_does_not_load_the_library() -> None:
    program = "import sys, furcula, furcula.codecs; print('lxml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
