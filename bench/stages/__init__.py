"""A route from one process to another, over 0mq and over JetStream: `python -m bench.stages`.

`flow.py` is the flow; `process.py` what each process of it runs; `running.py` starts and ends them; `plain.py` is what
one writes with nats-py alone.
"""
