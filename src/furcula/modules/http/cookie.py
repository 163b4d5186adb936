"""A cookie, as the `Set-Cookie` field says it (RFC 6265)."""

from __future__ import annotations

import re
from http.cookies import CookieError, Morsel
from typing import Any, Final

import msgspec

from furcula.options import Duration

__all__ = ["Cookie"]

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_PATH: Final = re.compile(r"/[\x20-\x3a\x3c-\x7e]*")
_DOMAIN: Final = re.compile(r"\.?[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*")
_SAME_SITE: Final = {"strict": "Strict", "lax": "Lax", "none": "None"}


class Cookie(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cookie says beside its name.

    Attributes:
        value: Printable ASCII without blanks, quotes, commas, semicolons and backslashes. Encode others yourself.
        path: Where on the site it is sent back.
        domain: To which hosts it is sent back; None: to the one that set it.
        max_age: For how long; 0: it is removed now. None: until the browser is closed.
        secure: Over TLS only.
        http_only: Scripts of the page do not see it.
        same_site: Strict, Lax or None: whether it goes along with requests that begin on another site.
    """

    value: str = ""
    path: str = "/"
    domain: str | None = None
    max_age: Duration | None = None
    secure: bool = False
    http_only: bool = True
    same_site: str = "Lax"

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"path: {self.path!r} is not the path of a cookie; it begins with '/'")
        if self.domain is not None and not _DOMAIN.fullmatch(self.domain):
            raise ValueError(f"domain: {self.domain!r} is not a domain")
        if self.same_site.lower() not in _SAME_SITE:
            raise ValueError(f"same_site: {self.same_site!r} is none of Strict, Lax, None")
        if self.max_age is not None:
            msgspec.structs.force_setattr(self, "max_age", Duration(self.max_age))

    def check(self, name: str) -> None:
        """Raises ValueError where there can be no cookie of this kind and name."""
        if self.same_site.lower() == "none" and not self.secure:
            raise ValueError("same_site: None needs secure: true; browsers refuse the cookie otherwise")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a cookie")
        if name.startswith(("__Secure-", "__Host-")) and not self.secure:
            raise ValueError(f"the cookie {name} needs secure: true; its name promises that")
        if name.startswith("__Host-") and (self.path != "/" or self.domain is not None):
            raise ValueError(f"the cookie {name} needs path: / and no domain; its name promises that")

    def field(self, name: str, value: str | None = None) -> str:
        """The `Set-Cookie` field.

        Args:
            name: Its name.
            value: Its value, instead of `value`.

        Raises:
            ValueError: The name or the value cannot be said. The value is not in the message.
        """
        said = self.value if value is None else value
        self.check(name)
        if not _VALUE.fullmatch(said):
            raise ValueError(
                f"the value of the cookie {name} has characters that cannot stand in one: percent-encode it, or base64"
            )
        morsel: Morsel[Any] = Morsel()
        try:
            morsel.set(name, said, said)
        except CookieError as error:
            raise ValueError(f"{name!r} is not the name of a cookie: {error}") from None
        morsel["path"] = self.path
        morsel["domain"] = self.domain or ""
        morsel["max-age"] = "" if self.max_age is None else int(self.max_age)
        morsel["secure"] = self.secure
        morsel["httponly"] = self.http_only
        morsel["samesite"] = _SAME_SITE[self.same_site.lower()]
        return morsel.OutputString()
