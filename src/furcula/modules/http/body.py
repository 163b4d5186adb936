"""Bodies of requests: read within limits; forms and their files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl

from furcula.errors import MissingExtra
from furcula.modules.http import media
from furcula.statuses import BadRequest, ContentTooLarge

__all__ = ["ClientLeft", "Upload", "form_fields", "read", "repeated", "too_long"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

#: Fields of one form, and fields of one query.
MOST_FIELDS: Final = 1000
#: Bytes of the header of one part of a multipart form.
MOST_PART_HEADER: Final = 16 * 1024


class ClientLeft(Exception):
    """The client left before its request was whole."""


async def read(
    receive: Receive, most: int, announced: str | None, message: MutableMapping[str, Any] | None = None
) -> bytes:
    """The whole body.

    Args:
        most: Bytes that it may have.
        announced: What Content-Length says.
        message: What was received of it already.

    Raises:
        ContentTooLarge: It is longer than `most`, or says so.
        ClientLeft: It did not come to its end.
    """
    if announced is not None and announced.isdigit() and int(announced) > most:
        raise too_long(most)
    if message is None:
        message = await receive()
    if message["type"] != "http.request":
        raise ClientLeft
    body: bytes = message.get("body", b"")
    if len(body) > most:
        raise too_long(most)
    if not message.get("more_body", False):
        return body
    parts, length = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        body = message.get("body", b"")
        length += len(body)
        if length > most:
            raise too_long(most)
        parts.append(body)
    return b"".join(parts)


def too_long(most: int) -> ContentTooLarge:
    """What is said of a body of more than `most` bytes."""
    return ContentTooLarge(f"the body may have {most} bytes here")


def repeated(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs; a name that comes again has a list."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in found:
            found[name] = value
        elif type(found[name]) is list:
            found[name].append(value)
        else:
            found[name] = [found[name], value]
    return found


def form_fields(text: str, what: str = "the form") -> dict[str, Any]:
    """What `a=1&b=2` says.

    Raises:
        BadRequest: It has too many fields, or is not UTF-8.
    """
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest(f"{what} is not UTF-8") from None
    except ValueError:
        raise BadRequest(f"{what} has more than {MOST_FIELDS} fields") from None
    return repeated(pairs)


class Upload:
    """A multipart form as it comes in. Files stay in memory up to a limit; a longer one goes to disk.

    A file is `{"filename": ..., "content_type": ..., "size": ..., "data": bytes}`, or has `path` instead of `data`.
    `close` removes what is on disk.

    Args:
        boundary: Of the parts.
        most: Bytes that the whole body may have.
        in_memory: Bytes that a file may have in memory.
        folder: Where files go to disk; None: the system's folder for temporary files.
    """

    def __init__(self, boundary: str, most: int, in_memory: int, folder: str | None):
        try:
            from python_multipart.multipart import MultipartParser
        except ImportError:
            raise MissingExtra("a multipart form", "http") from None
        self._most = most
        self._in_memory = in_memory
        self._folder = folder
        self._pairs: list[tuple[str, Any]] = []
        self._paths: list[str] = []
        self._file: Any = None
        self._path = ""
        self._ended = False
        self._parser = MultipartParser(
            boundary.encode("latin-1"),
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
            max_size=float(most) + 1,
        )

    async def read(self, receive: Receive) -> dict[str, Any]:
        """Read it all; return its fields.

        Raises:
            BadRequest, ContentTooLarge: It is not a form, or too long.
            ClientLeft: It did not come to its end.
        """
        from python_multipart.exceptions import FormParserError

        length = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientLeft
            chunk: bytes = message.get("body", b"")
            length += len(chunk)
            if length > self._most:
                raise too_long(self._most)
            try:
                if self._file is not None and len(chunk) > 64 * 1024:
                    await asyncio.to_thread(self._parser.write, chunk)  # it writes to a disk
                else:
                    self._parser.write(chunk)
                if not message.get("more_body", False):
                    self._parser.finalize()
                    break
            except FormParserError as error:
                raise BadRequest(f"the multipart form cannot be read: {error}") from None
        if not self._ended:
            raise BadRequest("the multipart form breaks off before its last boundary")
        return repeated(self._pairs)

    def close(self) -> None:
        """Remove the files on disk. What a flow wants to keep, it has moved by then."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # a full disk: what could not be written goes now anyway
                file.close()
        for path in self._paths:
            with contextlib.suppress(OSError):  # the flow has moved it, or made something else of it
                os.unlink(path)
        self._paths.clear()

    # ------------------------------------------------------------------ what the parser tells

    def _begin(self) -> None:
        if len(self._pairs) >= MOST_FIELDS:
            raise BadRequest(f"the form has more than {MOST_FIELDS} fields")
        self._headers: dict[str, str] = {}
        self._name = self._value = b""
        self._buffer = bytearray()
        self._size = self._header_size = 0
        self._path = ""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._count_header(end - start)

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count_header(end - start)

    def _count_header(self, length: int) -> None:
        self._header_size += length
        if self._header_size > MOST_PART_HEADER:
            raise BadRequest(f"the header of a part has more than {MOST_PART_HEADER} bytes")

    def _header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        from python_multipart.multipart import parse_options_header

        kind, options = parse_options_header(self._headers.get("content-disposition", ""))
        if kind != b"form-data" or b"name" not in options:
            raise BadRequest("a part of the multipart form has no name")
        self._field = options[b"name"].decode("utf-8", "replace")
        filename = options.get(b"filename")
        # Some browsers send whole paths. Only the last part is a name, and nobody shall open it as more.
        self._filename = None if filename is None else _last(filename.decode("utf-8", "replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._file is not None:
            self._file.write(data[start:end])
            return
        self._buffer += data[start:end]
        if self._filename is not None and len(self._buffer) > self._in_memory:
            descriptor, self._path = tempfile.mkstemp(prefix="furcula-upload-", dir=self._folder)
            self._paths.append(self._path)
            self._file = os.fdopen(descriptor, "wb")
            self._file.write(self._buffer)
            self._buffer = bytearray()

    def _end(self) -> None:
        if self._filename is None:
            try:
                self._pairs.append((self._field, self._buffer.decode("utf-8")))
            except UnicodeDecodeError:
                raise BadRequest(f"the field {self._field[:80]!r} is not UTF-8") from None
            return
        content_type = media.essence(self._headers.get("content-type", media.BYTES))[0]
        file: dict[str, Any] = {"filename": self._filename, "content_type": content_type, "size": self._size}
        if self._file is not None:
            self._file.close()
            self._file = None
            file["path"] = self._path
        else:
            file["data"] = bytes(self._buffer)
        self._pairs.append((self._field, file))

    def _all(self) -> None:
        self._ended = True


def _last(filename: str) -> str:
    return filename.replace("\\", "/").rpartition("/")[2]
