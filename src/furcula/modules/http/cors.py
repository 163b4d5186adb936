"""Cross-origin requests (WHATWG Fetch, 3.2): which pages of other sites may read the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from furcula.options import convert_value

__all__ = ["Cors"]


class Cors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which origins may.

    Attributes:
        origins: `https://shop.example`, each exactly; `*` alone for all.
        headers: Header fields that such a page may send. Default: those it asks for.
        expose: Header fields of the answer that it may read.
        credentials: It may send cookies and Authorization. Not together with `*`.
        max_age: Seconds for which a browser may remember the permission.
    """

    origins: list[str]
    headers: list[str] | None = None
    expose: list[str] = []
    credentials: bool = False
    max_age: int = 600

    @classmethod
    def of(cls, spec: Any) -> Cors | None:
        """Raises ValueError with what is wrong."""
        if spec is None:
            return None
        if isinstance(spec, str):
            spec = {"origins": [spec]}
        if isinstance(spec, list):
            spec = {"origins": spec}
        made: Cors = spec if isinstance(spec, Cors) else convert_value(spec, cls)
        if "*" in made.origins and (made.credentials or len(made.origins) > 1):
            raise ValueError("cors: '*' stands alone, and not with `credentials`: name the origins")
        for origin in made.origins:
            if origin != "*" and ("://" not in origin or origin.endswith("/") or origin.count("/") != 2):
                raise ValueError(f"cors: {origin!r} is not an origin; write https://shop.example, without a path")
        return made

    def allows(self, origin: str | None) -> bool:
        return origin is not None and ("*" in self.origins or origin in self.origins)

    def fields(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """What stands on every answer."""
        if self.origins == ["*"]:
            found = [(b"access-control-allow-origin", b"*")] if origin is not None else []
        else:
            found = [(b"vary", b"origin")]
            if origin is None or not self.allows(origin):
                return found
            found.append((b"access-control-allow-origin", origin.encode("latin-1")))
        if origin is None:
            return found
        if self.credentials:
            found.append((b"access-control-allow-credentials", b"true"))
        if self.expose:
            found.append((b"access-control-expose-headers", ", ".join(self.expose).encode("latin-1")))
        return found

    def preflight(self, fields: Mapping[str, str], allowed: tuple[str, ...]) -> list[tuple[bytes, bytes]]:
        """What stands on the answer to a preflight besides."""
        if "access-control-request-method" not in fields or not self.allows(fields.get("origin")):
            return []
        wanted = fields.get("access-control-request-headers", "") if self.headers is None else ", ".join(self.headers)
        found = [
            (b"access-control-allow-methods", ", ".join(allowed).encode("ascii")),
            (b"access-control-max-age", b"%d" % self.max_age),
        ]
        if wanted:
            found.append((b"access-control-allow-headers", wanted.encode("latin-1")))
        return found
