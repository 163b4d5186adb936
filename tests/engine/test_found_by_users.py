import asyncio, signal, os, logging
import pytest
from furcula import Flow, Event, Module, Director, Source, Context
from furcula.errors import Stopped
from furcula.testing import assert_settled

async def test_emitting_after_the_end_is_refused():
    kept = []
    class Emits(Module):
        def start(self, context): self.context = context; kept.append(context)
        def process(self, event): return event
    flow = Flow()
    async def wait(event: Event): return event
    flow.source([1], "in") >> flow.use(Emits, "emits") >> flow.module(wait, "out")
    d = Director(flow)
    await d.run()
    with pytest.raises(Stopped):
        kept[0].emit([Event(2)])

async def test_a_sink_that_sends_to_failed_has_failed():
    flow = Flow(); dead = []
    def sink(event: Event): return event.to("failed")
    s = flow.module(sink)
    flow.source([1], "in") >> s
    s.failed >> flow.module(lambda e: dead.append(e), "dead")
    st = await flow.run_async()
    assert len(dead) == 1, st.modules["sink"]

async def test_a_paused_module_stays_paused_when_the_sources_end():
    flow = Flow(); seen = []
    async def m(event: Event): seen.append(1); return event
    flow.source([1], "in") >> flow.module(m, "m") 
    d = Director(flow)
    await d.start(); d.pause("m")
    t = asyncio.ensure_future(d.run()) if False else None
    await d.wait()
    stop = asyncio.ensure_future(d.stop())
    await asyncio.sleep(0.2)
    try: assert not seen
    finally: await stop

async def test_pausing_a_source_pauses_it():
    flow = Flow(); seen = []
    async def src():
        while True:
            await asyncio.sleep(0.001); yield 1
    flow.source(src, "in") >> flow.module(lambda e: seen.append(1), "m")
    d = Director(flow)
    await d.start(); d.pause("in")
    await asyncio.sleep(0.1)
    n = len(seen)
    await d.stop()
    assert n < 3

async def test_stop_asked_for_while_starting():
    go = asyncio.Event()
    class Slow(Module):
        async def start(self, context): await go.wait()
        def process(self, event): return event
    flow = Flow()
    async def src():
        while True:
            await asyncio.sleep(0.001); yield 1
    flow.source(src, "in") >> flow.use(Slow, "slow")
    d = Director(flow)
    run = asyncio.ensure_future(d.run())
    await asyncio.sleep(0.01)
    assert d.phase == "starting"
    d.request_stop()
    await asyncio.sleep(0.01)
    go.set()
    async with asyncio.timeout(5):
        try: await run
        except Exception as e: print(type(e), e)
    assert d.phase == "stopped", d.phase
    assert_settled(d.statistics())

async def test_first_signal_while_draining_by_itself_drains():
    flow = Flow(); seen = []
    async def slow(event: Event): await asyncio.sleep(0.05); seen.append(1); return event
    flow.source(range(10), "in") >> flow.module(slow)
    d = Director(flow, deadline="10s")
    run = asyncio.ensure_future(d.run(signals=True))
    await asyncio.sleep(0.12)
    assert d.phase == "draining"
    os.kill(os.getpid(), signal.SIGINT)
    st = await run
    assert st.failed == 0, st

def test_a_class_may_leave_its_outboxes_open():
    class Any_(Module):
        outboxes = None
        def process(self, event): return event
    Flow().module(Any_)

async def test_two_threaded_inboxes_share_one_pool():
    class Two(Module):
        inboxes = ("inbox", "side")
        def process(self, event): return event
        def process_side(self, event): return event
    flow = Flow()
    a, b = flow.source([1], "a"), flow.source([2], "b")
    two = flow.use(Two, "two", options={"thread": True})
    a >> two; b >> two["side"]
    two >> flow.use("null", "out")
    d = Director(flow)
    execs = {id(d.modules["two"].executor)}
    await d.run()
    import threading
    await asyncio.sleep(0.2)
    left = [t.name for t in threading.enumerate() if t.name.startswith("furcula two")]
    assert not left, left
