"""Secrets in a flow file: what is given for a `Secret` argument shows nowhere, and is written out as a variable."""

from __future__ import annotations

import re
from typing import Any

from furcula.config.nodes import Node
from furcula.options import Secret

__all__ = ["FileSecret", "is_secret", "reference", "secret_of"]


class FileSecret(Secret):
    """A secret that knows the `${VAR}` it came from, so that the flow can be written out again without it."""

    __slots__ = ("expression",)

    expression: str


def is_secret(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Secret)


def secret_of(node: Node) -> Secret:
    """The secret that stands at a node."""
    secret = FileSecret(node.value)
    secret.expression = node.variable
    return secret


def reference(secret: Secret, path: str) -> str:
    """What stands for `secret` in a file that is written: its variable, or one named after its path.

    Loading the file without that variable set is then an error that names it, where a made-up value would only fail
    much later.
    """
    expression = getattr(secret, "expression", "")
    if expression:
        return str(expression)
    name = re.sub(r"\W+", "_", path.replace("modules.", "", 1).replace(".with.", ".")).strip("_").upper()
    return f"${{{name}}}"
