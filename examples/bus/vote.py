"""Both patterns together: a group channel calls a vote in all direct channels at once, and counts what comes back.

$ python vote.py
the vote is open in 3 rooms
room-1 voted yes
room-2 voted yes
räum ☃ voted no
yes: 2, no: 1
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from rooms import ROOMS, Settings, address, direct_channels  # type: ignore[import-not-found]

from furcula.compat.shellbot import Bus


def room(settings: Settings, name: str, ready: Any) -> None:
    """A direct channel: asked under its identifier, it answers under another that the group listens to."""
    bus = Bus(settings)
    with bus.subscribe(name) as instructions:
        publisher = bus.publish()
        publisher.start()
        ready.wait(30)
        question = instructions.get(timeout=30)
        vote = question["choices"][0 if name.startswith("room") else 1]
        publisher.put(f"{name}/vote", {"room": name, "vote": vote})
        publisher.close()


if __name__ == "__main__":
    settings = Settings(bus_address=address())
    bus = Bus(settings)
    with bus.subscribe([f"{name}/vote" for name in ROOMS]) as votes, direct_channels(room, settings):
        publisher = bus.publish()
        publisher.start()
        publisher.put(ROOMS, {"question": "shall we?", "choices": ["yes", "no"]})
        print(f"the vote is open in {len(ROOMS)} rooms")
        found: dict[str, str] = {}
        while len(found) < len(ROOMS):
            message = votes.get(timeout=30)
            found[message["room"]] = message["vote"]
        publisher.close()
    for name in ROOMS:
        print(f"{name} voted {found[name]}")
    count = Counter(found.values())
    print(f"yes: {count['yes']}, no: {count['no']}")
