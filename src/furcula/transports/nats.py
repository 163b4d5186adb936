"""NATS: core for publishing to every subscriber, JetStream for work queues that survive.

A channel becomes one token of a subject: letters, digits, `-` and `_` as they are, every other byte of its UTF-8 as `=`
and two hex digits. NATS matches whole tokens only, so a subscription by prefix receives every channel and looks itself.

Core NATS waits for nobody, so subscribers drop when they are too slow. Pulling is written out here, one request for
each `take` that waits: the library's `fetch` leaves requests behind when it is cancelled, and what they bring is then
lost until the server's patience ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec

from furcula.errors import ConfigurationError, FurculaError, MissingExtra, Stopped
from furcula.options import Duration, Secret, Size
from furcula.transport import Loss, Message, Promises, Subscription
from furcula.transports.asked import check_body, check_channel, check_subscription

try:
    import nats
    import nats.errors
    import nats.js.errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.api import (
        AckPolicy,
        ConsumerConfig,
        DiscardPolicy,
        RetentionPolicy,
        StorageType,
        StreamConfig,
    )
except ImportError:
    raise MissingExtra("the transport over NATS", "nats") from None

__all__ = ["NatsTransport", "connect", "flushed", "tls_context", "token"]

log = logging.getLogger("furcula.transports.nats")

CONNECT_TIMEOUT: Final = Duration(10)
ACK_WAIT: Final = Duration(30)
MAX_BODY: Final = Size("1MB")
#: Bytes of a message that are not its body.
OVERHEAD = 8192
#: A pull request ends after so long, and another is made.
PULL_S = 30.0
#: The server forgets that somebody took from a queue when nobody has for so long; what is in the queue stays.
FORGOTTEN_S = 24 * 3600.0
#: Between tries to connect.
RECONNECT_S: Final = 0.1
#: Waits before a full queue is tried again: the first, and the longest.
FULL_S = (0.005, 0.25)

#: JetStream's words for a full queue: too many messages, in the stream or of the subject; too many bytes.
_FULL = (10077, 10054)
_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")


def token(channel: str) -> str:
    """The channel as one token of a subject."""
    if not channel:
        return "="
    return "".join(chr(byte) if byte in _SAFE else f"={byte:02X}" for byte in channel.encode())


def _channel(found: str) -> str | None:
    """The channel of a token; None if it is none of ours."""
    try:
        return "" if found == "=" else bytes.fromhex("".join(_hex(found))).decode()
    except ValueError:
        return None


def _hex(found: str) -> list[str]:
    first, *rest = found.split("=")
    return [first.encode().hex(), *(part[:2] + part[2:].encode().hex() for part in rest)]


class NatsTransport:
    """Carries over a NATS server, or a cluster.

    What is put is stored in a file of the server before `put` returns. What a dead taker had in hand is handed out
    again after `ack_wait`; who lives renews its claim (as long as its event loop turns), so it may work on a message
    for as long as it likes. The server counts attempts; a `release` is taken off by the transport that released, so
    another may see one too many. There is no `replay`.

    Args:
        url: `nats://host:port`, or `tls://host:port`.
        user: With `password`.
        password: With `user`.
        token: Instead of both.
        credentials: Path of a `.creds` file.
        tls_ca: Path of the certificates to trust; unset: those of the system.
        tls_cert: Path of our own certificate, where the server wants one.
        tls_key: Path of its key.
        prefix: The first token of all subjects, and of the name of the stream.
        size: Bodies that a work queue holds (those in hand included) before putters wait, and that wait for a
            subscriber before it drops.
        replicas: Servers of a cluster that store each body.
        max_body: Bytes that a body may have; less if the server takes less.
        ack_wait: So long the server waits for word of a taker.
        connect_timeout: So long a server is looked for at the beginning, and waited for when it has gone.
    """

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: Secret | None = None,
        token: Secret | None = None,
        credentials: str | None = None,
        tls_ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        prefix: str = "furcula",
        size: int = 10_000,
        replicas: int = 1,
        max_body: Size = MAX_BODY,
        ack_wait: Duration = ACK_WAIT,
        connect_timeout: Duration = CONNECT_TIMEOUT,
    ):
        if not prefix or not all(byte in _SAFE for byte in prefix.encode()):
            raise ConfigurationError(f"the prefix {prefix!r} must be letters, digits, - and _")
        if ack_wait <= 0:
            raise ConfigurationError("ack_wait must be more than 0")
        self.promises = Promises(order=True, durable=True, loss=("drop",), max_body=int(max_body))
        self._url = url
        self._options: dict[str, Any] = {}
        if user is not None:
            self._options.update(user=user, password=password.reveal() if password else "")
        if token is not None:
            self._options["token"] = token.reveal()
        if credentials is not None:
            self._options["user_credentials"] = credentials
        if url.startswith("tls://") or tls_ca or tls_cert:
            self._options["tls"] = tls_context(tls_ca, tls_cert, tls_key)
        self._prefix = prefix
        self._size = size
        self._replicas = replicas
        self._ack_wait_s = float(ack_wait)
        self._timeout_s = float(connect_timeout)
        self._client: Client | None = None
        self._stream_made = False
        self._making = asyncio.Lock()
        self._subscriptions: set[_Subscription] = set()
        self._pulls: dict[str, _Pull] = {}
        self._hand: dict[int, _Message] = {}
        self._released: dict[int, int] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._last_error = ""
        self._closed = False

    # ------------------------------------------------------------------ its beginning and end

    async def open(self) -> None:
        if self._closed:
            raise Stopped(f"the transport to {self._url} is closed; make a new one")
        if self._client is not None:
            return
        client = Client()
        await connect(
            client,
            self._url,
            self._timeout_s,
            self._note,
            servers=self._url,
            connect_timeout=max(1, int(self._timeout_s)),
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            **self._options,
        )
        self._client = client
        most = max(client.max_payload - OVERHEAD, client.max_payload // 2)
        if most < self.promises.max_body:
            self.promises = msgspec.structs.replace(self.promises, max_body=most)
        self._ending = asyncio.get_running_loop().create_future()
        self._renewing = asyncio.create_task(self._renew())

    def _note(self, error: Exception) -> None:
        self._last_error = str(error)
        log.debug("%s: %s", self._url, error)

    async def _disconnected(self) -> None:
        if self._client is not None and not self._closed:
            log.warning("the connection to %s is lost; connecting again", self._url)

    async def _reconnected(self) -> None:
        log.info("connected to %s again", self._url)
        for pull in self._pulls.values():
            pull.begin_again()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.end()
        for pull in self._pulls.values():
            pull.end(Stopped(f"the transport to {self._url} was closed while a taker waited"))
        client = self._client
        if self._ending is not None:
            self._ending.set_result(None)  # wakes putters who wait for room
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if client is None:
            return
        with contextlib.suppress(Exception):  # it is broken: then the server gives back what we had in hand
            async with asyncio.timeout(min(2.0, self._timeout_s)):
                await asyncio.gather(*(message.release() for message in list(self._hand.values())))
                await flushed(client, self._timeout_s)
        with contextlib.suppress(Exception):
            await client.close()

    def _open_client(self) -> Client:
        if self._closed:
            raise Stopped(f"the transport to {self._url} is closed")
        if self._client is None:
            raise FurculaError(f"the transport to {self._url} is not open")
        return self._client

    def _broken(self, error: BaseException) -> FurculaError:
        if self._closed:
            return Stopped(f"the transport to {self._url} is closed")
        reason = str(error) or self._last_error or type(error).__name__
        return FurculaError(f"NATS on {self._url}: {reason}")

    # ------------------------------------------------------------------ to every subscriber

    async def publish(self, channel: str, body: bytes) -> None:
        client = self._open_client()
        check_body(body, self.promises)
        check_channel(channel)
        try:
            await client.publish(f"{self._prefix}.all.{token(channel)}", body)
            async with asyncio.timeout(self._timeout_s):
                await flushed(client, self._timeout_s)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._broken(error) from None

    async def subscribe(
        self, *channels: str, prefix: bool = False, replay: int = 0, when_slow: Loss | None = None
    ) -> Subscription:
        client = self._open_client()
        check_subscription(channels, replay, when_slow, self.promises, "nats")
        subscription = _Subscription(channels, prefix, self._size, self._subscriptions.discard)
        names = ["*"] if prefix else [token(channel) for channel in dict.fromkeys(channels)]
        try:
            for name in names:
                found = await client.subscribe(
                    f"{self._prefix}.all.{name}", cb=subscription.arrived, pending_msgs_limit=0, pending_bytes_limit=0
                )
                subscription.parts.append(found)
            async with asyncio.timeout(self._timeout_s):
                await flushed(client, self._timeout_s)  # the server has heard of it now
        except (nats.errors.Error, OSError, TimeoutError) as error:
            await subscription.close()
            raise self._broken(error) from None
        self._subscriptions.add(subscription)
        return subscription

    # ------------------------------------------------------------------ to one worker

    async def put(self, channel: str, body: bytes, reported: Callable[[bool, bytes], None] | None = None) -> None:
        client = self._open_client()
        check_body(body, self.promises)
        check_channel(channel)
        await self._make_stream(client)
        assert self._ending is not None
        # With an id of its own, a body that was stored without our having heard of it is not stored twice.
        headers = {"Nats-Msg-Id": os.urandom(12).hex()}
        wait_s, deadline = FULL_S[0], 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                subject = f"{self._prefix}.one.{token(channel)}"
                await client.jetstream().publish(subject, body, timeout=5, headers=headers)
                return
            except nats.js.errors.APIError as error:
                if error.err_code not in _FULL:
                    raise self._broken(error) from None
                deadline = 0.0
            except (nats.errors.Error, OSError, TimeoutError) as error:
                deadline = deadline or loop.time() + self._timeout_s
                if loop.time() >= deadline or self._closed:
                    raise self._broken(error) from None
            await asyncio.wait([self._ending], timeout=wait_s)
            self._open_client()
            wait_s = min(2 * wait_s, FULL_S[1])

    async def take(self, channel: str) -> Message:
        client = self._open_client()
        check_channel(channel)
        pull = self._pulls.get(channel)
        if pull is None:
            async with self._making:
                pull = self._pulls.get(channel)
                if pull is None:
                    pull = await self._make_pull(client, channel)
                    self._pulls[channel] = pull
        self._open_client()
        return await pull.take()

    async def _make_stream(self, client: Client) -> None:
        if self._stream_made:
            return
        config = StreamConfig(
            name=self._prefix,
            subjects=[f"{self._prefix}.one.*"],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            discard_new_per_subject=True,
            max_msgs_per_subject=self._size,
            num_replicas=self._replicas,
        )
        try:
            await self._tried(lambda: client.jetstream().add_stream(config))
        except nats.js.errors.ServiceUnavailableError:
            raise FurculaError(f"{self._url} has no JetStream; start nats-server with -js for work queues") from None
        except nats.js.errors.BadRequestError as error:
            # It is there with other limits, which are its maker's to choose.
            if error.err_code != 10058:
                raise self._broken(error) from None
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._broken(error) from None
        self._stream_made = True

    async def _make_pull(self, client: Client, channel: str) -> _Pull:
        await self._make_stream(client)
        # A name of the server's files has fewer bytes than a channel may have.
        durable = hashlib.sha256(channel.encode()).hexdigest()[:40]
        config = ConsumerConfig(
            durable_name=durable,
            filter_subject=f"{self._prefix}.one.{token(channel)}",
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self._ack_wait_s,
            max_deliver=-1,
            max_ack_pending=-1,
            inactive_threshold=FORGOTTEN_S,
        )

        def make() -> Awaitable[None]:
            return self._tried(lambda: client.jetstream().add_consumer(self._prefix, config))

        pull = _Pull(client, f"$JS.API.CONSUMER.MSG.NEXT.{self._prefix}.{durable}", self._in_hand, make)
        try:
            await make()
            await pull.open()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise self._broken(error) from None
        return pull

    async def _tried(self, ask: Callable[[], Awaitable[Any]]) -> None:
        """Ask JetStream, again while there is no answer, until the server has been waited for long enough."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout_s
        while True:
            try:
                await ask()
                return
            except nats.js.errors.APIError:
                raise
            except (nats.errors.Error, OSError, TimeoutError):
                if loop.time() >= deadline or self._closed:
                    raise
            await asyncio.sleep(RECONNECT_S)

    def _in_hand(self, msg: Msg) -> _Message:
        assert self._client is not None
        message = _Message(self._client, msg, self._hand, self._released)
        self._hand[message.sequence] = message
        return message

    async def _renew(self) -> None:
        """Tell the server that we are still at what we have in hand."""
        while True:
            await asyncio.sleep(self._ack_wait_s / 3)
            for message in list(self._hand.values()):
                with contextlib.suppress(nats.errors.Error, OSError):
                    await message.renew()


