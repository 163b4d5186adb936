"""What is kept for late subscribers is bounded in every direction."""

from __future__ import annotations

from furcula.transports.history import History


def test_the_last_bodies_of_each_channel_come_in_the_order_in_which_they_were_added() -> None:
    history = History(2)
    for number in range(4):
        history.add("a", b"a%d" % number)
        history.add("b", b"b%d" % number)
    assert history.last(("a", "b"), False, 2) == [("a", b"a2"), ("b", b"b2"), ("a", b"a3"), ("b", b"b3")]
    assert history.last(("a",), False, 9) == [("a", b"a2"), ("a", b"a3")]
    assert history.last(("",), True, 1) == [("a", b"a3"), ("b", b"b3")]
    assert history.last(("a",), False, 0) == []
    assert history.last(("c",), False, 1) == []


def test_the_channel_published_on_longest_ago_is_forgotten_first() -> None:
    history = History(2, channels=2)
    for name in ("a", "b", "a", "c"):
        history.add(name, name.encode())
    assert [name for name, _ in history.last(("",), True, 1)] == ["a", "c"]
    assert history.size_bytes == 3


def test_no_more_bytes_are_kept_than_allowed() -> None:
    history = History(100, size_bytes=1000)
    for number in range(100):
        history.add(f"c{number % 7}", bytes(90))
        assert history.size_bytes <= 1000
    assert len(history.last(("",), True, 100)) == 11
    history.add("huge", bytes(1001))
    assert history.last(("huge",), False, 1) == []
    assert history.size_bytes == 990


def test_a_body_that_takes_all_the_room_replaces_the_rest() -> None:
    history = History(4, size_bytes=100)
    for name in ("a", "b", "a"):
        history.add(name, bytes(30))
    history.add("c", bytes(100))
    assert history.last(("",), True, 9) == [("c", bytes(100))]
    assert history.size_bytes == 100
