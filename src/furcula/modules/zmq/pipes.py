"""0mq one way: push and pull share work among peers, publish and subscribe give to all who listen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar, Final

from furcula.codecs import BadFrame
from furcula.codecs import codec as codec_named
from furcula.errors import InputError, Stopped
from furcula.event import Event
from furcula.module import Context, Module, Source
from furcula.modules.received import admit_both, invalid
from furcula.modules.sending import Destination, Refused, Unavailable, report
from furcula.modules.zmq.wire import MAX_MESSAGE, Curve, Wire, check_address
from furcula.options import Duration, Size

__all__ = ["Publish", "Pull", "Push", "Subscribe"]

TIMEOUT: Final = Duration("10s")
#: Messages that wait on each side of a connection before the sender has to.
HIGH_WATER: Final = 1000
#: A stop reads what had come until nothing has come for so long, in so long altogether.
QUIET_S: Final = 0.05
DRAIN_S: Final = 5.0


class _Receiving(Source):
    """What pull and subscribe share."""

    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)
    _kind: ClassVar[str]
    #: What had come before a stop is handled.
    _drains: ClassVar[bool] = False

    _context: Context

    def __init__(self, address: str, bind: bool, codec: str, curve: Curve | None, max_message: Size):
        check_address(address)
        self._address = address
        self._bind = bind
        self._codec = codec_named(codec)
        self._curve = curve
        self._max_message = max_message
        self._wire: Wire | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._ceased = False

    @property
    def address(self) -> str:
        """Where it is, once started; with the port that the system chose for port 0."""
        return self._wire.address if self._wire else self._address

    def start(self, context: Context) -> None:
        self._context = context
        self._wire = Wire(
            self._kind,
            self._address,
            bind=self._bind,
            curve=self._curve,
            received=self._received,
            options={"RCVHWM": HIGH_WATER, **self._options()},
            max_message=self._max_message,
        )

    def _options(self) -> dict[str, Any]:
        return {}

    def _received(self, messages: list[list[bytes]]) -> None:
        try:
            wait = self._admit(messages)
        except Stopped:
            return
        if wait is not None and self._wire is not None:
            self._wire.pause()
            self._waiting = asyncio.ensure_future(self._wait(wait))

    def _admit(self, messages: list[list[bytes]]) -> Awaitable[None] | None:
        good: list[Event[Any]] = []
        bad: list[Event[Any]] = []
        for frames in messages:
            try:
                body, headers = self._parts(frames)
                good.append(self._event(self._codec.decode(body), headers))
            except InputError as error:
                bad.append(invalid(BadFrame.of(str(error), frames[-1]), {"frames": len(frames)}))
        return admit_both(self._context, good, bad)

    async def _wait(self, wait: Awaitable[None]) -> None:
        await wait
        if self._wire is not None and not self._ceased:
            self._wire.resume()

    async def _drain(self, wire: Wire) -> None:
        """Take what 0mq has taken from those who push. It says nothing of what is still on its way."""
        # It stays bound or connected: to leave the address would end its connections, with what they have brought.
        if self._waiting is not None:
            await asyncio.wait([self._waiting])
        loop = asyncio.get_running_loop()
        last = loop.time()
        while loop.time() - last < QUIET_S:
            messages = wire.take()
            if not messages:
                await asyncio.sleep(QUIET_S / 10)
                continue
            last = loop.time()
            wait = self._admit(messages)
            if wait is not None:
                await wait
                last = loop.time()

    def _parts(self, frames: list[bytes]) -> tuple[bytes, dict[str, Any]]:
        raise NotImplementedError

    def _event(self, data: Any, headers: dict[str, Any]) -> Event[Any]:
        return Event(data, headers)

    async def cease(self) -> None:
        self._ceased = True
        wire = self._wire
        if wire is not None:
            wire.pause()
            try:
                if self._drains:
                    async with asyncio.timeout(DRAIN_S):
                        await self._drain(wire)
            except TimeoutError:
                self._context.log.warning("others push on while this stops: what has come and was not read is lost")
            except Stopped:
                pass
            finally:
                wire.close(linger_ms=0)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.cancel()
            await asyncio.wait([self._waiting])


class Pull(_Receiving):
    """Pull values that others push (0mq PULL). What several push is taken fairly from each.

    When the flow has no room the socket is not read, and those who push wait. 0mq has no acknowledgement: a crash loses
    what had been received, which may be some thousand messages of each who pushes. A stop first reads what has come,
    until nothing more does; what others push meanwhile for longer than 5 s, or push after that, is lost, though 0mq had
    taken it from them. So stop those who push first. For work that must not be lost there are transports,
    `jetstream.consume` and others. What cannot be read leaves by `invalid`, with its reason.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        bind: Be there for others to connect to; else connect.
        codec: What a message holds: json, msgpack, text, binary.
        curve: Encryption: `{secret_key: …}` of who binds; `{server_key: …, public_key: …, secret_key: …}` of who
            connects.
        max_message: Bytes that a message may have; a peer that sends more is disconnected.
    """

    _kind = "PULL"
    _drains = True

    def __init__(
        self,
        *,
        address: str,
        bind: bool = True,
        codec: str = "json",
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        super().__init__(address, bind, codec, curve, max_message)

    def _parts(self, frames: list[bytes]) -> tuple[bytes, dict[str, Any]]:
        if len(frames) != 1:
            raise InputError(f"a pushed message has one frame, not {len(frames)}")
        return frames[0], {}


class Subscribe(_Receiving):
    """Receive what others publish (0mq SUB): messages of a topic frame and a body.

    0mq drops what a subscriber is too slow for, without counting; a bus (`bus.subscribe`) counts it, or makes
    publishers wait. Headers: `topic`. What cannot be read leaves by `invalid`, with its reason.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        topics: Beginnings of topics, as 0mq has them; "" means all.
        bind: Be there for others to connect to; else connect.
        codec: What a body holds: json, msgpack, text, binary.
        curve: Encryption, as for `zmq.pull`.
        max_message: Bytes that a frame may have; a peer that sends more is disconnected.
    """

    _kind = "SUB"

    def __init__(
        self,
        *,
        address: str,
        topics: str | list[str] = "",
        bind: bool = False,
        codec: str = "json",
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        super().__init__(address, bind, codec, curve, max_message)
        self._topics = [topics] if isinstance(topics, str) else list(topics)
        if not self._topics:
            raise ValueError("topics: name one, or '' for all")

    def start(self, context: Context) -> None:
        super().start(context)
        assert self._wire is not None
        for topic in self._topics:
            self._wire.subscribe(topic.encode())

    def _parts(self, frames: list[bytes]) -> tuple[bytes, dict[str, Any]]:
        if len(frames) != 2:
            raise InputError(f"a published message has two frames, topic and body, not {len(frames)}")
        return frames[1], {"topic": frames[0].decode("utf-8", "backslashreplace")}


class _Sending(Module):
    """What push and publish share."""

    outboxes: ClassVar[tuple[str, ...]] = ("outbox",)
    _kind: ClassVar[str]

    def __init__(self, address: str, bind: bool, curve: Curve | None, timeout: Duration):
        check_address(address)
        self._address = address
        self._bind = bind
        self._curve = curve
        self._timeout = timeout
        self._wire: Wire | None = None

    @property
    def address(self) -> str:
        """Where it is, once started; with the port that the system chose for port 0."""
        return self._wire.address if self._wire else self._address

    def start(self) -> None:
        options = {"SNDHWM": HIGH_WATER, **self._options()}
        self._wire = Wire(self._kind, self._address, bind=self._bind, curve=self._curve, options=options)

    def _options(self) -> dict[str, Any]:
        return {}

    def stop(self) -> None:
        if self._wire is not None:
            self._wire.close()


class Push(_Sending):
    """Push each event's data to one of the peers that pull (0mq PUSH), in turn.

    An event is delivered when 0mq has taken it; what it has taken and a peer has not is lost with this process. While
    no peer has room, events wait; beyond `timeout` they fail, worth another try.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        bind: Be there for others to connect to; else connect.
        codec: What a message holds: json, msgpack, text, binary.
        timeout: Seconds that a batch may wait for room.
        curve: Encryption, as for `zmq.pull`.
    """

    _kind = "PUSH"

    def __init__(
        self,
        *,
        address: str,
        bind: bool = False,
        codec: str = "json",
        timeout: Duration = TIMEOUT,
        curve: Curve | None = None,
    ):
        super().__init__(address, bind, curve, timeout)
        self._codec = codec_named(codec)

    def _options(self) -> dict[str, Any]:
        return {"IMMEDIATE": 1}  # only to peers that are there: what waits for others would be lost with us

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        assert self._wire is not None
        errors: dict[int, BaseException] = {}
        ends = asyncio.get_running_loop().time() + self._timeout
        for index, event in enumerate(events):
            try:
                body = self._codec.encode(event.data)
            except ValueError as error:
                errors[index] = Refused(str(error))
                continue
            left_s = max(0.0, ends - asyncio.get_running_loop().time())
            if not self._wire.try_send([body]) and not await self._wire.send([body], left_s):
                errors[index] = Unavailable(f"nobody at {self._address} had room for {self._timeout:g} s")
        return report(events, errors)


class Publish(_Sending):
    """Publish each event's data to all peers that subscribe (0mq PUB), as a topic frame and a body.

    0mq gives what is published to who is there and has room, and drops it for others, without counting: delivered means
    handed to 0mq. A bus (`bus.publish`) promises more.

    Args:
        address: tcp://127.0.0.1:5555, ipc:///run/my.ipc or inproc://name.
        topic: The topic.
        topic_from: Where in the event the topic stands: `headers.routing_key`.
        bind: Be there for others to connect to; else connect.
        codec: What a body holds: json, msgpack, text, binary.
        curve: Encryption, as for `zmq.pull`.
    """

    _kind = "PUB"

    def __init__(
        self,
        *,
        address: str,
        topic: str = "",
        topic_from: str | None = None,
        bind: bool = True,
        codec: str = "json",
        curve: Curve | None = None,
    ):
        super().__init__(address, bind, curve, TIMEOUT)
        self._destination = Destination("topic", topic, topic_from, codec, required=False)

    async def process_batch(self, events: list[Event[Any]]) -> list[Event[Any]]:
        assert self._wire is not None
        ready, errors = self._destination.prepared(events)
        for one in ready:
            if not self._wire.try_send([one.to.encode(), one.body]):
                errors[one.index] = Unavailable(f"{self._address} has no room")
        return report(events, errors)
