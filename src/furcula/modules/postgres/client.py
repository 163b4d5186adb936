"""A connection to PostgreSQL. The one file that makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from furcula.errors import MissingExtra
from furcula.modules.endpoint import Endpoint, Tls
from furcula.options import Secret

try:
    import asyncpg  # type: ignore[import-untyped]
except ImportError:
    raise MissingExtra("a module of PostgreSQL", "postgres") from None

__all__ = ["BROKEN", "MAX_CHANNEL", "MAX_PAYLOAD", "PostgresError", "check_channel", "connect", "endpoint_of"]

PostgresError: Final = asyncpg.PostgresError
#: What says that a connection does not work any more.
BROKEN: Final = (
    OSError,
    EOFError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
)
#: Bytes that a notification's payload may have, as PostgreSQL is built by default.
MAX_PAYLOAD: Final = 7999
#: Bytes that the name of a channel may have.
MAX_CHANNEL: Final = 63


def endpoint_of(url: str, user: str | None, password: Secret | None) -> Endpoint:
    ports = {"postgres": 5432, "postgresql": 5432}
    return Endpoint.of(url, ports, user=user, password=password)


def check_channel(channel: str) -> None:
    """Raises ValueError where this cannot be the name of a channel."""
    size = len(channel.encode())
    if not 0 < size <= MAX_CHANNEL or "\0" in channel:
        raise ValueError(f"the channel {channel[:80]!r} has {size} bytes, and must have 1 to {MAX_CHANNEL}")


async def connect(
    endpoint: Endpoint,
    *,
    tls: Tls | None,
    folder: Path,
    timeout_s: float,
    lost: Callable[[BaseException | str | None], None],
) -> Any:
    """Connect once."""
    connection: Any = await asyncpg.connect(
        host=endpoint.host,
        port=endpoint.port,
        user=endpoint.user,
        password=endpoint.password.reveal() if endpoint.password is not None else None,
        database=unquote(endpoint.path[1:]) or None,
        ssl=tls.context(folder) if tls is not None else "prefer",
        timeout=timeout_s,
        command_timeout=timeout_s,
        server_settings={"application_name": "furcula"},
    )
    connection.add_termination_listener(lambda _: lost(None))
    return connection
