"""Requests as `http.listen` makes events of them, and what a refusal says."""

from __future__ import annotations

import base64
from typing import Any

from furcula.event import Event


def request(authorization: str | None = None, data: Any = None, **headers: Any) -> Event:
    """An event as of `GET /`, with this `Authorization` field and further parts of `headers`."""
    fields = {"host": "example.org", **headers.pop("request", {})}
    if authorization is not None:
        fields["authorization"] = authorization
    return Event(data, {"method": "GET", "path": "/", "client": "127.0.0.1:5", "request": fields, **headers})


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def told(error: BaseException) -> str:
    """All of an error that might be shown or logged."""
    return " ".join(map(repr, (str(error), error.args, vars(error))))
