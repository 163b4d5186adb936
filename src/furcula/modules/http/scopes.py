"""What ASGI's scope says of whoever asks, alike for requests and WebSockets."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

__all__ = ["client_of", "fields_of", "path_of", "path_shown"]

Scope = MutableMapping[str, Any]


def fields_of(scope: Scope) -> dict[str, str]:
    """The header fields by name; those that come more than once are one list (RFC 9110, 5.3)."""
    raw = scope["headers"]
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    if len(fields) == len(raw):
        return fields
    repeated: dict[str, list[str]] = {}
    for name, value in raw:
        repeated.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return {name: ("; " if name == "cookie" else ", ").join(values) for name, values in repeated.items()}


def path_of(scope: Scope) -> str:
    """The path as the routes know it: without that of the mount in another application."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :] or "/"
    return path


def client_of(scope: Scope) -> str:
    """`host:port`; empty where the server does not say it."""
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else ""


def path_shown(scope: Scope) -> str:
    """The path as it may stand in a log line, where a line break would forge another one."""
    path: str = scope["path"]
    return path.encode("unicode_escape").decode("ascii")
