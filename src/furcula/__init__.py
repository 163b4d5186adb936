"""furcula: asynchronous event pipelines. Small modules joined into flows; every admitted event settled exactly once."""

from furcula.engine.director import Director
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, FurculaError
from furcula.event import Event, Failure
from furcula.module import BatchFailed, Context, Module, Source
from furcula.options import Breaker, Duration, Options, Retry, Secret, Size
from furcula.run import Flow

__all__ = [
    "BatchFailed",
    "Breaker",
    "ConfigurationError",
    "Context",
    "Director",
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

__version__ = "0.1.0"
