"""`--set modules.listen.with.port=1`: values put over those of a file."""

from __future__ import annotations

from collections.abc import Iterable

from furcula.config.nodes import Node, compose
from furcula.errors import Problem, nearest

__all__ = ["override"]

#: The location of every value that was put over.
PLACE = "--set"


def override(root: Node, settings: Iterable[str], problems: list[Problem]) -> Node:
    """The tree with `settings` (`dotted.path=value`, the value read as YAML) put over it; `root` stays as it is."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        path = path.strip()
        if not equals or not all(path.split(".")):
            problems.append(Problem("write modules.NAME.with.ARGUMENT=VALUE", path, PLACE))
            continue
        found: list[Problem] = []
        value = compose(text, PLACE, found) if text.strip() else Node("", PLACE)
        problems += [Problem(problem.message, path, PLACE) for problem in found]
        if value is None:
            continue
        value = _moved(value)
        parts = path.split(".")
        modules = root.value.get("modules")
        if parts[0] == "modules" and len(parts) > 2 and modules is not None and modules.is_mapping:
            if parts[1] not in modules.value:
                message = f"there is no module {parts[1]!r}{nearest(parts[1], modules.value)}"
                problems.append(Problem(message, path, PLACE))
                continue
            # `out: stdout` is short for `out: {use: stdout}`, and must be written out to take more.
            module = modules.value[parts[1]]
            if isinstance(module.value, str):
                root = _put(root, parts[:2], Node({"use": module}, module.location, {"use": module.location}))
        root = _put(root, parts, value)
    return root


def _put(node: Node, parts: list[str], value: Node) -> Node:
    if not parts:
        return value
    part, rest = parts[0], parts[1:]
    if node.is_list and part.isdigit() and int(part) < len(node.value):
        items = list(node.value)
        items[int(part)] = _put(items[int(part)], rest, value)
        return Node(items, node.location, size=node.size)
    below = node.value if node.is_mapping else {}
    new = _put(below.get(part, Node({}, PLACE)), rest, value)
    keys = {**(node.keys if node.is_mapping else {}), part: node.keys.get(part, PLACE)}
    return Node({**below, part: new}, node.location, keys, node.size)


def _moved(
    node: Node,
) -> Node:
    """The value with no line and column: lines and columns mean nothing on a command line."""
    if isinstance(node.value, dict):
        return Node({k: _moved(v) for k, v in node.value.items()}, PLACE, dict.fromkeys(node.keys, PLACE))
    if isinstance(node.value, list):
        return Node([_moved(item) for item in node.value], PLACE)
    return Node(node.value, PLACE, trap=node.trap, text=node.text)