async def connect(
    client: Client, shown: str, timeout_s: float, noted: Callable[[Exception], None], **options: Any
) -> None:
    """Connect for the first time; from then on the library connects again by itself, for ever.

    Args:
        client: What to connect.
        shown: Where to, for the error.
        timeout_s: So long a server is looked for.
        noted: Given every error of the connection, now and later.
        options: Of the library's `connect`.

    Raises:
        FurculaError: No server answers in time, or one refuses us; it says which.
    """
    refusal: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    last = "no answer"

    async def note(error: Exception) -> None:
        nonlocal last
        last = str(error) or last
        if _is_refusal(last) and not refusal.done():
            refusal.set_result(last)
        noted(error)

    connecting = asyncio.create_task(
        client.connect(
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_S,  # type: ignore[arg-type]
            error_cb=note,
            **options,
        )
    )
    # The library tries again also where the server has refused us for good.
    either: list[asyncio.Future[Any]] = [connecting, refusal]
    connected = False
    try:
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        connected = connecting.done() and connecting.exception() is None
    finally:
        if not connected:  # also when whoever connects has been cancelled
            connecting.cancel()
            await asyncio.wait([connecting], timeout=5)
            with contextlib.suppress(Exception):
                await client.close()
    if connected:
        return
    if connecting.done() and not connecting.cancelled():
        last = str(connecting.exception() or "") or last
    # A server that refuses us hangs up, which the library notes after the reason.
    reason = refusal.result() if refusal.done() else last
    raise FurculaError(f"no connection to {shown} within {timeout_s:g} s: {reason}")


