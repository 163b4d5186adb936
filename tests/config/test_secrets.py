"""What is given for a secret appears nowhere."""

from __future__ import annotations

import pytest

from furcula import ConfigurationError, Secret
from furcula.config import dump, loads

WORD = "hunter2-hunter2"
FILE = "modules:\n  n: shop:numbers\n  a: {use: 'shop:send', with: {%s}}\n"


@pytest.mark.parametrize("given", [f"password: {WORD}", "password: '${PW}'", "password: 'x${PW}x'"])
def test_a_secret_is_handed_over_and_not_shown(folder, given):
    flow = loads(FILE % given, folder=folder, environment={"PW": WORD})
    place = flow["a"]
    assert isinstance(place.bound["password"], Secret)
    assert WORD in place.bound["password"].reveal()
    shown = "".join((repr(place), repr(place.arguments), str(place.bound), repr(vars(place)), dump(flow)))
    assert WORD not in shown


@pytest.mark.parametrize(
    "given",
    [
        f"password: [{WORD}]",
        f"password: {{a: {WORD}}}",
        f"pasword: {WORD}",
        f"password: {WORD}, port: x",
        f"password: {WORD}, prot: x",
        "password: 123456789123456789",
        "password: '${PW', port: 1",
        "password: '${PW}', port: '${NOPE}'",
    ],
)
def test_no_message_shows_a_secret(folder, given):
    with pytest.raises(ConfigurationError) as caught:
        loads(FILE % given, folder=folder, environment={"PW": WORD})
    assert WORD not in str(caught.value)
    assert "123456789123456789" not in str(caught.value)


def test_a_dump_writes_the_variable_that_a_secret_came_from(folder):
    flow = loads(FILE % "password: '${PW}'", folder=folder, environment={"PW": WORD})
    written = dump(flow)
    assert "password: ${PW}" in written
    assert loads(written, folder=folder, environment={"PW": "other"})["a"].bound["password"].reveal() == "other"


def test_a_dump_of_a_literal_secret_asks_for_a_variable(folder):
    written = dump(loads(FILE % f"password: {WORD}", folder=folder))
    assert "password: ${A_PASSWORD}" in written
    with pytest.raises(ConfigurationError, match="the variable A_PASSWORD is not set"):
        loads(written, folder=folder, environment={})
