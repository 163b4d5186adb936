"""`http.files`: files of a folder as answers."""

from __future__ import annotations

import asyncio
import errno
import mimetypes
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from furcula.errors import FurculaError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.http.conditional import byte_range, http_date, unchanged
from furcula.statuses import MethodNotAllowed, NotFound, RangeNotSatisfiable

__all__ = ["Files"]

#: A file up to this size is read at once; a longer one is read in a thread while it is sent.
AT_ONCE: Final = 64 * 1024
CHUNK: Final = 256 * 1024

_FLAGS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

#: What no name may have: control characters, and what another system takes for a separator or a drive.
_FORBIDDEN: Final = re.compile(r"[\x00-\x1f\x7f\\]" if os.name == "posix" else r"[\x00-\x1f\x7f\\:]")

#: Types that Python's own table lacks, or has otherwise than browsers want them.
_TYPES: Final = {
    ".avif": "image/avif",
    ".js": "text/javascript",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
#: What is packed is sent as what it is, not as what is in it.
_PACKED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


class Files(Module):
    """Answer requests with the files of a folder: `routes: ["GET /static/{path:path}"]` at `http.listen`.

    Nothing outside the folder is ever answered with, whatever the path says and wherever a link in the folder leads,
    and nothing whose name begins with a dot, but `.well-known`. All of that is a 404, and so is a folder without an
    index. Answers have `ETag` and `Last-Modified`; a client that has the file is told so (304), and one that wants a
    part of it gets that part (206, or 416). Long files are read in threads while they are sent.

    Args:
        folder: The folder; relative to the flow's.
        param: The parameter of the route that has the path.
        index: The file that stands for a folder. None: none does.
        cache_control: What the `Cache-Control` field says: `max-age=3600`.
    """

    def __init__(
        self,
        *,
        folder: str,
        param: str = "path",
        index: str | None = "index.html",
        cache_control: str | None = None,
    ):
        if index is not None and (not index or "/" in index or "\\" in index or index.startswith(".")):
            raise ValueError(f"index: {index!r} is not the name of a file")
        if cache_control is not None and not (cache_control.isascii() and cache_control.isprintable()):
            raise ValueError(f"cache_control: {cache_control!r} is no value of a header field")
        self._given = folder
        self._param = param
        self._index = index
        self._cache_control = cache_control
        self._folder = Path(folder)
        self._types = mimetypes.MimeTypes()
        for suffix, kind in _TYPES.items():
            self._types.add_type(kind, suffix)

    def start(self, context: Context) -> None:
        try:
            self._folder = (context.folder / self._given).resolve(strict=True)
            os.scandir(self._folder).close()
        except OSError as error:
            raise FurculaError(
                f"{context.name} cannot read the folder {context.folder / self._given}: {error.strerror}"
            ) from error

    def process(self, event: Event[Any]) -> Event[Any]:
        if event.headers.get("method", "GET") not in ("GET", "HEAD"):
            raise MethodNotAllowed("files can only be read", allow=("GET", "HEAD"))
        steps = self._steps(event)
        path = self._inside(steps)
        if path.is_dir():
            if steps[-1:] != [""]:
                # Without the slash at its end, links in the index would lead one folder too high.
                return _answer(event, 308, {"location": f"./{quote(steps[-1], safe='')}/"}, None)
            if self._index is None:
                raise NotFound
            path = self._inside([*steps[:-1], self._index])
        elif steps[-1:] == [""]:
            raise NotFound
        return self._file(event, path)

    def _steps(self, event: Event[Any]) -> list[str]:
        """The names on the way to the file. The last is empty where a folder is meant."""
        params = event.headers.get("params")
        path = params.get(self._param, None if params else "") if isinstance(params, dict) else None
        if not isinstance(path, str):
            raise KeyError(f"headers.params has no path at {self._param!r}; `param` names the parameter of the route")
        *folders, name = path.split("/")
        for step in (*folders, name or "x"):
            hidden = step.startswith(".") and step != ".well-known"
            if not step or hidden or _FORBIDDEN.search(step):
                raise NotFound
        return [*folders, name]

    def _inside(self, steps: list[str]) -> Path:
        """What is there, links resolved; it is in the folder."""
        try:
            found = self._folder.joinpath(*steps).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):  # not there, too long, not to be encoded, links in a circle
            raise NotFound from None
        if not found.is_relative_to(self._folder):
            raise NotFound
        return found

    def _file(self, event: Event[Any], path: Path) -> Event[Any]:
        fields = event.headers.get("request")
        fields = fields if isinstance(fields, dict) else {}
        descriptor = _open(path)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise NotFound
            etag = _etag(found)
            response = {"etag": etag, "last-modified": http_date(int(found.st_mtime))}
            if self._cache_control is not None:
                response["cache-control"] = self._cache_control
            if unchanged(fields, etag, found.st_mtime):
                return _answer(event, 304, response, None)
            try:
                part = byte_range(fields, found.st_size, etag, found.st_mtime)
            except IndexError:
                raise RangeNotSatisfiable(headers={"content-range": f"bytes */{found.st_size}"}) from None
            begin, end = part or (0, found.st_size)
            response["content-type"] = self._type(path.name)
            response["content-length"] = str(end - begin)
            response["accept-ranges"] = "bytes"
            response["x-content-type-options"] = "nosniff"
            if part is not None:
                response["content-range"] = f"bytes {begin}-{end - 1}/{found.st_size}"
            data: Any
            if end - begin <= AT_ONCE:
                data = _read(descriptor, begin, end)
            else:
                data = _stream(path, etag, begin, end)
            return _answer(event, 200 if part is None else 206, response, data)
        finally:
            os.close(descriptor)

    def _type(self, name: str) -> str:
        kind, packed = self._types.guess_type(f"./{name}")
        if packed is not None:
            return _PACKED.get(packed, "application/octet-stream")
        if kind is None:
            return "application/octet-stream"
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _answer(event: Event[Any], status: int, response: dict[str, str], data: Any) -> Event[Any]:
    there = event.headers.get("response")
    event.headers["status"] = status
    event.headers["response"] = {**there, **response} if isinstance(there, dict) else response
    event.data = data
    return event


def _open(path: Path) -> int:
    try:
        return os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO):
            raise  # that is no fault of the path
        raise NotFound from None


def _etag(found: os.stat_result) -> str:
    return f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'


def _read(descriptor: int, begin: int, end: int) -> bytes:
    os.lseek(descriptor, begin, os.SEEK_SET)
    chunks: list[bytes] = []
    left = end - begin
    while left:
        chunk = os.read(descriptor, left)
        if not chunk:
            raise FurculaError("the file became shorter while it was read")
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


async def _stream(path: Path, etag: str, begin: int, end: int) -> AsyncIterator[bytes]:
    """A part of a file, chunk by chunk.

    The file is opened only when the first chunk is wanted: an answer that nobody sends leaves nothing open. If it is
    another file by then, or becomes one, the answer breaks off; what was announced must be what comes.
    """
    descriptor = await asyncio.to_thread(_open, path)
    try:
        if _etag(os.fstat(descriptor)) != etag:
            raise FurculaError(f"{path} has changed before it was sent")
        while begin < end:
            upto = min(begin + CHUNK, end)
            yield await asyncio.to_thread(_read, descriptor, begin, upto)
            begin = upto
    finally:
        os.close(descriptor)
