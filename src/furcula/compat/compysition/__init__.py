"""The interface of Compysition: a Director, actors, and events. See `docs/moving/compysition.md`."""

from furcula.compat.compysition.actor import Actor
from furcula.compat.compysition.director import Director
from furcula.compat.compysition.event import Event

__all__ = ["Actor", "Director", "Event"]
