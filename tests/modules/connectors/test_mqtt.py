"""mqtt.subscribe and mqtt.publish, against a real Mosquitto."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tests.modules.conftest import turns
from tests.services import Mosquitto, running

from furcula.event import Event
from furcula.module import BatchFailed
from furcula.modules.mqtt.publish import Publish
from furcula.modules.mqtt.subscribe import Subscribe
from furcula.modules.sending import Refused
from furcula.options import Duration

from .conftest import FINAL, RETRYABLE, WHO, first_refusal, numbers, settle, started, survives, until, until_ready

_number = itertools.count()
SOON = Duration(0.05)


class Names:
    """A topic of its own for a test, and the arguments that go with it."""

    def __init__(self, server: Mosquitto):
        self.topic = f"topic{next(_number)}"
        self.where: dict[str, Any] = {"url": server.url, **WHO}
        self.source: dict[str, Any] = {"topic": f"{self.topic}/#", "client_id": f"{self.topic}-in", **self.where}
        self.sink: dict[str, Any] = {"topic": f"{self.topic}/a", **self.where}


@pytest.fixture
def names(mosquitto: Mosquitto) -> Names:
    return Names(mosquitto)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_messages_carry_headers_id_and_topic(bench: Any, names: Names, qos: Any) -> None:
    async with (
        started(Subscribe(qos=qos, **names.source), bench),
        started(Publish(qos=qos, topic_from="headers.to", **names.sink), bench) as sink,
    ):
        event = Event({"n": 1}, {"colour": "red", "tree": {}})
        await sink.process_batch([event, Event(2, {"to": f"{names.topic}/b/c"})])
        assert await bench.until(2) == [{"n": 1}, 2]
        assert bench.admitted["outbox"][0].headers == {
            "colour": "red", "furcula-id": event.id, "topic": f"{names.topic}/a", "qos": qos, "retain": False,
            "content_type": "application/json",
        }  # fmt: skip
        assert bench.admitted["outbox"][1].headers["topic"] == f"{names.topic}/b/c"
        settle(bench, count=2)


async def test_what_is_not_settled_comes_again_in_the_next_session_and_what_is_does_not(
    bench: Any, names: Names
) -> None:
    async with started(Publish(**names.sink), bench) as sink:
        async with started(Subscribe(**names.source), bench) as source:
            await sink.process_batch(numbers(5))
            await bench.until(5)
            settle(bench, count=2)
            await until(lambda: len(source._taken.open) == 3)
        bench.slots.clear()
        await sink.process_batch(numbers(2, 5))  # while nobody listens
        async with started(Subscribe(**names.source), bench):
            assert [data["n"] for data in (await bench.until(10))[5:]] == [2, 3, 4, 5, 6]
            settle(bench, count=5)


async def test_what_was_unsettled_when_the_connection_was_lost_comes_again_and_its_late_fate_is_not_told(
    bench: Any, names: Names
) -> None:
    source = Subscribe(**names.source)
    async with started(source, bench), started(Publish(**names.sink), bench) as sink:
        await sink.process_batch(numbers(3))
        await bench.until(3)
        old, bench.slots = bench.slots, []
        source._line.lost(source._line.client, "cut by the test")
        assert [data["n"] for data in (await bench.until(6))[3:]] == [0, 1, 2]
        for slot in old:
            slot.settle("delivered")
        await turns()
        assert len(source._taken.open) == 3
        settle(bench, count=3)
        await until(lambda: not source._taken.open)


async def test_messages_are_acknowledged_in_the_order_in_which_they_came(bench: Any, names: Names) -> None:
    async with started(Publish(**names.sink), bench) as sink, started(Subscribe(**names.source), bench) as source:
        await sink.process_batch(numbers(3))
        await bench.until(3)
        first = bench.slots.pop(0)
        settle(bench, count=2)
        await until(lambda: len(source._taken.open) == 1)
        assert len(source._line.client.unacknowledged) == 3
        first.settle("delivered")
        await until(lambda: not source._line.client.unacknowledged)


async def test_what_failed_for_now_is_admitted_again_and_then_given_up(bench: Any, names: Names, warnings: Any) -> None:
    source = Subscribe(max_deliveries=2, again_after=SOON, **names.source)
    async with started(source, bench), started(Publish(**names.sink), bench) as sink:
        await sink.process_batch(numbers(1))
        assert (await first_refusal(bench, failure=RETRYABLE)).data == {"n": 0}
        settle(bench, "failed", failure=RETRYABLE)
        await until(lambda: not source._line.client.unacknowledged)
        assert source._taken.refused == 1
        assert warnings() == ["a message is rejected after 2 deliveries: TimeoutError: not now"]


async def test_members_of_a_group_share_the_messages(bench: Any, names: Names) -> None:
    one = Subscribe(**{**names.source, "client_id": "one"}, share="group")
    two = Subscribe(**{**names.source, "client_id": "two"}, share="group")
    async with started(one, bench), started(two, bench), started(Publish(**names.sink), bench) as sink:
        await sink.process_batch(numbers(50))
        assert sorted(data["n"] for data in await bench.until(50)) == list(range(50))
        assert len(one._taken.open) + len(two._taken.open) == 50
        settle(bench, count=50)


async def test_no_more_than_prefetch_are_unsettled(bench: Any, names: Names) -> None:
    async with (
        started(Subscribe(prefetch=10, **names.source), bench),
        started(Publish(**names.sink), bench) as sink,
    ):
        await sink.process_batch(numbers(35))
        for taken in (10, 20, 30, 35):
            await bench.until(taken)
            assert len(bench.datas()) == taken
            settle(bench, count=10)


async def test_unreadable_messages_leave_by_invalid_and_do_not_come_again(bench: Any, names: Names) -> None:
    async with (
        started(Subscribe(**names.source), bench) as source,
        started(Publish(codec="binary", **names.sink), bench) as sink,
    ):
        await sink.process_batch([Event(b"{")])
        await bench.until(1, "invalid")
        settle(bench, "failed", failure=FINAL)
        await until(lambda: not source._line.client.unacknowledged)


async def test_a_topic_with_a_wildcard_refuses_the_event(bench: Any, names: Names) -> None:
    async with started(Publish(**names.sink, topic_from="headers.to"), bench) as sink:
        with pytest.raises(BatchFailed) as caught:
            await sink.process_batch([Event(1), Event(2, {"to": "a/#"})])
        assert list(caught.value.errors) == [1]
        assert isinstance(caught.value.errors[1], Refused)


async def test_a_retained_message_is_there_for_who_comes_later(bench: Any, names: Names) -> None:
    async with started(Publish(retain=True, **names.sink), bench) as sink:
        await sink.process_batch([Event("last")])
        async with started(Subscribe(**names.source), bench):
            assert await bench.until(1) == ["last"]
            assert bench.admitted["outbox"][0].headers["retain"] is True
            settle(bench)


async def test_a_wrong_password_is_told_and_not_shown(bench: Any, names: Names, warnings: Any) -> None:
    url = names.where["url"].replace("//", "//tester:wr0ng@")
    async with started(Publish(url=url, topic="x"), bench, ready=False) as sink:
        await until(warnings)
        assert "the broker refuses us: Not authorized" in warnings()[0]
        assert "wr0ng" not in warnings()[0] + sink.unready()


async def test_a_broker_that_comes_late_and_restarts_in_the_middle_of_10_000_events_loses_none(bench: Any) -> None:
    """Ended by SIGTERM: Mosquitto writes what it keeps then, and every half an hour, but not with each message."""
    with running(Mosquitto, started=False) as server:
        names = Names(server)
        async with (
            started(Subscribe(**names.source), bench, ready=False) as source,
            started(Publish(**names.sink), bench, ready=False) as sink,
        ):
            await until(lambda: "connection refused" in (source.unready() or ""))
            assert "connection refused" in sink.unready()
            await server.aside(server.start)
            await until_ready(source)
            await until_ready(sink)
        arrived = await survives(
            ("mqtt.subscribe", names.source), ("mqtt.publish", names.sink), server, end=server.terminate
        )
        assert len(arrived) == 10_000


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="client_id must not be empty"):
        Subscribe(url="mqtt://host", topic="x", client_id="")
    with pytest.raises(ValueError, match="cannot be the name of a group"):
        Subscribe(url="mqtt://host", topic="x", client_id="x", share="a/b")
