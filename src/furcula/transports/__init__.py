"""Keepers of the transport contract. So far: `memory`."""
