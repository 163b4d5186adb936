"""What was published last, for subscribers that come late: bounded per channel, in channels, and in bytes."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping

__all__ = ["History"]

#: Of so many bodies that were forgotten it is known whose they were.
FORGOTTEN = 16_384


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
        self._kept: OrderedDict[str, deque[_Kept]] = OrderedDict()
        #: The place, channel, sender and number of each.
        self._forgotten: deque[tuple[int, str, bytes, int]] = deque(maxlen=FORGOTTEN)

    @property
    def size_bytes(self) -> int:
        """Bytes that are kept now."""
        return self._size

    @property
    def place(self) -> int:
        """How many bodies have been added so far."""
        return self._number

    def add(self, channel: str, body: bytes, sender: bytes = b"", number: int = 0) -> None:
        self._number += 1
        if not self._bodies or len(body) > self._limit:
            self._forgotten.append((self._number, channel, sender, number))
            return
        kept = self._kept.get(channel)
        if kept is None:
            kept = self._kept[channel] = deque()
        else:
            self._kept.move_to_end(channel)
        kept.append((self._number, body, sender, number))
        self._size += len(body)
        if len(kept) > self._bodies:
            self._drop_first(channel, kept)
        while self._size > self._limit or len(self._kept) > self._channels:
            self._forget()

    def _drop_first(self, channel: str, kept: deque[_Kept]) -> None:
        place, body, sender, number = kept.popleft()
        self._size -= len(body)
        self._forgotten.append((place, channel, sender, number))

    def _forget(self) -> None:
        oldest, kept = next(iter(self._kept.items()))
        self._drop_first(oldest, kept)
        if len(self._kept) > self._channels or not kept:
            while kept:
                self._drop_first(oldest, kept)
            del self._kept[oldest]

    def last(self, channels: tuple[str, ...], prefix: bool, count: int) -> list[tuple[str, bytes]]:
        """The last `count` bodies of each channel that matches, in the order in which they were added."""
        if not count:
            return []
        names = self._matching(channels, prefix)
        found = [(place, name, body) for name in names for place, body, _, _ in list(self._kept[name])[-count:]]
        return [(name, body) for _, name, body in sorted(found)]

    def missed(
        self, channels: tuple[str, ...], prefix: bool, since: int, last: Mapping[bytes, int]
    ) -> tuple[list[tuple[str, bytes, bytes, int]], int]:
        """What was added after the place `since` by a sender beyond its last number, and how much of that is forgotten.

        Returns:
            Channel, body, sender and number of each that is kept, in the order in which they were added; and how many
            are not kept any more, as far as that is known.
        """
        found = [
            (place, name, body, sender, number)
            for name in self._matching(channels, prefix)
            for place, body, sender, number in self._kept[name]
            if place > since and number > last.get(sender, -1)
        ]
        wanted = frozenset(channels)
        forgotten = sum(
            1
            for place, name, sender, number in self._forgotten
            if place > since
            and number > last.get(sender, -1)
            and (name.startswith(channels) if prefix else name in wanted)
        )
        return [one[1:] for one in sorted(found)], forgotten

    def _matching(self, channels: tuple[str, ...], prefix: bool) -> list[str]:
        if prefix:
            return [name for name in self._kept if name.startswith(channels)]
        return [name for name in dict.fromkeys(channels) if name in self._kept]


#: The place among all that was added, the body, who published it, and its number there.
_Kept = tuple[int, bytes, bytes, int]
