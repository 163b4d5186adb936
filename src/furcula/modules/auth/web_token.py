"""JSON web tokens (RFC 7519): a key made ready, and what a token says if that key signed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from furcula.errors import MissingExtra, nearest

try:
    import jwt
    from jwt.algorithms import get_default_algorithms
except ImportError:
    raise MissingExtra("auth.bearer with JSON web tokens", "auth") from None

__all__ = ["BadToken", "WebTokens"]

#: Bits below which an RSA key can be broken (NIST SP 800-131A).
LEAST_RSA_BITS: Final = 2048


class BadToken(Exception):
    """The token cannot be accepted; says why, in words that may go back to whoever sent it."""


class WebTokens:
    """What tokens must be like.

    Args:
        algorithms: Those that are accepted. A token never chooses one that is not among them.
        audience: Whom a token must be for. None: a token that names an audience is refused.
        issuer: Who must have made it.
        leeway_s: Seconds by which clocks may differ.
        required: Claims that must be there.

    Raises:
        ValueError: The algorithms cannot be.
    """

    def __init__(
        self,
        algorithms: Sequence[str],
        *,
        audience: str | list[str] | None = None,
        issuer: str | list[str] | None = None,
        leeway_s: float = 0,
        required: Sequence[str] = (),
    ):
        self._known = get_default_algorithms()
        if not algorithms:
            raise ValueError("algorithms: name those that tokens are signed with, such as [RS256]")
        for name in algorithms:
            if name.lower() == "none":
                raise ValueError(f"algorithms: {name!r} would accept tokens that anybody has made")
            if name not in self._known:
                raise ValueError(f"algorithms: there is no {name!r}{nearest(name, self._known)}")
        if len({name.startswith("HS") for name in algorithms}) > 1:
            raise ValueError(
                "algorithms: HS… and others cannot be mixed: whoever has the public key could sign tokens with it"
            )
        self._algorithms = list(algorithms)
        self._audience = audience
        self._issuer = issuer
        self._leeway_s = leeway_s
        self._required = list(required)

    def key(self, text: str) -> Any:
        """The key that `text` is, ready for use.

        Raises:
            ValueError: It is no key for these algorithms, or too weak. The message does not have it.
        """
        shared = self._algorithms[0].startswith("HS")
        if shared and "-----BEGIN" in text:
            raise ValueError(f"{self._algorithms[0]} takes a shared secret, and this is PEM: name RS256 or ES256")
        key: Any = None
        for name in self._algorithms:
            try:
                key = self._known[name].prepare_key(text.encode())
            except Exception:  # each kind of key has errors of its own, and their texts may have parts of the key
                wanted = "a shared secret" if shared else "a public key in PEM form"
                raise ValueError(f"the key does not fit {name}, which takes {wanted}") from None
            if shared:
                least = int(name[2:]) // 8
                if len(key) < least:
                    raise ValueError(f"the key has {len(key)} bytes; {name} needs {least} or more (RFC 7518, 3.2)")
        if not shared and hasattr(key, "private_bytes"):
            raise ValueError("this is a private key; tokens are checked with the public one that belongs to it")
        if getattr(key, "key_size", LEAST_RSA_BITS) < LEAST_RSA_BITS and self._algorithms[0][:2] in ("RS", "PS"):
            raise ValueError(f"the RSA key has {key.key_size} bits; {LEAST_RSA_BITS} or more are needed")
        return key

    def claims(self, token: str, key: Any) -> dict[str, Any]:
        """What the token says.

        Raises:
            BadToken: Another key signed it, it is not for us, it has expired, or it is no token at all.
        """
        try:
            found: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=self._algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={"require": self._required},
            )
        except jwt.MissingRequiredClaimError as error:
            raise BadToken(f"the token has no {error.claim}") from None
        except Exception as error:  # whatever was sent, it is the sender's fault
            raise BadToken(_WHY.get(type(error), "the token cannot be read")) from None
        return found


_WHY: Final[dict[type[Exception], str]] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for somebody else",
    jwt.InvalidIssuerError: "the token was made by somebody else",
    jwt.InvalidSignatureError: "the token was not signed with our key",
    jwt.InvalidAlgorithmError: "the token is signed in a way that is not accepted",
}
