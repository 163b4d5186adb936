"""`furcula profiles`: encrypted files of profiles for a Broker."""

from __future__ import annotations

import os
from pathlib import Path

import click

from furcula.cli.command import Command

__all__ = ["profiles"]

_FILE = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_KEY = click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The file with the key. Default: the variable FURCULA_PROFILES_KEY.",
)


@click.group()
def profiles() -> None:
    """Encrypt and read the files in which a Broker's profiles keep their credentials."""


@profiles.command("new-key", cls=Command)
def make_key() -> None:
    """Print a new key. Keep it apart from the files."""
    from furcula.broker.credentials import new_key

    click.echo(new_key())


@profiles.command(cls=Command)
@_FILE
@_KEY
def encrypt(file: Path, key_file: Path | None) -> None:
    """Print FILE encrypted. It is checked first."""
    from furcula.broker.credentials import encrypted, profiles_of_file

    profiles_of_file(file, environment=_Anything())
    click.echo(encrypted(file.read_text(encoding="utf-8"), _key(key_file)).decode())


@profiles.command(cls=Command)
@_FILE
@_KEY
def decrypt(file: Path, key_file: Path | None) -> None:
    """Print the text of an encrypted FILE."""
    from furcula.broker.credentials import decrypted

    click.echo(decrypted(file.read_bytes(), _key(key_file), str(file)), nl=False)


def _key(key_file: Path | None) -> str:
    from furcula.broker.credentials import KEY_VARIABLE
    from furcula.errors import ConfigurationError

    key = key_file.read_text().strip() if key_file is not None else os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise ConfigurationError(f"give the key with --key-file, or set the variable {KEY_VARIABLE}")
    return key


class _Anything(dict[str, str]):
    """Every variable is set, as far as checking a file goes."""

    def get(self, name: str, default: object = None) -> str:
        return ""
