"""furcula: asynchronous event pipelines. Small modules joined into flows; every admitted event settled exactly once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from furcula.broker import Broker
    from furcula.bus import Bus
    from furcula.engine.director import Director
    from furcula.engine.statistics import Statistics
    from furcula.errors import ConfigurationError, FurculaError
    from furcula.event import Event, Failure
    from furcula.module import BatchFailed, Context, Module, Source
    from furcula.options import Breaker, Cluster, Durable, Duration, Options, Retry, Secret, Size
    from furcula.run import Flow

__version__ = "0.1.0"

# Where each public name lives. They are imported when first asked for (PEP 562), so that the command line answers
# `--help` without loading an event loop.
_HOMES = {
    "BatchFailed": "module",
    "Breaker": "options",
    "Broker": "broker",
    "Bus": "bus",
    "Cluster": "options",
    "ConfigurationError": "errors",
    "Context": "module",
    "Director": "engine.director",
    "Durable": "options",
    "Duration": "options",
    "Event": "event",
    "Failure": "event",
    "Flow": "run",
    "FurculaError": "errors",
    "Module": "module",
    "Options": "options",
    "Retry": "options",
    "Secret": "options",
    "Size": "options",
    "Source": "module",
    "Statistics": "engine.statistics",
}

__all__ = [
    "BatchFailed",
    "Breaker",
    "Broker",
    "Bus",
    "Cluster",
    "ConfigurationError",
    "Context",
    "Director",
    "Durable",
    "Duration",
    "Event",
    "Failure",
    "Flow",
    "FurculaError",
    "Module",
    "Options",
    "Retry",
    "Secret",
    "Size",
    "Source",
    "Statistics",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'furcula' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"furcula.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
