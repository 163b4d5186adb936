"""Wishbone's modules: the two base classes, a UDP server, a way to and from an AMQP broker, and one that prints."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Mapping
from typing import Any, ClassVar, Self
from urllib.parse import quote

from furcula.compat.handler import handler
from furcula.compat.outgoing import Outgoing, Sent
from furcula.compat.printed import print_line
from furcula.errors import InputError, Stopped
from furcula.event import Event, copy_data
from furcula.flow import FlowGraph
from furcula.graph import Place
from furcula.module import Context, Source
from furcula.modules.udp import UdpListen
from furcula.options import Options, Secret

__all__ = ["STDOUT", "Broker", "IOModule", "Module", "UDPServer"]


class Module:
    """Base of modules that receive from and send to other modules. Derive from it, and define `consume`.

    `consume` runs on the flow's event loop, one message after the other, so it must not block: one that does says
    `options = {"thread": True}` in its class, or is a coroutine.

    Attributes:
        inboxes: Names of the queues that messages arrive by. What comes to `side` goes to `consume_side` if it exists.
        outboxes: Names of the queues that messages leave by.
        options: furcula's options for this class: `thread`, `concurrency`, `retry`, `timeout`, `queue` and so on.
        name: As registered.
    """

    inboxes: ClassVar[tuple[str, ...]] = ("inbox",)
    outboxes: ClassVar[tuple[str, ...]] = ("outbox",)
    options: ClassVar[Mapping[str, Any]] = {}

    name: str
    outgoing: Outgoing
    _queues: tuple[str, ...]
    logging: logging.LoggerAdapter[logging.Logger]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Here, and not in __init__, so that a class which does not call ours still works.
        self = super().__new__(cls)
        self.outgoing = Outgoing()
        self._queues = ()
        self._named(cls.__name__.lower())
        return self

    def consume(self, message: dict[str, Any]) -> Any:
        """Handle one message, `{"headers": {…}, "data": …}`.

        What is sent meanwhile is what became of it; if nothing is, it was dropped on purpose (or, where no queue is
        connected, delivered). If this raises, the message goes to `failed`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no consume")

    def sendData(self, message: Any, queue: str = "outbox") -> Sent:
        """Send a copy of the message as it is now.

        One that is not `{"headers": {…}, "data": …}` (or `header`) goes to `invalid` instead; a header has the reason.
        In a thread of your own this waits while there is no room; in a coroutine, await it for the same.

        Raises:
            Stopped: The flow does not run (any more).
        """
        try:
            event = Event.from_wire(copy_data(message))
        except InputError as error:
            event, queue = Event(message, headers={"reason": str(error)}), "invalid"
            self.logging.warning("sent a malformed message: %s", error)
        return self.outgoing.send(event, queue)

    def createQueue(self, name: str) -> None:
        """Have one more queue, which may be wired as an inbox or as an outbox. For `__init__`."""
        self._queues += (name,)

    # ------------------------------------------------------------------ what the flow calls

    @property
    def all_inboxes(self) -> tuple[str, ...]:
        return (*type(self).inboxes, *self._queues)

    @property
    def all_outboxes(self) -> tuple[str, ...]:
        return (*type(self).outboxes, *self._queues, "failed", "invalid")

    def _named(self, name: str) -> None:
        self.name = name
        self.logging = logging.LoggerAdapter(logging.getLogger(f"furcula.module.{name}"), {})

    def placed(self, flow: FlowGraph, name: str) -> list[Place]:
        """Take a place in the flow, or two: one that receives and one that sends."""
        self._named(name)
        kind = handler(self, self.consume, self.all_inboxes, self.all_outboxes, self._queues)
        return [flow.put(kind, name, options=Options.of(**self.options))]

    def accept(self, event: Event[Any], inbox: str) -> Any:
        consume = getattr(self, f"consume_{inbox}", self.consume)
        return consume({"headers": event.headers, "data": event.data})

    def opened(self, context: Context) -> None:
        self.outgoing.open(context)

    def closed(self) -> None:
        shutdown = getattr(self, "shutdown", None)
        if shutdown is not None:
            shutdown()


