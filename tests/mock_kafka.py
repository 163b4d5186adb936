"""A Kafka cluster for tests: the one that librdkafka carries, in the library that the client itself has loaded.

`test.mock.num.brokers` makes one too, but of that nobody can take the brokers away. The C functions that can are those
of `rdkafka_mock.h`. What the brokers keep lives as long as the cluster, whether they are up or down.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from tests.services import missing

__all__ = ["MockKafka", "mock_kafka"]

REBALANCE_DELAY_MS = 100

_PRODUCER = 0
_POINTER = ctypes.c_void_p


def _library() -> ctypes.CDLL:
    """The library, found by way of the extension module that is linked with it: so it has no name that could differ."""
    from confluent_kafka import cimpl

    library = ctypes.CDLL(str(cimpl.__file__))
    try:
        for name, result, *arguments in (
            ("rd_kafka_conf_new", _POINTER),
            ("rd_kafka_conf_set", ctypes.c_int, _POINTER, *(ctypes.c_char_p,) * 3, ctypes.c_size_t),
            ("rd_kafka_new", _POINTER, ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_size_t),
            ("rd_kafka_destroy", None, _POINTER),
            ("rd_kafka_err2str", ctypes.c_char_p, ctypes.c_int),
            ("rd_kafka_mock_cluster_new", _POINTER, _POINTER, ctypes.c_int),
            ("rd_kafka_mock_cluster_destroy", None, _POINTER),
            ("rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p, _POINTER),
            ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, _POINTER, ctypes.c_int32),
            ("rd_kafka_mock_broker_set_down", ctypes.c_int, _POINTER, ctypes.c_int32),
            ("rd_kafka_mock_broker_set_rtt", ctypes.c_int, _POINTER, ctypes.c_int32, ctypes.c_int),
            ("rd_kafka_mock_broker_set_up", ctypes.c_int, _POINTER, ctypes.c_int32),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:  # linked in such a way that it cannot be reached through the extension
        missing(f"a librdkafka whose mock cluster can be reached ({error})")
    return library


class MockKafka:
    """A cluster of mock brokers on loopback ports, in threads of this process. A new topic has four partitions.

    Attributes:
        bootstrap: Its brokers, as the library wants them: host:port,host:port.
    """

    def __init__(self, brokers: int = 2):
        self._library = _library()
        self._ids = range(1, brokers + 1)
        why = ctypes.create_string_buffer(500)
        configuration = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set(configuration, b"log_level", b"0", why, len(why))
        # The keeper talks to nobody: it is what a cluster hangs on.
        self._keeper = self._library.rd_kafka_new(_PRODUCER, configuration, why, len(why))
        if not self._keeper:
            raise RuntimeError(f"librdkafka makes no client: {why.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._keeper, brokers)
        if not self._cluster:
            self._library.rd_kafka_destroy(self._keeper)
            raise RuntimeError("librdkafka makes no mock cluster")
        # A new group waits three seconds for more members, where nobody says so.
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, REBALANCE_DELAY_MS)
        self.bootstrap: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    @property
    def url(self) -> str:
        return f"kafka://{self.bootstrap}"

    def down(self) -> None:
        """All brokers go: their connections are closed, and new ones are refused. Returns when that is so."""
        for number in self._ids:
            self._done(self._library.rd_kafka_mock_broker_set_down(self._cluster, number))

    def up(self) -> None:
        """They are back, on the same ports, with what they had."""
        for number in self._ids:
            self._done(self._library.rd_kafka_mock_broker_set_up(self._cluster, number))

    def delay(self, seconds: float) -> None:
        """So long an answer takes from now on."""
        for number in self._ids:
            self._done(self._library.rd_kafka_mock_broker_set_rtt(self._cluster, number, int(seconds * 1000)))

    def close(self) -> None:
        if self._cluster:
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._keeper)
            self._cluster = self._keeper = None

    def _done(self, code: int) -> None:
        if code:
            raise RuntimeError(f"the mock cluster: {self._library.rd_kafka_err2str(code).decode()}")


@contextmanager
def mock_kafka(brokers: int = 2) -> Iterator[MockKafka]:
    """A cluster for the time of the block."""
    cluster = MockKafka(brokers)
    try:
        yield cluster
    finally:
        cluster.close()
