"""What names a flow becomes one: a flow file, or `package.module:flow`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from furcula.config import functions
from furcula.config.load import load
from furcula.errors import ConfigurationError, Problem, nearest
from furcula.run import Flow

__all__ = ["opened"]


@contextmanager
def opened(target: str, overrides: Iterable[str] = ()) -> Iterator[Flow]:
    """The flow that `target` names, checked.

    A flow file's functions come from its own folder. For `package.module:flow` the working directory is importable,
    as it is for `python -m`, inside the block.

    Raises:
        ConfigurationError: With every problem of the flow.
    """
    if target.endswith((".yaml", ".yml")) or Path(target).is_file():
        yield load(target, overrides=overrides)
        return
    if not functions.is_name(target):
        hint = nearest(target, (file.name for file in Path().glob("*.y*ml")))
        raise ConfigurationError(f"{target!r} is neither a flow file (flow.yaml) nor package.module:flow{hint}")
    if tuple(overrides):
        raise ConfigurationError([Problem("values can be put over those of a flow file only", "", "--set")])
    here = Path.cwd()
    with functions.importable(here):
        flow = functions.find(target, here)
        if not isinstance(flow, Flow):
            raise ConfigurationError(f"{target} is {type(flow).__name__}, not a Flow")
        flow.check()
        yield flow
