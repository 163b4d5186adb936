"""Password hashes as they stand in a file, and how a password is held against them.

Two forms are taken, both slow on purpose:

* bcrypt, `$2y$…`, `$2b$…` or `$2a$…`, as `htpasswd -B` writes it. It looks at the first 72 bytes of a password.
* scrypt (RFC 7914), `$scrypt$ln=14,r=8,p=1$SALT$HASH`: N is 2 to the power of `ln`; salt and hash are base64 without
  padding. `scrypt_hash` makes one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from typing import Any, Final

from furcula.errors import MissingExtra

bcrypt: Any
try:
    import bcrypt
except ImportError:  # an extra; scrypt comes with Python
    bcrypt = None

__all__ = ["Fits", "read_hash", "scrypt_hash"]

#: Does this password belong to the hash? Takes tens of milliseconds; call it in a thread.
Fits = Callable[[bytes], bool]

_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")
_SCRYPT: Final = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,3}),p=(\d{1,3})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")

#: bcrypt's algorithm has no place for more, and the library refuses what others cut off.
BCRYPT_BYTES: Final = 72
#: Bytes of memory that one scrypt hash may want. OWASP's strongest setting wants 128 MiB.
MOST_MEMORY: Final = 256 << 20


def read_hash(text: str) -> Fits:
    """What holds a password against the hash that `text` is.

    Raises:
        ValueError: It is not one of the forms that are taken. The message does not have it.
        MissingExtra: It is bcrypt's, and the library is not installed.
    """
    if text.startswith("$2"):
        return _bcrypt(text)
    if text.startswith("$scrypt$"):
        return _scrypt(text)
    kind = next((name for prefix, name in _REFUSED.items() if text.startswith(prefix)), "plain text or an unknown hash")
    raise ValueError(f"{kind} is not taken; make the line with: htpasswd -B, or furcula.modules.auth.passwords")


_REFUSED: Final = {
    "$apr1$": "MD5 (apr1)",
    "$1$": "MD5 (crypt)",
    "$5$": "SHA-256 (crypt)",
    "$6$": "SHA-512 (crypt)",
    "$y$": "yescrypt",
    "$argon2": "Argon2",
    "{SHA}": "SHA-1",
    "{SSHA}": "SHA-1",
}


def _bcrypt(text: str) -> Fits:
    if bcrypt is None:
        raise MissingExtra("auth.basic with bcrypt hashes", "auth")
    if _BCRYPT.fullmatch(text) is None:
        raise ValueError("the bcrypt hash is damaged; it has 60 characters, $2y$05$ and 53 more")
    raw = text.encode("ascii")

    def fits(password: bytes) -> bool:
        try:
            return bool(bcrypt.checkpw(password[:BCRYPT_BYTES], raw))
        except ValueError:  # a salt of impossible bits, which no password can belong to
            return False

    return fits


def _scrypt(text: str) -> Fits:
    match = _SCRYPT.fullmatch(text)
    if match is None:
        raise ValueError("the scrypt hash is damaged; write $scrypt$ln=14,r=8,p=1$SALT$HASH, base64 without padding")
    power, r, p = (int(match[index]) for index in (1, 2, 3))
    memory = 128 * r * (2**power) + 128 * r * p
    if not power or not r or not p or memory > MOST_MEMORY:
        raise ValueError(f"scrypt with ln={power},r={r},p={p} is not possible here: memory must be within 256 MiB")
    try:
        salt, expected = (base64.b64decode(part + "=" * (-len(part) % 4), validate=True) for part in match.groups()[3:])
    except binascii.Error:
        raise ValueError("the scrypt hash is damaged: its base64 is") from None
    if len(expected) < 16:
        raise ValueError("the scrypt hash is shorter than 16 bytes")

    def fits(password: bytes) -> bool:
        found = hashlib.scrypt(
            password, salt=salt, n=2**power, r=r, p=p, maxmem=memory + (1 << 20), dklen=len(expected)
        )
        return hmac.compare_digest(found, expected)

    return fits


def scrypt_hash(password: str, *, ln: int = 14, r: int = 8, p: int = 5) -> str:
    """A hash of `password` in the form that stands in a file; the parameters are OWASP's for 16 MiB.

    The line of a file is `f"ada:{scrypt_hash(password)}"`.
    """
    salt = secrets.token_bytes(16)
    n = 2**ln
    raw = hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=128 * r * (n + p) + (1 << 20), dklen=32)
    said = "$".join(base64.b64encode(part).decode().rstrip("=") for part in (salt, raw))
    return f"$scrypt$ln={ln},r={r},p={p}${said}"
