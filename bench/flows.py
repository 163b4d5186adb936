"""furcula doing the work."""

from __future__ import annotations

from bench import work
from furcula import Flow, Options


def _finish(flow: Flow, events: int) -> None:
    admitted = flow.run().delivered
    assert admitted == events, f"{admitted} of {events} were delivered"


def event_functions(events: int) -> None:
    flow = Flow("event functions")
    source = flow.source(range(events), "source")
    source >> flow.module(work.add) >> flow.module(work.double) >> flow.module(work.subtract)
    _finish(flow, events)


def bare_data(events: int) -> None:
    flow = Flow("bare data")
    source = flow.source(range(events), "source")
    source >> flow.map(work.add_to) >> flow.map(work.doubled) >> flow.map(work.less)
    _finish(flow, events)


def coroutines(events: int) -> None:
    flow = Flow("coroutines")
    source = flow.source(range(events), "source")
    source >> flow.module(work.add_soon) >> flow.module(work.double_soon) >> flow.module(work.subtract_soon)
    _finish(flow, events)


def queues(events: int) -> None:
    """A queue before each module, because the user asks for it."""
    flow, queued = Flow("queues"), Options(queue=1000)
    modules = [flow.module(function, options=queued) for function in (work.add, work.double, work.subtract)]
    flow.source(range(events), "source") >> modules[0] >> modules[1] >> modules[2]
    _finish(flow, events)


def fan_out(events: int) -> None:
    flow = Flow("fan-out")
    source = flow.source(work.orders(events), "source")
    source >> flow.module(work.price) >> (flow.module(work.store), flow.module(work.bill))
    _finish(flow, events)
