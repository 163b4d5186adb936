"""XML through XSLT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from furcula.codecs.xml import document, etree
from furcula.errors import FurculaError, ModuleError, nearest
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.template import compile_text
from furcula.modules.xml.answer import say_content_type
from furcula.modules.xml.own import Own, own_file, own_text
from furcula.statuses import UnprocessableContent

__all__ = ["TransformFailed", "XmlTransform"]

_XSL = "{http://www.w3.org/1999/XSL/Transform}"
#: Neither files nor the network, to read or to write.
_NOTHING: etree.XSLTAccessControl = cast("Any", etree.XSLTAccessControl).DENY_ALL
_MEDIA = {"xml": "application/xml", "html": "text/html", "text": "text/plain"}

Parameter = Callable[[Event[Any]], Any]


class TransformFailed(ModuleError):
    """A stylesheet could not be carried through. The message is the processor's, with the line where it knows one."""


class XmlTransform(Module):
    """Transform documents by a stylesheet (XSLT 1.0, with EXSLT's functions).

    Takes bytes, text, or data in the form that `xml.parse` gives. The result is bytes, or with the output method `text`
    a str; as an answer over HTTP it has the content type that `xsl:output` says. A module after it that makes something
    else of it sets `headers.response` anew.

    `<xsl:message terminate="yes">` refuses the document: the event fails, and its text answers 422. Any other message
    is logged. Another error makes the event fail with the processor's words, and answers 500.

    A stylesheet can neither read nor write files or the network, so `document()` fails; a table inside the stylesheet
    is reached by `exsl:node-set($table)`. `xsl:include` and `xsl:import` take files from the stylesheet's own folder
    and those in it. It is compiled once, at the start.

    Args:
        stylesheet: The file that has it; a relative path is relative to the flow's folder.
        text: Or the stylesheet itself.
        params: Values for its `xsl:param`s. Text may be a template, as in `template`; whatever it renders reaches the
            stylesheet as a string, never as an expression.
        root: For data that is no document yet: the name of the element around all of it. Without it the data has one
            name, as `xml.parse` gives it.
    """

    def __init__(
        self,
        *,
        stylesheet: str | None = None,
        text: str | None = None,
        params: dict[str, str | int | float | bool] | None = None,
        root: str | None = None,
    ):
        if (stylesheet is None) == (text is None):
            raise ValueError("xml.transform needs one of: stylesheet, text")
        self._file = stylesheet
        self._root = root
        self._params = {name: _parameter(value) for name, value in (params or {}).items()}
        self._log: Any = None
        if text is not None:
            self._compile(own_text(text))

    def start(self, context: Context) -> None:
        self._log = context.log
        if self._file is None:
            return
        path = context.folder / self._file
        try:
            self._compile(own_file(path))
        except OSError as error:
            raise FurculaError(f"{context.name} cannot read its stylesheet {path}: {error}") from error
        except ValueError as error:
            raise FurculaError(f"{context.name}: the stylesheet {path}: {error}") from None

    def _compile(self, own: Own) -> None:
        try:
            self._transform: Any = etree.XSLT(own.root, access_control=_NOTHING)
        except etree.XSLTParseError as error:
            raise ValueError(f"it does not compile: {_words(error)}") from None
        known = [param.get("name") for root in own.roots for param in root.iterchildren(f"{_XSL}param")]
        for name in self._params:
            if name not in known:
                raise ValueError(f"it has no <xsl:param name={name!r}>{nearest(name, [str(one) for one in known])}")
        self._output = _output(own)

    def process(self, event: Event[Any]) -> Event[Any]:
        source = document(event.data, self._root)
        params = {name: value(event) for name, value in self._params.items()}
        transform = self._transform
        try:
            result = transform(source, **params)
        except etree.XSLTApplyError as error:
            raise _failure(error) from None
        for entry in transform.error_log:
            self._log.info("%s", entry.message)
        method, media, charset = self._output
        if not method:  # XSLT says: html, if that is what the result begins with
            first = result.getroot()
            method = "html" if first is not None and str(first.tag).lower() == "html" else "xml"
        if method == "text":  # whoever writes text chooses its encoding then
            event.data = str(result)
            return say_content_type(event, f"{media or _MEDIA['text']}; charset=utf-8")
        event.data = bytes(result)
        content_type = media or _MEDIA.get(method, "application/xml")
        if method == "html" or charset != "utf-8":
            content_type += f"; charset={charset}"
        return say_content_type(event, content_type)


def _parameter(value: str | int | float | bool) -> Parameter:
    if isinstance(value, bool):
        expression = "true()" if value else "false()"
        return lambda event: expression
    if not isinstance(value, str):
        number = repr(value)
        return lambda event: number
    render = compile_text(value)
    return lambda event: etree.XSLT.strparam(render(event))


def _output(own: Own) -> tuple[str, str, str]:
    """What `xsl:output` says of method, media type and encoding; the including document's word comes first."""
    said = [element for root in own.roots for element in root.iterchildren(f"{_XSL}output")]

    def first(attribute: str) -> str:
        return next((str(element.get(attribute)) for element in said if element.get(attribute)), "")

    return first("method"), first("media-type"), (first("encoding") or "utf-8").lower()


def _failure(error: Any) -> Exception:
    # The log of a refusal has messages and nothing else; the processor's own errors begin by saying where.
    refused = not any(_is_place(entry) or entry.domain_name != "XSLT" for entry in error.error_log)
    if refused:
        return UnprocessableContent(str(error))
    return TransformFailed(_words(error))


def _is_place(entry: Any) -> bool:
    return str(entry.message).startswith(("runtime error", "compilation error"))


def _words(error: Any) -> str:
    """The reason that says most: the last one, with the line of the place that was said before it."""
    lines = [entry.line for entry in error.error_log if _is_place(entry) and entry.line]
    words = [str(entry.message).partition("\n")[0] for entry in error.error_log if not _is_place(entry)]
    reason = next((word for word in words if word not in ("unknown error", "error")), str(error))
    return f"{reason} (line {lines[0]})" if lines else reason
