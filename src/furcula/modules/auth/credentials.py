"""What the modules of this folder share: fields of a request, files of credentials, and looking up a token.

Nothing here ever puts a credential into a message, a log line or a repr.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import logging
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from furcula.errors import FurculaError
from furcula.event import Event

__all__ = [
    "BadLine",
    "Lookup",
    "WatchedFile",
    "check_function",
    "digest_of",
    "fields_of",
    "find_function",
    "named_lines",
    "one_of",
    "quoted",
    "take_authorization",
    "without",
]

T = TypeVar("T")
N = TypeVar("N")

#: Nobody's credentials are longer. What is longer is refused before any work is done on it.
MOST_CHARACTERS: Final = 16 * 1024


def one_of(kind: str, **given: Any) -> None:
    """Raises ValueError unless exactly one of these arguments of a module is given."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(f"{kind} needs one of: {', '.join(given)}" + (f", not {' and '.join(names)}" if names else ""))


# ------------------------------------------------------------------ requests


def fields_of(event: Event[Any]) -> Mapping[str, Any]:
    """The header fields of the request, names in lower case. An event that is no request has none."""
    found = event.headers.get("request")
    return found if isinstance(found, dict) else {}


def without(event: Event[Any], part: str, name: str) -> None:
    """Take `name` out of `headers.<part>`. What other events may share is not touched."""
    found = event.headers.get(part)
    if isinstance(found, dict) and name in found:
        event.headers[part] = {key: value for key, value in found.items() if key != name}


def take_authorization(event: Event[Any], scheme: str) -> str | None:
    """What the `Authorization` field says under this scheme, taken out of the request; None if it has another scheme.

    Credentials of another scheme are left where they are: they are for another module. The text is empty where the
    field cannot hold credentials at all.
    """
    field = fields_of(event).get("authorization")
    if not isinstance(field, str):
        return None
    named, _, rest = field.strip(" \t").partition(" ")
    if named.lower() != scheme:
        return None
    without(event, "request", "authorization")
    return rest.strip(" ") if len(rest) <= MOST_CHARACTERS else ""


def quoted(text: str, what: str = "realm") -> str:
    """`text` as a quoted string of a challenge.

    Raises:
        ValueError: It has characters that cannot stand there.
    """
    if not (text.isascii() and text.isprintable()):
        raise ValueError(f"{what}: {text!r} must consist of printable ASCII characters")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# ------------------------------------------------------------------ tokens


def digest_of(token: str) -> bytes:
    """How tokens are kept. They are random and long, so this needs neither salt nor slowness, as passwords do."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Lookup(Generic[N]):
    """Whose token is this? The time it takes to say tells nothing about the tokens.

    The table is keyed by an HMAC under a random key of this process, so how far two entries agree has nothing to do
    with how far two tokens do. One of ten thousand is found as fast as one of two.

    Args:
        owners: Each owner with the digest of its token (`digest_of`).

    Raises:
        ValueError: Two owners have the same token.
    """

    def __init__(self, owners: Iterable[tuple[N, bytes]]):
        self._key = secrets.token_bytes(32)
        self._nobody = secrets.token_bytes(32)
        self._owners: dict[bytes, tuple[bytes, N]] = {}
        for owner, digest in owners:
            mark = self._mark(digest)
            if mark in self._owners:
                raise ValueError(f"{self._owners[mark][1]!r} and {owner!r} have the same one")
            self._owners[mark] = (mark, owner)

    def _mark(self, digest: bytes) -> bytes:
        return hmac.digest(self._key, digest, "sha256")

    def owner(self, token: str) -> tuple[N] | None:
        """The owner, in a tuple, or None."""
        mark = self._mark(digest_of(token))
        found = self._owners.get(mark)
        same = hmac.compare_digest(mark, self._nobody if found is None else found[0])
        return (found[1],) if found is not None and same else None


# ------------------------------------------------------------------ files


class BadLine(ValueError):
    """A line of a file that cannot be. The message never has what stands there."""

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line = line


def named_lines(text: str, form: str) -> dict[str, tuple[int, str]]:
    """Lines of the form `name:rest`: by name, the number of the line and the rest. Blank ones and `# ...` are skipped.

    Raises:
        BadLine: A line has another form, or a name comes a second time.
    """
    found: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        if not name.strip() or not rest.strip():
            raise BadLine(number, f"write {form}")
        if name in found:
            raise BadLine(number, f"{name!r} is named a second time (first in line {found[name][0]})")
        found[name] = (number, rest.strip())
    return found


class WatchedFile(Generic[T]):
    """A file of credentials that is read again when it has changed.

    A change that cannot be used (a bad line, no file any more) is logged once, and what was read before stays in force.

    Args:
        path: The file.
        parse: Makes of its text what is used. May raise ValueError, or BadLine.
        log: Where changes are reported.

    Attributes:
        version: Another number whenever something else was read.

    Raises:
        FurculaError: It cannot be read now; the message has file and line.
    """

    def __init__(self, path: Path, parse: Callable[[str], T], log: logging.LoggerAdapter[logging.Logger]):
        self._path = path
        self._parse = parse
        self._log = log
        self.version = 0
        self._seen = self._look()
        self._content = self._read()

    def _look(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino

    def _read(self) -> T:
        try:
            return self._parse(self._path.read_text("utf-8-sig"))
        except OSError as error:
            raise FurculaError(f"{self._path} cannot be read: {error.strerror}") from None
        except UnicodeError:
            raise FurculaError(f"{self._path} cannot be read: it is not UTF-8") from None
        except BadLine as error:
            raise FurculaError(f"{self._path}:{error.line}: {error}") from None
        except ValueError as error:
            raise FurculaError(f"{self._path}: {error}") from None

    def current(self) -> T:
        """What the file says now."""
        now = self._look()  # before it is read: what changes in between is seen the next time
        if now != self._seen:
            self._seen = now
            try:
                self._content = self._read()
            except FurculaError as error:
                self._log.error("%s; what it said before stays in force", error)
            else:
                self.version += 1
                self._log.info("%s has changed, and was read again", self._path)
        return self._content


# ------------------------------------------------------------------ functions by name

_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def check_function(given: Any, argument: str) -> None:
    """Raises ValueError where `given` is neither a function nor the name of one."""
    if not callable(given) and not (isinstance(given, str) and _NAME.fullmatch(given)):
        raise ValueError(f"{argument}: {given!r} is no function; write package.module:name")


def find_function(given: Any, folder: Path) -> Callable[..., Any]:
    """The function that `given` is or names. Names are looked for among what is installed, then in `folder`.

    Raises:
        FurculaError: There is none of that name.
    """
    if callable(given):
        return given  # type: ignore[no-any-return]
    module, _, name = given.partition(":")
    entry = str(folder.resolve())
    added = entry not in sys.path
    if added:
        sys.path.append(entry)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise FurculaError(f"the function {given} cannot be imported: {error}") from error
    finally:
        if added:
            sys.path.remove(entry)
    if not callable(found):
        raise FurculaError(f"{given} is {type(found).__name__}, and no function")
    return found  # type: ignore[no-any-return]
