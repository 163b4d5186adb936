"""Bytewax: a dataflow engine in Rust, with Python functions."""

from __future__ import annotations

from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import TestingSource, run_main

from bench import work


class _Nowhere(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        pass


class _Discard(DynamicSink[Any]):
    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Nowhere:
        return _Nowhere()


def _run(events: int, batch: int) -> None:
    flow = Dataflow("work")
    stream = op.input("source", flow, TestingSource(range(events), batch_size=batch))
    for name, function in (("add", work.add_to), ("double", work.doubled), ("subtract", work.less)):
        stream = op.map(name, stream, function)
    op.output("out", stream, _Discard())
    run_main(flow)


def in_batches(events: int) -> None:
    _run(events, 1000)


def one_by_one(events: int) -> None:
    _run(events, 1)
