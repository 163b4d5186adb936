"""`${VAR}` and `${VAR:-default}` in the strings of a flow file.

Variables are filled in when the file is parsed already, into strings only, so that a variable's value can never add a
key, a module or a route. `$${` stands for a literal `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from furcula.config.nodes import Node, join_path
from furcula.errors import Problem, nearest

__all__ = ["escape", "fill_in"]

_REFERENCE = re.compile(r"(\$)?\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})?")


def escape(text: str) -> str:
    """`text` written so that nothing in it is taken for a variable."""
    return text.replace("${", "$${")


def fill_in(node: Node, environment: Mapping[str, str], problems: list[Problem], path: str = "") -> Node:
    """The tree with every variable filled in; `node` itself stays as it is.

    An empty variable counts as unset where there is a default, as in a shell. No message shows a variable's value or
    the text around it: either may be a secret.
    """
    if isinstance(node.value, dict):
        filled = {k: fill_in(v, environment, problems, join_path(path, k)) for k, v in node.value.items()}
        return Node(filled, node.location, node.keys, node.size)
    if isinstance(node.value, list):
        items = [fill_in(item, environment, problems, f"{path}[{index}]") for index, item in enumerate(node.value)]
        return Node(items, node.location, size=node.size)
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    return _filled(node, environment, problems, path)


def _filled(node: Node, environment: Mapping[str, str], problems: list[Problem], path: str) -> Node:
    used = broken = False

    def replacement(match: re.Match[str]) -> str:
        nonlocal used, broken
        escaped, name, default = match.groups()
        if escaped:
            return match[0][1:]
        used = True
        if name is None:
            message = "'${' begins a variable: write ${NAME} or ${NAME:-default}, and $${ for a literal '${'"
            problems.append(Problem(message, path, node.location))
            broken = True
            return ""
        value = environment.get(name)
        if default is not None and not value:
            return default
        if value is None:
            message = f"the variable {name} is not set{nearest(name, environment)}; a default is written "
            problems.append(Problem(message + f"${{{name}:-default}}", path, node.location))
            broken = True
            return ""
        return value

    value = _REFERENCE.sub(replacement, node.value)
    return Node(value, node.location, variable=node.value if used else "", broken=broken)
