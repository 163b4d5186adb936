"""Profiles from YAML, from the environment, from encrypted files; and which of them a name is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from furcula.broker import Profiles, decrypted, encrypted, new_key, profiles_of_environment, profiles_of_file
from furcula.broker.credentials import merged
from furcula.cli.main import main
from furcula.errors import ConfigurationError

TEXT = """\
amqp:
  default:
    url: amqp://shop:${PASSWORD}@127.0.0.1
  team-*: {exchange: teams}
kafka:
  default: {topic: orders}
"""


@pytest.mark.parametrize(
    ("configured", "name", "expected"),
    [
        ("default", "default", True),
        ("default", "defaults", False),
        ("team-*", "team-x", True),
        ("team-*", "team", False),
        ("team-?", "team-xy", False),
        ("t[ab]", "tb", True),
        ("/a+/", "aaa", True),
        ("/a+/", "aaab", False),
        ("/.*/", "", True),
        ("a.b", "axb", False),
        ("*", "anything at all", True),
    ],
)
def test_a_name_matches_exactly_or_by_glob_or_by_regular_expression(configured: str, name: str, expected: bool) -> None:
    assert bool(Profiles({"p": {configured: {}}}).matching(name)) is expected


@pytest.mark.parametrize(
    ("configured", "says"),
    [
        ([], "profiles are a mapping"),
        ({"a": []}, "a: expected profile names with their data, not list"),
        ({"a": {"/(/": {}}}, "is no regular expression"),
        ({3: {}}, "a provider is a name, not 3"),
    ],
)
def test_what_is_no_set_of_profiles_is_said(configured: object, says: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Profiles(configured)  # type: ignore[arg-type]
    assert says in str(raised.value)


def test_a_file_of_profiles_is_read_with_its_variables(tmp_path: Path) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(TEXT)
    assert profiles_of_file(path, environment={"PASSWORD": "x: [1"}) == {
        "amqp": {"default": {"url": "amqp://shop:x: [1@127.0.0.1"}, "team-*": {"exchange": "teams"}},
        "kafka": {"default": {"topic": "orders"}},
    }
    with pytest.raises(
        ConfigurationError, match=r"profiles.yaml:3:10: amqp.default.url: the variable PASSWORD is not set"
    ):
        profiles_of_file(path, environment={})


@pytest.mark.parametrize(
    ("text", "says"), [("- a", "provider, then profile name"), ("a: [", "profiles.yaml:2:1"), ("", "profiles.yaml")]
)
def test_a_broken_file_is_named_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=says):
        profiles_of_file(path)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        profiles_of_file(tmp_path / "other.yaml")


def test_an_encrypted_file_needs_its_key(tmp_path: Path) -> None:
    key = new_key()
    path = tmp_path / "profiles.enc"
    path.write_bytes(encrypted(TEXT, key))
    assert b"amqp" not in path.read_bytes()
    assert profiles_of_file(path, key=key, environment={"PASSWORD": "p"})["kafka"] == {"default": {"topic": "orders"}}
    assert profiles_of_file(path, environment={"PASSWORD": "p", "FURCULA_PROFILES_KEY": key})
    with pytest.raises(
        ConfigurationError, match=r"is encrypted: give its key, or set the variable FURCULA_PROFILES_KEY"
    ):
        profiles_of_file(path, environment={})
    with pytest.raises(ConfigurationError, match="cannot be decrypted: it is another key's, or it was changed"):
        profiles_of_file(path, key=new_key())
    with pytest.raises(ConfigurationError, match="no key of an encrypted file"):
        profiles_of_file(path, key="hunter2")
    changed = bytearray(path.read_bytes())
    changed[40] ^= 1
    with pytest.raises(ConfigurationError, match="cannot be decrypted"):
        decrypted(bytes(changed), key)


def test_the_environment_says_single_values_and_what_is_later_holds() -> None:
    environment = {
        "FURCULA_PROFILE__AMQP__DEFAULT__URL": "amqp://there",
        "FURCULA_PROFILE__AMQP__DEFAULT__TLS__CA_FILE": "/ca.pem",
        "OTHER": "x",
    }
    found = profiles_of_environment(environment)
    assert found == {"amqp": {"default": {"url": "amqp://there", "tls": {"ca_file": "/ca.pem"}}}}
    both = merged({"amqp": {"default": {"url": "amqp://here", "exchange": "e"}}, "b": {"x": {}}}, found)
    assert both["amqp"]["default"] == {"url": "amqp://there", "exchange": "e", "tls": {"ca_file": "/ca.pem"}}
    assert both["b"] == {"x": {}}


@pytest.mark.parametrize(
    "environment",
    [
        {"FURCULA_PROFILE__AMQP__URL": "x"},
        {"FURCULA_PROFILE__A__B__C": "x", "FURCULA_PROFILE__A__B__C__D": "y"},
        {"FURCULA_PROFILE__A____C": "x"},
    ],
)
def test_variables_that_say_no_value_of_a_profile_are_named(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match="FURCULA_PROFILE__A"):
        profiles_of_environment(environment)


def test_the_command_line_makes_keys_and_encrypts_and_decrypts(tmp_path: Path) -> None:
    def furcula(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["profiles", *map(str, arguments)])

    plain, key, secret = (tmp_path / name for name in ("profiles.yaml", "key", "profiles.enc"))
    plain.write_text(TEXT)
    key.write_text(furcula("new-key").stdout)
    secret.write_text(furcula("encrypt", plain, "--key-file", key).stdout)
    assert furcula("decrypt", secret, "--key-file", key).stdout == TEXT
    assert profiles_of_file(secret, key=key.read_text(), environment={"PASSWORD": "x"})
    no_key = furcula("decrypt", secret)
    assert (no_key.exit_code, "FURCULA_PROFILES_KEY" in no_key.stderr) == (2, True)
    plain.write_text("a: [")
    broken = furcula("encrypt", plain, "--key-file", key)
    assert (broken.exit_code, "not YAML" in broken.stderr) == (2, True)
