"""AMQP 0-9-1 (RabbitMQ): `amqp.consume` and `amqp.publish`."""
