"""A flow on many machines: its stages joined by NATS JetStream. See `docs/cluster.md`."""
