"""FLOW on the command line becomes a Flow: a flow file, or `package.module:flow`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from furcula.errors import ConfigurationError, Problem, nearest

if TYPE_CHECKING:
    from furcula.run import Flow

__all__ = ["open_flow"]


def open_flow(target: str, overrides: Iterable[str] = ()) -> Flow:
    """The flow that `target` names, checked.

    A flow file's functions come from its own folder. For `package.module:flow` the working directory is importable,
    as it is for `python -m`, until the command ends.

    Raises:
        ConfigurationError: With every problem of the flow.
    """
    from furcula.config import functions, load

    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        return load(target, overrides=overrides)
    if not functions.is_name(target):
        hint = nearest(target, (file.name for file in Path().glob("*.y*ml")))
        raise ConfigurationError(f"{target!r} is neither a flow file (flow.yaml) nor package.module:flow{hint}")
    if tuple(overrides):
        raise ConfigurationError([Problem("values can be put over those of a flow file only", "", "--set")])
    return _from_python(target)


def _from_python(target: str) -> Flow:
    from furcula.config import functions
    from furcula.run import Flow

    here = Path.cwd()
    click.get_current_context().with_resource(functions.importable(here))
    flow = functions.find(target, here)
    if not isinstance(flow, Flow):
        raise ConfigurationError(f"{target} is {type(flow).__name__}, not a Flow")
    flow.check()
    return flow
