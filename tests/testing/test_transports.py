"""The transport in memory passes the suite that every transport passes."""

from __future__ import annotations

from furcula.testing.transports import TransportSuite
from furcula.transport import Promises, Transport
from furcula.transports.memory import MemoryTransport


class TestMemory(TransportSuite):
    promises = Promises(order=True, reports=True, loss="block")
    fills_at = 4
    limit_s = 5

    def make(self) -> Transport:
        return MemoryTransport(size=4)
