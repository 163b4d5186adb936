"""XML: documents as elements, as plain data, and as bytes. The one file that knows the parser.

**What is read.** A document may not declare a type: whatever begins with `<!DOCTYPE` is refused before the parser sees
it. So there are no entities but the five of XML itself, nothing grows when it is read, and nothing is fetched: no DTD,
no file, no network. XInclude is not processed. Only encodings in which nothing can be hidden from that look are taken.

**As plain data.** A document is a dict with one name, that of its root: `{"order": ...}`. An element is

* None, if there is nothing in it; a str, if there is only text;
* else a dict: attributes as `"@name"`, child elements by name, a list where a name repeats, and beside attributes the
  text as `"#text"`;
* where text and elements are mixed, `"#content"` has both in their order: `["Dear ", {"b": "Ada"}, ","]`.

A name in a namespace is `"{uri}name"`. All values are text; comments, processing instructions and blank text between
elements are left out. Writing what was read gives the same document, up to those, the choice of prefixes, and the order
in which children of *different* names follow each other; reading that again gives the same data.

The other way numbers, booleans, dates and so on become text as they do in JSON, an attribute that is None is left out,
and a list where no name repeats (a list of lists, or a list as the whole document) has elements named `item`.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from furcula.errors import InputError, MissingExtra
from furcula.statuses import BadRequest

try:
    from lxml import etree
except ImportError:  # pragma: no cover -- tests/test_xml_codec.py looks at it in a process of its own
    raise MissingExtra("XML", "xml") from None

__all__ = [
    "MAX_DEPTH",
    "MAX_SIZE",
    "BadXml",
    "Element",
    "Xml",
    "document",
    "etree",
    "from_dict",
    "parse",
    "to_bytes",
    "to_dict",
]

Element: TypeAlias = "etree._Element"

#: Elements may stand this deep in one another. As data that is at most 200 dicts and lists, what other codecs take.
MAX_DEPTH = 100
#: Bytes that a document may have. As a tree it takes some ten times that.
MAX_SIZE = 10_000_000

#: The name of an element that has none: an item of a list where no name repeats.
ITEM = "item"


class BadXml(InputError, BadRequest):
    """A document that is not XML, or not of the kind that is taken. It has the line and column, where there are any.

    Whoever sent it over HTTP is answered with 400 and these words.
    """


# ------------------------------------------------------------------ reading


def _new_parser() -> etree.XMLParser:
    # `collect_ids=False` would save a little, and makes libxml2 load external DTDs whatever the other options say.
    return etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
    )


_parser = _new_parser()

#: What may stand before the root or a document type: blanks, comments, instructions. Possessive, so never quadratic.
_PROLOG = re.compile(rb"(?:[ \t\r\n]+|<\?.*?\?>|<!--.*?-->)*+", re.DOTALL)
_ENCODING = re.compile(rb"""\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z][\w.-]*)["']""")
#: Encodings, by Python's names, in which ASCII is written as ASCII. UTF-7, for one, could hide a document type.
_TAKEN = re.compile(r"ascii|utf-8|utf-8-sig|iso8859-\d+|cp125\d|cp437|cp850|koi8-[rut]|shift_jis|euc_\w+|gb\w+|big5")

_TOO_DEEP = f"nested more than {MAX_DEPTH} elements deep"
_is_too_deep = etree.XPath("boolean(/*" + "/*" * MAX_DEPTH + ")")
_POSITION = re.compile(r"(?:, line \d+, column \d+)?(?: \(.*, line \d+\))?$")


