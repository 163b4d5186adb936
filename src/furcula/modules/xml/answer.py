"""What the data is, said for whoever gets it as an answer over HTTP."""

from __future__ import annotations

from typing import Any

from furcula.event import Event

__all__ = ["say_content_type"]


def say_content_type(event: Event[Any], content_type: str) -> Event[Any]:
    """Set the `content-type` of the answer that this event may become. Returns the event."""
    response = event.headers.get("response") or {}
    event.headers["response"] = {**response, "content-type": content_type}
    return event
