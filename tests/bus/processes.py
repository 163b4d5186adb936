"""A program that publishes from processes of its own, made by `fork` or by `spawn`.

`python processes.py METHOD URL COUNT`: subscribes, starts three processes that publish COUNT messages each through one
Publisher that was made before them, and prints what came, as JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import warnings
from multiprocessing.process import BaseProcess
from typing import Any

from furcula.bus import Publisher, Subscriber


def publish(publisher: Publisher, name: str, count: int) -> None:
    for number in range(count):
        publisher.put("news", [name, number])
    # Neither flushed nor closed: the end of the process does both.


def receive(subscriber: Subscriber, count: int, found: Any) -> None:
    """A Subscriber that came from the parent: it is subscribed here."""
    messages = [subscriber.get(timeout=0.001)]  # subscribed from here on
    found.put("subscribed")
    while len([one for one in messages if one is not None]) < count:
        messages.append(subscriber.get(timeout=20))
    found.put([one for one in messages if one is not None])


def start(method: str, target: Any, *arguments: Any) -> BaseProcess:
    context: Any = multiprocessing.get_context(method)
    process: BaseProcess = context.Process(target=target, args=arguments)
    process.start()
    return process


def three_publishers(method: str, url: str, count: str) -> None:
    subscriber = Subscriber(url, "news")  # this process holds the hub
    publisher = Publisher(url)
    publisher.put("news", ["parent", 0])  # it is connected before the fork
    publisher.flush()
    children = [start(method, publish, publisher, name, int(count)) for name in "abc"]
    found = [subscriber.get(timeout=20) for _ in range(3 * int(count) + 1)]
    for child in children:
        child.join(20)
    publisher.put("news", ["parent", 1])
    found.append(subscriber.get(timeout=20))
    print(json.dumps([found, subscriber.lost, [child.exitcode for child in children]]))


def subscriber_in_a_child(method: str, url: str, count: str) -> None:
    subscriber = Subscriber(url, "news")
    context: Any = multiprocessing.get_context(method)
    found = context.Queue()
    child = start(method, receive, subscriber, int(count), found)
    assert found.get(timeout=20) == "subscribed"
    with Publisher(url) as publisher:
        publish(publisher, "parent", int(count))
    theirs = found.get(timeout=20)
    child.join(20)
    ours = [subscriber.get(timeout=20) for _ in range(int(count))]
    print(json.dumps([ours, theirs]))


def holder_dies(method: str, url: str, count: str) -> None:
    """The parent holds the hub, makes a process that publishes slowly, and is killed."""
    publisher = Publisher(url)
    publisher.put("other", "the parent holds the hub")
    publisher.flush()
    child = start(method, publish_slowly, publisher, int(count))
    print(json.dumps(child.pid), flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)


def ends(url: str, count: str) -> None:
    """A script that holds the hub, publishes, and comes to its end."""
    publisher = Publisher(url)
    publisher.put("other", "the hub is held here")
    publisher.flush()
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        publisher.put("news", number)


def publish_slowly(publisher: Publisher, count: int) -> None:
    import time

    for number in range(count):
        publisher.put("news", ["child", number])
        time.sleep(0.001)
    publisher.close()


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # that is the point
    globals()[sys.argv[1]](*sys.argv[2:])