def parse(
    document: bytes | str,
    *,
    max_size: int = MAX_SIZE,
    base_url: str = "",
    resolver: etree.Resolver | None = None,
) -> Element:
    """The root element of a document.

    Args:
        document: The document. The encoding of bytes is what they declare, or UTF-8.
        max_size: Bytes that it may have.
        base_url: For a stylesheet or a schema: where it is, for those that it includes.
        resolver: What is asked for those.

    Raises:
        BadXml: An InputError: it is no XML (with line and column), declares a document type, is written in an encoding
            that is not taken, is longer than `max_size` bytes or nested more than `MAX_DEPTH` deep.
    """
    raw = _in_utf8(document, max_size)
    prolog = _PROLOG.match(raw)
    if raw.startswith(b"<!DOCTYPE", prolog.end() if prolog else 0):
        raise BadXml("not taken: a document with a document type (<!DOCTYPE); leave it out")
    parser = _parser
    if resolver is not None:
        parser = _new_parser()
        parser.resolvers.add(resolver)
    try:
        root: Element = etree.fromstring(raw, parser, base_url=base_url or None)  # type: ignore[arg-type]
    except etree.XMLSyntaxError as error:
        raise _malformed(raw, error) from None
    if root.getroottree().docinfo.internalDTD is not None:  # the look above has missed it
        raise BadXml("not taken: a document with a document type (<!DOCTYPE); leave it out")
    if raw.count(b"</") > MAX_DEPTH and _is_too_deep(root):
        raise BadXml(_TOO_DEEP)
    return root


def document(data: Any, root: str | None = None) -> Element:
    """The document that an event's data is: bytes or str are parsed, an element is itself, other data is written.

    Args:
        data: The data.
        root: For data: the name of its root; None: a dict with one name, as `to_dict` gives it.

    Raises:
        BadXml: It is no XML, or no data that XML can say.
    """
    if isinstance(data, bytes | str):
        return parse(data)
    if etree.iselement(data):
        element: Element = data
        return element
    if isinstance(data, bytearray | memoryview):
        return parse(bytes(data))
    try:
        return from_dict(data, root)
    except ValueError as error:
        raise BadXml(str(error)) from None


def _in_utf8(document: bytes | str, max_size: int) -> bytes:
    if isinstance(document, str):
        try:
            raw = document.encode()
        except UnicodeEncodeError as error:
            raise BadXml(f"not XML: character {error.start} is no character ({error.reason})") from None
        return _measured(raw.removeprefix(codecs.BOM_UTF8), max_size)
    if document is None:
        raise BadXml("not XML: there is nothing")
    if not isinstance(document, bytes):
        raise BadXml(f"not XML: expected bytes or text, not {type(document).__name__}")
    raw = _measured(document, max_size).removeprefix(codecs.BOM_UTF8)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _decoded(raw, "utf-16")
    said = _ENCODING.match(raw)
    if said is None or said[1].lower() in (b"utf-8", b"utf8"):
        return raw
    name = said[1].decode()
    try:
        known = codecs.lookup(name).name
    except LookupError:
        known = ""
    if not _TAKEN.fullmatch(known):
        raise BadXml(f"not taken: a document in the encoding {name!r}; write it in UTF-8")
    return _decoded(raw, known)


def _measured(raw: bytes, max_size: int) -> bytes:
    if len(raw) > max_size:
        raise BadXml(f"a document of {len(raw)} bytes; the limit is {max_size}")
    return raw


def _decoded(raw: bytes, encoding: str) -> bytes:
    try:
        return str(raw, encoding).encode()
    except UnicodeError as error:
        at = f"byte {error.start} " if isinstance(error, UnicodeDecodeError) else ""
        raise BadXml(f"not XML: {at}is not {encoding}") from None


def _malformed(raw: bytes, error: Any) -> BadXml:
    if not raw.strip():
        return BadXml("not XML: it is empty")
    line, column = error.position
    reason = _POSITION.sub("", error.msg or "unreadable")
    if "Excessive depth" in reason:
        return BadXml(_TOO_DEEP)
    return BadXml(f"not XML: {reason[:1].lower()}{reason[1:]} (line {line}, column {column})")


# ------------------------------------------------------------------ elements to data


def to_dict(element: Element) -> dict[str, Any]:
    """The element as plain data, under its name: `{"order": {"@id": "7", "line": [...]}}`. See the top of this file.

    Raises:
        BadXml: It is nested more than `MAX_DEPTH` deep.
    """
    return {_name(element): _content(element, 1)}


def _name(element: Element) -> str:
    tag = element.tag
    return tag if isinstance(tag, str) else str(tag)


