"""Stylesheets and schemas: documents of our own, and those that they include, from their own folder only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from furcula.codecs.xml import BadXml, Element, etree, parse

__all__ = ["Own", "own_file", "own_text"]

#: Documents that one may be made of: each is read once, and one that includes itself ends somewhere.
MOST = 200


class Own:
    """A document of our own, ready to be compiled.

    Attributes:
        root: Its root. Its parser knows the documents it includes, and gives no other.
        roots: The roots of all documents it is made of, itself first.
    """

    def __init__(self, root: Element, roots: list[Element]):
        self.root = root
        self.roots = roots


def own_text(text: str) -> Own:
    """A document that stands in the flow itself. It can include nothing.

    Raises:
        ValueError: It is no XML, or includes another document.
    """
    root = parse(text, resolver=_Known({}))
    for line, href in _links(root):
        raise ValueError(f"line {line} includes {href!r}; put the text into a file beside that, and name the file")
    return Own(root, [root])


def own_file(path: Path) -> Own:
    """A document in a file, and all that it includes, from the file's folder and the folders in it.

    Raises:
        OSError: A file cannot be read.
        ValueError: One is no XML, or includes what is not in the folder. The message names the file and line.
    """
    path = path.resolve()
    known: dict[Path, bytes] = {}
    roots: list[Element] = []
    waiting = [path]
    while waiting:
        file = waiting.pop(0)
        if file in known:
            continue
        if len(known) == MOST:
            raise ValueError(f"{path} includes more than {MOST} documents")
        known[file] = file.read_bytes()
        root = _parsed(known[file], file)
        roots.append(root)
        waiting += [_target(href, file, line, path.parent) for line, href in _links(root)]
    return Own(_parsed(known[path], path, _Known(known)), roots)


def _parsed(raw: bytes, file: Path, resolver: Any = None) -> Element:
    try:
        return parse(raw, base_url=file.as_uri(), resolver=resolver)
    except BadXml as error:
        raise ValueError(f"{file}: {error}") from None


_XSL, _XSD = "http://www.w3.org/1999/XSL/Transform", "http://www.w3.org/2001/XMLSchema"
#: element -> the attribute that names another document
_LINKS = {
    f"{{{_XSL}}}include": "href",
    f"{{{_XSL}}}import": "href",
    f"{{{_XSD}}}include": "schemaLocation",
    f"{{{_XSD}}}import": "schemaLocation",
    f"{{{_XSD}}}redefine": "schemaLocation",
    f"{{{_XSD}}}override": "schemaLocation",
}


def _links(root: Element) -> Iterable[tuple[int, str]]:
    for child in root:
        attribute = _LINKS.get(child.tag) if isinstance(child.tag, str) else None
        href = child.get(attribute) if attribute is not None else None
        if href:
            yield cast("int", child.sourceline), str(href)


def _target(href: str, file: Path, line: int, folder: Path) -> Path:
    parts = urlsplit(href)
    if not (parts.scheme or parts.netloc):
        target = (file.parent / unquote(parts.path)).resolve()
        if target.is_relative_to(folder):
            return target
    raise ValueError(f"{file}:{line} includes {href!r}, which is not in {folder}; put a copy of it there")


class _Known(etree.Resolver):
    """Gives the documents that were read, and for every other an error."""

    def __init__(self, known: dict[Path, bytes]):
        self._known = known

    def resolve(self, system_url: str, public_id: str, context: Any = None) -> Any:
        parts = urlsplit(system_url)
        path = Path(url2pathname(parts.path) if parts.scheme == "file" else unquote(system_url)).resolve()
        raw = self._known.get(path)
        if raw is None:  # the library would look for it itself
            raise ValueError(f"{system_url} may not be read")
        return self.resolve_string(raw, context, base_url=path.as_uri())
