"""NATS: `nats.subscribe` and `nats.publish` over its core, `jetstream.consume` and `jetstream.publish` over streams."""
