"""A client of HTTP: what `http.request` and `http.poll` share. The one file that knows aiohttp."""

from __future__ import annotations

import base64
import email.utils
import re
import ssl
import time
from collections.abc import Container, Mapping
from typing import Any, Final

import msgspec

from furcula.errors import FurculaError, InputError, MissingExtra
from furcula.module import Context
from furcula.modules.http import media
from furcula.modules.http.upstream import UpstreamRefused, UpstreamTimeout, UpstreamUnavailable
from furcula.options import Duration, Secret, Size
from furcula.statuses import UnsupportedMediaType

try:
    import aiohttp
    from yarl import URL
except ImportError:
    raise MissingExtra("http.request", "http") from None

__all__ = ["Answer", "Auth", "Client", "check_field", "check_url", "decoded", "failure"]

MOST_REDIRECTS: Final = 10
_REDIRECTIONS: Final = frozenset((301, 302, 303, 307, 308))
#: Characters of an answer that stand in the message of an error.
EXCERPT: Final = 200

_FIELD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_URL: Final = re.compile(r"https?://[^/?#\s]+", re.IGNORECASE)


class Auth(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who we are: a name and a password, or a bearer token, or a key in a header field of its own."""

    user: str | None = None
    password: Secret | None = None
    bearer: Secret | None = None
    header: str | None = None
    key: Secret | None = None

    # Not in __post_init__: a flow file is checked field by field, and shows the field that was refused.
    def check(self) -> None:
        """Raises ValueError where this is none of the three. What is secret is not in the message."""
        given = tuple(name for name in self.__struct_fields__ if getattr(self, name) is not None)
        if given not in (("user", "password"), ("bearer",), ("header", "key")):
            raise ValueError("auth is {user, password}, {bearer}, or {header, key}")
        if self.user is not None and (":" in self.user or _CONTROL.search(self.user)):
            raise ValueError("auth: user must not have a ':' or control characters")
        check_field(*self.field(), "auth")

    def field(self) -> tuple[str, str]:
        """The header field that says it, in plain text."""
        if self.header is not None and self.key is not None:
            return self.header.lower(), self.key.reveal()
        if self.bearer is not None:
            return "authorization", f"Bearer {self.bearer.reveal()}"
        assert self.password is not None
        pair = f"{self.user}:{self.password.reveal()}".encode()
        return "authorization", f"Basic {base64.b64encode(pair).decode()}"


def check_field(name: str, value: str, what: str) -> None:
    """Raises ValueError where this is no header field. The value is not in the message."""
    if not _FIELD.fullmatch(name):
        raise ValueError(f"{what}: {name!r} is not the name of a header field")
    if _CONTROL.search(value):
        raise ValueError(f"{what}: the value of {name} has a line break or another control character")


def check_url(url: str) -> None:
    """Raises ValueError where `url`, which is no template, is none that can be asked."""
    match = _URL.match(url)
    if match is None:
        raise ValueError(f"url: {url!r} is not a URL; write http://host/path or https://host/path")
    if "@" in match[0]:
        raise ValueError("url: a name and a password in a URL would be shown in logs; write them under auth")
    if not match[0].isascii():
        raise ValueError(f"url: write the host of {match[0]!r} in its ASCII form (xn--…)")
    try:
        URL(url, encoded=True).port  # noqa: B018 -- it raises for a port that is none
    except ValueError as error:
        raise ValueError(f"url: {url!r} is not a URL: {error}") from None


class Answer(msgspec.Struct, frozen=True):
    """What a server answered.

    Attributes:
        asked: The method and the URL, without its query, for messages.
        headers: Header fields, lower case; repeated ones joined with ", ".
    """

    asked: str
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


def decoded(answer: Answer) -> Any:
    """The body by its content type: JSON and MessagePack as values, text as str, others as bytes, none as None.

    Raises:
        InputError: It is not what it says it is.
    """
    if not answer.body:
        return None
    try:
        return media.decode(answer.headers.get("content-type"), answer.body)
    except UnsupportedMediaType as error:  # said to whoever sends us a request; here we are the one who asked
        raise InputError(str(error)) from None


def failure(answer: Answer) -> UpstreamRefused | UpstreamUnavailable:
    """The error for an answer whose status is none that is wanted."""
    retry_after_s = _retry_after_s(answer.headers.get("retry-after"))
    parts = [f"{answer.asked} was answered {answer.status} {answer.reason}".rstrip()]
    if retry_after_s is not None:
        parts.append(f"(to be asked again in {retry_after_s:g} s)")
    if 300 <= answer.status < 400 and (location := answer.headers.get("location")):
        parts.append(f"(see {_printable(location)})")
    text = ": ".join(part for part in (" ".join(parts), _printable(answer.body.decode("utf-8", "replace"))) if part)
    later = answer.status in (408, 425, 429) or answer.status >= 500
    kind = UpstreamTimeout if answer.status == 504 else UpstreamUnavailable if later else UpstreamRefused
    return kind(text, upstream_status=answer.status, retry_after_s=retry_after_s)


def _retry_after_s(field: str | None) -> float | None:
    """RFC 9110, 10.2.3: seconds, or a date."""
    if not field:
        return None
    if re.fullmatch(r"[0-9]{1,9}", field):
        return float(field)
    try:
        return max(0.0, round(email.utils.parsedate_to_datetime(field).timestamp() - time.time(), 3))
    except (ValueError, TypeError, OverflowError):
        return None


def _printable(text: str) -> str:
    words = " ".join(text[: EXCERPT * 4].split())
    shown = "".join(char if char.isprintable() else "?" for char in words)
    return shown if len(shown) <= EXCERPT else shown[:EXCERPT] + "…"


class Client:
    """Asks servers, over a pool of connections that stay open between requests.

    Args:
        auth: Goes along with every request, but never to another site to which one was redirected.
        timeout: Seconds for all of a request, from the wait for a connection to the last byte of the answer.
        connect_timeout: Seconds for making a connection.
        pool: Connections at once; who needs one more waits.
        verify: Check certificates.
        ca_file: File with the certificates that vouch for servers, instead of the system's.
        follow_redirects: Go where the server points, but never from https to http.
        max_response: Bytes that an answer may have, unpacked.
    """

    def __init__(
        self,
        *,
        auth: Auth | None,
        timeout: Duration,
        connect_timeout: Duration,
        pool: int,
        verify: bool,
        ca_file: str | None,
        follow_redirects: bool,
        max_response: Size,
    ):
        if auth is not None:
            auth.check()
        if not timeout or not connect_timeout:
            raise ValueError("timeout and connect_timeout must be more than 0")
        if pool < 1:
            raise ValueError("pool must be 1 or more")
        if ca_file is not None and not verify:
            raise ValueError("ca_file says who vouches for servers, and verify: false says that nobody has to")
        self._auth = auth
        self._total_s = float(timeout)
        self._connect_s = float(connect_timeout)
        self._pool = pool
        self._verify = verify
        self._ca_file = ca_file
        self._follow_redirects = follow_redirects
        self._max = int(max_response)
        self._session: aiohttp.ClientSession | None = None

    async def open(self, context: Context) -> None:
        """Get ready. No connection is made yet."""
        tls: ssl.SSLContext | bool = True
        if not self._verify:
            context.log.warning("certificates are not checked (verify: false): anybody could answer")
            tls = False
        elif self._ca_file is not None:
            path = context.folder / self._ca_file
            try:
                tls = ssl.create_default_context(cafile=path)
            except (OSError, ssl.SSLError) as error:
                raise FurculaError(f"{context.name} cannot read the certificates in {path}: {error}") from error
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._pool, ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),  # one request has nothing to do with another
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        unread: Container[int] = (),
    ) -> Answer:
        """Send one request, and read all of its answer, whatever its status.

        Args:
            method: Any.
            url: Percent-encoded, with its query.
            headers: Names in lower case.
            body: What is sent; None: nothing.
            unread: Statuses with which the body is of no interest. Nothing that is wrong with it is an error then.

        Raises:
            UpstreamUnavailable: There was no answer, or not all of it.
            UpstreamRefused: The answer is too long, the certificate wrong, or the redirections have no end.
            ValueError: The URL or a header field cannot be.
        """
        target = _parsed(url)
        fields = dict(headers)
        own: tuple[str, ...] = ("authorization", "cookie", "proxy-authorization")
        if self._auth is not None:
            name, value = self._auth.field()
            fields[name] = value
            own += (name,)
        deadline = time.monotonic() + self._total_s
        for _ in range(MOST_REDIRECTS + 1):
            asked = f"{method} {target.scheme}://{target.raw_authority}{target.raw_path}"
            answer = await self._ask_once(asked, method, target, fields, body, deadline - time.monotonic(), unread)
            if not self._follow_redirects or answer.status not in _REDIRECTIONS or "location" not in answer.headers:
                return answer
            further = _further(target, answer)
            if further.origin() != target.origin():
                fields = {name: value for name, value in fields.items() if name not in own}
            if answer.status == 303 or (answer.status in (301, 302) and method == "POST"):
                method, body = (method if method == "HEAD" else "GET"), None
                fields.pop("content-type", None)
            target = further
        raise UpstreamRefused(f"{asked}: more than {MOST_REDIRECTS} redirections")

    async def _ask_once(
        self,
        asked: str,
        method: str,
        target: URL,
        fields: Mapping[str, str],
        body: bytes | None,
        left_s: float,
        unread: Container[int],
    ) -> Answer:
        assert self._session is not None
        try:
            async with self._session.request(
                method,
                target,
                headers=fields,
                data=body,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=max(left_s, 0.001), sock_connect=self._connect_s),
                skip_auto_headers=("content-type",) if body is None else (),
            ) as response:
                raw = await (self._swallow(response) if response.status in unread else self._read(response, asked))
                found: dict[str, str] = {}
                for name, value in response.headers.items():
                    name = name.lower()
                    found[name] = f"{found[name]}, {value}" if name in found else value
                return Answer(asked, response.status, response.reason or "", found, raw)
        except aiohttp.ConnectionTimeoutError as error:
            raise UpstreamTimeout(f"{asked}: no connection within {self._connect_s:g} s") from error
        except TimeoutError as error:
            raise UpstreamTimeout(f"{asked}: no answer within {self._total_s:g} s") from error
        except aiohttp.ClientSSLError as error:
            raise UpstreamRefused(f"{asked}: {_reason(error)}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamUnavailable(f"{asked}: {_reason(error)}") from error

    async def _swallow(self, response: aiohttp.ClientResponse) -> bytes:
        """Let a body that nobody wants pass, so that its connection can be used again; but not for ever."""
        size = 0
        try:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > self._max:
                    break
        except (aiohttp.ClientError, OSError):
            pass  # the status has said that it was done
        return b""

    async def _read(self, response: aiohttp.ClientResponse, asked: str) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > self._max:
                response.close()  # and with it the connection: what is still to come is not read
                raise UpstreamRefused(f"{asked} was answered {response.status} with more than {self._max} bytes")
            chunks.append(chunk)
        return b"".join(chunks)


def _parsed(url: str) -> URL:
    # Not in the message: a URL that a template made may have secrets in it.
    match = _URL.match(url)
    if match is None or "@" in match[0]:
        raise ValueError("the URL that the template made does not begin with http://host or https://host")
    try:
        found = URL(url, encoded=True)
        found.port  # noqa: B018 -- it raises for a port that is none
    except ValueError:
        raise ValueError("the URL that the template made cannot be read") from None
    return found


def _further(target: URL, answer: Answer) -> URL:
    """Where a redirection leads."""
    try:
        further = target.join(URL(answer.headers["location"])).with_fragment(None)
        plain = further.scheme in ("http", "https") and further.host and not further.user
    except ValueError:
        plain = False
    if not plain:
        raise UpstreamRefused(f"{answer.asked}: it points to what cannot be asked", upstream_status=answer.status)
    if (target.scheme, further.scheme) == ("https", "http"):
        raise UpstreamRefused(f"{answer.asked}: it points from https to http", upstream_status=answer.status)
    return further


def _reason(error: BaseException) -> str:
    return _printable(str(error)) or type(error).__name__
