"""What is done with orders."""

from __future__ import annotations

import asyncio
from typing import Any


async def price(order: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0.005)  # stands for a question to a service that knows prices
    return {**order, "price": 12.5}
