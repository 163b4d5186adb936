"""First pattern: a group channel instructs the direct channels it knows; each hears its own only, in any order.

    $ python broadcast.py
group: says hello to 3 rooms
room-1: hello
room-1: only for room-1
room-2: hello
räum ☃: hello
"""

from __future__ import annotations

from typing import Any

from rooms import ROOMS, Settings, address, direct_channels  # type: ignore[import-not-found]

from furcula.compat.shellbot import Bus


def room(settings: Settings, name: str, ready: Any) -> None:
    """A direct channel: a process that subscribes to its own identifier."""
    with Bus(settings).subscribe(name) as subscriber:
        ready.wait(30)
        while (message := subscriber.get(block=True)) != "end":
            # The line and its end in one write: the other rooms write to the same terminal.
            print(f"{name}: {message}\n", end="", flush=True)


def group(settings: Settings) -> None:
    """The group channel: a publisher."""
    print(f"group: says hello to {len(ROOMS)} rooms", flush=True)
    publisher = Bus(settings).publish()
    publisher.start()
    publisher.put(ROOMS, "hello")
    publisher.put("room-1", "only for room-1")
    publisher.put(ROOMS, "end")
    publisher.close()


if __name__ == "__main__":
    settings = Settings(bus_address=address())
    with direct_channels(room, settings):
        group(settings)
