"""What was published last, for subscribers that come late: bounded per channel, in channels, and in bytes."""

from __future__ import annotations

from collections import OrderedDict, deque

__all__ = ["History"]


class History:
    """The last bodies of each channel.

    When there is no room, the channel that was published on longest ago is forgotten first.

    Args:
        bodies: So many are kept of a channel.
        channels: So many channels are kept.
        size_bytes: So much is kept in all.
    """

    def __init__(self, bodies: int, *, channels: int = 4096, size_bytes: int = 64 * 1024 * 1024):
        self._bodies = bodies
        self._channels = channels
        self._limit = size_bytes
        self._size = 0
        self._number = 0
        self._kept: OrderedDict[str, deque[tuple[int, bytes]]] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Bytes that are kept now."""
        return self._size

    def add(self, channel: str, body: bytes) -> None:
        if not self._bodies or len(body) > self._limit:
            return
        kept = self._kept.get(channel)
        if kept is None:
            kept = self._kept[channel] = deque()
        else:
            self._kept.move_to_end(channel)
        self._number += 1
        kept.append((self._number, body))
        self._size += len(body)
        if len(kept) > self._bodies:
            self._size -= len(kept.popleft()[1])
        while self._size > self._limit or len(self._kept) > self._channels:
            self._forget()

    def _forget(self) -> None:
        oldest, bodies = next(iter(self._kept.items()))
        self._size -= len(bodies.popleft()[1])
        if len(self._kept) > self._channels or not bodies:
            self._size -= sum(len(body) for _, body in bodies)
            del self._kept[oldest]

    def last(self, channels: tuple[str, ...], prefix: bool, count: int) -> list[tuple[str, bytes]]:
        """The last `count` bodies of each channel that matches, in the order in which they were added."""
        if not count:
            return []
        if prefix:
            names = [name for name in self._kept if name.startswith(channels)]
        else:
            names = [name for name in dict.fromkeys(channels) if name in self._kept]
        found = [(number, name, body) for name in names for number, body in list(self._kept[name])[-count:]]
        return [(name, body) for _, name, body in sorted(found)]
