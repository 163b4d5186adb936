"""Signed requests: webhooks whose sender shares a secret with us and signs each body with it (HMAC)."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from furcula.errors import ConfigurationError
from furcula.event import Event
from furcula.module import Context, Module
from furcula.modules.auth.credentials import MOST_CHARACTERS, fields_of
from furcula.options import Duration, Secret
from furcula.statuses import Unauthorized

__all__ = ["Signature"]

FIVE_MINUTES: Final = Duration("5m")
#: Signatures that one request may bring. Stripe sends one for each of its secrets in use.
MOST_SIGNATURES: Final = 16
_FIELD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

Algorithm = Literal["sha1", "sha256", "sha384", "sha512"]


class Signature(Module):
    """Let requests pass whose body is signed with a secret that we share with the sender; refuse the others with a 401.

    The signature is one of the bytes as they were sent, so the listener has to keep them: `raw_body: true` at
    `http.listen`. `headers.auth` becomes `{"scheme": "signature", "user": None, "form": form}`; with stripe also
    `timestamp`. A signed request can be sent again by whoever has seen it: only stripe's form has a time in it, so
    elsewhere look at the sender's number of the delivery.

    Args:
        secrets: The secrets. One that is being replaced stays in the list until nobody signs with it any more.
        form: `github`: `X-Hub-Signature-256`. `stripe`: `Stripe-Signature`, with its time. `plain`: the HMAC in a
            header field, and nothing else.
        header: plain: the header field.
        algorithm: plain: sha1, sha256, sha384 or sha512.
        encoding: plain: hex or base64.
        prefix: plain: what stands before the signature, such as `sha256=`.
        tolerance: stripe: by how much its time may differ from ours.
    """

    def __init__(
        self,
        *,
        secrets: list[Secret],
        form: Literal["github", "stripe", "plain"],
        header: str | None = None,
        algorithm: Algorithm = "sha256",
        encoding: Literal["hex", "base64"] = "hex",
        prefix: str = "",
        tolerance: Duration = FIVE_MINUTES,
    ):
        if not secrets or not all(secret.reveal() for secret in secrets):
            raise ValueError("secrets: give at least one, and none that is empty")
        if form != "plain" and (header or prefix or algorithm != "sha256" or encoding != "hex"):
            raise ValueError(f"header, algorithm, encoding and prefix are for form: plain; {form} has its own")
        if form == "plain" and not (header and _FIELD.fullmatch(header)):
            raise ValueError("form: plain needs a header: the name of the field that has the signature")
        self._keys = [Secret(secret.reveal()) for secret in secrets]
        self._form = form
        self._header = {"github": "x-hub-signature-256", "stripe": "stripe-signature"}.get(form, (header or "").lower())
        self._prefix = "sha256=" if form == "github" else prefix
        self._algorithm = algorithm
        self._decode = _from_hex if encoding == "hex" else _from_base64
        self._tolerance_s = float(tolerance)
        self._now: Callable[[], float] = time.time

    def start(self, context: Context) -> None:
        self._now = context.now

    def process(self, event: Event[Any]) -> Event[Any]:
        field = fields_of(event).get(self._header)
        if not isinstance(field, str):
            raise self._refused(f"the request is not signed: it has no {self._header}")
        body = _body(event)
        auth: dict[str, Any] = {"scheme": "signature", "user": None, "form": self._form}
        if self._form == "stripe":
            stamp, signatures = self._stamped(field)
            auth["timestamp"] = stamp
            body = b"%d." % stamp + body
        else:
            signatures = self._one(field)
        if not self._signed(body, signatures):
            raise self._refused("the signature is wrong")
        event.headers["auth"] = auth
        return event

    def _one(self, field: str) -> list[bytes]:
        given = field.strip()
        found = self._decode(given.removeprefix(self._prefix)) if given.startswith(self._prefix) else None
        if found is None:
            raise self._refused("the signature cannot be read")
        return [found]

    def _stamped(self, field: str) -> tuple[int, list[bytes]]:
        """The time and the signatures of `t=1700000000,v1=…,v1=…`. Other versions than v1 say nothing to us."""
        pairs = [part.strip().partition("=") for part in field.split(",")[: 2 * MOST_SIGNATURES]]
        stamps = [value for name, _, value in pairs if name == "t"]
        signatures = [found for name, _, value in pairs if name == "v1" and (found := _from_hex(value)) is not None]
        if len(stamps) != 1 or not re.fullmatch(r"[0-9]{1,15}", stamps[0]) or not signatures:
            raise self._refused("the signature cannot be read")
        stamp = int(stamps[0])
        if stamps[0] != str(stamp):  # signed as written, so only one way of writing it is right
            raise self._refused("the signature cannot be read")
        if abs(self._now() - stamp) > self._tolerance_s:
            raise self._refused("the signature is too old, or of a time to come")
        return stamp, signatures[:MOST_SIGNATURES]

    def _signed(self, body: bytes, signatures: list[bytes]) -> bool:
        right = False
        for key in self._keys:
            expected = hmac.digest(key.reveal().encode(), body, self._algorithm)
            for given in signatures:
                right |= hmac.compare_digest(expected, given)  # and on to the end, whichever was right
        return right

    def _refused(self, why: str) -> Unauthorized:
        return Unauthorized(why, challenge=f'Signature header="{self._header}"')


def _body(event: Event[Any]) -> bytes:
    body = event.headers.get("body")
    if isinstance(body, bytes):
        return body
    if isinstance(event.data, bytes):
        return event.data
    if event.data is None and not _announces_body(event):
        return b""
    raise ConfigurationError(
        "a signature is one of the bytes as they were sent, and this event does not have them: "
        "set raw_body: true at the http.listen that it came from"
    )


def _announces_body(event: Event[Any]) -> bool:
    """A body of JSON may say `null`, and its data is None too."""
    fields = fields_of(event)
    return fields.get("content-length", "0") != "0" or "transfer-encoding" in fields


def _from_hex(text: str) -> bytes | None:
    if len(text) > MOST_CHARACTERS or not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text):
        return None
    return bytes.fromhex(text)


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) or None
    except (binascii.Error, ValueError):
        return None
