"""The interface of Wishbone: modules registered by name and connected queue by queue. See `docs/moving/wishbone.md`."""

from furcula.compat.wishbone.main import Wishbone
from furcula.compat.wishbone.server import ParallelServer

__all__ = ["ParallelServer", "Wishbone"]
