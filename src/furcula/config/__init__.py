"""Flow files: YAML becomes a Flow, a Flow becomes YAML, and editors get a JSON Schema."""

from furcula.config.dump import dump
from furcula.config.load import load, loads
from furcula.config.schema import schema

__all__ = ["dump", "load", "loads", "schema"]
