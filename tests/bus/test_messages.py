"""Messages as bytes: every JSON value comes back, and whatever is no frame is refused."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furcula.bus.messages import decode_run, encode_message, encode_run
from furcula.codecs.codec import MAX_DEPTH
from furcula.errors import InputError

EXAMPLES = int(os.environ.get("FURCULA_EXAMPLES", "200"))

HEAD = ("stream", "me", True, 7, 9, 1.5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES, max_size=40))
def test_what_comes_back_is_what_json_makes_of_it(values: list[object]) -> None:
    run = decode_run(encode_run(HEAD, [encode_message(value) for value in values]))
    assert (run.stream, run.sender, run.begins, run.sequence, run.number, run.time) == HEAD
    assert run.messages == json.loads(json.dumps(values))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_are_a_frame(raw: bytes) -> None:
    for body in (raw, b"\x01" + raw, b"\x01\x97" + raw):
        try:
            run = decode_run(body)
        except InputError:
            continue
        assert isinstance(run.messages, list)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES, max_size=5), st.data())
def test_mutated_frames_are_refused_or_are_frames(values: list[object], data: st.DataObject) -> None:
    body = bytearray(encode_run(HEAD, [encode_message(value) for value in values]))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        decode_run(bytes(body))
    except InputError as error:
        assert "frame of the bus" in str(error)  # noqa: PT017 - it may also be none


@pytest.mark.parametrize(
    "message",
    [b"\xd4\x01\x00", b"\xc7\x04\x01[[[[", b"\xd4\x02\x00", b"\xc7\x03\x01NaN", b"\x91" * 5000 + b"\xc0"],
)
def test_hostile_messages_are_refused(message: bytes) -> None:
    body = encode_run(HEAD, [message])
    with pytest.raises(InputError):
        decode_run(body)


def test_what_may_be_sent_may_be_received_and_no_more() -> None:
    def nested(depth: int) -> bytes:
        return b"\x91" * depth + b"\xc0"

    deepest = decode_run(encode_run(HEAD, [encode_message("x"), nested(MAX_DEPTH)])).messages[1]
    assert encode_message(deepest) == nested(MAX_DEPTH)
    with pytest.raises(InputError, match="deeply"):
        decode_run(encode_run(HEAD, [encode_message("x"), nested(MAX_DEPTH + 1)]))


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    text = b"[" * 300 + b"]" * 300
    with pytest.raises(InputError, match="deeply"):
        decode_run(encode_run(HEAD, [b"\xc8" + len(text).to_bytes(2, "big") + b"\x01" + text]))
