"""A connection to Redis. The one file that makes it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

from furcula.errors import MissingExtra
from furcula.modules.endpoint import Endpoint, Tls
from furcula.options import Secret

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as NoConnection
    from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
    from redis.exceptions import TimeoutError as NoAnswer
except ImportError:
    raise MissingExtra("a module of Redis", "redis") from None

__all__ = [
    "BLOCK_S",
    "BROKEN",
    "OutOfMemoryError",
    "ReadOnlyError",
    "Redis",
    "RedisError",
    "ResponseError",
    "connect",
    "endpoint_of",
    "host_name",
]

#: What says that a connection does not work any more.
BROKEN: Final = (OSError, EOFError, NoConnection, NoAnswer)
#: A read waits so long for something to come, then looks whether it is to stop.
BLOCK_S: Final = 0.5


def endpoint_of(url: str, user: str | None, password: Secret | None) -> Endpoint:
    endpoint = Endpoint.of(
        url, {"redis": 6379, "rediss": 6379}, secure=frozenset(("rediss",)), user=user, password=password
    )
    if endpoint.path.strip("/") and not endpoint.path.strip("/").isdigit():
        raise ValueError(f"url: {endpoint.path!r} is not the number of a database; write redis://host:6379/0")
    return endpoint


async def connect(endpoint: Endpoint, *, tls: Tls | None, folder: Path, timeout_s: float) -> Redis:
    """Connect, and see that we may. The library never tries again by itself: whoever keeps the line does it."""
    options: dict[str, Any] = {}
    if tls or endpoint.secure:
        tls = tls or Tls()
        tls.context(folder)  # says what is wrong with the files; the library takes their names
        options.update(
            ssl=True,
            ssl_cert_reqs="required" if tls.verify else "none",
            ssl_check_hostname=tls.verify,
            ssl_ca_certs=str(folder / tls.ca_file) if tls.ca_file else None,
            ssl_certfile=str(folder / tls.cert_file) if tls.cert_file else None,
            ssl_keyfile=str(folder / tls.key_file) if tls.key_file else None,
        )
    client = Redis(
        host=endpoint.host,
        port=endpoint.port,
        db=int(endpoint.path.strip("/") or 0),
        username=endpoint.user,
        password=endpoint.password.reveal() if endpoint.password is not None else None,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s + BLOCK_S,
        client_name="furcula",
        **options,
    )
    try:
        await client.ping()
    except BaseException:
        await client.aclose()
        raise
    return client


def host_name() -> str:
    """What tells this machine from others."""
    return socket.gethostname()
