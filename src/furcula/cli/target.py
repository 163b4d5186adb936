"""FLOW on the command line becomes a Flow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from furcula.run import Flow

__all__ = ["open_flow"]


def open_flow(target: str, overrides: Iterable[str] = ()) -> Flow:
    """The flow that `target` names, checked; what it may import stays importable until the command ends.

    Raises:
        ConfigurationError: With every problem of the flow.
    """
    from furcula.config.target import opened

    flow: Flow = click.get_current_context().with_resource(opened(target, overrides))
    return flow
