"""What runs in a child process: one function, batch after batch, until the home says that it is enough or is gone."""

from __future__ import annotations

import contextvars
import functools
import gc
import importlib
import inspect
import logging
import mmap
import os
import runpy
import select
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, BinaryIO

import msgspec

from furcula.engine.caught import CAUGHT
from furcula.engine.outcome import Many
from furcula.engine.processes.messages import (
    CELL,
    DATA,
    FAILED,
    FRAME_LIMIT,
    HEAD,
    MANY,
    NEW,
    NO_EVENTS,
    PACKED,
    SAME,
    UNCHANGED,
    EventWire,
    Setup,
    encode,
    frame,
    mark_of,
)
from furcula.engine.processes.told import MAIN_IN_CHILD, tell
from furcula.engine.splitting import iterate, take
from furcula.engine.steps import converter
from furcula.errors import FurculaError, ModuleError
from furcula.event import Event, Routed
from furcula.graph import EXCEPTION_PORTS
from furcula.module import BatchFailed, Handling, bind_arguments, describe
from furcula.naming import MAIN, ImportName, secret_back

__all__ = ["ChildContext", "main"]

#: Answers go home after so many seconds at the latest, be the batch done or not: what is home is safe.
FLUSH_S = 0.005
#: Events that one event may be split into. They are collected before they cross.
MOST_ITEMS = 1_000_000
#: How long a child whose home is gone may take to notice it by itself.
ORPHAN_S = 1.0


class ChildContext:
    """What a class module's `start` is given in a child: its place in the flow, and nothing to admit by."""

    def __init__(self, setup: Setup):
        self.name = setup.module
        self.flow = setup.flow
        self.folder = Path(setup.folder)
        self.log = logging.LoggerAdapter(
            logging.getLogger(f"furcula.module.{setup.module}"), {"flow": setup.flow, "furcula_module": setup.module}
        )

    @staticmethod
    def now() -> float:
        return time.time()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.name} runs in processes of its own: its context has no {name!r}")


def main(sock_fd: int, cell_fd: int) -> None:
    """Be a child: see `spawning`. Returns when the home closes the connection or says that it is enough."""
    # In a session of its own no Ctrl-C comes; a service manager may still tell every process of the service to stop,
    # and the events that are here are to be drained. A handler, unlike SIG_IGN, is not left to programs started here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    sock = socket.socket(fileno=sock_fd)
    cell = mmap.mmap(cell_fd, mmap.PAGESIZE)
    os.close(cell_fd)
    ended = threading.Event()
    threading.Thread(target=_watch_home, args=(sock, ended), daemon=True).start()
    incoming = sock.makefile("rb")
    try:
        first = _receive(incoming)
        if first is None:
            return
        try:
            work = _Work(msgspec.msgpack.Decoder(Setup, ext_hook=secret_back).decode(first), sock, cell)
        except BaseException as error:
            own = isinstance(error, FurculaError)
            why = str(error) if own else f"{type(error).__name__}: {error}"
            sock.sendall(frame(encode([-1, 0.0, [why]])))
            return
        # What is loaded by now stays loaded: a full collection need not look through it.
        gc.freeze()
        sock.sendall(frame(encode([0, 0.0, []])))
        while (body := _receive(incoming)) is not None and work.handle(body):
            pass
        work.stop()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the home is gone
    finally:
        ended.set()


def _receive(incoming: BinaryIO) -> bytes | None:
    head = incoming.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    (size,) = HEAD.unpack(head)
    body = incoming.read(size)
    return body if len(body) == size else None


def _watch_home(sock: socket.socket, ended: threading.Event) -> None:
    """End the process when the home is gone, even from the middle of a computation that would take for ever."""
    if not hasattr(select, "poll"):
        return
    poller = select.poll()
    poller.register(sock.fileno(), getattr(select, "POLLRDHUP", 0) | select.POLLHUP)
    poller.poll()
    if not ended.wait(ORPHAN_S):
        os._exit(1)


# ------------------------------------------------------------------ finding the function


def _found(find: ImportName) -> Any:
    if find.module == MAIN:
        _run_main(find)
    found: Any = importlib.import_module(find.module) if find.module != MAIN else sys.modules[MAIN]
    for part in find.name.split("."):
        found = getattr(found, part)
    # A decorated function's name stands for its place in the flow that decorated it.
    return getattr(found, "subject", found) if type(found).__name__ == "Place" else found


def _run_main(find: ImportName) -> None:
    """Run the program under another name, as multiprocessing does: so it defines its functions and starts nothing."""
    module = types.ModuleType(MAIN_IN_CHILD)
    if find.main_name:
        names = runpy.run_module(find.main_name, run_name=MAIN_IN_CHILD, alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(find.main_path))
        names = runpy.run_path(find.main_path, run_name=MAIN_IN_CHILD)
    module.__dict__.update(names)
    sys.modules[MAIN] = sys.modules[MAIN_IN_CHILD] = module


