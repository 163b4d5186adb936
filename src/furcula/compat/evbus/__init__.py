"""The interface of evbus: a hub with a broker that events are put on. See `docs/moving/evbus.md`."""

from furcula.compat.evbus.hub import Hub, attach

__all__ = ["Hub", "attach"]