def _content(element: Element, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise BadXml(_TOO_DEEP)
    pieces = list(_pieces(element))
    children = [piece for piece in pieces if not isinstance(piece, str)]
    found: dict[str, Any] = {"@" + str(name): value for name, value in element.attrib.items()}
    if not children:
        text = "".join(cast("list[str]", pieces))
        if not found:
            return text or None
        return {**found, "#text": text} if text else found
    if any(isinstance(piece, str) and piece.strip() for piece in pieces):
        found["#content"] = [
            piece if isinstance(piece, str) else {_name(piece): _content(piece, depth + 1)} for piece in pieces
        ]
        return found
    repeated: set[str] = set()
    for child in children:
        name, value = _name(child), _content(child, depth + 1)
        if name not in found:
            found[name] = value
        elif name in repeated:
            found[name].append(value)
        else:
            found[name] = [found[name], value]
            repeated.add(name)
    return found


def _pieces(element: Element) -> Iterator[str | Element]:
    """What is in an element: its elements, and the text between them, whatever comments stand inside that."""
    text = element.text or ""
    for child in element:
        # A comment or an instruction has a function as its tag.
        if isinstance(child.tag, str):
            if text:
                yield text
            yield child
            text = ""
        text += child.tail or ""
    if text:
        yield text


# ------------------------------------------------------------------ data to elements


def from_dict(value: Any, root: str | None = None) -> Element:
    """Plain data as an element. See the top of this file for the form.

    Args:
        value: A dict as `to_dict` gives it; with `root`, anything.
        root: The name of the element that all of it stands in. None: `value` has one name, and that is it.

    Raises:
        ValueError: XML cannot say it: a name that is none, a character that may not stand in XML, something nested more
            than `MAX_DEPTH` deep. The message names where in `value` it stands.
    """
    if root is None:
        if not isinstance(value, Mapping) or len(value) != 1:
            has = f"{len(value)} names" if isinstance(value, Mapping) else f"a {type(value).__name__}"
            raise ValueError(f"an XML document has one root, and here is {has}; write {{name: ...}}, or give a root")
        ((root, value),) = value.items()
        if isinstance(value, list | tuple):
            raise ValueError(f"an XML document has one root, and {root} is a list; give a root for it")
    element = _element(None, root, str(root))
    _fill(element, value, str(root), 1)
    return element


def _element(parent: Element | None, name: Any, path: str) -> Element:
    if not isinstance(name, str):
        raise ValueError(f"{path}: a name in XML is a str, not {type(name).__name__}")
    try:
        # The prefixes that everybody uses are known to the library; others are called ns0, ns1 and so on.
        return etree.Element(name) if parent is None else etree.SubElement(parent, name)
    except ValueError:
        hint = "; a name in a namespace is written {uri}name" if ":" in name and "{" not in name else ""
        raise ValueError(f"{path}: {name!r} is not a name in XML{hint}") from None


def _fill(element: Element, value: Any, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:60]}...: {_TOO_DEEP}, or contains itself")
    if value is None:
        return
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        text = _text(value, path)
        if isinstance(text, str):
            _write(element, text, path)
            return
        value = text
    if not isinstance(value, Mapping):
        _children(element, ITEM, value, path, depth)
        return
    for name, part in value.items():
        here = f"{path}.{name}"
        if name == "#text":
            _only_text(element, value, part, here)
        elif name == "#content":
            _mixed(element, value, part, here, depth)
        elif isinstance(name, str) and name.startswith("@"):
            if part is not None:
                _attribute(element, name[1:], part, here)
        elif isinstance(part, list | tuple | set | frozenset):
            _children(element, name, part, here, depth)
        else:
            _fill(_element(element, name, here), part, here, depth + 1)


def _children(element: Element, name: Any, values: Iterable[Any], path: str, depth: int) -> None:
    for index, value in enumerate(values):
        here = f"{path}.{index}"
        _fill(_element(element, name, here), value, here, depth + 1)


def _only_text(element: Element, value: Mapping[Any, Any], part: Any, path: str) -> None:
    beside = [name for name in value if name != "#text" and not str(name).startswith("@")]
    if beside:
        raise ValueError(f"{path}: text beside elements ({beside[0]}) is written as #content: [text, {{name: ...}}]")
    _write(element, _scalar(part, path), path)


