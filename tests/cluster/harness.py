"""What chaos needs: servers and links that can be broken and mended, and workers that can be killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tests.services import Server, free_port, program

HERE = Path(__file__).parent
BITE = 65536


class Link:
    """A port of our own in front of another one."""

    def __init__(self, proxy: Proxy, target: int):
        self._proxy = proxy
        self._target = target
        self._server: asyncio.Server | None = None
        self._lines: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        #: Seconds that each bite is held up.
        self.delay_s = 0.0
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            if self._refuses:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            pair = (writer, far)
            self._lines.add(pair)
            try:
                ways = [
                    asyncio.ensure_future(self._carry(reader, far)),
                    asyncio.ensure_future(self._carry(far_reader, writer)),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
            finally:
                self._lines.discard(pair)
        except OSError:
            pass
        finally:
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(BITE):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._flows.wait()
            writer.write(data)
            await writer.drain()

    async def cut(self, silently: bool) -> None:
        """Silently: as a switch does that has lost its power. Otherwise both ends are told."""
        if silently:
            self._flows.clear()
            return
        self._refuses = True
        for near, far in list(self._lines):
            near.transport.abort()
            far.transport.abort()

    async def heal(self) -> None:
        self._refuses = False
        self._flows.set()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Proxy:
    """All links, in a thread with a loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()
        self._links: list[Link] = []

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def link(self, target: int) -> Link:
        async def made() -> Link:
            link = Link(self, target)
            await link.open()
            return link

        link: Link = self.do(made())
        self._links.append(link)
        return link

    def cut(self, *links: Link, silently: bool = False) -> None:
        for link in links:
            self.do(link.cut(silently))

    def heal(self, *links: Link) -> None:
        for link in links:
            self.do(link.heal())

    def close(self) -> None:
        for link in self._links:
            self.do(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Node(Server):
    """One server of a cluster. What it knows of the others are links to them."""

    def __init__(self, folder: Path, name: str, size: int):
        folder.mkdir(parents=True)
        super().__init__(folder)
        self.name = name
        self.size = size
        self.routes_port = free_port()
        self.monitor = free_port()
        #: By the number of another node.
        self.routes: dict[int, Link] = {}
        self.store = folder / "js"

    def command(self) -> list[str]:
        found = program("nats-server", also=(Path(sys.executable).parent,))
        routes = ", ".join(f'"nats-route://127.0.0.1:{link.port}"' for link in self.routes.values())
        # Nobody learns of a way around the links: clients are told of no other server, nodes of no usable address.
        cluster = f"""cluster {{
            name: chaos, listen: "127.0.0.1:{self.routes_port}", advertise: "127.0.0.1:1", no_advertise: true,
            routes: [{routes}], pool_size: 1
        }}"""
        (self.folder / "nats.conf").write_text(
            f"server_name: {self.name}\nhost: 127.0.0.1\nport: {self.port}\nhttp: 127.0.0.1:{self.monitor}\n"
            f'ping_interval: "2s"\njetstream {{ store_dir: "{self.store}" }}\n{cluster if self.size > 1 else ""}\n'
        )
        return [found, "-c", str(self.folder / "nats.conf")]


class Servers:
    """A JetStream cluster on loopback, of three nodes or one."""

    def __init__(self, folder: Path, proxy: Proxy, size: int = 3, small: Path | None = None):
        self.proxy = proxy
        self.nodes = [Node(folder / f"n{number}", f"n{number}", size) for number in range(size)]
        if small is not None:
            self.nodes[-1].store = small
        for here in self.nodes:
            for number, there in enumerate(self.nodes):
                if there is not here:
                    here.routes[number] = proxy.link(there.routes_port)
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            wait_for(node.answers, f"the server {node.name}")

    def clients(self) -> list[Link]:
        """Links to each node, for one client."""
        return [self.proxy.link(node.port) for node in self.nodes]

    def direct(self) -> str:
        """The address for who is not to be disturbed."""
        return ",".join(f"nats://127.0.0.1:{node.port}" for node in self.nodes)

    def links_of(self, number: int) -> list[Link]:
        """The links by which a node and the others reach each other."""
        own = list(self.nodes[number].routes.values())
        return own + [node.routes[number] for at, node in enumerate(self.nodes) if at != number]

    def close(self) -> None:
        for node in self.nodes:
            node.thaw()
            node.kill()


class Small:
    """A small disk, where we may make one; see `reason` where not."""

    def __init__(self, folder: Path, megabytes: int):
        self.folder = folder
        self.reason = ""
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if not sys.platform.startswith("linux") or os.getuid() or shutil.which("mount") is None:
            self.reason = "only root may make a small disk"
        elif subprocess.run(command, capture_output=True, timeout=30).returncode:
            self.reason = "this machine lets nobody mount a small disk"

    def fill(self) -> None:
        with (self.folder / "ballast").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 65536)
            except OSError:
                pass

    def free(self) -> None:
        (self.folder / "ballast").unlink()

    def close(self) -> None:
        if not self.reason:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, timeout=30)


class Worker:
    """One process with one stage of a flow that a file of ours builds; its log is beside its data.

    Args:
        program: The file, in this folder.
        settings: What it is told, as JSON. `url` and `stage` among it.
    """

    def __init__(self, folder: Path, name: str, program: str, settings: dict[str, Any], links: list[Link] = []):  # noqa: B006
        self.name = name
        self.stage = str(settings["stage"])
        self.links = links
        self.log = folder / f"{name}.log"
        if links:
            settings = {**settings, "url": ",".join(f"nats://127.0.0.1:{link.port}" for link in links)}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent.parent, *sys.path)))}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(HERE / program), json.dumps({**settings, "name": name})],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} has ended with {self.process.returncode}:\n{self.said[-3000:]}")
        return "worker runs" in self.said

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self, within_s: float = 60) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.said[-3000:]}") from None


def wait_for(claim: Callable[[], Any], what: str, within_s: float = 60.0) -> None:
    """Until a claim holds. Looks often; the bound is for when it never does."""
    end = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {within_s:g} s")
        time.sleep(0.02)
