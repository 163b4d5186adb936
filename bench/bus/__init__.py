"""The bus and the transports against bare pyzmq, multiprocessing and nats-py: `python -m bench.bus`."""
