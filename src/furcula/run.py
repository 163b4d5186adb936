"""`furcula.Flow`: the graph of `flow.py` with kinds looked up by name, and the ways to run it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Mapping
from typing import Any

from furcula import registry
from furcula.asgi import AsgiFlow
from furcula.engine.director import Director
from furcula.engine.loop import run_in_new_loop
from furcula.engine.rehearsal import Rehearsal
from furcula.engine.statistics import Statistics
from furcula.errors import ConfigurationError, Problem
from furcula.flow import FlowGraph
from furcula.graph import Place
from furcula.options import Duration, Options

__all__ = ["Flow"]


class Flow(FlowGraph):
    __doc__ = FlowGraph.__doc__

    def use(
        self,
        kind: Any,
        name: str | None = None,
        /,
        *,
        options: Options | Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> Place:
        """Place a module of a kind from the library or a plug-in (`"file.write"`), a class, or a function.

        Args:
            kind: The kind, or the class or function itself.
            name: Its name in the flow; default: the last word of the kind (`write`).
            options: How it is run: Options, or a dict of them.
            arguments: What the module takes; `furcula show KIND` lists it.

        Raises:
            ConfigurationError: An unknown kind, or wrong arguments; the message names the nearest valid one.
        """
        subject, use = kind, None
        if isinstance(kind, str):
            subject, use = registry.resolve(kind), kind
            if name is None:
                name = self._free_name(None, _Named(kind.rpartition(".")[2]))
        changes: dict[str, Any] = {}
        if options is not None and not isinstance(options, Options):
            changes, options = dict(options), None
        return self.put(subject, name, options=options, arguments=arguments, changes=changes, use=use)

    def run(self, **settings: Any) -> Statistics:
        """Run the flow in this thread until its sources end or a signal stops it; return the statistics.

        Args:
            settings: See `Director`.

        Raises:
            ConfigurationError: The flow has problems; nothing was started.
            SourceFailed: A source raised. Everything admitted was settled first.
        """
        if _inside_a_loop():
            raise RuntimeError("flow.run() starts an event loop of its own; inside one, await flow.run_async()")
        return run_in_new_loop(self.run_async(signals=True, **settings))

    async def run_async(self, *, signals: bool = False, **settings: Any) -> Statistics:
        """Run the flow in the running event loop until its sources end; return the statistics.

        Args:
            signals: Also stop on SIGINT and SIGTERM: the first drains, a second ends at once.
            settings: See `Director`.
        """
        return await Director(self, **settings).run(signals=signals)

    @functools.cached_property
    def asgi(self) -> AsgiFlow:
        """The flow as an ASGI application, to mount in another one or to give to a server. See `AsgiFlow`.

        `uvicorn shop.flows:flow.asgi`, or `Mount("/flow", flow.asgi)` in Starlette and FastAPI.
        """
        return AsgiFlow(self)

    def test(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        replace: Mapping[str, Any] | None = None,
        keep: tuple[str, ...] = (),
        time_limit: float | Duration = 3600,
    ) -> Rehearsal:
        """Run the flow for a test: sources give `inputs`, sinks collect, and the clock moves by itself.

        Args:
            inputs: For each source, what it admits. A source not named admits nothing.
            replace: For a module, a function to run in its place.
            keep: Sinks and sources to run as they are.
            time_limit: Seconds of the flow's own (moving) clock after which the test fails.

        Returns:
            What came out: `result["sink"]` is the list of Events, `result.statistics` the figures.
        """
        unknown = [name for name in {**(inputs or {}), **(replace or {})} if name not in self.places]
        if unknown:
            raise ConfigurationError([Problem(f"there is no module {name!r} to replace") for name in unknown])
        return Rehearsal.of(self, inputs or {}, replace=replace or {}, keep=keep, time_limit=float(time_limit))


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Named:
    def __init__(self, name: str):
        self.__name__ = name
