"""Stopping: at any moment, nothing admitted is lost without being named."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.engine.conftest import Sink, directed, ran, settled

from furcula import Director, Event, Flow, Module, Retry, Source
from furcula.engine.moving import MovingLoop, run_moving
from furcula.engine.stop_signals import TOGETHER_S, StopSignals
from furcula.errors import SourceFailed, StartFailed

pytestmark = pytest.mark.usefixtures("quiet")


def busy_flow(draw: random.Random) -> tuple[Flow, dict[str, int]]:
    """A flow with one of everything that can hold an event, and what its sinks have got."""
    flow = Flow("busy", dead_letter="dead")
    got = {"sink": 0, "dead": 0}

    @flow.source
    async def endless() -> Any:
        number = 0
        while True:
            yield number
            number += 1
            if draw.random() < 0.3:
                await asyncio.sleep(draw.random() * 0.01)

    @flow.module(concurrency=draw.choice([1, 3]), queue=draw.choice([None, 2, 50]), order=draw.choice(["kept", "none"]))
    async def waits(event: Event) -> Event:
        await asyncio.sleep(draw.random() * 0.02)
        return event

    @flow.module(key=lambda event: event.data % 3, retry=Retry(attempts=3, delay=0.05))
    async def lanes(event: Event) -> Event:
        if draw.random() < 0.3:
            raise OSError
        return event

    @flow.module
    def splits(event: Event) -> Any:
        for number in range(draw.choice([0, 1, 3])):
            yield Event(event.data * 10 + number)

    @flow.flat_map
    def single(data: int) -> list[int]:
        return [data]

    left = flow.module(lambda event: event if draw.random() < 0.8 else None, "left")
    right = flow.module(lambda event: event, "right", thread=draw.random() < 0.2, queue=draw.choice([None, 3]))
    both = flow.module(lambda event: event, "both", join=True, inboxes=("a", "b"))

    def turns(event: Event) -> Event:
        return event.to("again") if draw.random() < 0.4 else event

    loop = flow.module(turns, "turns", outboxes=("outbox", "again"))

    def count(name: str) -> Any:
        def counted(event: Event) -> None:
            got[name] += 1

        return counted

    endless >> waits >> lanes >> splits >> single >> (left, right)
    flow.connect("left", "both.a")
    flow.connect("right", "both.b")
    both >> loop >> flow.module(count("sink"), "sink")
    flow.connect("turns.again", "turns", ttl=5)
    flow.module(count("dead"), "dead")
    return flow, got


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_stopped_at_any_moment_everything_admitted_is_settled_or_named(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        draw = random.Random(seed)
        flow, got = busy_flow(draw)
        moment, deadline = draw.random() * 2, draw.choice([0, 0.001, 0.05, 60])

        async def work(director: Director, moment: float = moment, deadline: float = deadline) -> Any:
            await asyncio.sleep(moment)
            return await director.stop(deadline)

        statistics, _ = directed(flow, work)
        delivered = statistics.modules["sink"].delivered + statistics.modules["dead"].delivered
        assert delivered == got["sink"] + got["dead"]
        abandoned = sum(module.reasons.get("failed abandoned", 0) for module in statistics.modules.values())
        assert abandoned == sum(statistics.abandoned.values())
        if deadline == 60:
            assert not statistics.abandoned


def test_what_is_left_in_a_queue_when_the_deadline_passes_is_named() -> None:
    flow = Flow("left")
    flow.source(range(10), "ten")

    @flow.module
    async def stuck(event: Event) -> Event:
        await asyncio.sleep(3600)
        return event

    flow["ten"] >> stuck >> flow.module(Sink(), "sink")

    async def work(director: Director) -> Any:
        await asyncio.sleep(1)
        return await director.stop("2s")

    statistics, _ = directed(flow, work)
    assert statistics.abandoned == {"stuck": 10}
    assert statistics.failed == 10
    assert statistics.origins["ten"].reasons == {"failed abandoned": 10}


def test_stop_may_be_called_again_and_from_several_tasks() -> None:
    flow, sink = Flow("again"), Sink()
    flow.use("inlet", "in") >> flow.module(sink, "sink")

    async def work(director: Director) -> Any:
        await director.put("in", 1)
        first, second = await asyncio.gather(director.stop(), director.stop(0))
        return first, second, await director.stop()

    (first, second, third), _ = directed(flow, work)
    assert first == second == third


def test_modules_start_from_the_sinks_up_and_stop_from_the_sources_down() -> None:
    order: list[str] = []

    def traced(name: str, kind: type = Module) -> type:
        class Traced(kind):  # type: ignore[misc,valid-type]
            def start(self) -> None:
                order.append(f"start {name}")

            async def stop(self) -> None:
                order.append(f"stop {name}")

            if kind is Source:

                def events(self) -> Any:
                    yield 1

            else:

                def process(self, event: Event) -> Event:
                    order.append(name)
                    return event

        return Traced

    flow = Flow("order")
    flow.module(traced("source", Source), "source")
    flow["source"] >> flow.module(traced("middle"), "middle") >> flow.module(traced("sink"), "sink")
    ran(flow)
    assert order == [
        "start sink", "start middle", "start source", "middle", "sink", "stop source", "stop middle", "stop sink",
    ]  # fmt: skip


def test_a_module_that_raises_in_start_is_named_and_those_that_had_started_are_stopped() -> None:
    stopped: list[str] = []

    class Fine(Module):
        def process(self, event: Event) -> None: ...

        def stop(self) -> None:
            stopped.append("fine")

    class Broken(Module):
        def start(self) -> None:
            raise OSError("no such device")

        def process(self, event: Event) -> Event:
            return event

    flow = Flow("start")
    flow.source([1], "one")
    flow["one"] >> flow.module(Broken, "broken") >> flow.module(Fine, "fine")
    with pytest.raises(StartFailed, match=r"broken \(.*test_stopping.py:\d+\) could not start: OSError: no"):
        flow.run()
    assert stopped == ["fine"]


def test_a_source_that_raises_ends_and_what_it_gave_is_settled_first() -> None:
    for kind in ("sync", "async", "thread"):
        flow, sink = Flow("source"), Sink()

        def plain() -> Any:
            yield 1
            yield 2
            raise OSError("the line went dead")

        async def waiting() -> Any:
            yield 1
            await asyncio.sleep(0.001)
            yield 2
            raise OSError("the line went dead")

        flow.source(waiting if kind == "async" else plain, "line", thread=kind == "thread")
        flow["line"] >> flow.module(sink, "sink")
        with pytest.raises(SourceFailed, match="the source line failed and has ended: OSError: the line") as caught:
            flow.run()
        assert sink == [1, 2]
        assert settled(caught.value.statistics).delivered == 2


def test_an_async_source_is_closed_when_the_flow_stops() -> None:
    closed = []
    flow = Flow("close")

    @flow.source
    async def endless() -> Any:
        try:
            while True:
                yield 1
                await asyncio.sleep(1)
        finally:
            closed.append(True)

    endless >> flow.module(Sink(), "sink")
    directed(flow, lambda director: asyncio.sleep(10))
    assert closed == [True]


def test_a_stop_hook_that_raises_does_not_keep_the_others_from_running() -> None:
    stopped = []

    class Bad(Module):
        def process(self, event: Event) -> Event:
            return event

        def stop(self) -> None:
            raise RuntimeError("cannot close")

    class Good(Module):
        def process(self, event: Event) -> None: ...

        def stop(self) -> None:
            stopped.append(True)

    flow = Flow("hooks")
    flow.source([1], "one")
    flow["one"] >> flow.module(Bad, "bad") >> flow.module(Good, "good")
    assert ran(flow).delivered == 1
    assert stopped == [True]


def test_a_million_from_a_fast_source_into_a_slow_module_stays_bounded_and_loses_nothing() -> None:
    flow, done, most, given = Flow("million"), 0, 0, 0

    def fast() -> Any:
        nonlocal given, most
        for number in range(1_000_000):
            given += 1
            if given - done > most:
                most = given - done
            yield number

    flow.source(fast)

    @flow.module(queue=1000)
    async def slow(event: Event) -> Event:
        nonlocal done
        done += 1
        if done % 1000 == 0:
            await asyncio.sleep(0)
        return event

    flow["fast"] >> slow >> flow.use("null")
    statistics = flow.run()
    assert settled(statistics).delivered == 1_000_000
    assert most < 3000


CHILD = """
import asyncio, sys
from furcula import Flow
flow = Flow("child")

