"""http.listen over its whole life: real processes, real clients, load, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import textwrap
import tracemalloc
from pathlib import Path

import pytest
from tests.modules.http.serving import answers, serving

from furcula import Event, Flow, Statistics
from furcula.asking import Asker
from furcula.statuses import Conflict

#: The long form of this proof is `make soak`: FURCULA_REQUESTS=100000.
REQUESTS = int(os.environ.get("FURCULA_REQUESTS", "6000"))


async def test_of_many_requests_dropped_failed_and_abandoned_nothing_is_left_behind() -> None:
    """A third is dropped, a third fails, the rest is answered; a tenth of all is abandoned by the client."""
    tasks_before, before = asyncio.all_tasks(), {*map(id, _askers_and_transports())}
    statuses, statistics = await _ask_many()
    left = REQUESTS - REQUESTS // 10
    assert sum(statuses.values()) == left
    assert abs(statuses[204] - REQUESTS * 0.3) < REQUESTS * 0.01 + 2
    assert abs(statuses[409] - REQUESTS * 0.3) < REQUESTS * 0.01 + 2
    assert statistics.admitted <= REQUESTS + 1
    assert statistics.delivered == statuses[200] + 1
    assert statistics.failed == statuses[409]
    # A worker at rest still knows its last event and what that failed with; with the Director all of it goes.
    gc.collect()
    assert [thing for thing in _askers_and_transports() if id(thing) not in before] == []
    assert asyncio.all_tasks() == tasks_before


async def _ask_many() -> tuple[dict[int, int], Statistics]:
    choice = random.Random(1)

    async def handle(event: Event) -> Event | None:
        number = int(event.headers["params"]["n"])
        if number % 10 == 0:
            await asyncio.Event().wait()  # its client leaves; nobody else would end it
        if number % 3 == 0:
            return None
        if number % 3 == 1:
            raise Conflict(str(number))
        return Event(number)

    flow = Flow("many")
    http = flow.use("http.listen", "listen", port=0, routes=["GET /{n:int}"], timeout="1h")
    http >> flow.module(handle, concurrency=256, order="none", queue=4096) >> http
    statuses: dict[int, int] = {}
    async with serving(flow) as served:
        numbers = iter(range(REQUESTS))

        async def client() -> None:
            reader, writer = await asyncio.open_connection(*served.address)
            for number in numbers:
                writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
                if number % 10 == 0:
                    if choice.random() < 0.5:
                        await writer.drain()
                        await asyncio.sleep(0.001)
                    writer.close()
                    reader, writer = await asyncio.open_connection(*served.address)
                    continue
                head = await reader.readuntil(b"\r\n\r\n")
                status = int(head[9:12])
                statuses[status] = statuses.get(status, 0) + 1
                if length := [line for line in head.split(b"\r\n") if line.startswith(b"content-length")]:
                    await reader.readexactly(int(length[0].split(b":")[1]))
            writer.close()

        await asyncio.gather(*(client() for _ in range(32)))
        async with asyncio.timeout(60):
            while served.director.statistics().open or served.listen.site.active:
                await asyncio.sleep(0.01)
        # Everybody is served as before.
        assert (await served.json("GET", "/2"))[0] == 200
    return statuses, served.statistics


def _askers_and_transports() -> list[object]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Asker | asyncio.Transport)]


async def test_memory_does_not_grow_with_requests_that_were_answered_dropped_or_failed() -> None:
    def handle(event: Event) -> Event | None:
        number = int(event.headers["params"]["n"])
        if number % 3 == 0:
            return None
        if number % 3 == 1:
            raise Conflict
        return event

    async with serving(answers(handle, routes=["POST /{n}"])) as served:
        reader, writer = await asyncio.open_connection(*served.address)

        async def some(count: int) -> None:
            for number in range(count):
                writer.write(b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n7" % number)
                head = await reader.readuntil(b"\r\n\r\n")
                if length := [line for line in head.split(b"\r\n") if line.startswith(b"content-length")]:
                    await reader.readexactly(int(length[0].split(b":")[1]))

        await some(500)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await some(2000)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        writer.close()
    assert grown < 40 * 2000  # bytes; an Exchange alone is more than 40


# ------------------------------------------------------------------ as a process


SERVER = """
import asyncio, sys
from furcula import Event, Flow, Statistics

flow = Flow("server")
http = flow.use("http.listen", "http", port=0, routes=["GET /{n:int}"])

@flow.module(concurrency=64)
async def handle(event: Event) -> Event:
    await asyncio.sleep(0.005)
    return Event(event.headers["params"]["n"])

http >> handle >> http

async def main():
    from furcula import Director
    director = Director(flow)
    running = asyncio.create_task(director.run(signals=True))
    while director.phase != "running":
        await asyncio.sleep(0)
    print(director.modules["http"].instance.addresses[0][1], flush=True)
    statistics = await running
    print(statistics.admitted, statistics.delivered, statistics.open, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(3))
async def test_sigterm_under_load_answers_every_request_that_was_accepted(seed: int, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(textwrap.dedent(SERVER))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
            asked = answered = 0
            unanswered: list[str] = []
            stop_at = random.Random(seed).randrange(100, 900)

            async def client(name: int) -> None:
                nonlocal asked, answered
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                closing = False
                while not closing:
                    writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % name)
                    asked += 1
                    if asked == stop_at:
                        process.send_signal(signal.SIGTERM)
                    try:
                        head = await reader.readuntil(b"\r\n\r\n")
                    except (asyncio.IncompleteReadError, ConnectionError) as error:
                        # The server closed an idle connection as this request was under way: not one that it took.
                        # Had it read any of it, there would be an answer.
                        unanswered.append(type(error).__name__)
                        break
                    assert b" 200 " in head or b" 503 " in head, head
                    answered += b" 200 " in head
                    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                    await reader.readexactly(length)
                    closing = b"connection: close" in head
                writer.close()

            await asyncio.gather(*(client(n) for n in range(30)))
            admitted, delivered, still_open = map(int, (await process.stdout.readline()).split())
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert still_open == 0
    # Every request that entered the flow has had its answer, and reached its client.
    assert admitted == delivered == answered
    assert answered >= stop_at - 30
