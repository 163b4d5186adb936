"""The Plumber: a pipeline described by a dict, built as a flow and run by furcula's Director."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from furcula.compat.pipelines.processor import Processor
from furcula.compat.pipelines.rig import InStep, OutputQueue, Rig
from furcula.compat.pipelines.spec import Node, read, rig_groups
from furcula.engine.director import Director
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, FurculaError, nearest
from furcula.event import Event
from furcula.flow import FlowGraph

__all__ = ["PipelineFailed", "Plumber"]

_log = logging.getLogger("furcula.compat.pipelines")

#: Failures of the meeting itself, whose cause lies in another node.
_NOT_OWN = ("Incomplete", "Late")


class PipelineFailed(FurculaError):
    """A node whose `on_error` is `stop` failed, so the pipeline stopped. The message names the node and the error."""


class Plumber:
    """Builds and runs the pipeline that a dict describes.

    The graph is checked and the processors are made here; nothing runs before `create_pipeline`.

    Args:
        input_d: `{"nodes": {name: {"coro": …, "args": {…}, "properties": {…}}}, "graph": {name: successors or None}}`.
            Properties: `aggregate_inputs` (default True), `on_error` (`drop`, the default, or `stop`), and furcula's
            own options: `concurrency`, `order`, `retry`, `timeout`, `queue` and so on.
        coro_map: Finds the coroutine function for a `coro` that is a string: a callable or a dict. See `dotted`.
        env_vars: The context that every processor sees as `self.env_vars`.
        signals: Stop on SIGINT and SIGTERM: the first drains for at most ten seconds, a second ends at once. For
            scripts; a program that has signal handlers of its own leaves it False.
        keep_results: So many results of each returning sink are kept for `wait`, the latest ones.

    Attributes:
        flow: The same pipeline as a furcula flow, to be checked, drawn and explained.
        results: What sinks have returned so far, by node; None is no result.

    Raises:
        ConfigurationError: All that is wrong with the graph; each problem names its node or edge.
    """

    def __init__(
        self,
        input_d: Mapping[str, Any],
        coro_map: Callable[[str], Any] | Mapping[str, Any] | None = None,
        env_vars: Any = None,
        *,
        signals: bool = False,
        keep_results: int = 100_000,
    ):
        self.nodes = read(input_d, coro_map)
        self.flow = FlowGraph("pipeline")
        self._signals = signals
        self._results: dict[str, deque[Any]] = {}
        self._keep_results = keep_results
        self._names = _place_names(self.nodes)
        self._run_id = os.urandom(4).hex()
        self._queues: dict[str, OutputQueue] = {}
        self.processors = {
            name: Processor(
                node.coro,
                name=name,
                args=node.args,
                env_vars=env_vars,
                aggregate_inputs=not node.merges,
                on_error=node.on_error,
            )
            for name, node in self.nodes.items()
        }
        self._build()
        self._director = Director(self.flow)
        self._task: asyncio.Task[Statistics] | None = None
        self._started: asyncio.Future[None] | None = None
        self._failure: PipelineFailed | None = None
        self._cancelled = False

    # ------------------------------------------------------------------ running

    def create_pipeline(self) -> asyncio.Future[None]:
        """Start the pipeline in the running loop. Returns at once; awaiting the answer waits until it stands."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._started = loop.create_future()
            self._task = loop.create_task(self._director.run(signals=self._signals), name="pipeline")
            self._task.add_done_callback(lambda _: self._stands())
        assert self._started is not None
        return self._started

    async def wait(self) -> dict[str, list[Any]]:
        """Wait for the end of the stream: all rigs have ended and all items are settled (or `cancel` was called).

        Cancelling this leaves the pipeline running.

        Returns:
            What sinks returned, by node, in order.

        Raises:
            PipelineFailed: A node with `on_error: stop` failed.
            SourceFailed: An input rig raised. What it had put was processed first.
        """
        self.create_pipeline()
        task = self._task
        assert task is not None
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not (task.cancelled() and self._cancelled):
                raise
        except FurculaError:
            if self._failure is None:
                raise
        if self._failure is not None:
            raise self._failure
        return self.results

    def cancel(self, deadline: str | float = 0) -> Awaitable[Any]:
        """Stop: the rigs are cancelled, what is inside is drained for `deadline` seconds, the rest is given up.

        It may be repeated. Awaiting the answer waits for the end.
        """
        self._cancelled = True
        if self._task is not None and self._director.phase != "assembled":
            return self._director.request_stop(deadline)
        if self._task is None:  # nothing runs, and nothing shall
            self.create_pipeline()
        assert self._task is not None
        self._task.cancel()
        return asyncio.ensure_future(_ended(self._task))

    def pause(self, node: str) -> None:
        """Let a node handle nothing more until `resume`; what comes waits, and in the end the rigs do too."""
        name = self._known(node)
        if node in self._queues:
            self._queues[node].pause()
        else:
            self._director.pause(name)

    def resume(self, node: str) -> None:
        """Let a paused node go on."""
        name = self._known(node)
        if node in self._queues:
            self._queues[node].resume()
        else:
            self._director.resume(name)

    @property
    def results(self) -> dict[str, list[Any]]:
        return {name: list(found) for name, found in self._results.items()}

    def statistics(self) -> Statistics:
        """The figures now: rates, depths and latencies by node, and what became of the items."""
        return self._director.statistics()

    def graph(self) -> str:
        """The pipeline as a Mermaid flowchart."""
        numbers = {name: f"n{index}" for index, name in enumerate(self.nodes)}
        lines = ["flowchart LR"]
        for name, node in self.nodes.items():
            coro = getattr(node.coro, "__name__", type(node.coro).__name__)
            label = f'"{_shown(name)}<br/><small>{_shown(coro)}</small>"'
            lines.append(f"  {numbers[name]}" + (f"([{label}])" if node.is_rig else f"[{label}]"))
        lines += [f"  {numbers[a]} --> {numbers[b]}" for a, node in self.nodes.items() for b in node.successors]
        return "\n".join(lines)

    # ------------------------------------------------------------------ building

    def _build(self) -> None:
        in_step = {rig: shared for group in rig_groups(self.nodes) for shared in [InStep()] for rig in group}
        for name, node in self.nodes.items():
            place_name = self._names[name]
            if node.is_rig:
                queue = self._queues[name] = OutputQueue(name, self._number, in_step.get(name))
                rig = Rig(
                    self.processors[name],
                    queue,
                    started=self._stands,
                    failed=lambda error, node=node: self._rig_failed(node, error),  # type: ignore[misc]
                )
                self.flow.put(rig, place_name)
                continue
            inboxes = [self._names[before] for before in node.predecessors] if node.joins else None
            place = self.flow.put(self._handler(node), place_name, options=node.options, inboxes=inboxes)
            if node.on_error == "stop":
                self.flow.connect(place.failed, self.flow.put(self._stopper(node), f"{place_name}/on_error"))
        for name, node in self.nodes.items():
            if not node.successors and not node.is_rig:
                self.flow.connect(
                    self._names[name], self.flow.put(self._collector(node), f"{self._names[name]}/results")
                )
            for after in node.successors:
                inbox = self._names[name] if self.nodes[after].joins else "inbox"
                self.flow.connect(f"{self._names[name]}.outbox", f"{self._names[after]}.{inbox}")

    def _handler(self, node: Node) -> Callable[[Event[Any]], Any]:
        async def handle(event: Event[Any]) -> Any:
            # A join hands over a dict of its inboxes, in the order of `nodes`.
            elt = tuple(event.data.values()) if node.joins else (event.data,)
            event.data = await self._handled(node, elt)
            return event

        numbers = itertools.count(1)

        async def handle_and_renumber(event: Event[Any]) -> AsyncIterator[Event[Any]]:
            data = await self._handled(node, (event.data,))
            yield Event.from_wire({"data": data, "id": self._number(next(numbers))})

        return handle_and_renumber if node.merges else handle

    async def _handled(self, node: Node, elt: tuple[Any, ...]) -> Any:
        if self._failure is not None:
            await asyncio.Event().wait()  # the pipeline is stopping, and will cancel this and count the item
        try:
            return await self.processors[node.name].handle(elt)
        except Exception as error:
            # Here and not only behind `failed`: what stands in the same batch shall not be handled any more.
            if node.on_error == "stop" and node.options.retry is None:
                self._stop_for(node, type(error).__name__, error)
            raise

    def _collector(self, node: Node) -> Callable[[Event[Any]], None]:
        """Behind a sink, so that results come in the order that the sink keeps, however many it handles at once."""

        def collect(event: Event[Any]) -> None:
            if event.data is None:
                return
            found = self._results.setdefault(node.name, deque(maxlen=self._keep_results))
            if len(found) == self._keep_results - 1:
                _log.warning("%s has returned %d results; the oldest are let go", node.name, self._keep_results)
            found.append(event.data)

        return collect

    def _stopper(self, node: Node) -> Callable[[Event[Any]], None]:
        def stop(event: Event[Any]) -> None:
            failure = event.failures[-1]
            if failure.type in _NOT_OWN:
                raise PipelineFailed(f"{node.name}: {failure.message}")
            raise self._stop_for(node, failure.type, failure.message)  # the item has failed, and is not taken care of

        return stop

    def _rig_failed(self, node: Node, error: Exception) -> None:
        if node.on_error == "stop":
            self._stop_for(node, type(error).__name__, error)

    def _stop_for(self, node: Node, kind: str, message: object) -> PipelineFailed:
        if self._failure is None:
            self._failure = PipelineFailed(f"{node.name} failed, and its on_error is 'stop': {kind}: {message}")
            self._director.request_stop(0)
        return self._failure

    def _number(self, number: int) -> str:
        return f"{self._run_id}-{number}"

    def _stands(self) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _known(self, node: str) -> str:
        if node not in self._names:
            raise ConfigurationError(f"there is no node {node!r}{nearest(node, self._names)}")
        return self._names[node]


def _place_names(nodes: Mapping[str, Node]) -> dict[str, str]:
    """Names that a flow takes for nodes, which may have any."""
    found: dict[str, str] = {}
    for node in nodes:
        plain = re.sub(r"[^\w-]", "_", str(node))
        plain = plain if re.match(r"[^\W\d]", plain) else f"n{plain}"
        while plain in found.values():
            plain += "_"
        found[node] = plain
    return found


def _shown(text: Any) -> str:
    return str(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
