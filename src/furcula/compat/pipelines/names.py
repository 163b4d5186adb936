"""Coroutines by dotted path, from an allow-list: a `coro_map` for graphs that come from a file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from furcula.errors import nearest

__all__ = ["dotted"]


def dotted(*allowed: str) -> Callable[[str], Any]:
    """A `coro_map` that takes `"package.module.function"`, from these modules and packages only.

    Whoever can write the graph can call what it names, so nothing is imported that is not on the list.

    Args:
        allowed: Modules, or packages with all that is inside them: `dotted("shop.steps")`.
    """

    def find(path: str) -> Any:
        module, _, name = path.replace(":", ".").rpartition(".")
        if not any(module == one or module.startswith(f"{one}.") for one in allowed):
            raise ValueError(f"{path!r} is not on the list; allowed are {', '.join(allowed) or 'none'}")
        found = importlib.import_module(module)
        try:
            return getattr(found, name)
        except AttributeError:
            raise ValueError(f"{module} has no {name!r}{nearest(name, dir(found))}") from None

    return find
