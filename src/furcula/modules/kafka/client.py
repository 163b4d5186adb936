"""What is said to librdkafka, by consumers and producers. The one file that imports it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal, TypeVar

from furcula.errors import MissingExtra
from furcula.modules.endpoint import Endpoint, Tls
from furcula.options import Secret

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
except ImportError:
    raise MissingExtra("a module of Kafka", "kafka") from None

__all__ = [
    "BROKEN",
    "Caller",
    "Consumer",
    "KafkaError",
    "KafkaException",
    "Mechanism",
    "Producer",
    "TopicPartition",
    "Troubles",
    "brokers_of",
    "settings_of",
]

T = TypeVar("T")

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
#: What says that a client does not work any more.
BROKEN: Final = (OSError, EOFError, KafkaException)
_SCHEMES: Final = {"kafka": 9092, "kafkas": 9093}
#: Errors after which a client is given up for a new one. Others the library mends by itself.
_GONE: Final = frozenset((KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._FATAL))

_log = logging.getLogger("furcula.kafka")
_log.setLevel(logging.CRITICAL)  # what goes wrong comes as an error, too, and is told once


def brokers_of(url: str, user: str | None, password: Secret | None) -> tuple[Endpoint, str]:
    """The first broker of `kafka://host:9092,other:9092`, and all of them as the library wants them.

    Raises:
        ValueError: It is no such URL.
    """
    scheme, separator, rest = url.partition("://")
    first, *others = rest.split(",")
    endpoint = Endpoint.of(
        f"{scheme}{separator}{first}", _SCHEMES, secure=frozenset(("kafkas",)), user=user, password=password
    )
    more = [Endpoint.of(f"{scheme}://{other}", _SCHEMES).address for other in others]
    return endpoint, ",".join((endpoint.address, *more))


def settings_of(
    endpoint: Endpoint, brokers: str, *, tls: Tls | None, folder: Path, mechanism: Mechanism, timeout_s: float
) -> dict[str, Any]:
    """The library's own settings for where and who."""
    settings: dict[str, Any] = {
        "bootstrap.servers": brokers,
        "client.id": "furcula",
        "logger": _log,
        "socket.connection.setup.timeout.ms": max(1000, int(timeout_s * 1000)),
        "reconnect.backoff.max.ms": 2000,
        # A request that is under way when a broker goes holds whoever waits for it, or closes the client, so long.
        "socket.timeout.ms": max(2000, int(timeout_s * 1000)),
    }
    secure = tls is not None or endpoint.secure
    if endpoint.user is not None:
        settings["sasl.mechanism"] = mechanism
        settings["sasl.username"] = endpoint.user
        settings["sasl.password"] = endpoint.password.reveal() if endpoint.password is not None else ""
        settings["security.protocol"] = "SASL_SSL" if secure else "SASL_PLAINTEXT"
    elif secure:
        settings["security.protocol"] = "SSL"
    if tls is not None:
        tls.context(folder)  # says what is wrong with the files; the library takes their names
        settings["enable.ssl.certificate.verification"] = tls.verify
        for name, file in (("ca", tls.ca_file), ("certificate", tls.cert_file), ("key", tls.key_file)):
            if file:
                settings[f"ssl.{name}.location"] = str(folder / file)
    return settings


class Troubles:
    """What the library says goes wrong, in whatever thread it says it.

    Attributes:
        last: The last error, for one who has waited in vain.
    """

    def __init__(self, lost: Callable[[BaseException | str | None], None]):
        self.last: str = ""
        self._lost = lost
        self._loop = asyncio.get_running_loop()

    def heard(self, error: KafkaError) -> None:
        text = " ".join(str(error.str()).split())
        if error.code() != KafkaError._ALL_BROKERS_DOWN or not self.last:
            self.last = text
        if error.code() in _GONE:
            try:
                self._loop.call_soon_threadsafe(self._lost, self.last)
            except RuntimeError:  # the loop is closed, and nobody listens any more
                pass


class Caller:
    """A thread in which one client's calls are made, one after the other: they block.

    Brokers that say nothing can hold a call, of closing too, for longer than a flow may take to stop. So the thread
    does not keep the process from its end, as one of an executor's would.
    """

    def __init__(self, name: str):
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended = False
        threading.Thread(target=self._run, name=f"furcula {name}", daemon=True).start()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    async def do(self, call: Callable[..., T], *arguments: Any) -> T:
        if self._ended:
            raise ConnectionError("the connection was given up")
        done: Future[T] = Future()

        def work() -> None:
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(call(*arguments))
                except BaseException as error:
                    done.set_exception(error)

        self._calls.put(work)
        return await asyncio.wrap_future(done)

    def end(self) -> None:
        """What it was given before is done; nothing more is taken."""
        self._ended = True
        self._calls.put(None)
