"""0mq: push and pull, publish and subscribe, request and reply, and a Majordomo service."""
