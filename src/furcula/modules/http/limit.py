"""How often a client may ask."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import re
import time
from collections.abc import Callable
from typing import Any, Final

from furcula.event import Event
from furcula.module import Context, Module
from furcula.options import Duration
from furcula.statuses import TooManyRequests

__all__ = ["Limit"]

_RATE: Final = re.compile(r"\s*([0-9]+)\s*/\s*([0-9.]*)\s*([a-z]*)\s*")
#: Characters of a key that are kept as they are; a longer one is kept as its digest, so that memory is bounded.
LONG: Final = 64
#: So many of the longest unused are looked at for a full one, when one has to go.
LOOKS: Final = 16


class Limit(Module):
    """Let a client ask so often and no oftener; answer what is too much with a 429 that says when to come again.

    Each client has a bucket of `burst` tokens, into which `rate` flows evenly; a request takes one out. What is refused
    takes none. The answer has `Retry-After`, `RateLimit-Limit`, `-Remaining` and `-Reset`, and `limit`, `window_s` and
    `retry_after_s` among its problem details. Each process counts for itself.

    Args:
        rate: Requests in a time: `100/1m`, `5/s`.
        burst: Requests that may come at once after a pause. Default: as many as the rate has.
        key: A dotted path; requests with the same value there share a bucket (`headers.auth.user`), and so do all that
            have none. Default: the client's address; of IPv6, the network of 64 bits that a client has.
        most: Buckets that are kept. When there are more, one goes that is full, and so says nothing; if none is, the
            one unused longest.
    """

    def __init__(self, *, rate: str, burst: int | None = None, key: str | None = None, most: int = 10_000):
        self._count, self._window_s = _read_rate(rate)
        self._burst = self._count if burst is None else burst
        if self._burst < 1:
            raise ValueError("burst must be 1 or more")
        if most < 1:
            raise ValueError("most must be 1 or more")
        if key is not None:
            try:
                Event().has(key)
            except KeyError as error:
                raise ValueError(f"key: {error.args[0]}") from None
        self._key = key
        self._most = most
        self._interval_s = self._window_s / self._count
        self._room_s = self._interval_s * self._burst
        self._now: Callable[[], float] = time.time
        self._began = 0.0
        # key -> when its bucket will be full again (GCRA: one number says what tokens and a time would), in seconds
        # since we began; the one used last stands last.
        self._full_at: dict[str, float] = {}

    def start(self, context: Context) -> None:
        self._now = context.now
        self._began = context.now()

    @property
    def known(self) -> int:
        """How many buckets are kept."""
        return len(self._full_at)

    def process(self, event: Event[Any]) -> Event[Any]:
        key = _client(event) if self._key is None else _bounded(event.get(self._key, ""))
        now = self._now() - self._began
        # Not further ahead than an empty bucket is, should the clock have been set back.
        full_at = min(max(self._full_at.pop(key, now), now), now + self._room_s)
        taken = full_at + self._interval_s
        wait_s = round(taken - now - self._room_s, 6)
        if wait_s > 0:
            self._full_at[key] = full_at
            raise self._refused(wait_s, full_at - now)
        if len(self._full_at) >= self._most:
            self._evict(now)
        self._full_at[key] = taken
        return event

    def _evict(self, now: float) -> None:
        oldest = itertools.islice(self._full_at.items(), LOOKS)
        full = next((key for key, full_at in oldest if full_at <= now), None)
        del self._full_at[next(iter(self._full_at)) if full is None else full]

    def _refused(self, wait_s: float, reset_s: float) -> TooManyRequests:
        return TooManyRequests(
            f"{self._count} requests in {self._window_s:g} s are allowed",
            retry_after=wait_s,
            headers={
                "ratelimit-limit": str(self._count),
                "ratelimit-remaining": "0",
                "ratelimit-reset": str(max(1, int(-(-reset_s // 1)))),
            },
            limit=self._count,
            window_s=self._window_s,
            retry_after_s=round(wait_s, 3),
        )


def _read_rate(rate: str) -> tuple[int, float]:
    match = _RATE.fullmatch(rate)
    try:
        window_s = float(Duration(f"{match[2] or 1}{match[3]}")) if match else 0.0
    except ValueError:
        window_s = 0.0
    if not match or not window_s or not int(match[1]):
        raise ValueError(f"rate: {rate!r} is not a rate; write requests in a time: 100/1m, 5/s")
    return int(match[1]), window_s


def _client(event: Event[Any]) -> str:
    """Whose bucket: the client's address without its port."""
    client = event.headers.get("client")
    if not isinstance(client, str):
        return ""
    host = client.rpartition(":")[0] or client
    if not host.startswith("["):
        return _bounded(host)
    try:
        address = ipaddress.IPv6Address(host.strip("[]").partition("%")[0])
    except ValueError:
        return _bounded(host)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # Whoever has one address of IPv6 has 2**64 of them.
    return str(ipaddress.IPv6Network((address, 64), strict=False))


def _bounded(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= LONG else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() + "#"
