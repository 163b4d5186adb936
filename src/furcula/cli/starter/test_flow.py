"""The same flow under pytest: run `pytest` in this folder."""

from pathlib import Path

from furcula.config import load


def test_only_large_orders_come_out() -> None:
    flow = load(Path(__file__).with_name("flow.yaml"))
    result = flow.test({"orders": [{"sku": "a", "price": 5, "quantity": 2}, {"sku": "b", "price": 1, "quantity": 1}]})
    assert [event.data["sku"] for event in result["out"]] == ["a"]
    assert result.statistics.dropped == 1
