"""Where a broker is, who we are there, and how the connection is kept private. What is secret shows in no message."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import msgspec

from furcula.errors import FurculaError
from furcula.options import Secret

__all__ = ["Endpoint", "Tls"]


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a connection is kept private.

    Attributes:
        ca_file: Certificates that vouch for the server, instead of the system's; relative to the flow's folder.
        cert_file: Our own certificate, where the server wants one.
        key_file: Its key.
        verify: Check the server's certificate and name.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool = True

    def context(self, folder: Path) -> ssl.SSLContext:
        """For a client.

        Raises:
            FurculaError: A file cannot be read, or holds no such thing.
        """
        try:
            context = ssl.create_default_context(cafile=str(folder / self.ca_file) if self.ca_file else None)
            if self.cert_file:
                context.load_cert_chain(folder / self.cert_file, folder / self.key_file if self.key_file else None)
        except (OSError, ssl.SSLError) as error:
            named = ", ".join(str(folder / name) for name in (self.ca_file, self.cert_file, self.key_file) if name)
            raise FurculaError(f"tls: {named or 'the certificates'} cannot be used: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Endpoint(msgspec.Struct, frozen=True):
    """A server's address, and who we are there. As text it is the URL without name, password and query.

    Attributes:
        path: What stands behind host and port, with its leading "/", percent-encoded; or "".
        secure: The scheme says TLS.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    query: str = ""
    user: str | None = None
    password: Secret | None = None
    secure: bool = False

    @classmethod
    def of(
        cls,
        url: str,
        ports: Mapping[str, int],
        *,
        secure: frozenset[str] = frozenset(),
        user: str | None = None,
        password: Secret | None = None,
    ) -> Endpoint:
        """From a URL of one of the schemes in `ports`, which gives the port where the URL has none.

        Args:
            secure: Those of the schemes that mean TLS.
            user: Who we are; it may also stand in the URL, but not in both.
            password: The same.

        Raises:
            ValueError: It is no such URL. The message does not show a password.
        """
        schemes = " or ".join(f"{scheme}://host:{port}" for scheme, port in ports.items())
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or parts.scheme not in ports:
            raise ValueError(f"url: {_redacted(url)!r} is not a URL for this; write {schemes}")
        if parts.username and (user is not None or password is not None):
            raise ValueError("url: it says who we are, and so do user and password; write one of them")
        if parts.username:
            user = unquote(parts.username)
            password = Secret(unquote(parts.password)) if parts.password is not None else None
        if password is not None and user is None and parts.password is None and parts.scheme[:5] != "redis":
            raise ValueError("a password needs a user")
        if user is None and parts.password:  # redis://:password@host
            password = Secret(unquote(parts.password))
        port = ports[parts.scheme] if port is None else port
        return cls(parts.scheme, host, port, parts.path, parts.query, user, password, parts.scheme in secure)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}{self.path}"

    def revealed(self) -> str:
        """The URL with name and password, for the library that connects."""
        who = ""
        if self.user is not None or self.password is not None:
            who = quote(self.user or "", safe="")
            if self.password is not None:
                who += f":{quote(self.password.reveal(), safe='')}"
            who += "@"
        return f"{self.scheme}://{who}{self.address}{self.path}{'?' + self.query if self.query else ''}"

    def clean(self, text: str) -> str:
        """`text`, which a library wrote, without the password."""
        if self.password is None or not self.password.reveal():
            return text
        plain = self.password.reveal()
        for written in {plain, quote(plain, safe=""), quote(plain)}:
            text = text.replace(written, "****")
        return text


def _redacted(url: str) -> str:
    """What can be shown of something that is no URL: nothing that stands before an @."""
    return re.sub(r"(^|//)[^/]*@", r"\1****@", url)
