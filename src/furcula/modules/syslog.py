"""Syslog over UDP and TCP."""

from __future__ import annotations

import re
from typing import ClassVar, Final

from furcula.codecs import BadFrame, Reader
from furcula.codecs.framing import Frame
from furcula.module import Context, Source
from furcula.modules.address import Address
from furcula.modules.listening import TcpListener, UdpListener
from furcula.modules.syslog_message import parse
from furcula.options import Size

__all__ = ["SyslogFramer", "SyslogListen"]

MAX_MESSAGE: Final = Size("64kB")


class SyslogListen(Source):
    """Listen for syslog messages on UDP, TCP or both, and make an event of each.

    Takes RFC 5424, RFC 3164 and the usual deviations; on TCP, messages with their length in front and messages that end
    with a line feed or NUL, also mixed (RFC 6587). The data is a dict with `facility`, `severity` (emerg, alert, crit,
    err, warning, notice, info, debug), `priority`, `timestamp`, `host`, `app`, `pid`, `msgid`, `structured` and
    `message`. What has no priority, or is not UTF-8, leaves by `invalid`, with its reason. Headers: `peer`.

    A full flow makes TCP senders wait. UDP has no such way: 10,000 datagrams are kept, and more are dropped, counted
    and logged.

    Args:
        udp: `host:port`, or a port on loopback, for UDP. Port 0: any free one; see `addresses`.
        tcp: The same for TCP.
        max_message: Bytes that a message may have.
        reuse_port: Let several processes listen on the same port.
    """

    shared: ClassVar[bool] = True
    outboxes: ClassVar[tuple[str, ...]] = ("outbox", "invalid")
    optional: ClassVar[tuple[str, ...]] = ("invalid",)

    def __init__(
        self,
        *,
        udp: str | int | None = None,
        tcp: str | int | None = None,
        max_message: Size = MAX_MESSAGE,
        reuse_port: bool = False,
    ):
        if udp is None and tcp is None:
            raise ValueError("syslog.listen needs an address: udp, tcp, or both")
        self._udp = None if udp is None else Address.of(udp)
        self._tcp = None if tcp is None else Address.of(tcp)
        self._max_message = max_message
        self._reuse_port = reuse_port
        self._listeners: list[UdpListener | TcpListener] = []

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Hosts and ports as bound, UDP first."""
        return [address for listener in self._listeners for address in listener.addresses]

    @property
    def dropped(self) -> int:
        """Messages that were dropped because the flow had no room, or was stopping."""
        return sum(listener.dropped for listener in self._listeners)

    async def start(self, context: Context) -> None:
        try:
            if self._udp is not None:
                udp = UdpListener(context, self._udp, parse, self._max_message, reuse_port=self._reuse_port)
                await udp.open()
                self._listeners.append(udp)
            if self._tcp is not None:
                tcp = TcpListener(context, self._tcp, self._reader, reuse_port=self._reuse_port)
                await tcp.open()
                self._listeners.append(tcp)
        except BaseException:
            await self.stop()
            raise

    def _reader(self) -> Reader:
        return Reader(SyslogFramer(self._max_message), parse)

    async def cease(self) -> None:
        for listener in self._listeners:
            await listener.cease()

    async def stop(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            await listener.close()


# A length counts only in front of a message, so that a line that begins with a number is not taken for one.
_COUNT = re.compile(rb"([1-9][0-9]{0,8}) (?=<|\Z)")
_END = re.compile(rb"[\n\x00]")


class SyslogFramer:
    """Tells syslog messages apart in one TCP stream (RFC 6587), each by its own first byte.

    A message that begins with a digit has its length in front; one that begins with `<` ends with LF or NUL.
    """

    def __init__(self, max_message: int):
        self._max = max_message
        self._buffer = bytearray()
        self._skip = 0  # bytes still to come of a counted message that was reported as too long
        self._skip_line = False  # the same, of one that ends with LF

    @property
    def ends(self) -> list[int]:
        """Nobody reads a syslog stream on from a place in it."""
        return []

    def feed(self, chunk: bytes) -> list[Frame]:
        buffer = self._buffer
        if self._skip:
            gone = min(self._skip, len(chunk))
            self._skip -= gone
            chunk = chunk[gone:]
        searched = 0 if _COUNT.match(buffer) else len(buffer)  # there is no end in what we had
        buffer += chunk
        frames: list[Frame] = []
        at = 0
        while at < len(buffer):
            if self._skip_line:
                end = _END.search(buffer, at)
                if end is None:
                    at = len(buffer)
                    break
                self._skip_line = False
                at = end.end()
                continue
            count = _COUNT.match(buffer, at)
            if count is not None:
                length = int(count[1])
                start, stop = count.end(), count.end() + length
                if length > self._max:
                    frames.append(BadFrame.of(f"longer than {self._max} bytes: {length}", buffer[start:stop]))
                    self._skip = max(0, stop - len(buffer))
                elif stop > len(buffer):
                    break
                else:
                    frames.append(bytes(buffer[start:stop]))
                at = min(stop, len(buffer))
                continue
            end = _END.search(buffer, max(at, searched))
            if end is None:
                if len(buffer) - at > self._max:
                    frames.append(self._too_long(buffer[at:]))
                    self._skip_line = True
                    at = len(buffer)
                break
            if end.start() - at > self._max:
                frames.append(self._too_long(buffer[at : end.start()]))
            elif end.start() > at and buffer[at : end.start()] != b"\r":  # nothing between two ends: no message
                frames.append(bytes(buffer[at : end.start()]))
            at = end.end()
        del buffer[:at]
        return frames

    def _too_long(self, raw: bytearray) -> BadFrame:
        return BadFrame.of(f"longer than {self._max} bytes", raw)

    def end(self) -> list[Frame]:
        raw, skipping = bytes(self._buffer), self._skip_line or self._skip
        self._buffer.clear()
        self._skip, self._skip_line = 0, False
        if not raw or skipping:
            return []
        count = _COUNT.match(raw)
        if count is not None:
            there = len(raw) - count.end()
            return [BadFrame.of(f"the stream ended inside a message: {there} of {int(count[1])} bytes", raw)]
        return [raw]
