"""The interface of `pipelines`: a graph of processors as a dict, built by a Plumber. See `docs/moving/pipelines.md`."""

from furcula.compat.pipelines.names import dotted
from furcula.compat.pipelines.plumber import PipelineFailed, Plumber
from furcula.compat.pipelines.processor import Processor

__all__ = ["PipelineFailed", "Plumber", "Processor", "dotted"]
