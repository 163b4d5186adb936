"""A Majordomo service over 0mq: clients ask by a service's name, a router in between hands each request to a worker.

The protocol is MDP/0.1 (https://rfc.zeromq.org/spec/7/), so clients, workers and brokers of others fit in. What its
text calls a broker is `majordomo.route` here: a Broker is something else in furcula.
"""
