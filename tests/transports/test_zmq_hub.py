"""The hub as a state machine: what it answers, and that nothing that strangers send upsets it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furcula.errors import InputError
from furcula.transports.zmq import frames
from furcula.transports.zmq.frames import (
    Accepted,
    Bye,
    Credit,
    Deliver,
    Done,
    Frame,
    Gone,
    Hello,
    Hold,
    Ping,
    Publish,
    Put,
    Said,
    Subscribe,
    Subscribed,
    Take,
    Taken,
    Unknown,
    Unsubscribe,
    Welcome,
)
from furcula.transports.zmq.hub import WINDOW, Hub

EXAMPLES = int(os.environ.get("FURCULA_EXAMPLES", "200"))


class Talk:
    """A hub, and clients who talk to it by turns; every client is known by one letter."""

    def __init__(self, *, size: int = 4, settle_s: float = 0.5):
        self.now = 100.0
        self.hub = Hub(size=size, history=4, max_body=1000, now=self.now, settle_s=settle_s, ping_s=1.0)

    def say(self, who: str, *said: Frame) -> dict[str, list[Frame]]:
        for frame in said:
            self.hub.handle(who.encode(), frames.encode(frame), self.now)
        return self.heard()

    def heard(self) -> dict[str, list[Frame]]:
        self.hub.tick(self.now)
        found: dict[str, list[Frame]] = {}
        for identity, raw in self.hub.collect():
            found.setdefault(identity.decode(), []).append(frames.from_hub(raw))
        return found

    def later(self, seconds: float) -> dict[str, list[Frame]]:
        self.now += seconds
        found = self.heard()
        return {who: left for who, said in found.items() if (left := [one for one in said if type(one) is not Ping])}


def name(who: str) -> bytes:
    return who.encode() * frames.NAME_BYTES


def hello(who: str, again: bool = False, *holds: Hold) -> Hello:
    return Hello(name(who), again, list(holds))


def subscribe(identifier: int = 1, channel: str = "news", **changes: Any) -> Subscribe:
    asked: dict[str, Any] = {"prefix": False, "replay": 0, "block": True, "room": 2, "again": False} | changes
    return Subscribe(identifier, (channel,), **asked)


def test_who_has_not_said_hello_is_told_so_and_counted() -> None:
    talk = Talk()
    assert talk.say("a", Publish(1, "news", b"")) == {"a": [Unknown()]}
    assert talk.hub.refused == {"unknown client": 1}
    assert talk.say("a", hello("a")) == {"a": [Welcome(1000)]}


def test_a_full_subscription_holds_back_the_acceptance_until_it_has_read() -> None:
    talk = Talk()
    talk.say("s", hello("s"), subscribe())
    talk.say("p", hello("p"))
    answers = talk.say("p", *(Publish(number, "news", b"%d" % number) for number in (1, 2, 3)))
    assert answers["p"] == [Accepted([1, 2])]
    assert [one.body for one in answers["s"] if type(one) is Deliver] == [b"1", b"2"]
    assert talk.say("p", Publish(4, "other", b"behind it")) == {}
    answers = talk.say("s", Credit(1, 1))
    assert answers == {"s": [Deliver(1, name("p"), 3, 0, "news", b"3")], "p": [Accepted([3, 4])]}


def test_a_number_that_came_before_is_accepted_and_not_sent_again() -> None:
    talk = Talk()
    talk.say("s", hello("s"), subscribe())
    talk.say("p", hello("p"), Publish(1, "news", b"x"))
    assert talk.say("p", Publish(1, "news", b"x")) == {"p": [Accepted([1])]}


def test_losses_are_told_when_there_is_room_again_even_if_nothing_more_comes() -> None:
    talk = Talk()
    talk.say("s", hello("s"), subscribe(block=False))
    talk.say("p", hello("p"), *(Publish(number, "news", b"") for number in range(1, 6)))
    assert talk.say("s", Credit(1, 2)) == {"s": [Ping({1: 3})]}


def test_what_an_earlier_hub_had_waits_for_those_who_are_still_coming() -> None:
    talk = Talk()
    assert talk.say("p", hello("p", True), Publish(5, "news", b"5", 2), Publish(6, "news", b"6", 1)) == {
        "p": [Welcome(1000)]
    }
    talk.say("s", hello("s", True), subscribe(again=True))
    talk.say("n", hello("n"), subscribe())
    answers = talk.later(0.5)
    assert [one.body for one in answers["s"] if type(one) is Deliver] == [b"5", b"6"]
    assert [one.body for one in answers["n"] if type(one) is Deliver] == [b"6"]  # 5 was before its time
    assert answers["p"] == [Accepted([5, 6])]


@pytest.mark.parametrize("first", ["putter", "taker"])
def test_what_a_taker_has_in_hand_is_not_dealt_by_the_next_hub(first: str) -> None:
    talk = Talk()
    words = {
        "putter": lambda: talk.say("p", hello("p", True), Put(1, "work", b"1", True), Put(2, "work", b"2", True)),
        "taker": lambda: talk.say("t", hello("t", True, Hold(name("p"), 1)), Take("work", 1)),
    }
    for who in (first, "taker" if first == "putter" else "putter"):
        assert "t" not in (said := words[who]()) or [type(one) for one in said["t"]] == [Welcome]
    assert talk.later(0.5) == {"t": [Taken(name("p"), 2, 1, "work", b"2")]}
    assert talk.say("t", Said(name("p"), 1, "ack", report=b"r")) == {"p": [Done(1, True, b"r")]}


def test_a_settled_message_that_is_put_again_is_answered_and_not_dealt() -> None:
    talk = Talk()
    talk.say("p", hello("p"), Put(1, "work", b"x"))
    talk.say("t", hello("t"), Take("work", 1))
    talk.say("t", Said(name("p"), 1, "reject", report=b"no"))
    answers = talk.say("p", hello("p", True), Put(1, "work", b"x", True), Take("work", 1))
    assert Done(1, False, b"no") in answers["p"]
    assert talk.later(1) == {}


def test_what_a_client_that_has_gone_had_in_hand_comes_first_and_in_order() -> None:
    talk = Talk()
    talk.say("p", hello("p"), *(Put(number, "work", b"%d" % number) for number in (1, 2, 3)))
    talk.say("t", hello("t"), Take("work", 2))
    talk.hub.gone(b"t")
    answers = talk.say("u", hello("u"), Take("work", 3))
    assert [(one.number, one.attempts) for one in answers["u"] if type(one) is Taken] == [(1, 2), (2, 2), (3, 1)]


def test_a_farewell_is_answered_and_leaves_nothing() -> None:
    talk = Talk()
    talk.say("p", hello("p"), subscribe(), Take("work", 3))
    assert talk.say("p", Bye()) == {"p": [Gone()]}
    talk.say("q", hello("q"))
    assert talk.say("q", Publish(1, "news", b"x"), Put(2, "work", b"y")) == {"q": [Accepted([1, 2])]}
    assert talk.later(5) == {}


def test_a_client_that_sends_more_than_its_window_is_refused_what_is_beyond() -> None:
    talk = Talk()
    talk.say("s", hello("s"), subscribe(room=1))
    talk.say("p", hello("p"))
    talk.say("p", *(Publish(number, "news", b"") for number in range(1, 5 * WINDOW)))
    talk.say("p", *(Put(number, "work", b"") for number in range(1000, 1000 + 5 * WINDOW)))
    assert talk.hub.refused["over the window"] > 0


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "version"),
        (b"\x02\x91\x09", "version"),
        (b"\x01", "malformed"),
        (b"\x01\xc1", "malformed"),
        (b"\x01" + b"\x91" * 5000, "malformed"),
        (frames.encode(Publish(1, "news", bytes(1001))), "body"),
        (frames.encode(Put(1, "news", bytes(1001))), "body"),
        (frames.encode(Publish(1, "ä" * 600, b"")), "channel"),
        (frames.encode(Publish(-1, "news", b"")), "malformed"),
        (frames.encode(Subscribed(1, 0)), "malformed"),
        (frames.encode(subscribe(room=0)), "malformed"),
    ],
)
def test_what_is_refused_is_counted_by_its_reason(raw: bytes, reason: str) -> None:
    talk = Talk()
    talk.say("a", hello("a"))
    talk.hub.handle(b"a", raw, talk.now)
    assert talk.hub.refused == {reason: 1}


def delivered(answers: dict[str, list[Frame]], who: str) -> list[tuple[int, bytes]]:
    return [(one.number, one.body) for one in answers.get(who, []) if type(one) is Deliver]


@pytest.mark.parametrize("hub", ["the same", "the next"])
def test_a_subscriber_that_comes_back_late_gets_what_was_published_since_and_nothing_twice(hub: str) -> None:
    talk = Talk()
    talk.say("p", hello("p"), Publish(1, "news", b"before its time"))
    talk.say("s", hello("s"), subscribe(room=9))
    assert delivered(talk.say("p", Publish(2, "news", b"2")), "s") == [(2, b"2")]
    if hub == "the next":
        talk = Talk()
        talk.say("p", hello("p", True), Publish(2, "news", b"2", 2), Publish(3, "news", b"3", 1))
        talk.later(1)
    else:
        talk.hub.gone(b"s")
        talk.say("p", Publish(3, "news", b"3"))
    talk.say("p", Publish(4, "other", b"not asked for"), Publish(5, "news", b"5"))
    answers = talk.say("s", hello("s", True), subscribe(room=9, again=True, last={name("p"): 2}))
    assert delivered(answers, "s") == [(3, b"3"), (5, b"5")]
    assert delivered(talk.say("p", Publish(6, "news", b"6")), "s") == [(6, b"6")]


def test_what_the_history_has_forgotten_of_what_a_late_subscriber_missed_is_counted() -> None:
    talk = Talk()  # keeps four bodies of a channel
    talk.say("p", hello("p"), *(Publish(number, "news", b"x") for number in range(1, 11)))
    answers = talk.say("s", hello("s", True), subscribe(room=9, again=True, last={name("p"): 3}))
    assert [number for number, _ in delivered(answers, "s")] == [7, 8, 9, 10]
    assert [one.dropped for one in answers["s"] if type(one) is Deliver] == [3] * 4


def test_a_body_that_a_client_cannot_take_is_dropped_and_counted_and_dealt_to_another() -> None:
    talk = Talk()
    small = Hello(name("s"), False, [], 100)
    talk.say("s", small, subscribe(room=9), Take("work", 2))
    talk.say("p", hello("p"))
    answers = talk.say("p", Publish(1, "news", bytes(200)), Publish(2, "news", b"2"))
    assert [(one.number, one.dropped) for one in answers["s"] if type(one) is Deliver] == [(2, 1)]
    answers = talk.say("p", Put(3, "work", bytes(200)), Put(4, "work", b"4"))
    assert [one.number for one in answers["s"] if type(one) is Taken] == [4]
    answers = talk.say("t", hello("t"), Take("work", 1))
    assert [one.number for one in answers["t"] if type(one) is Taken] == [3]


def test_a_stranger_is_told_once_a_second_that_it_is_unknown() -> None:
    talk = Talk()
    assert talk.say("x", *[Bye()] * 100) == {"x": [Unknown()]}
    assert talk.hub.refused == {"unknown client": 100}
    talk.later(1)
    assert talk.say("x", Bye()) == {"x": [Unknown()]}


def test_another_client_on_the_same_connection_takes_the_place_of_the_first() -> None:
    talk = Talk()
    talk.say("a", hello("p"), Take("work", 1))
    talk.say("a", hello("q"))
    assert "a" not in {who for who, said in talk.say("b", hello("b"), Put(1, "work", b"x")).items() if who != "b"}
    answers = talk.say("b", Take("work", 1))
    assert [one.attempts for one in answers["b"] if type(one) is Taken] == [1]


def test_queues_and_bodies_of_clients_that_have_gone_are_forgotten() -> None:
    talk = Talk()
    for end in ("farewell", "death"):
        talk.say("t", hello("t"), *(Take(f"reply-{number}", 1) for number in range(10)))
        if end == "farewell":
            talk.say("t", Bye())
        else:
            talk.hub.gone(b"t")
        assert talk.hub._queues == {}
    talk.say("p", hello("p"), *(Put(number, "work", b"x") for number in range(4)))  # it is full
    for _ in range(5):
        talk.say("q", hello("q"), *(Put(number, "work", bytes(900)) for number in range(4)))
        talk.hub.gone(b"q")
    assert not talk.hub._queues["work"].waiting


numbers = st.integers(0, 5)
channels = st.sampled_from(["a", "b", ""])
flags = st.booleans()
words = st.sampled_from(["ack", "again", "reject", "release"])
said = st.one_of(
    st.builds(lambda who, again, held: hello(who, again, Hold(name("p"), held)), st.sampled_from("pq"), flags, numbers),
    st.builds(subscribe, numbers, channels, prefix=flags, replay=numbers, block=flags, again=flags),
    st.builds(Unsubscribe, numbers),
    st.builds(Credit, numbers, numbers),
    st.builds(Publish, numbers, channels, st.just(b"x"), st.sampled_from([0, 1, 2])),
    st.builds(Put, numbers, channels, st.just(b"x"), flags),
    st.builds(Take, channels, st.integers(-3, 3)),
    st.builds(Said, st.just(name("p")), numbers, words, st.sampled_from([0.0, 0.1])),
    st.just(Bye()),
)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), said | st.just(None)), max_size=60))
def test_whatever_clients_say_in_whatever_order_the_hub_goes_on(words: list[tuple[str, Frame | None]]) -> None:
    talk = Talk(size=2)
    for who, frame in words:
        if frame is None:
            talk.hub.gone(who.encode())
        else:
            talk.say(who, frame)
        talk.later(0.1)
    assert talk.hub._stored_bytes == sum(len(entry.body) for entry in talk.hub._entries.values())
    for queue in talk.hub._queues.values():
        in_hand = sum(entry.queue is queue for client in talk.hub._clients.values() for entry in client.hand.values())
        assert queue.in_hand == in_hand
        # A ready message and a taker do not wait for each other, once the hub has settled.
        assert not (talk.hub._settled and queue.ready and queue.takers)
    # It still works, for a newcomer. (Who has not read what it was sent may hold that one up, so they leave.)
    for who in "ab":
        talk.hub.gone(who.encode())
    talk.later(1)
    talk.say("z", hello("z"), subscribe(channel="fresh"))
    answers = talk.say("z", Publish(1, "fresh", b"good"), Put(2, "fresh", b"work"), Take("fresh", 1))
    assert [one.body for one in answers["z"] if type(one) in (Deliver, Taken)] == [b"good", b"work"]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(said, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4)), max_size=20))
def test_mutated_frames_never_come_out_of_the_hub_as_errors(words: list[tuple[Frame, list[tuple[int, int]]]]) -> None:
    talk = Talk()
    talk.say("a", hello("a"))
    for frame, changes in words:
        raw = bytearray(frames.encode(frame))
        for place, value in changes:
            raw[place % len(raw)] = value
        talk.hub.handle(b"a", bytes(raw), talk.now)
        talk.later(0.1)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_by_hub_and_client(raw: bytes) -> None:
    talk = Talk()
    for body in (raw, b"\x01" + raw):
        talk.hub.handle(b"a", body, talk.now)
        try:
            frames.from_hub(body)
        except InputError as error:
            assert str(error) in ("version", "malformed")  # noqa: PT017 - it may also be none
