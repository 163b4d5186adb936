"""The thread that holds a hub: whoever binds the address first runs one, for itself and for all others.

tcp: two cannot bind one port, so the race is settled by the system. ipc: libzmq takes a path over without a word, so a
lock on the file beside it decides; it goes with the process that held it, however that ended. inproc: a name belongs to
one process, so its first transport holds the hub.

A process has at most one hub for an address, shared by its transports and let go by the last of them. After a fork the
child has none: it closes what it inherited, else the port would stay taken when the parent ends, and its peers would
not notice that it has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import zmq

from furcula.locks import lock_now
from furcula.transports.zmq.address import HubAddress
from furcula.transports.zmq.frames import OVERHEAD
from furcula.transports.zmq.hub import Hub
from furcula.transports.zmq.keys import Keys

__all__ = ["INSIDE", "Held", "aside", "failures", "hold", "keep_apart", "let_go"]

T = TypeVar("T")

log = logging.getLogger("furcula.transports.zmq")

#: Where a hub is to be reached inside its process, by sockets of its context: two hops less than by the network.
INSIDE = "inproc://furcula-hub"
#: When its last transport closes, a hub goes on sending what it has for so long.
LINGER_S = 5.0
NOBLOCK_MORE = zmq.NOBLOCK | zmq.SNDMORE
#: Frames that are read before the answers to them are sent.
AT_ONCE = 256

_held: dict[tuple[int, str], Held] = {}
_guard = threading.Lock()
#: Address -> why it could not be held when that was tried last, where the system gave a reason.
failures: dict[str, str] = {}


class Held:
    """A hub that runs in a thread of this process.

    Attributes:
        context: Of its sockets. Who connects by `INSIDE` uses it too.
        keys: That it was made with.
    """

    def __init__(self, address: HubAddress, make_hub: Callable[[float], Hub], keys: Keys | None, max_body: int):
        self.address = address
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.users = 0
        self.listener: socket.socket | None = None
        self._lock: int | None = None
        self.keys = keys
        self._hub = make_hub(time.monotonic())
        self._wake_out, self._wake_in = socket.socketpair()
        self._max_body = max_body
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"furcula-hub {address}", daemon=True)
        self._router: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self._doorman: zmq.Socket[bytes] | None = None

    # ------------------------------------------------------------------ its beginning and end

    def begin(self) -> bool:
        """Bind and start. Returns whether the address was free."""
        router = self._router
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.MAXMSGSIZE, self._max_body + OVERHEAD)
        router.setsockopt(zmq.LINGER, int(LINGER_S * 1000))
        # What is under way to a client is limited by its windows; a mark in libzmq would lose what is beyond it.
        router.setsockopt(zmq.SNDHWM, 0)
        router.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        if self.keys is not None:
            self._doorman = self.context.socket(zmq.REP)
            self._doorman.bind("inproc://zeromq.zap.01")
            self.keys.guard(router)
        if not self._bind():
            self._close()
            if self.listener is not None:  # it listened, and libzmq would not have it
                self.listener.close()
            return False
        if self.address.public and self.keys is None:
            log.warning("the hub on %s can be used by whoever reaches this machine; give it CURVE keys", self.address)
        self._thread.start()
        return True

    def _bind(self) -> bool:
        try:
            if self.address.kind == "tcp":
                self.listener = self.address.listening()
                if self.listener is None:
                    return False
                self._router.setsockopt(zmq.USE_FD, self.listener.fileno())
                self._router.setsockopt(zmq.IPV6, int(self.listener.family == socket.AF_INET6))
                host, port = self.listener.getsockname()[:2]
                self._router.bind(f"tcp://{f'[{host}]' if ':' in host else host}:{port}")
            elif self.address.kind == "ipc":
                if not self._lock_path():
                    return False
                self._router.bind(str(self.address))
            # An inproc name needs no binding of its own: `_held` says who has it.
            self._router.bind(INSIDE)
        except (zmq.ZMQError, OSError) as error:  # it is taken, on another host, or in no folder
            failures[str(self.address)] = os.strerror(error.errno) if error.errno else str(error)
            return False
        failures.pop(str(self.address), None)
        return True

    def _lock_path(self) -> bool:
        path = self.address.path
        if path.startswith("@"):  # Linux's abstract names: binding twice is refused by the system
            return True
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Who held it before takes the file away at its end: a lock on what has no name keeps out nobody.
            ours = lock_now(lock) and os.stat(f"{path}.lock").st_ino == os.fstat(lock).st_ino
        except OSError:
            ours = False
        if not ours:
            os.close(lock)
            return False
        self._lock = lock
        return True

    def end(self) -> None:
        """Send what is left, and let go of the address. Blocks, at most a little longer than `LINGER_S`."""
        self._ended = True
        self._wake_in.send(b"x")
        self._thread.join(LINGER_S + 1)

    def _close(self) -> None:
        if self._lock is not None:  # before libzmq closes it: as long as we have the lock, it is nobody else's
            with contextlib.suppress(OSError):
                os.unlink(self.address.path)
        self._router.close()
        if self._doorman is not None:
            self._doorman.close(linger=0)
        self.context.term()  # waits until what was sent has left, or LINGER_S have passed
        self._wake_out.close()
        self._wake_in.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(f"{self.address.path}.lock")
            os.close(self._lock)

    def abandon(self) -> None:
        """In a forked child: close the descriptors that would keep up what the parent alone may hold."""
        for inherited in (self._wake_out, self._wake_in, self.listener):
            if inherited is not None:
                with contextlib.suppress(OSError):
                    inherited.close()
        if self._lock is not None:
            # The lock is the open file's, which parent and child share: closing here leaves it with the parent.
            with contextlib.suppress(OSError):
                os.close(self._lock)

    @property
    def refused(self) -> dict[str, int]:
        return dict(self._hub.refused)

    # ------------------------------------------------------------------ its thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            log.exception("the hub on %s has ended", self.address)
        finally:
            if self.listener is not None:
                self.listener.detach()  # libzmq closes it
            self._close()

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        if self._doorman is not None:
            poller.register(self._doorman, zmq.POLLIN)
        while not self._ended:
            wait_s = self._hub.tick(time.monotonic())
            self._send_out()
            ready = dict(poller.poll(max(1, int(wait_s * 1000) + 1)))
            if self._doorman is not None and self._doorman in ready:
                self._let_in(self._doorman)
            if self._router in ready:
                self._read()
        # What clients said before they closed stands in the socket; it is dealt with before the hub goes.
        self._read()
        if self._hub.orphans:
            log.warning(
                "the hub on %s ends with %d messages in its work queues whose senders have gone; they are lost",
                self.address,
                self._hub.orphans,
            )

    def _read(self) -> None:
        router, hub = self._router, self._hub
        more = True
        while more:
            now = time.monotonic()
            for _ in range(AT_ONCE):
                try:
                    parts = router.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    more = False
                    break
                if len(parts) == 2:
                    hub.handle(parts[0], parts[1], now)
                else:
                    hub.refuse("parts")
            self._send_out()

    def _send_out(self) -> None:
        send, hub = self._router.send, self._hub
        while True:
            out = hub.collect()
            if not out:
                return
            for identity, frame in out:
                try:
                    send(identity, NOBLOCK_MORE)
                    send(frame, zmq.NOBLOCK)
                except zmq.ZMQError:  # it has gone; sending to it is how we find out
                    hub.gone(identity)

    def _let_in(self, doorman: zmq.Socket[bytes]) -> None:
        """Answer libzmq's question whether a client may come in (ZAP, RFC 27)."""
        assert self.keys is not None
        try:
            parts = doorman.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        version, request = (*parts, b"", b"")[:2]
        allowed = len(parts) == 7 and parts[5] == b"CURVE" and self.keys.allows(parts[6])
        if not allowed:
            self._hub.refuse("not allowed")
        answer = [b"200", b"OK"] if allowed else [b"400", b"this key is not allowed"]
        doorman.send_multipart([version or b"1.0", request, *answer, b"", b""])


