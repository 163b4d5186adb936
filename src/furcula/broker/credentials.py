"""Where profiles come from: YAML files, encrypted ones, and the environment.

An encrypted file is a Fernet token (https://github.com/fernet/spec: AES-128-CBC with an HMAC-SHA256) around the YAML.
`furcula profiles new-key`, `encrypt` and `decrypt` make and read such files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from furcula.config.load import read_text
from furcula.config.nodes import compose
from furcula.config.variables import fill_in
from furcula.errors import ConfigurationError, MissingExtra, Problem
from furcula.options import Secret

__all__ = [
    "KEY_VARIABLE",
    "PREFIX",
    "decrypted",
    "encrypted",
    "merged",
    "new_key",
    "profiles_of_environment",
    "profiles_of_file",
]

#: Variables of the environment that say one value of a profile: FURCULA_PROFILE__AMQP__DEFAULT__URL=amqp://…
PREFIX = "FURCULA_PROFILE__"
#: The variable that has the key of encrypted files.
KEY_VARIABLE = "FURCULA_PROFILES_KEY"
#: A Fernet token begins with its version, 0x80, in base64.
_FERNET = b"gAAAAA"


def profiles_of_file(
    path: str | Path, *, key: Secret | str | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The profiles in a YAML file, which may be encrypted: `provider: profile_name: data`.

    `${VAR}` in its strings is filled in from the environment. Nothing of the file's content stands in an error.

    Args:
        key: What an encrypted file was encrypted with; default: the variable FURCULA_PROFILES_KEY.

    Raises:
        ConfigurationError: It cannot be read, decrypted or understood; with file and line where there is one.
    """
    path = Path(path)
    environment = os.environ if environment is None else environment
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError([Problem(f"cannot be read: {error.strerror}", "", str(path))]) from None
    text = decrypted(raw, _key(key, environment, path), str(path)) if raw.startswith(_FERNET) else read_text(path)
    problems: list[Problem] = []
    root = compose(text, str(path), problems)
    # What a problem says may quote the file, and with it a secret: the place is all that is told.
    problems = [Problem(_told(one.message), one.path, one.location) for one in problems]
    if root is not None and not problems:
        root = fill_in(root, environment, problems)
        for place, leaf in root.leaves():
            if leaf.trap:
                problems.append(Problem(_READ_OTHERWISE, place, leaf.location))
        if not root.is_mapping:
            problems.append(
                Problem("a file of profiles says provider, then profile name, then data", "", root.location)
            )
    if problems or root is None:
        raise ConfigurationError(problems)
    found = root.plain()
    assert isinstance(found, dict)
    return found


_READ_OTHERWISE = "YAML reads this value in another way than it is written; put it in quotes"


def _told(message: str) -> str:
    if message.startswith("this is not YAML"):
        return "this is not YAML (what stands there is not shown)"
    return _READ_OTHERWISE


def profiles_of_environment(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The profiles that the environment says: `FURCULA_PROFILE__AMQP__DEFAULT__URL=amqp://…`.

    Provider, profile name and the keys below become lower case; a value is a string.

    Raises:
        ConfigurationError: A name that has not provider, profile and key; or two that contradict each other.
    """
    found: dict[str, Any] = {}
    environment = os.environ if environment is None else environment
    for variable in sorted(environment):
        if not variable.startswith(PREFIX):
            continue
        parts = variable[len(PREFIX) :].lower().split("__")
        if len(parts) < 3 or not all(parts):
            raise ConfigurationError(f"{variable}: expected {PREFIX}PROVIDER__PROFILE__KEY")
        inner = found
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"{variable}: {part} has a value of its own already")
        if isinstance(inner.get(parts[-1]), dict):
            raise ConfigurationError(f"{variable}: {parts[-1]} has keys of its own already")
        inner[parts[-1]] = Secret(environment[variable]).reveal()
    return found


def merged(*all_profiles: Mapping[str, Any]) -> dict[str, Any]:
    """Several sets of profiles as one; where two say the same key, the later one holds."""
    result: dict[str, Any] = {}
    for profiles in all_profiles:
        for key, value in profiles.items():
            if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
                result[key] = merged(result[key], value)
            else:
                result[key] = merged(value) if isinstance(value, Mapping) else value
    return result


# ------------------------------------------------------------------ encrypted files


def new_key() -> str:
    """A new key for encrypted files: 32 random bytes in base64."""
    return str(_fernet().Fernet.generate_key().decode())


def encrypted(text: str, key: Secret | str) -> bytes:
    """`text` as the content of an encrypted file."""
    return bytes(_cipher(key).encrypt(text.encode()))


def decrypted(raw: bytes, key: Secret | str, name: str = "the file") -> str:
    """The text of an encrypted file.

    Raises:
        ConfigurationError: The key is another one, or the file was changed.
    """
    try:
        return str(_cipher(key).decrypt(raw.strip()).decode())
    except (_fernet().InvalidToken, UnicodeDecodeError):
        raise ConfigurationError(f"{name} cannot be decrypted: it is another key's, or it was changed") from None


def _key(key: Secret | str | None, environment: Mapping[str, str], path: Path) -> Secret | str:
    found = key if key is not None else environment.get(KEY_VARIABLE)
    if not found:
        raise ConfigurationError(f"{path} is encrypted: give its key, or set the variable {KEY_VARIABLE}")
    return found


def _cipher(key: Secret | str) -> Any:
    plain = key.reveal() if isinstance(key, Secret) else key
    try:
        return _fernet().Fernet(plain.strip().encode())
    except ValueError:
        raise ConfigurationError(
            "that is no key of an encrypted file: it has 32 bytes in base64; `furcula profiles new-key` makes one"
        ) from None


def _fernet() -> Any:
    try:
        from cryptography import fernet
    except ImportError:
        raise MissingExtra("an encrypted file of profiles", "auth") from None
    return fernet
