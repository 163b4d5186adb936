"""A context as shellbot has one: dotted keys."""

from __future__ import annotations

from typing import Any


class Settings:
    def __init__(self, values: dict[str, Any]):
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value
