"""Keepers of the transport contract: memory, sqlite, zmq and nats. `transport_for` chooses by URL."""

from furcula.transports.urls import transport_for

__all__ = ["transport_for"]
