"""The blocking forms in processes made by fork and by spawn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services import free_port

from furcula.bus import Bus, Subscriber

PROGRAM = Path(__file__).with_name("processes.py")


@pytest.fixture(params=["tcp", "ipc"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"tcp://127.0.0.1:{free_port()}" if request.param == "tcp" else f"ipc://{tmp_path}/bus"


def run(*words: Any) -> Any:
    done = subprocess.run([sys.executable, PROGRAM, *map(str, words)], capture_output=True, timeout=60, check=False)
    assert done.stderr.decode() == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_publish_through_a_publisher_of_their_parent_and_flush_when_they_end(method: str, url: str) -> None:
    found, lost, codes = run("three_publishers", method, url, 500)
    for name, count in (("a", 500), ("b", 500), ("c", 500), ("parent", 2)):
        assert [number for sender, number in found if sender == name] == list(range(count))
    assert (lost, codes) == (0, [0, 0, 0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_subscriber_of_the_parent_is_subscribed_anew_in_a_child(method: str, url: str) -> None:
    expected = [["parent", number] for number in range(300)]
    assert run("subscriber_in_a_child", method, url, 300) == [expected, expected]


def test_a_script_that_holds_the_hub_and_just_ends_has_sent_all_it_put(url: str) -> None:
    with subprocess.Popen(
        [sys.executable, PROGRAM, "ends", url, "2000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        assert script.stderr is not None
        try:
            assert script.stdout.readline() == b"ready\n"
            with Subscriber(url, "news") as subscriber:
                script.stdin.write(b"go\n")
                script.stdin.flush()
                assert script.wait(30) == 0
                assert script.stderr.read() == b""
                assert [subscriber.get(timeout=20) for _ in range(2000)] == list(range(2000))
                assert subscriber.lost == 0
        finally:
            script.kill()


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_the_death_of_a_parent_that_held_the_hub_is_survived_by_its_child(method: str, url: str) -> None:
    count = 1500
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, "holder_dies", method, url, str(count), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    child = 0
    try:
        async with asyncio.timeout(60):
            # Messages that the child sends before we have subscribed are not ours, so the first is awaited below.
            child = json.loads(await process.stdout.readline())
            async with Bus(url) as bus:
                subscription = await bus.subscribe("news", replay=10_000)
                found = []
                async for _, number in subscription:
                    found.append(number)
                    if len(found) == 50:
                        process.stdin.write(b"die\n")
                    if number == count - 1:
                        break
                assert found == list(range(found[0], count))
                assert subscription.lost == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
