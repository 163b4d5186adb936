"""A Processor by hand, on queues: the test rig of the old project, and what cancelling leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from furcula.compat.pipelines.names import dotted
from furcula.compat.pipelines.processor import Processor

LIMIT_S = 20


async def reverse(self: Processor, elt: tuple[str]) -> str:
    return elt[0][::-1]


async def append_reverse(self: Processor, elt: tuple[str, str]) -> str:
    return elt[0] + elt[1][::-1]


@asynccontextmanager
async def running(*processors: Processor) -> AsyncIterator[None]:
    for processor in processors:
        processor.start()
    try:
        async with asyncio.timeout(LIMIT_S):
            yield
    finally:
        for processor in processors:
            await processor.cancel()


def filled(*items: Any) -> asyncio.Queue[Any]:
    queue: asyncio.Queue[Any] = asyncio.Queue()
    for item in items:
        queue.put_nowait(item)
    return queue


async def take(queue: asyncio.Queue[Any], count: int) -> list[Any]:
    return [await queue.get() for _ in range(count)]


async def test_a_processor_on_one_queue_and_one_on_two_behind_it() -> None:
    words, others, middle, out = filled("abc", "de"), filled("xy", "z"), asyncio.Queue[Any](), asyncio.Queue[Any]()
    first = Processor(reverse, words, middle)
    second = Processor(append_reverse, [middle, others], [out])
    async with running(first, second):
        assert await take(out, 2) == ["cbayx", "edz"]
        await words.join()
        await others.join()


async def test_without_aggregation_each_item_comes_as_a_tuple_of_one() -> None:
    async def collect(self: Processor, elt: Any) -> Any:
        return elt

    out = asyncio.Queue[Any]()
    async with running(Processor(collect, [filled(1, 2), filled(3)], out, aggregate_inputs=False)):
        assert sorted(await take(out, 3)) == [(1,), (2,), (3,)]


async def test_a_rig_puts_into_all_its_queues_and_each_gets_its_own_copy() -> None:
    async def rig(self: Processor, output_q: Any, value: str) -> None:
        await output_q.put([value, self.env_vars["mark"]])

    one, two = asyncio.Queue[Any](), asyncio.Queue[Any]()
    async with running(Processor(rig, [], [one, two], args={"value": "x"}, env_vars={"mark": "!"})):
        first, second = await one.get(), await two.get()
    assert first == second == ["x", "!"]
    assert first is not second


async def test_an_exception_drops_its_item_only(caplog: pytest.LogCaptureFixture) -> None:
    out = asyncio.Queue[Any]()
    async with running(Processor(reverse, filled(None, "ab"), out)):
        assert await out.get() == "ba"
    assert "reverse failed on (None,)" in caplog.text


async def test_with_on_error_stop_run_raises() -> None:
    with pytest.raises(TypeError):
        await Processor(reverse, filled(None), filled(), on_error="stop").run()


def test_dotted_finds_what_is_on_its_list_and_nothing_else() -> None:
    find = dotted("furcula.compat")
    assert find("furcula.compat.pipelines.Processor") is Processor
    assert find("furcula.compat.pipelines.processor:Processor") is Processor
    with pytest.raises(ValueError, match=r"'os\.system' is not on the list; allowed are furcula\.compat"):
        find("os.system")
    with pytest.raises(ValueError, match="is not on the list"):
        find("furcula.compatible.thing")
    with pytest.raises(ValueError, match=r"has no 'Procesor', did you mean 'Processor'\?"):
        find("furcula.compat.pipelines.Procesor")
