"""What executes an order. A real one would ask a database; this one only lets others have a turn."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

from furcula.statuses import UnprocessableContent

PRICES = {"apple": Decimal("0.40"), "pear": Decimal("0.55"), "quince": Decimal("1.20")}


async def price_of(sku: str) -> Decimal:
    """Ask for a price."""
    await asyncio.sleep(0)
    try:
        return PRICES[sku]
    except KeyError:
        raise UnprocessableContent(f"there is no {sku!r} in the shop", errors=[{"sku": sku}]) from None


async def execute(data: dict[str, Any]) -> dict[str, Any]:
    """Price an order: `{"request": {"@customer": ..., "item": ...}}` becomes `{"result": ...}`."""
    items = data["request"]["item"]
    lines = []
    for item in items if isinstance(items, list) else [items]:
        amount = int(item["#text"]) * await price_of(item["@sku"])
        lines.append({"@sku": item["@sku"], "#text": str(amount)})
    total = sum(Decimal(line["#text"]) for line in lines)
    return {"result": {"@customer": data["request"]["@customer"], "@total": str(total), "line": lines}}
