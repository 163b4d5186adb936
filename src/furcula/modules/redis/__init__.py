"""Redis: streams (`redis.consume`, `redis.append`), lists (`redis.pop`, `redis.push`) and channels (`redis.subscribe`,
`redis.publish`)."""
