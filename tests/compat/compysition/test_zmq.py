"""Two Directors, joined by push and pull."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from furcula.compat.compysition import Actor, Director, Event
from furcula.compat.compysition.module import EventGenerator, ZMQPull, ZMQPush


class Keep(Actor):
    def __init__(self, name: str, count: int):
        super().__init__(name)
        self.kept: list[Any] = []
        self.count = count
        self.full = threading.Event()

    def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        self.kept.append(event.data)
        if len(self.kept) == self.count:
            self.full.set()


def test_what_one_director_pushes_another_pulls(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/between.ipc"
    pulling = Director()
    pull = pulling.register_module(ZMQPull, "pull", address)
    keep = pulling.register_module(Keep, "keep", 3)
    pulling.connect(pull, keep)
    pulling.start()
    pushing = Director()
    test = pushing.register_module(EventGenerator, "test", interval=0.001, data={"n": 1}, count=3)
    pushing.connect(test, pushing.register_module(ZMQPush, "push", address))
    pushing.start()
    try:
        assert keep.full.wait(30)
        assert keep.kept == [{"n": 1}] * 3
    finally:
        pushing.stop()
        pulling.stop()