def _handling(subject: Any, setup: Setup) -> tuple[Handling, Any]:
    """How the function handles what it is given; and the instance, where it is a class."""
    is_class = isinstance(subject, type) and setup.role == "module"
    bound: dict[str, Any] = {}
    if is_class or setup.arguments:
        bound, wrong = bind_arguments(subject, setup.arguments, skip=0 if is_class else 1)
        if wrong:
            raise ModuleError("; ".join(str(problem) for problem in wrong))
    if not is_class:
        return describe(functools.partial(subject, **bound) if bound else subject, setup.role), None
    instance = subject(**bound)
    batch = getattr(instance, "process_batch", None)
    if batch is not None:
        described = describe(batch)
        return Handling(batch, described.shape, "events", output_type=described.output_type), instance
    if hasattr(instance, "choose"):
        return describe(instance.choose, "choose"), instance
    return describe(instance.process), instance


# ------------------------------------------------------------------ the work


class _Work:
    """The function, and how its answers are told."""

    def __init__(self, setup: Setup, sock: socket.socket, cell: mmap.mmap):
        # A line at a time, and each in one piece, whatever PYTHONUNBUFFERED says: what is printed before the process is
        # ended from outside is seen, and does not run into what the others print.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True, write_through=False)
        sys.argv[:] = setup.argv
        self._sock = sock
        self._cell = cell
        self._name = setup.module
        self._sink = setup.sink
        handling, self._instance = _handling(_found(setup.find), setup)
        self._start(setup)
        self._bare = handling.receives == "data"
        self._whole = handling.receives == "events"
        items: Any = list[Any] if self._bare else list[EventWire]
        self._decode = msgspec.msgpack.Decoder(tuple[int, items]).decode
        self._batch_call = handling.call
        self._answer = self._answering(handling)
        self._isolate = setup.isolate

    def _start(self, setup: Setup) -> None:
        hook = getattr(self._instance, "start", None)
        if hook is not None:
            answer = hook(ChildContext(setup)) if inspect.signature(hook).parameters else hook()
            if inspect.isawaitable(answer):
                raise ModuleError(f"{self._name} awaits in `start`, and there is no event loop in a process of its own")

    def stop(self) -> None:
        hook = getattr(self._instance, "stop", None)
        if hook is not None:
            try:
                hook()
            except Exception:
                logging.getLogger("furcula.flow").exception("%s raised in stop", self._name)

    def handle(self, body: bytes) -> bool:
        """Handle one batch, and send the answers. False: that was the end."""
        number, things = self._decode(body)
        if not number:
            return False
        if not self._bare:
            things = [wire.event() for wire in things]
        if self._whole:
            CELL.pack_into(self._cell, 0, monotonic(), mark_of(number, 0))
            began = perf_counter()
            answer = self._packed(things)
            self._send(number, perf_counter() - began, [answer])
            CELL.pack_into(self._cell, 0, 0.0, 0)
            return True
        cell, pack, answer_to = self._cell, CELL.pack_into, self._told
        base = mark_of(number, 0)
        answers: list[Any] = []
        since = monotonic()
        for place, thing in enumerate(things):
            now = monotonic()
            if now - since > FLUSH_S and answers:
                self._send(number, now - since, answers)
                answers = []
                since = now = monotonic()
            pack(cell, 0, now, base + place)
            answers.append(answer_to(thing))
        now = monotonic()
        pack(cell, 0, 0.0, 0)
        self._send(number, now - since, answers)
        return True

    def _told(self, thing: Any) -> Any:
        try:
            if self._isolate:
                return contextvars.copy_context().run(self._answer, thing)
            return self._answer(thing)
        except StopIteration:
            return [FAILED, tell(ModuleError("the function raised StopIteration"))]
        except CAUGHT as error:
            return [FAILED, tell(error)]

    def _answering(self, handling: Handling) -> Callable[[Any], Any]:
        """What makes the answer to one event (or its data), ready to be sent. Raises what the function raises."""
        call, sink = handling.call, self._sink
        convert = converter(handling.input_type) if self._bare else None
        role = handling.role
        if handling.shape == "generator" or role == "flat_map":

            def split(thing: Any) -> Any:
                event = Event(thing) if self._bare else thing
                argument = thing if convert is None else convert(thing)
                many = take(iterate(call, argument), event, MOST_ITEMS)
                if len(many.items) == MOST_ITEMS and many.failed is None:
                    raise ModuleError(
                        f"one event became more than {MOST_ITEMS:,}; without `processes` there is no limit"
                    )
                return self._many(many)

            return split
        if role == "choose":

            def choose(event: Any) -> Any:
                port = call(event)
                if port is not None and type(port) is not str:
                    raise ModuleError(f"{self._name} must choose the name of an outbox, not {port!r}")
                return None if port is None else self._one(event, event.to(port))

            return choose
        if not self._bare:
            return lambda event: self._one(event, call(event))
        if role == "filter":
            return lambda data: UNCHANGED if call(data if convert is None else convert(data)) else None
        if role == "map":
            if sink:
                return lambda data: _nothing(call(data if convert is None else convert(data)))
            if convert is None:
                return lambda data: (DATA, call(data))
            return lambda data: (DATA, call(convert(data)))

        def of_data(data: Any) -> Any:
            answer = call(data if convert is None else convert(data))
            if isinstance(answer, Event):
                return self._one(None, answer)
            if sink:
                return UNCHANGED
            return None if answer is None else (DATA, answer)

        return of_data

    def _one(self, event: Event[Any] | None, answer: Any) -> Any:
        port = None
        result = answer
        if type(answer) is Routed:
            port, result = answer.outbox, answer.target
        if self._sink and port not in EXCEPTION_PORTS:
            return UNCHANGED
        if result is event and event is not None:
            return (SAME, port, event.data, event.headers, event.key, event.tags, event.failures)
        if isinstance(result, Event):
            return _new(port, result)
        if answer is None:
            return None
        raise ModuleError(
            f"{self._name} answered {type(answer).__name__} where an Event, None or event.to(...) is expected; "
            "annotate its parameter with the type of the data to work on bare data"
        )

    def _many(self, many: Many) -> Any:
        failed = None if many.failed is None else tell(many.failed.error)
        if self._sink and not any(type(item) is Routed and item.outbox in EXCEPTION_PORTS for item in many.items):
            return UNCHANGED if failed is None else [FAILED, failed]
        items: list[Any] = []
        for item in many.items:
            target = item.target if type(item) is Routed else item
            if isinstance(target, Event):
                items.append(_new(item.outbox if type(item) is Routed else None, target))
            else:
                items.append((DATA, item))
        return (MANY, items, failed)

    def _packed(self, events: list[Event[Any]]) -> Any:
        """What a function of a whole batch answered."""
        places = {id(event): place for place, event in enumerate(events)}
        errors: dict[Any, Any] = {}
        try:
            try:
                result = self._answer_batch(events)
            except BatchFailed as failed:
                errors = {index: tell(error) for index, error in failed.errors.items()}
                odd = [index for index in errors if type(index) is not int]
                if odd:
                    raise ModuleError(f"{self._name} failed member {odd[0]!r} of a batch of {len(events)}") from None
                result = failed.result
                if result is None:
                    return (PACKED, None, list(errors.items()))
        except CAUGHT as error:
            return (FAILED, tell(error))
        if self._sink:
            return (PACKED, [], list(errors.items()))
        if result is None:
            result = []
        if not isinstance(result, list | tuple) or not all(isinstance(item, Event) for item in result):
            return (NO_EVENTS,)
        members = []
        for item in result:
            target: Any = item.target if type(item) is Routed else item
            port = item.outbox if type(item) is Routed else None
            place = places.get(id(target), -1)
            members.append((place, _new(port, target)))
        return (PACKED, members, list(errors.items()))

    def _answer_batch(self, events: list[Event[Any]]) -> Any:
        if self._isolate:
            return contextvars.copy_context().run(self._batch_call, list(events))
        return self._batch_call(list(events))

    # ------------------------------------------------------------------ what goes home

    def _send(self, number: int, seconds: float, answers: list[Any]) -> None:
        try:
            body = encode([number, seconds, answers])
        except (ValueError, TypeError, OverflowError, RecursionError):
            body = encode([number, seconds, [self._sendable(answer) for answer in answers]])
        if len(body) > FRAME_LIMIT:
            if len(answers) > 1:
                middle = len(answers) // 2
                self._send(number, seconds / 2, answers[:middle])
                self._send(number, seconds / 2, answers[middle:])
                return
            large = ModuleError(f"{self._name} answered {len(body):,} bytes; the limit is {FRAME_LIMIT:,}")
            body = encode([number, seconds, [[FAILED, tell(large)]]])
        self._sock.sendall(frame(body))

    def _sendable(self, answer: Any) -> Any:
        """The answer, or the failure that it cannot be told."""
        try:
            encode(answer)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            return [FAILED, tell(ModuleError(f"{self._name} answered what cannot leave its process: {reason}"))]
        return answer


def _nothing(answer: Any) -> int:
    """What is told of an answer that nobody takes."""
    return UNCHANGED


def _new(port: str | None, event: Event[Any]) -> tuple[Any, ...]:
    own_id = None if event._id is None else event.id
    return (NEW, port, event.data, event.headers, event.key, event.tags, event.failures, own_id)
