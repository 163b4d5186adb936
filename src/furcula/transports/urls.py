"""Which transport a URL stands for. To add one, write its maker and put its schemes into `SCHEMES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from furcula.errors import ConfigurationError, nearest
from furcula.module import bind_arguments
from furcula.options import Secret
from furcula.transport import Transport

__all__ = ["SCHEMES", "transport_for"]


def transport_for(url: str, **options: Any) -> Transport:
    """Make the transport that a URL stands for; it is not opened yet.

    ============================= =========================================================================
    `memory://name`               inside this process, shared by name
    `sqlite:///path`              a file; work queues that survive. `sqlite://path` is relative
    `tcp://host:port`             0mq; also written `zmq+tcp://`. `ipc://path` and `inproc://name` likewise
    `nats://host:port`            NATS: core for publishing, JetStream for work queues. `tls://` with TLS
    ============================= =========================================================================

    Args:
        url: What stands behind `?` gives options, for instance `tcp://127.0.0.1:5555?size=256&curve=keys`.
        options: More options, by the names of the transport's arguments; they go before those of the URL.

    Raises:
        ConfigurationError: There is no such scheme (with the nearest one), or an option is wrong.
        MissingExtra: The library that it needs is not installed.
    """
    scheme, found, _ = url.partition("://")
    make = SCHEMES.get(scheme.lower()) if found else None
    if make is None:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        shown = f"{scheme}://" if found else repr(url)
        raise ConfigurationError(f"there is no transport {shown}{nearest(scheme, SCHEMES)}; there are {known}")
    plain, _, query = url.partition("?")
    given: dict[str, Any] = dict(parse_qsl(query, keep_blank_values=True))
    return make(plain, {**given, **options})


def _bound(factory: Callable[..., Any], options: Mapping[str, Any], shown: str, skip: int = 0) -> dict[str, Any]:
    """Options converted as the factory's annotations say."""
    texts = {name: _scalar(value) for name, value in options.items()}
    values, problems = bind_arguments(factory, texts, skip=skip)
    if problems:
        raise ConfigurationError(f"{shown}: {'; '.join(f'{one.argument}: {one}' for one in problems)}")
    return values


def _scalar(value: Any) -> Any:
    """A text of a URL that is a number or a truth value, as that."""
    if type(value) is str:
        if value in ("true", "false"):
            return value == "true"
        if value.isascii() and value.isdigit():
            return int(value)
    return value


def _memory(url: str, options: dict[str, Any]) -> Transport:
    from furcula.transports.memory import MemoryTransport

    name = unquote(url.partition("://")[2]).strip("/") or None
    return MemoryTransport(**_bound(MemoryTransport, {"name": name, **options}, "memory://"))


def _sqlite(url: str, options: dict[str, Any]) -> Transport:
    from furcula.transports.sqlite import SqliteTransport

    # What stands behind :// is the path, as with ipc: sqlite:///var/lib/queue.db is absolute, sqlite://queue.db is not.
    path = unquote(url.partition("://")[2])
    if not path.strip("/"):
        raise ConfigurationError(f"{url!r} names no file; write sqlite:///var/lib/queue.db or sqlite://queue.db")
    transport: Transport = SqliteTransport(Path(path), **_bound(SqliteTransport, options, "sqlite:", skip=1))
    return transport


def _zmq(url: str, options: dict[str, Any]) -> Transport:
    from furcula.transports.zmq import Keys, ZmqTransport

    scheme, _, rest = url.partition("://")
    folder = options.pop("curve", None)
    given = {name: options.pop(name) for name in _KEYS if options.get(name) is not None}
    if folder is not None:
        options["keys"] = Keys.in_folder(Path(folder))
    elif given:
        for name in ("secret_key", "server_secret"):
            if name in given:
                given[name] = Secret(given[name].reveal() if isinstance(given[name], Secret) else given[name])
        options["keys"] = Keys(**_bound(Keys, given, "CURVE"))
    address = f"{scheme.lower().removeprefix('zmq+')}://{rest}"
    return ZmqTransport(address, **_bound(ZmqTransport, options, address, skip=1))


_KEYS: Final = ("server_key", "public_key", "secret_key", "server_secret", "allowed")


def _nats(url: str, options: dict[str, Any]) -> Transport:
    from furcula.transports.nats import NatsTransport

    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname}"
    if parts.username and parts.password is None:
        options.setdefault("token", Secret(unquote(parts.username)))
    elif parts.username:
        options.setdefault("user", unquote(parts.username))
        options.setdefault("password", Secret(unquote(parts.password or "")))
    try:
        port = parts.port or 4222
    except ValueError:
        raise ConfigurationError(f"{shown}: the port is a number, as in nats://127.0.0.1:4222") from None
    host = parts.hostname or "127.0.0.1"
    plain = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    for name in ("password", "token"):
        if type(options.get(name)) is str:
            options[name] = Secret(options[name])
    return NatsTransport(plain, **_bound(NatsTransport, options, shown, skip=1))


#: scheme -> makes the transport of a URL without its query, and of the options.
SCHEMES: Final[dict[str, Callable[[str, dict[str, Any]], Transport]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "tcp": _zmq,
    "ipc": _zmq,
    "inproc": _zmq,
    "zmq+tcp": _zmq,
    "zmq+ipc": _zmq,
    "zmq+inproc": _zmq,
    "nats": _nats,
    "tls": _nats,
}
