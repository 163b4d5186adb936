"""Kafka: `kafka.consume` and `kafka.produce`."""