def _mixed(element: Element, value: Mapping[Any, Any], parts: Any, path: str, depth: int) -> None:
    beside = [name for name in value if name != "#content" and not str(name).startswith("@")]
    if beside:
        raise ValueError(f"{path}: #content has all there is in an element; put {beside[0]} into its list")
    if not isinstance(parts, list | tuple):
        raise ValueError(f"{path}: #content is a list of texts and {{name: ...}}, not {type(parts).__name__}")
    # Texts that follow each other are one text; they are joined once, for a list may be long.
    last: Element | None = None
    texts: list[str] = []

    def write(here: str) -> None:
        if texts:
            _write(element if last is None else last, "".join(texts), here, tail=last is not None)
            texts.clear()

    here = path
    for index, part in enumerate(parts):
        here = f"{path}.{index}"
        if not isinstance(part, Mapping):
            texts.append(_scalar(part, here))
            continue
        if len(part) != 1:
            raise ValueError(f"{here}: an element in #content is {{name: ...}}, with one name")
        ((name, inner),) = part.items()
        write(f"{path}.{index - 1}")
        last = _element(element, name, here)
        _fill(last, inner, f"{here}.{name}", depth + 1)
    write(here)


def _attribute(element: Element, name: str, value: Any, path: str) -> None:
    text = _scalar(value, path)
    try:
        element.set(name, text)
    except ValueError:
        raise _unwritable(text, path) or ValueError(f"{path}: {name!r} is not a name in XML") from None


def _write(element: Element, text: str, path: str, *, tail: bool = False) -> None:
    try:
        if tail:
            element.tail = text
        else:
            element.text = text
    except ValueError as error:
        raise _unwritable(text, path) or ValueError(f"{path}: {error}") from None


#: What may not stand in XML 1.0, written as itself or otherwise.
_NO_CHARACTER = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _unwritable(text: str, path: str) -> ValueError | None:
    found = _NO_CHARACTER.search(text)
    if found is None:
        return None
    return ValueError(f"{path}: the character {found[0]!r} (at {found.start()}) may not stand in XML")


def _scalar(value: Any, path: str) -> str:
    if value is None:
        return ""
    text = None if isinstance(value, Mapping | list | tuple | set | frozenset) else _text(value, path)
    if not isinstance(text, str):
        raise ValueError(f"{path}: only a single value can stand here, not {type(value).__name__}")
    return text


def _text(value: Any, path: str) -> Any:
    """A single value as text; a struct or dataclass as a dict."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "NaN" if math.isnan(value) else "INF" if value > 0 else "-INF"
    if isinstance(value, int):
        return str(value)
    try:
        plain = msgspec.to_builtins(value)
    except TypeError:
        raise ValueError(f"{path}: XML cannot hold a value of type {type(value).__name__}") from None
    return plain if isinstance(plain, dict | list) else _text(plain, path)


# ------------------------------------------------------------------ bytes


def to_bytes(value: Any, root: str | None = "response", *, charset: str = "utf-8", declaration: bool = True) -> bytes:
    """An element, or plain data as `from_dict` takes it, as a document.

    Args:
        value: The element or the data.
        root: The name of the root for data. None: the data has one name, and that is it.
        charset: In which it is written. What that cannot say is written as `&#...;`.
        declaration: Begin with `<?xml version='1.0' encoding='...'?>`.

    Raises:
        ValueError: XML cannot say it; see `from_dict`.
    """
    element = value if etree.iselement(value) else from_dict(value, root)
    try:
        raw = etree.tostring(element, encoding=charset.upper(), xml_declaration=declaration, with_tail=False)
    except LookupError:
        raise ValueError(f"XML is not written in {charset!r}; write it in UTF-8") from None
    return cast("bytes", raw)


class Xml:
    """The codec `xml`: a document as a dict with one name, that of its root."""

    def __init__(self, charset: str = "utf-8"):
        self._charset = charset

    def encode(self, data: Any) -> bytes:
        return to_bytes(data, None, charset=self._charset)

    def decode(self, raw: bytes) -> Any:
        return to_dict(parse(raw))
