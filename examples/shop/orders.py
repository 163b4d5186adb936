"""What is done with orders: plain functions over bare data, which can be called and tested as they are."""

from __future__ import annotations

from typing import Any


def with_total(order: dict[str, Any]) -> dict[str, Any]:
    return {**order, "total": order["price"] * order["quantity"]}


def is_large(order: dict[str, Any], least: int) -> bool:
    return bool(order["total"] >= least)
