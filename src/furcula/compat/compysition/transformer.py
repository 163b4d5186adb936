"""Compysition's `Transformer`: XSLT, by furcula's `xml.transform`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from furcula.compat.compysition.actor import Actor
from furcula.compat.compysition.event import Event
from furcula.module import Context
from furcula.modules.xml.transform import XmlTransform

__all__ = ["Transformer"]


class Transformer(Actor):
    """Transform each event's data, a document, by a stylesheet (XSLT 1.0), and send it on.

    What is no XML fails with 400, what `<xsl:message terminate="yes">` refuses with 422, anything else with 500. The
    stylesheet reads and writes no files, and includes only what is in its own folder.

    Args:
        name: As registered.
        stylesheet: The stylesheet itself, or the path of its file.
        params: Values for its `xsl:param`s. Text may be a template: `{{ headers.auth.user }}`.
        root: For data that is no document: the name of the element around it.
    """

    def __init__(
        self,
        name: str,
        stylesheet: str | bytes | Path,
        *,
        params: Mapping[str, str | int | float | bool] | None = None,
        root: str | None = None,
    ):
        super().__init__(name)
        text = stylesheet.decode() if isinstance(stylesheet, bytes) else str(stylesheet)
        is_document = not isinstance(stylesheet, Path) and text.lstrip("\ufeff \t\r\n").startswith("<")
        given = {"text" if is_document else "stylesheet": text}
        self._transform = XmlTransform(**given, params=dict(params or {}), root=root)

    def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        self._transform.process(event.view())
        self.send_event(event)

    def opened(self, context: Context) -> None:
        self._transform.start(context)
        super().opened(context)