async def flushed(client: Client, timeout_s: float) -> None:
    """Wait until the server has handled all that was sent so far. May be cancelled.

    The library's own `flush` is not used: its PING passes what still waits to be written; cancelled or out of time, it
    leaves a cancelled future among those that wait for a PONG, on which the library's reading ends for ever; and with
    reading ended it returns as if all were well.

    Raises:
        nats.errors.Error: The connection was lost meanwhile, so what became of what was sent is not known; or the
            server has not answered in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    reader = client._reading_task if client.is_connected else None
    while client.pending_data_size or not client.is_connected:
        if client.is_closed:
            raise nats.errors.ConnectionClosedError
        if loop.time() >= deadline:
            raise nats.errors.FlushTimeoutError
        await asyncio.sleep(0 if client.is_connected else RECONNECT_S / 10)  # it is written in the next turn
    reader = reader or client._reading_task
    if reader is not client._reading_task:
        raise nats.errors.StaleConnectionError
    if reader is None or reader.done():  # connected, and nobody reads what the server says
        await client._process_op_err(nats.errors.StaleConnectionError())
        raise nats.errors.StaleConnectionError
    answered: asyncio.Future[Any] = loop.create_future()
    await client._send_ping(answered)
    # Waiting for both cancels neither. An answer that comes late finds a future that can still be given one.
    await asyncio.wait(
        [answered, reader], timeout=max(0.0, deadline - loop.time()), return_when=asyncio.FIRST_COMPLETED
    )
    if not answered.done():
        raise nats.errors.StaleConnectionError if reader.done() else nats.errors.FlushTimeoutError


def _is_refusal(text: str) -> bool:
    text = text.lower()
    return "authorization" in text or "authentication" in text or "certificate" in text or "credentials" in text


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Whom to trust (None: the system's authorities), and our own certificate where one is given.

    Raises:
        ConfigurationError: One of the files cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS: {', '.join(filter(None, (ca, cert, key)))}: {error}") from None
    return context


class _Pull:
    """Takers of one work queue: each that waits has one request at the server."""

    def __init__(
        self, client: Client, subject: str, in_hand: Callable[[Msg], _Message], make: Callable[[], Awaitable[None]]
    ):
        self._client = client
        self._make = make
        self._subject = subject
        self._in_hand = in_hand
        self._inbox = client.new_inbox()
        self._waiting: deque[asyncio.Future[Message]] = deque()
        self._asked = 0
        self._asked_at = 0.0
        self._error: FurculaError | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None

    async def open(self) -> None:
        await self._client.subscribe(self._inbox, cb=self._arrived)

    async def take(self) -> Message:
        if self._error is not None:
            raise self._error
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._ask()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                await future.result().release()
            elif future in self._waiting:
                self._waiting.remove(future)
            raise

    def _ask(self) -> None:
        """One request for each who waits and has none."""
        missing = len(self._waiting) - self._asked
        if missing <= 0 or self._error is not None:
            return
        self._asked += missing
        loop = asyncio.get_running_loop()
        self._asked_at = loop.time()
        task = loop.create_task(self._request(missing))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        if self._watch is None:
            self._watch = loop.call_later(PULL_S + 5, self._look)

    def _look(self) -> None:
        """The server answers every request within its time; where it has not, the request was lost."""
        self._watch = None
        if self._waiting and self._error is None:
            if asyncio.get_running_loop().time() - self._asked_at > PULL_S:
                self.begin_again()
            else:
                self._watch = asyncio.get_running_loop().call_later(PULL_S + 5, self._look)

    async def _request(self, count: int) -> None:
        request = json.dumps({"batch": 1, "expires": int(PULL_S * 1e9)}).encode()
        with contextlib.suppress(nats.errors.Error, OSError):  # asked again after connecting again
            for _ in range(count):
                await self._client.publish(self._subject, request, self._inbox)

    async def _arrived(self, msg: Msg) -> None:
        self._asked = max(0, self._asked - 1)
        if msg.headers is not None and msg.headers.get("Status") is not None:
            if msg.headers["Status"] != "408":  # 409, 503: the server has other worries; not at once again
                await asyncio.sleep(0.1)
            if msg.headers["Status"] == "503" and self._error is None:  # the server has forgotten whom it answers
                with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                    await self._make()
            self._ask()
            return
        message = self._in_hand(msg)
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(message)
                self._ask()
                return
        await message.release()

    def begin_again(self) -> None:
        """There is a new connection: the requests made over the old one are lost."""
        self._asked = 0
        self._ask()

    def end(self, error: FurculaError) -> None:
        self._error = error
        if self._watch is not None:
            self._watch.cancel()
        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()
        self._waiting.clear()


class _Message:
    def __init__(self, client: Client, msg: Msg, hand: dict[int, _Message], released: dict[int, int]):
        self._client = client
        self.body = msg.data
        self.sequence = msg.metadata.sequence.stream
        self.attempts = (msg.metadata.num_delivered or 1) - released.get(self.sequence, 0)
        self._msg = msg
        self._hand = hand
        self._released = released
        self._spoken = False

    def _speak(self) -> bool:
        first, self._spoken = not self._spoken, True
        if first and self._hand.get(self.sequence) is self:
            del self._hand[self.sequence]
        return first

    async def _say(self, word: Any) -> None:
        try:
            await word
        except (nats.errors.Error, OSError) as error:
            log.debug("a word on a message was lost, so it comes again: %s", error)

    async def ack(self, report: bytes = b"") -> None:
        if self._speak():
            self._released.pop(self.sequence, None)
            await self._say(self._msg.ack())

    async def reject(self, report: bytes = b"") -> None:
        if self._speak():
            self._released.pop(self.sequence, None)
            await self._say(self._msg.term())

    async def again(self, delay_s: float = 0.0) -> None:
        if self._speak():
            await self._say(self._nak(delay_s))

    async def release(self) -> None:
        if self._speak():
            self._released[self.sequence] = self._released.get(self.sequence, 0) + 1
            if len(self._released) > 100_000:
                del self._released[next(iter(self._released))]
            await self._say(self._nak(0.0))

    async def _nak(self, delay_s: float) -> None:
        """Returns when the server has it back: a take that comes after this then gets it before what came later."""
        word = f'-NAK {{"delay": {int(delay_s * 1e9)}}}' if delay_s > 0 else "-NAK"
        await self._client.request(self._msg.reply, word.encode(), timeout=5)

    async def renew(self) -> None:
        if not self._spoken:
            await self._msg.in_progress()


class _Subscription:
    """What came for one subscriber and it has not read. When that is full, the oldest is dropped."""

    def __init__(self, channels: tuple[str, ...], prefix: bool, size: int, ended: Callable[[_Subscription], None]):
        self.parts: list[Any] = []
        self.lost = 0
        self.replayed = 0
        self._beginnings = channels if prefix else None
        self._size = size
        self._unread: deque[tuple[str, bytes]] = deque()
        self._ended = ended
        self._closed = False
        self._news: asyncio.Future[None] | None = None

    async def arrived(self, msg: Msg) -> None:
        channel = _channel(msg.subject.rpartition(".")[2])
        if channel is None or self._closed:
            return
        if self._beginnings is not None and not channel.startswith(self._beginnings):
            return
        if len(self._unread) >= self._size:
            self._unread.popleft()
            self.lost += 1
        self._unread.append((channel, msg.data))
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        while True:
            if self._unread:
                yield self._unread.popleft()
            elif self._closed:
                return
            else:
                if self._news is None or self._news.done():
                    self._news = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._news)

    def end(self) -> None:
        self._closed = True
        self._ended(self)
        self._wake()

    async def close(self) -> None:
        if self._closed:
            return
        self.end()
        for part in self.parts:
            with contextlib.suppress(nats.errors.Error, OSError):
                await part.unsubscribe()
