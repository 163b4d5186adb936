"""What other processes do in tests: publish, put, take, hold a hub, as told on the command line.

Run as `python peers.py WHAT ADDRESS ...`. Every line that is printed is JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from furcula.bus import Bus
from furcula.transports import transport_for


class Peer:
    """A process that runs one of the functions below."""

    def __init__(self, process: asyncio.subprocess.Process):
        self.process = process

    async def says(self) -> Any:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 30)
        assert line, "the peer has ended"
        return json.loads(line)

    def kill(self) -> None:
        self.process.kill()


@asynccontextmanager
async def peer(*words: Any) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *map(str, words), stdout=subprocess.PIPE, limit=2**24
    )
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # or its pipe is closed when the loop has gone


def say(what: Any) -> None:
    print(json.dumps(what), flush=True)


async def hold(url: str) -> None:
    """Hold the hub, if nobody does, and do nothing else."""
    transport = transport_for(url)
    await transport.open()
    say(getattr(transport, "holds_the_hub", None))
    await asyncio.sleep(3600)


async def publish(url: str, channel: str, count: str, sender: str, pause_s: str = "0") -> None:
    """Publish numbered messages on a bus, then end in an orderly way."""
    async with Bus(url, sender=sender) as bus:
        say("open")
        for number in range(int(count)):
            await bus.publish(channel, [sender, number])
            if float(pause_s):
                await asyncio.sleep(float(pause_s))
    say("done")


async def take(url: str, channel: str) -> None:
    """Take one message and say nothing of it."""
    transport = transport_for(url)
    await transport.open()
    message = await transport.take(channel)
    say([message.body.decode(), message.attempts])
    await asyncio.sleep(3600)


async def collect(url: str, channel: str, count: str) -> None:
    """Subscribe, and tell what came when it is so many."""
    async with Bus(url) as bus:
        subscription = await bus.subscribe(channel)
        say("subscribed")
        found = []
        async for message in subscription:
            found.append(message)
            if len(found) == int(count):
                break
        say([found, subscription.lost])


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
