"""Second pattern: a group channel observes what happens in the direct channels it knows.

$ python observe.py
room-1 said 0, 1, 2
room-2 said 0, 1, 2
räum ☃ said 0, 1, 2
"""

from __future__ import annotations

from typing import Any

from rooms import ROOMS, Settings, address, direct_channels  # type: ignore[import-not-found]

from furcula.compat.shellbot import Bus


def room(settings: Settings, name: str, ready: Any) -> None:
    """A direct channel: a process that publishes under its own identifier."""
    publisher = Bus(settings).publish()
    publisher.start()
    ready.wait(30)
    for step in range(3):
        publisher.put(name, {"room": name, "step": step})
    publisher.close()


if __name__ == "__main__":
    settings = Settings(bus_address=address())
    said: dict[str, list[int]] = {name: [] for name in ROOMS}
    with Bus(settings).subscribe(ROOMS) as subscriber, direct_channels(room, settings):
        for _ in range(3 * len(ROOMS)):
            message = subscriber.get(timeout=30)
            said[message["room"]].append(message["step"])
    for name, steps in said.items():
        print(f"{name} said {', '.join(map(str, steps))}")
