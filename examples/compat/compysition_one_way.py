"""Compysition's one-way example, with nothing changed but the imports. Ctrl-C stops it.

python examples/compat/compysition_one_way.py
"""

from furcula.compat.compysition import Director
from furcula.compat.compysition.module import STDOUT, TestEvent

director = Director()
event_generator = director.register_module(TestEvent, "event_generator", interval=1)
output_one = director.register_module(STDOUT, "output_one", prefix="I am number one: ", timestamp=True)
output_two = director.register_module(STDOUT, "output_two", prefix="I am number two: ", timestamp=True)

director.connect(event_generator, output_one)
director.connect(event_generator, output_two)

director.start()
director.block()