class IOModule(Module):
    """Base of modules that talk to the outside.

    One that receives from outside defines `run(self)`: a method that blocks, and gets a thread of its own, or a
    coroutine. It sends each message with `sendData`, and goes on `while self.loop():`. When the flow stops, `shutdown`
    is called so that it can end what `run` waits for. One that only submits to outside defines `consume`.
    """

    _stopping: threading.Event

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._stopping = threading.Event()
        return self

    def loop(self) -> bool:
        """Shall `run` go on?"""
        return not self._stopping.is_set()

    def placed(self, flow: FlowGraph, name: str) -> list[Place]:
        if not hasattr(self, "run"):
            return super().placed(flow, name)
        ports = {"outboxes": self.all_outboxes, "optional": self._queues}
        kind = type(type(self).__name__, (_Running,), {"subject": self, "ports": staticmethod(lambda: ports)})
        if type(self).consume is Module.consume:
            self._named(name)
            return [flow.put(kind, name)]
        return [*super().placed(flow, name), flow.put(kind, f"{name}/run")]

    def opened(self, context: Context) -> None:
        if not hasattr(self, "run"):
            super().opened(context)

    def closed(self) -> None:
        if not hasattr(self, "run"):
            super().closed()

    def running(self, context: Context) -> None:
        """`run` begins."""
        self.outgoing.open(context, is_source=True)

    def ceasing(self) -> None:
        """`run` shall end."""
        self._stopping.set()
        super().closed()


