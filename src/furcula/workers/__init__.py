"""One flow in many supervised processes. See `docs/workers.md`."""