@flow.source
async def ticks():
    for number in range(1000000):
        yield number
        await asyncio.sleep(0.001)
        if number == 20:
            print("running", flush=True)

@flow.module(concurrency=4)
async def work(event):
    await asyncio.sleep({pause})
    return event

ticks >> work >> flow.use("null")
statistics = flow.run(deadline="{deadline}")
print(statistics, statistics.abandoned, flush=True)
assert statistics.balanced and statistics.open == 0
"""


def child(tmp_path: Path, **settings: Any) -> subprocess.Popen[str]:
    script = tmp_path / "child.py"
    script.write_text(CHILD.replace("{pause}", str(settings["pause"])).replace("{deadline}", settings["deadline"]))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(tmp_path: Path, number: signal.Signals) -> None:
    process = child(tmp_path, pause=0.01, deadline="20s")
    os.kill(process.pid, number)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert out.rstrip().endswith("in flight 0 {}")
    assert "draining for at most 20 s" in errors


def test_a_second_signal_ends_at_once_and_still_names_what_it_left(tmp_path: Path) -> None:
    process = child(tmp_path, pause=3600, deadline="1h")
    assert process.stderr is not None
    os.kill(process.pid, signal.SIGTERM)
    first = process.stderr.readline()
    assert "draining" in first
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "ending at once" in errors
    assert "abandoned" in errors
    assert "{'work': " in out


async def test_the_same_signal_twice_in_a_moment_is_one_request() -> None:
    flow, now, left = Flow("shop"), [0.0], asyncio.Event()

    async def stuck(event: Event) -> Event:
        await left.wait()
        return event

    flow.use("inlet", "in") >> flow.use(stuck, "stuck") >> flow.use("null")
    async with Director(flow, deadline="1h") as director:
        director._signals = StopSignals(lambda: now[0])
        await director.put("in", 1)
        for now[0] in (0.0, 0.01, TOGETHER_S):  # as `timeout` does: to the process, and to its group
            director._on_signal(signal.SIGTERM)
        assert director._stopping is not None
        assert not director.forced
        now[0] = 0.01 + TOGETHER_S
        director._on_signal(signal.SIGTERM)
        assert director.forced


def test_another_signal_is_another_request_and_a_key_held_down_ends_at_last() -> None:
    now = [0.0]
    signals = StopSignals(lambda: now[0])
    assert not signals.repeats(signal.SIGTERM)
    assert not signals.repeats(signal.SIGINT)
    came = []
    for now[0] in (0.1, 0.2, 0.3, 0.4):
        came.append(signals.repeats(signal.SIGINT))
    assert came == [True, True, False, True]


def test_a_thread_source_that_blocks_does_not_keep_the_flow_from_stopping() -> None:
    let_go = threading.Event()
    flow, sink = Flow("blocks"), Sink()

    came = asyncio.Event()

    def blocking() -> Any:
        yield 1
        let_go.wait(20)
        yield 2

    def take(event: Event) -> None:
        sink(event)
        came.set()

    flow.source(blocking, "blocking", thread=True)
    flow["blocking"] >> flow.module(take)

    async def go() -> Any:
        async with Director(flow) as director:
            await came.wait()
            return await director.stop("1s")

    try:
        settled(asyncio.run(go()))
    finally:
        let_go.set()
    assert sink == [1]


def test_a_director_runs_once() -> None:
    flow = Flow("once")
    flow.source([1], "one") >> flow.use("null")

    async def go(loop: MovingLoop) -> None:
        director = Director(flow)
        await director.run()
        with pytest.raises(RuntimeError, match="runs its flow once"):
            await director.start()

    run_moving(go)


NATURAL_END = """
import asyncio
from furcula import Flow
flow = Flow("child")
flow.source(range(10), "ten")

@flow.module
async def slow(event):
    if event.data == 0:
        print("running", flush=True)
    await asyncio.sleep(0.05)
    return event

flow["ten"] >> slow >> flow.use("null")
print(flow.run(deadline="20s"), flush=True)
"""


def test_the_first_signal_while_a_flow_drains_by_itself_drains_on(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(NATURAL_END)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert out == "admitted 10 = delivered 10 + dropped 0 + failed 0 + in flight 0\n", errors
    assert "draining for at most 20 s" in errors
