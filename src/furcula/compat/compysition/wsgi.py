"""Compysition's `WSGIServer`: HTTP both ways, by furcula's `http.listen`."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, cast

from furcula.asking import Asker
from furcula.compat.compysition.actor import SourceActor
from furcula.event import Event as Carried
from furcula.module import Context, Source, bind_arguments
from furcula.modules.http.listen import HttpListen

__all__ = ["WSGI", "WSGIServer"]


class WSGIServer(SourceActor):
    """Listen for HTTP requests: each becomes an event, and what is connected back to this module answers it.

    The event's data is the body: JSON and forms as values, text as str, XML as bytes. `event.lookup("headers.path")`
    and so on tell of the request. An answer has its status in `event.headers["status"]` (200), its header fields in
    `event.headers["response"]`. What comes by `connect_error` is answered as its exception says, as problem details.
    Every request is answered, also one that nothing comes back for.

    Args:
        name: As registered.
        port: Where to listen; 0: any free port, see `addresses`. Default: the class's `port`.
        address: 127.0.0.1 is this machine only, 0.0.0.0 is open to all.
        base_path: Stands before every path: `/api/v1`.
        routes: `"POST /orders/{id:int}"`, or `{"route": "GET /orders", "outbox": "reads"}` for what is connected as
            `(wsgi, "reads")`. Default: everything.
        more: Further arguments of `http.listen`: `tls`, `timeout`, `max_body`, `accepts`, `cors` and so on.
    """

    #: Where it listens unless told otherwise.
    port: ClassVar[int] = 8080

    def __init__(
        self,
        name: str,
        port: int | None = None,
        address: str = "127.0.0.1",
        base_path: str = "",
        routes: Sequence[Any] | None = None,
        **more: Any,
    ):
        super().__init__(name)
        given: dict[str, Any] = {"base": base_path.rstrip("/"), **more}
        if not {"unix", "fd"} & set(more):
            given.update(port=self.port if port is None else port, host=address)
        if routes is not None:
            given["routes"] = list(routes)
        #: For `http.listen`, converted and checked as those in a flow file are.
        self.arguments, wrong = bind_arguments(HttpListen, given)
        if wrong:
            raise ValueError("; ".join(f"{problem.argument}: {problem}" for problem in wrong))
        HttpListen(**self.arguments)  # for what else it finds wrong
        self.listening: HttpListen | None = None

    @property
    def addresses(self) -> list[Any]:
        """Host and port as bound, once started."""
        return self.listening.addresses if self.listening is not None else []

    def source(self) -> type[Source]:
        attributes = {"subject": self, "ports": staticmethod(lambda: {"outboxes": None})}
        return type(type(self).__name__, (_Listening,), attributes)


WSGI = WSGIServer


class _Listening(HttpListen):
    """`http.listen`, with a note on each event of which module it comes from."""

    subject: WSGIServer

    def __init__(self) -> None:
        super().__init__(**self.subject.arguments)

    async def start(self, context: Context) -> None:
        await super().start(cast("Context", _Signing(context, self.subject)))
        self.subject.listening = self
        self.subject.opened(context)

    async def stop(self) -> None:
        await super().stop()
        self.subject.closed()


class _Signing:
    """The context of a flow, in which every event that is asked is signed by its sender."""

    def __init__(self, context: Context, subject: WSGIServer):
        self._context = context
        self._subject = subject

    def ask(self, event: Carried[Any], asker: Asker, outbox: str = "outbox") -> Awaitable[None] | None:
        return self._context.ask(self._subject.sign(event), asker, outbox)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
