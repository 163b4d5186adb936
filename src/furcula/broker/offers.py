"""Who delivers for a provider: plugins that were given, those found by entry point, and the library's own sinks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from furcula.broker.ingress import KINDS, check_ingress, entry_points, providers_of
from furcula.broker.internal import InternalQueues
from furcula.broker.profiles import Profile
from furcula.errors import ConfigurationError, nearest

__all__ = ["Offers", "Unusable"]

_log = logging.getLogger("furcula.broker")


class Unusable:
    """Stands for a plugin that is none."""

    def __init__(self, reason: str):
        self.reason = reason


class Offers:
    """The plugins, by provider.

    Args:
        ingress: Plugins by name, or a list of objects and Python modules.
        internal: Offers the provider `internal`.
        aliases: Further names of providers.

    Raises:
        ConfigurationError: Two plugins offer the same provider.
    """

    def __init__(
        self,
        ingress: Mapping[str, Any] | Iterable[Any],
        internal: InternalQueues,
        aliases: Mapping[str, str],
    ):
        self._aliases = aliases
        self._offered: dict[str, Any] = {"internal": internal}
        #: Entry points that were not loaded; None: not looked for.
        self._points: dict[str, Callable[[], Any]] | None = None
        names: dict[str, str] = {}
        for name, plugin in _listed(ingress):
            found = _checked(name, plugin)
            for provider in providers_of(plugin, name):
                if provider in names:
                    raise ConfigurationError(
                        f"ingress: both {names[provider]} and {name} offer the provider {provider!r}; give one of them "
                        "another name in its ACCT"
                    )
                names[provider] = name
                self._offered[provider] = found

    def of(self, profile: Profile) -> tuple[str, Any]:
        """The provider's own name, and its plugin: Unusable where that is none, None for a sink of the library.

        Raises:
            ConfigurationError: Nobody offers it.
        """
        provider = self._aliases.get(profile.provider, profile.provider)
        if provider not in self._offered and provider not in KINDS:
            self._load(provider)
            if provider not in self._offered:
                known = {*self._offered, *KINDS, *self._aliases}
                raise ConfigurationError(
                    f"profiles: nobody offers the provider {profile.provider!r}{nearest(profile.provider, known)}"
                )
        return provider, self._offered.get(provider)

    def _load(self, provider: str) -> None:
        """From the entry point of this name; without one, from all: a plugin may offer under other names."""
        if self._points is None:
            self._points = dict(entry_points())
        for name in [provider] if provider in self._points else list(self._points):
            loaded = _loaded(name, self._points.pop(name))
            for one in providers_of(loaded, name):
                self._offered.setdefault(one, loaded)


def _listed(ingress: Mapping[str, Any] | Iterable[Any]) -> list[tuple[str, Any]]:
    """Each plugin with its name; of a class, an instance."""
    if isinstance(ingress, Mapping):
        named = list(ingress.items())
    else:
        named = [
            (str(getattr(one, "name", None) or getattr(one, "__name__", type(one).__name__)).rpartition(".")[2], one)
            for one in ingress
        ]
    return [(name, _made(plugin)) for name, plugin in named]


def _made(plugin: Any) -> Any:
    return plugin() if isinstance(plugin, type) else plugin


def _checked(name: str, plugin: Any) -> Any:
    """The plugin, or what stands for one that is none."""
    reason = plugin.reason if isinstance(plugin, Unusable) else check_ingress(plugin, name)
    if reason:
        _log.error("%s; it is disabled", reason)
        return Unusable(reason)
    return plugin


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return _checked(name, _made(load()))
    except Exception as error:
        reason = f"the ingress plugin {name} cannot be loaded: {type(error).__name__}: {error}"
        return _checked(name, Unusable(reason))
