"""PostgreSQL: `postgres.listen` and `postgres.notify`."""