class UDPServer(IOModule):
    """Listen on UDP; each datagram becomes a message, its sender in the header `peer`.

    Args:
        address: The host to listen on; loopback unless told otherwise.
        port: The port.
        encoding: What the datagrams are written in; None: data is bytes.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 19283, encoding: str | None = "utf-8"):
        self.address = address
        self.port = port
        self.encoding = encoding

    def placed(self, flow: FlowGraph, name: str) -> list[Place]:
        host = f"[{self.address}]" if ":" in self.address else self.address
        codec = {"codec": "binary"} if self.encoding is None else {"codec": "text", "charset": self.encoding}
        self._named(name)
        return [flow.put(UdpListen, name, arguments={"address": f"{host}:{self.port}", **codec})]


class Broker(IOModule):
    """Receive messages from a queue of an AMQP broker, submit messages to an exchange, or both.

    What is consumed leaves by `outbox`; it is acknowledged when it has been settled, and requeued or dead-lettered when
    it failed, as `amqp.consume` does. What comes to `inbox` is submitted: to the routing key that its header
    `routing_key` names, else to `produce_routing_key`; it is delivered when the broker has confirmed it. Without a
    `consume_queue` it only submits; without `produce_exchange` and `produce_routing_key` it only receives.

    Args:
        host: Where the broker is.
        vhost: The virtual host.
        username: Who we are.
        password: See `username`.
        consume_queue: The queue that is consumed.
        prefetch_count: So many messages may be unsettled; the broker sends no more.
        produce_exchange: The exchange that is submitted to; the default one routes to the queue that the key names.
        produce_routing_key: The key where a message names none.
        auto_create: Make the queue, durable, where it does not exist.
        port: The broker's port.
        encoding: What messages are written in; None: data is bytes.
        tls: Talk to the broker over TLS.
    """

    def __init__(
        self,
        host: str = "localhost",
        vhost: str = "/",
        username: str = "guest",
        password: str = "guest",
        consume_queue: str | None = None,
        prefetch_count: int = 1,
        produce_exchange: str = "",
        produce_routing_key: str = "",
        auto_create: bool = True,
        port: int | None = None,
        encoding: str | None = "utf-8",
        tls: bool = False,
    ):
        address = f"[{host}]" if ":" in host else host
        url = f"{'amqps' if tls else 'amqp'}://{address}{'' if port is None else f':{port}'}/{quote(vhost, safe='')}"
        self._where: dict[str, Any] = {"url": url, "user": username, "password": Secret(password)}
        self._codec = "binary" if encoding is None else "text"
        if encoding is not None and encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            raise ValueError(f"encoding: a broker's messages are utf-8 or, with None, bytes; not {encoding!r}")
        self.consume_queue = consume_queue
        self.prefetch_count = prefetch_count
        self.produce_exchange = produce_exchange
        self.produce_routing_key = produce_routing_key
        self.auto_create = auto_create

    def placed(self, flow: FlowGraph, name: str) -> list[Place]:
        from furcula.modules.amqp.client import Declare  # a library that not everybody has
        from furcula.modules.amqp.consume import Consume
        from furcula.modules.amqp.publish import Publish

        self._named(name)
        places = []
        submits = self.consume_queue is None or self.produce_exchange or self.produce_routing_key
        if submits:
            # A sink: what it has submitted does not go on to the queue that what is consumed leaves by.
            kind = Publish if self.consume_queue is None else type("Publish", (Publish,), {"outboxes": ()})
            arguments: dict[str, Any] = {
                **self._where,
                "exchange": self.produce_exchange,
                "routing_key": self.produce_routing_key or None,
                "routing_key_from": "headers.routing_key",
                "codec": self._codec,
            }
            places.append(flow.put(kind, name, arguments=arguments))
        if self.consume_queue is not None:
            arguments = {
                **self._where,
                "queue": self.consume_queue,
                "declare": Declare() if self.auto_create else None,
                "prefetch": self.prefetch_count,
                "codec": self._codec,
            }
            places.append(flow.put(Consume, f"{name}/consume" if submits else name, arguments=arguments))
        return places


class STDOUT(IOModule):
    """Print the data of each message on a line of its own, and send the message on.

    Args:
        prefix: Stands before the data, as it is.
        timestamp: Begin each line with the local time.
        complete: Print the whole message.
    """

    def __init__(self, prefix: str = "", timestamp: bool = False, complete: bool = False):
        self.prefix = prefix
        self.timestamp = timestamp
        self.complete = complete

    def consume(self, message: dict[str, Any]) -> None:
        print_line(message if self.complete else message["data"], prefix=self.prefix, timestamp=self.timestamp)
        self.sendData(message)


class _Running(Source):
    """Runs the `run` of an IO module, in a thread or as a task."""

    subject: Any

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self, context: Context) -> None:
        self.subject.running(context)
        if inspect.iscoroutinefunction(self.subject.run):
            self._task = asyncio.get_running_loop().create_task(self._await(context), name=f"run of {context.name}")
            return
        loop = asyncio.get_running_loop()

        def run() -> None:
            error: BaseException | None = None
            try:
                self.subject.run()
            except Stopped:
                pass
            except BaseException as raised:
                error = raised
            try:
                loop.call_soon_threadsafe(self._ended, context, error)
            except RuntimeError:  # the loop is closed, and nobody waits for this end any more
                pass

        # A daemon: what still waits for the outside when the flow has ended shall not keep the process.
        threading.Thread(target=run, name=f"furcula run of {context.name}", daemon=True).start()

    async def _await(self, context: Context) -> None:
        error: BaseException | None = None
        try:
            await self.subject.run()
        except (asyncio.CancelledError, Stopped):
            pass
        except Exception as raised:
            error = raised
        self._ended(context, error)

    def _ended(self, context: Context, error: BaseException | None) -> None:
        # A socket that `shutdown` closed under `run` makes it raise, which is as it should be.
        context.finished(error if self.subject.loop() else None)

    async def cease(self) -> None:
        self.subject.ceasing()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def stop(self) -> None:
        self.subject.outgoing.close()
