"""What the flow does with its events: plain functions that can be called and tested as such."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from furcula import Event


def orders() -> Iterator[dict[str, Any]]:
    """The source. Whatever it yields becomes the data of an event."""
    yield {"sku": "apple", "price": 2, "quantity": 12}
    yield {"sku": "pear", "price": 3, "quantity": 1}
    yield {"sku": "plum", "price": 4}


def add_total(event: Event[dict[str, Any]]) -> Event[dict[str, Any]]:
    """Takes the event, because it is annotated so. What it raises goes to `total.failed`."""
    event.data["total"] = event.data["price"] * event.data["quantity"]
    return event


def is_large(order: dict[str, Any], least: int) -> bool:
    """Takes bare data, because the flow says `filter:`."""
    return bool(order["total"] >= least)
