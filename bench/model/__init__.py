"""What more workers, partitions and bigger batches do: a model, its inputs measured here, checked against real runs.

`costs.py` measures the inputs; `bounds.py` says what limits a setting, by formula; `simulation.py` plays it through,
for latencies and for what formulas leave out; `__main__.py` compares both with runs. `docs/internals/scaling.md`
explains it.
"""