# ------------------------------------------------------------------ one for an address


def hold(address: HubAddress, make_hub: Callable[[float], Hub], keys: Keys | None, max_body: int) -> Held | None:
    """Hold the hub of this address, if nobody does. Each call that returns one is answered by one `let_go`."""
    key = (os.getpid(), str(address))
    with _guard:
        held = _held.get(key)
        if held is None:
            if keys is not None and not keys.can_hold:
                return None
            held = Held(address, make_hub, keys, max_body)
            if not held.begin():
                return None
            _held[key] = held
        held.users += 1
        return held


def let_go(held: Held) -> None:
    """Blocks while the hub sends what is left, if this was its last user."""
    with _guard:
        held.users -= 1
        if held.users:
            return
        _held.pop((os.getpid(), str(held.address)), None)
        held.end()


async def aside(call: Callable[..., T], *arguments: Any) -> T:
    """Make a call that may block without holding up the loop."""
    try:
        return await asyncio.to_thread(call, *arguments)
    except RuntimeError as error:
        if "shutdown" not in str(error):
            raise
        return call(*arguments)  # the interpreter ends, and starts no more threads


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    for held in _held.values():
        held.abandon()
    _inherited.extend(_held.values())  # never ended: their threads and contexts are the parent's
    _held.clear()
    _inherited.extend(_sockets)
    ends = set(_ends)
    _ends.clear()
    if ends:
        _close_connections(ends)


#: Kept, so that nobody closes the sockets of another process by collecting them.
_inherited: list[Any] = []


_sockets: weakref.WeakSet[Any] = weakref.WeakSet()
#: The ends of connections to hubs: paths, or hosts (None: any of ours) and ports.
_ends: set[str | tuple[str | None, int]] = set()


def keep_apart(address: HubAddress, owner: Any) -> None:
    """After a fork, the child shall not touch the sockets of `owner`, which are connected to this address."""
    if address.kind == "ipc":
        _ends.add(address.path)
    elif address.kind == "tcp":
        # Resolved now: a forked child should not ask for names.
        _ends.add((address.connects_to(), address.port))
        if address.host in ("*", "::"):
            _ends.add((None, address.port))
    _sockets.add(owner)


def _close_connections(ends: set[str | tuple[str | None, int]]) -> None:
    """Close inherited connections to hubs: while we keep them open, nobody sees that the parent has gone."""
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # no /proc here; then the heartbeats find out, some seconds later
        return
    for descriptor in descriptors:
        try:
            copy = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            continue
        with copy:
            ours = _is_end(copy.getsockname, ends, here=True) or _is_end(copy.getpeername, ends, here=False)
        if ours:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _is_end(ask: Callable[[], Any], ends: set[str | tuple[str | None, int]], *, here: bool) -> bool:
    try:
        name = ask()
    except OSError:
        return False
    if not isinstance(name, tuple) or len(name) < 2:
        return name in ends
    host, port = str(name[0]).removeprefix("::ffff:"), name[1]
    return (host, port) in ends or (here and (None, port) in ends)


os.register_at_fork(after_in_child=_after_fork)
