"""Wishbone's Broker over a real RabbitMQ: what it consumes and what it submits."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.services import Rabbit, running

from furcula.compat.wishbone.main import Wishbone
from furcula.compat.wishbone.module import Broker, IOModule, Module
from furcula.testing import assert_settled

LIMIT_S = 40
STOCK = "furcula.compat.wishbone.module"
_number = itertools.count()


@pytest.fixture(scope="module")
def rabbit() -> Iterator[Rabbit]:
    with running(Rabbit) as server:
        yield server


class Feed(IOModule):
    def __init__(self, messages: list[Any]):
        self.messages = messages

    def run(self) -> None:
        for message in self.messages:
            self.sendData(message)


class Keep(Module):
    def __init__(self, count: int):
        self.messages: list[dict[str, Any]] = []
        self.count = count
        self.full = threading.Event()

    def consume(self, message: dict[str, Any]) -> None:
        self.messages.append(message)
        if len(self.messages) == self.count:
            self.full.set()


class Refuse(Module):
    def consume(self, message: dict[str, Any]) -> None:
        raise ValueError("no")


@contextmanager
def started(wishbone: Wishbone) -> Iterator[Callable[[], Any]]:
    """It runs in a thread of its own; at the end it is stopped, and everything is settled."""
    thread = threading.Thread(target=wishbone.start)
    thread.start()
    try:
        yield wishbone.statistics
    finally:
        wishbone.stop()
        thread.join(LIMIT_S)
    statistics = wishbone.statistics()
    assert statistics is not None
    assert_settled(statistics)


def where(rabbit: Rabbit) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": rabbit.port, "username": "tester", "password": "pass/word"}


def test_what_one_submits_another_consumes_with_its_headers(rabbit: Rabbit) -> None:
    queue = f"w{next(_number)}"
    wb = Wishbone()
    messages = [{"headers": {"colour": "red"}, "data": f"message {number}"} for number in range(20)]
    wb.registerModule((__name__, "Feed", "feed"), messages=messages)
    wb.registerModule((STOCK, "Broker", "out"), **where(rabbit), produce_routing_key=queue)
    wb.registerModule((STOCK, "Broker", "in"), **where(rabbit), consume_queue=queue, prefetch_count=5)
    wb.registerModule((__name__, "Keep", "keep"), count=20)
    # The queue is made by who consumes from it, so what is submitted before that is refused and tried again.
    wb.connect(wb.feed.outbox, wb.out.inbox)
    wb.connect("in.outbox", "keep.inbox")
    wb.connect(wb.out.failed, wb.out.inbox)
    with started(wb):
        assert wb.keep.full.wait(LIMIT_S)
    kept = wb.keep.messages
    assert sorted(message["data"] for message in kept) == sorted(message["data"] for message in messages)
    assert kept[0]["headers"]["colour"] == "red"
    assert kept[0]["headers"]["routing_key"] == queue


def test_one_broker_may_consume_and_submit_and_what_it_submits_goes_only_out(rabbit: Rabbit) -> None:
    first = f"w{next(_number)}"
    wb = Wishbone()
    wb.registerModule((__name__, "Feed", "feed"), messages=[{"headers": {}, "data": "round"}])
    wb.registerModule((STOCK, "Broker", "both"), **where(rabbit), consume_queue=first, produce_routing_key=first)
    wb.registerModule((__name__, "Keep", "keep"), count=1)
    wb.connect(wb.feed.outbox, wb.both.inbox)
    wb.connect(wb.both.failed, wb.both.inbox)
    wb.connect(wb.both.outbox, wb.keep.inbox)
    with started(wb):
        assert wb.keep.full.wait(LIMIT_S)
    assert [message["data"] for message in wb.keep.messages] == ["round"]


def test_a_password_is_not_shown() -> None:
    wb = Wishbone()
    wb.registerModule((STOCK, "Broker", "out"), password="hidden-one")
    assert "hidden-one" not in repr(vars(wb.out.instance)) + repr(wb.flow.places)


def test_an_encoding_that_is_not_supported_is_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        Broker(encoding="latin-1")
