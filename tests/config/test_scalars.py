"""What an unquoted word means."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from furcula.config.scalars import read_scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("False", False), ("0", 0), ("-12", -12),
        ("1_000", 1000),
        ("0x1F", 31), ("0o17", 15), ("0b11", 3), ("1.5", 1.5), ("1e3", 1000.0), ("-.5", -0.5), (".inf", math.inf),
        ("127.0.0.1:5514", "127.0.0.1:5514"), ("8080:80", "8080:80"), ("2s", "2s"), ("1.2.3", "1.2.3"), ("-", "-"),
        ("a:b", "a:b"), ("nope", "nope"), ("+", "+"), ("::1", "::1"), ("0.5.1", "0.5.1"), ("1__0", "1__0"),
    ],
)  # fmt: skip
def test_plain_words(text, value):
    assert read_scalar(text) == (value, "")


@pytest.mark.parametrize(
    "text", ["no", "Yes", "ON", "off", "010", "08", "22:30", "1:30:00", "2024-01-01", "2024-1-1 10:00"]
)
def test_traps(text):
    assert read_scalar(text).trap


def test_an_endless_number_is_only_text():
    assert read_scalar("1" * 5000).value == "1" * 5000


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12))
def test_a_word_that_yaml_1_1_reads_as_no_text_is_no_text_here_or_a_trap(text):
    """Nothing that another reader of YAML would take for a number, a boolean or a date passes as text unnoticed."""
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    value, trap = read_scalar(text)
    if tag.rpartition(":")[2] in ("bool", "int", "float", "null", "timestamp"):
        assert not isinstance(value, str) or trap or "_" in text
