"""Bytes to values and back; whatever a peer sends, the answer is a value or an InputError."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from furcula.codecs import CODECS, MAX_DEPTH, BadFrame, Framing, Reader, codec, decode_events, encode_events
from furcula.codecs.reader import sorted_out
from furcula.errors import InputError
from furcula.event import MISSING, Event, Failure

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
finite = plain.filter(lambda data: "inf" not in repr(data))


# ------------------------------------------------------------------ codecs


@given(finite)
def test_json_gives_back_what_it_was_given(data: Any) -> None:
    assert codec("json").decode(codec("json").encode(data)) == data


@given(plain)
def test_msgpack_gives_back_what_it_was_given(data: Any) -> None:
    assert codec("msgpack").decode(codec("msgpack").encode(data)) == data


@given(st.text(alphabet=st.characters(codec="latin-1")))
def test_text_and_json_in_another_charset_come_back(data: str) -> None:
    for name in ("text", "json"):
        latin = codec(name, "latin-1")
        assert latin.decode(latin.encode(data)) == data


@pytest.mark.parametrize("name", list(CODECS))
@given(raw=st.binary(max_size=300))
def test_whatever_the_bytes_are_decoding_gives_a_value_or_an_input_error(name: str, raw: bytes) -> None:
    try:
        codec(name).decode(raw)
    except InputError:
        pass


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("json", b"[" * 10_000 + b"]" * 10_000),
        ("json", b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)),
        ("json", b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)),
        ("msgpack", b"\x91" * 10_000 + b"\x01"),
        ("msgpack", b"\x91" * (MAX_DEPTH + 1) + b"\x01"),
        ("msgpack", b"\x81\xa1a" * (MAX_DEPTH + 1) + b"\x01"),
        ("msgpack", b"\xdc\x00\x01" * (MAX_DEPTH + 1) + b"\x01"),
    ],
)
def test_what_is_nested_too_deeply_is_refused_and_does_not_crash(name: str, raw: bytes) -> None:
    with pytest.raises(InputError, match="deep"):
        codec(name).decode(raw)


def test_what_is_nested_as_deeply_as_allowed_is_read() -> None:
    data = codec("json").decode(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert codec("msgpack").decode(codec("msgpack").encode(data)) == data


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("json", b"", "not JSON: it is empty"),
        ("json", b'{"a": [1', "not JSON: input data was truncated"),
        ("json", b'"\xff"', "not JSON: byte 0 is not utf-8 (invalid start byte)"),
        ("json", b'{"a": 1} x', "not JSON: trailing characters (byte 10)"),
        ("json", b"NaN", "not JSON: invalid character (byte 0)"),
        ("msgpack", b"", "not MessagePack: it is empty"),
        ("msgpack", b"\x92\x01", "not MessagePack: input data was truncated"),
        ("msgpack", b"\xdd\xff\xff\xff\xff", "not MessagePack: input data was truncated"),
        ("msgpack", b"\xc7\x01\x05a", "not MessagePack: extension type 5 is unknown"),
        ("text", b"ok \xff", "not utf-8: byte 3 is not utf-8 (invalid start byte)"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_short_reason(name: str, raw: bytes, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        codec(name).decode(raw)
    assert str(caught.value) == reason


@dataclasses.dataclass
class Order:
    item: Any


class Foreign:
    pass


@pytest.mark.parametrize("name", ["json", "msgpack"])
def test_what_cannot_be_written_is_named_with_its_type_and_place(name: str) -> None:
    with pytest.raises(ValueError, match=r"type Foreign at orders\.1\.item"):
        codec(name).encode({"ok": 1, "orders": [1, Order(Foreign())]})
    with pytest.raises(ValueError, match=r"type Foreign: "):
        codec(name).encode(Foreign())
    with pytest.raises(ValueError, match=r"at word: .*surrogates"):
        codec(name).encode({"word": "\ud800"})


def test_data_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    for name in ("json", "msgpack"):
        with pytest.raises(ValueError, match="contains itself"):
            codec(name).encode(endless)


def test_a_number_too_big_for_msgpack_and_a_key_too_odd_for_json_are_named() -> None:
    with pytest.raises(ValueError, match="type int at x"):
        codec("msgpack").encode({"x": 2**70})
    with pytest.raises(ValueError, match="the dict at x"):
        codec("json").encode({"x": {(1, 2): 3}})


def test_text_takes_only_str_and_binary_only_bytes() -> None:
    with pytest.raises(ValueError, match="takes a str, not dict"):
        codec("text").encode({})
    with pytest.raises(ValueError, match="takes bytes, not str"):
        codec("binary").encode("x")
    with pytest.raises(ValueError, match="cannot be written in ascii"):
        codec("text", "ascii").encode("ü")
    assert codec("binary").encode(bytearray(b"x")) == b"x"


def test_a_wrong_name_gets_the_nearest_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'msgpack'"):
        codec("msgpak")
    with pytest.raises(ValueError, match="no charset 'utf-nine'"):
        codec("text", "utf-nine")
    with pytest.raises(ValueError, match="no charset 'hex'"):
        codec("text", "hex")


# ------------------------------------------------------------------ framings

LINES = Framing()
SPECS: list[Any] = ["lines", "none", "length-prefix", {"length-prefix": 2}, {"delimiter": "--"}]


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in itertools.pairwise(marks)]


def framed(framing: Framing, chunks: list[bytes], max_frame: int = 1_000_000) -> list[Any]:
    framer = framing.framer(max_frame)
    return [frame for chunk in chunks for frame in framer.feed(chunk)] + framer.end()


@given(
    st.sampled_from([{"length-prefix": 1}, {"length-prefix": 8}, *SPECS[2:], "lines"]),
    st.lists(st.binary(max_size=20).map(lambda raw: raw.translate(None, b"\r\n-")), max_size=10),
    st.lists(st.integers(0, 1000), max_size=10),
)
def test_frames_come_back_however_the_stream_is_cut(spec: Any, frames: list[bytes], places: list[int]) -> None:
    framing = Framing.of(spec)
    raw = b"".join(map(framing.frame, frames))
    assert framed(framing, cut(raw, places)) == frames


@given(st.sampled_from(SPECS), st.binary(max_size=200), st.lists(st.integers(0, 1000), max_size=10))
def test_what_a_stream_says_does_not_depend_on_how_it_is_cut(spec: Any, raw: bytes, places: list[int]) -> None:
    framing = Framing.of(spec)

    def told(found: list[Any]) -> list[Any]:
        return [frame.reason if isinstance(frame, BadFrame) else frame for frame in found]

    assert told(framed(framing, cut(raw, places), 30)) == told(framed(framing, cut(raw, list(range(201))), 30))


@given(
    st.sampled_from(["lines", {"length-prefix": 1}, {"delimiter": "--"}]),
    st.binary(max_size=300),
    st.lists(st.integers(0, 1000), max_size=10),
)
def test_the_ends_of_frames_are_places_from_which_the_stream_can_be_read_on(
    spec: Any, raw: bytes, places: list[int]
) -> None:
    framing = Framing.of(spec)
    framer = framing.framer(20)
    whole = framed(framing, [raw], 20)
    ends: list[int] = []
    for chunk in cut(raw, places):
        found = framer.feed(chunk)
        assert len(framer.ends) == len(found)
        ends += framer.ends
    found = framer.end()
    assert len(framer.ends) == len(found)
    ends += framer.ends
    assert ends == sorted(ends)
    for index, end in enumerate(ends):
        if not any(isinstance(frame, BadFrame) for frame in whole[: index + 1]):
            assert framed(framing, [raw[end:]], 20) == whole[index + 1 :]


def test_lines_end_with_lf_or_crlf_also_when_the_cut_is_between() -> None:
    assert framed(LINES, [b"a\r", b"\nb\n\nc\r\n", b"d"]) == [b"a", b"b", b"", b"c", b"d"]


def test_a_line_above_the_limit_is_reported_once_and_reading_goes_on_behind_it() -> None:
    found = framed(LINES, [b"ok\n" + b"x" * 50, b"x" * 50, b"x" * 50 + b"\nfine\n", b"y" * 200 + b"\nlast"], 100)
    assert found == [
        b"ok",
        BadFrame("longer than 100 bytes", b"x" * 150),
        b"fine",
        BadFrame("longer than 100 bytes", b"y" * 200),
        b"last",
    ]


def test_a_delimiter_cut_in_two_ends_a_frame_above_the_limit() -> None:
    framing = Framing.of({"delimiter": "<>"})
    found = framed(framing, [b"x" * 20, b"x" * 20 + b"<", b">ok<", b">"], 10)
    assert [type(frame) for frame in found] == [BadFrame, bytes]
    assert found[1] == b"ok"


@pytest.mark.parametrize("spec", SPECS[:3])
def test_a_frame_of_100_mb_is_never_kept(spec: Any) -> None:
    framer = Framing.of(spec).framer(1_000_000)
    chunk = b"x" * 65536
    tracemalloc.start()
    found = list(framer.feed((100_000_000).to_bytes(4, "big") if spec == "length-prefix" else b"x"))
    for _ in range(1525):
        found += framer.feed(chunk)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [type(frame) for frame in found if not isinstance(frame, bytes)] == [BadFrame]
    assert peak < 3_000_000


def test_a_stream_that_ends_inside_a_frame_says_how_much_was_there() -> None:
    assert framed(Framing.of("length-prefix"), [b"\0\0\0\x05ab"]) == [
        BadFrame("the stream ended inside a frame: 2 of 5 bytes", b"\0\0\0\x05ab")
    ]
    assert framed(Framing.of("length-prefix"), [b"\0\0"]) == [
        BadFrame("the stream ended inside a length", b"\0\0"),
    ]


def test_without_framing_the_whole_stream_is_one_frame() -> None:
    assert framed(Framing.of("none"), [b"a\n", b"b\n"]) == [b"a\nb\n"]


def test_what_a_reader_would_take_for_two_frames_is_not_written() -> None:
    with pytest.raises(ValueError, match="inside"):
        LINES.frame(b"a\nb")
    with pytest.raises(ValueError, match="256 bytes are too many"):
        Framing.of({"length-prefix": 1}).frame(b"x" * 256)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("line", "did you mean 'lines'"),
        ({"length-prefix": 3}, "1, 2, 4 or 8"),
        ("delimiter", "needs one"),
        ({"delimiter": ""}, "needs one"),
        ({"lines": 2}, "takes no value"),
        (5, "no framing 5"),
    ],
)
def test_a_wrong_framing_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Framing.of(spec)


# ------------------------------------------------------------------ readers


def test_a_reader_gives_one_item_for_each_frame_and_goes_on_behind_a_bad_one() -> None:
    reader = Reader.of(LINES.framer(50), codec("json"))
    items = reader.feed(b'{"a":1}\nnonsense\n\n2\n')
    assert items == [{"a": 1}, BadFrame("not JSON: invalid character (byte 4)", b"nonsense"), MISSING, 2]
    assert reader.ends == [8, 17, 18, 20]
    assert sorted_out(items) == ([{"a": 1}, 2], [items[1]])
    assert type(reader.feed(b"x" * 60 + b"\n7\n")[0]) is BadFrame
    assert reader.feed(b"[1]") == []
    assert reader.end() == [[1]]


def test_an_empty_line_of_text_is_a_value() -> None:
    assert Reader.of(LINES.framer(), codec("text")).feed(b"a\n\nb\n") == ["a", "", "b"]


# ------------------------------------------------------------------ batches


def test_events_cross_with_all_that_they_are() -> None:
    failure = Failure("price", "TimeoutError", "too slow", attempts=3, retryable=True)
    event = Event({"at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "raw": b"\0"}, {"host": "a"})
    event.key, event.parent, event.ttl, event.tags = ("eu", 7), "p-1", 3, frozenset(("x", "y"))
    event.failures = (failure,)
    (back,) = decode_events(encode_events([event]))
    assert back.to_wire() == event.to_wire()
    assert back.key == ("eu", 7)
    assert back.failures == (failure,)


@given(st.lists(plain, max_size=5))
def test_data_and_identity_survive_a_batch(datas: list[Any]) -> None:
    events = [Event(data) for data in datas]
    back = decode_events(encode_events(events))
    assert [(event.id, event.data, event.created) for event in back] == [(e.id, e.data, e.created) for e in events]


@given(st.binary(max_size=300))
def test_no_bytes_make_decoding_a_batch_raise_anything_but_an_input_error(raw: bytes) -> None:
    for candidate in (raw, b"\x01" + raw):
        try:
            decode_events(candidate)
        except InputError:
            pass


@given(st.recursive(plain, lambda inner: st.dictionaries(st.sampled_from(sorted(Event.WIRE_FIELDS)), inner)))
def test_no_values_make_decoding_a_batch_raise_anything_but_an_input_error(value: Any) -> None:
    try:
        events = decode_events(b"\x01" + msgspec.msgpack.encode([value]))
    except InputError:
        return
    for event in events:
        hash(event.key)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "begins with the version"),
        (b"\x02\x90", "begins with the version"),
        (b"\x01", "truncated"),
        (b"\x01\x91\x80", "missing required field `data`"),
        (b"\x01" + msgspec.msgpack.encode([{"data": 1, "id": 5}]), r"Expected `str \| null`, got `int`"),
        (b"\x01" + msgspec.msgpack.encode([{"data": 1, "spare": 5}]), "unknown field `spare`"),
        (b"\x01" + msgspec.msgpack.encode([{"data": 1, "key": {}}]), "must be hashable"),
        (b"\x01\x91\x81\xa4data" + b"\x91" * 300 + b"\x01", "deep"),
        (b"\x01\x91\x81\xa4data" + b"\x91" * 10_000 + b"\x01", "deep"),
    ],
)
def test_a_batch_that_is_none_is_refused_with_its_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        decode_events(raw)


def test_a_batch_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(InputError, match="the limit is 10"):
        decode_events(encode_events([Event("x" * 20)]), max_size=10)
