"""The interface of shellbot's bus: publishers that are processes, and subscribers. See `docs/moving/shellbot.md`."""

from furcula.compat.shellbot.bus import Bus, Publisher, Subscriber

__all__ = ["Bus", "Publisher", "Subscriber"]
