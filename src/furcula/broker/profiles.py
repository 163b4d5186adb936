"""Profiles: which providers there are, under which names events are put for them, and with what data."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from furcula.errors import ConfigurationError, Problem

__all__ = ["Profile", "Profiles", "Redactor"]

#: Names matched and remembered; whoever puts under ever new names only makes matching slower.
REMEMBERED = 10_000
#: Values under keys like these are never shown, wherever they came from.
_SECRET = re.compile(
    r"pass(word|wd|phrase|code)?$|pwd|secret|token|credential|(api|private|access|account|signing|shared)_?key|^key$|auth"
    r"|bearer|webhook|dsn",
    re.IGNORECASE,
)
#: Shorter texts are too common to be struck out of a message.
_SHORTEST = 4


class Profile(msgspec.Struct, frozen=True):
    """One configured sink.

    Attributes:
        provider: Which ingress plugin delivers.
        name: The name that events are put under: exact; a glob, if it has one of `*?[`; a regular expression, if it
            stands between slashes (`/team-[0-9]+/`), which has to match all of the name.
        data: What the plugin is given: addresses, credentials, a `routing_key` that overrides the event's.
    """

    provider: str
    name: str
    data: Any = {}

    @property
    def title(self) -> str:
        return f"{self.provider}/{self.name}"

    @property
    def pattern(self) -> re.Pattern[str] | None:
        """What names are matched against; None: the name itself only."""
        if len(self.name) > 2 and self.name[0] == self.name[-1] == "/":
            try:
                return re.compile(self.name[1:-1])
            except re.error as error:
                raise ConfigurationError(
                    [Problem(f"{self.name} is no regular expression: {error}", f"{self.provider}.{self.name}")]
                ) from None
        if any(sign in self.name for sign in "*?["):
            return re.compile(fnmatch.translate(self.name))
        return None


class Profiles:
    """The configured profiles, found by name.

    Args:
        configured: `{provider: {profile_name: data}}`.

    Raises:
        ConfigurationError: It is not of that form; each problem is named with its place.
    """

    def __init__(self, configured: Mapping[str, Any]):
        problems: list[Problem] = []
        if not isinstance(configured, Mapping):
            raise ConfigurationError("profiles are a mapping: provider, then profile name, then data")
        self._all: list[Profile] = []
        for provider, names in configured.items():
            if not isinstance(provider, str) or not provider:
                problems.append(Problem(f"a provider is a name, not {provider!r}", str(provider)))
            elif not isinstance(names, Mapping):
                problems.append(
                    Problem(f"expected profile names with their data, not {type(names).__name__}", provider)
                )
            else:
                self._all += [
                    Profile(provider, str(name), {} if data is None else data) for name, data in names.items()
                ]
        if problems:
            raise ConfigurationError(problems)
        self._patterns = [(profile, profile.pattern) for profile in self._all]
        self._found: dict[str, tuple[int, ...]] = {}

    def __iter__(self) -> Iterator[Profile]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, number: int) -> Profile:
        return self._all[number]

    def matching(self, name: str) -> tuple[int, ...]:
        """The numbers of the profiles that an event put under this name is for, in the order of configuration."""
        found = self._found.get(name)
        if found is None:
            found = tuple(
                number
                for number, (profile, pattern) in enumerate(self._patterns)
                if (profile.name == name if pattern is None else pattern.fullmatch(name) is not None)
            )
            if len(self._found) < REMEMBERED:
                self._found[name] = found
        return found


class Redactor:
    """Strikes out of messages what must not be seen.

    Args:
        profiles: The profiles; every value in them under a key that sounds like a secret is one.
        secrets: Further texts.
    """

    def __init__(self, profiles: Iterable[Profile], secrets: Iterable[str] = ()):
        found = {text for text in secrets if len(text) >= _SHORTEST}
        for profile in profiles:
            found.update(_secrets(profile.data, False))
        # As they stand, as Python and JSON write them, and as they stand in a URL.
        written = {
            form for text in found for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1], quote(text, safe=""))
        }
        self._texts = sorted(written, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._texts:
            if secret in text:
                text = text.replace(secret, "********")
        return text


def _forms(text: str) -> tuple[str, ...]:
    return text, repr(text)[1:-1], json.dumps(text)[1:-1], quote(text, safe="")


def _secrets(data: Any, secret: bool) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _secrets(value, secret or bool(_SECRET.search(str(key))))
    elif isinstance(data, list | tuple):
        for item in data:
            yield from _secrets(item, secret)
    elif isinstance(data, str):
        plain = str.__str__(data)
        if secret and len(plain) >= _SHORTEST:
            yield plain
        # A URL with a password in it: amqp://user:password@host
        match = re.match(r"[a-z][a-z0-9+.-]*://[^/@\s]*?:([^/@\s]+)@", plain, re.IGNORECASE)
        if match and len(match[1]) >= _SHORTEST:
            yield match[1]
            yield unquote(match[1])
    elif secret and isinstance(data, int | float) and len(str(data)) >= _SHORTEST:
        yield str(data)
