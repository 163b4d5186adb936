"""CURVE: who may talk to the hub, and how each end shows who it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zmq
import zmq.auth

from furcula.errors import ConfigurationError
from furcula.options import Secret

__all__ = ["Keys"]


class Keys:
    """The keys of one transport, all in Z85 (40 characters), as `zmq.curve_keypair` makes them.

    Args:
        server_key: The hub's public key.
        public_key: This client's own.
        secret_key: This client's own.
        server_secret: The hub's secret key, for processes that may hold the hub. Others only connect.
        allowed: Public keys of the clients that the hub lets in. None: whoever knows the hub's public key.
    """

    def __init__(
        self,
        server_key: str,
        public_key: str,
        secret_key: Secret,
        server_secret: Secret | None = None,
        allowed: tuple[str, ...] | None = None,
    ):
        self._server_key = _checked("server_key", server_key)
        self._public_key = _checked("public_key", public_key)
        self._secret_key = _checked("secret_key", secret_key)
        self._server_secret = _checked("server_secret", server_secret) if server_secret else None
        self._allowed = None if allowed is None else {zmq.utils.z85.decode(_checked("allowed", one)) for one in allowed}
        if self._server_secret and zmq.curve_public(self._server_secret) != self._server_key:
            raise ConfigurationError("CURVE: server_secret does not belong to server_key")
        if zmq.curve_public(self._secret_key) != self._public_key:
            raise ConfigurationError("CURVE: secret_key does not belong to public_key")

    @classmethod
    def in_folder(cls, folder: Path) -> Keys:
        """Keys from certificate files, as `zmq.auth.create_certificates` writes them.

        `server.key` (the hub's public key), `client.key_secret` (our own pair), and for those that may hold the hub
        `server.key_secret`, and `clients/*.key` with the keys that it lets in (without that folder: any).

        Raises:
            ConfigurationError: A file is missing or is none; the message names it.
        """
        server_key, _ = _certificate(folder / "server.key")
        public, secret = _certificate(folder / "client.key_secret")
        server_secret = None
        if (folder / "server.key_secret").exists():
            server_secret = _certificate(folder / "server.key_secret")[1]
        allowed = None
        if (folder / "clients").is_dir():
            allowed = tuple(_certificate(path)[0].decode() for path in sorted((folder / "clients").glob("*.key")))
        if secret is None:
            raise ConfigurationError(f"CURVE: {folder / 'client.key_secret'} has no secret key")
        return cls(
            server_key.decode(),
            public.decode(),
            Secret(secret.decode()),
            Secret(server_secret.decode()) if server_secret else None,
            allowed,
        )

    @property
    def can_hold(self) -> bool:
        return self._server_secret is not None

    def guard(self, router: zmq.Socket[Any]) -> None:
        """Make a hub's socket let in only who may."""
        assert self._server_secret is not None
        router.setsockopt(zmq.CURVE_SERVER, 1)
        router.setsockopt(zmq.CURVE_SECRETKEY, self._server_secret)
        router.setsockopt(zmq.ZAP_DOMAIN, b"furcula")

    def show(self, dealer: zmq.Socket[Any]) -> None:
        """Make a client's socket show who it is."""
        dealer.setsockopt(zmq.CURVE_SERVERKEY, self._server_key)
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._public_key)
        dealer.setsockopt(zmq.CURVE_SECRETKEY, self._secret_key)

    def allows(self, key: bytes) -> bool:
        return self._allowed is None or key in self._allowed


def _checked(name: str, key: str) -> bytes:
    plain = key.reveal() if isinstance(key, Secret) else key
    try:
        if len(plain) == 40 and len(zmq.utils.z85.decode(plain.encode("ascii"))) == 32:
            return plain.encode("ascii")
    except (ValueError, KeyError):
        pass
    raise ConfigurationError(f"CURVE: {name} is no Z85 key of 40 characters; make one with zmq.curve_keypair()")


def _certificate(path: Path) -> tuple[bytes, bytes | None]:
    try:
        return zmq.auth.load_certificate(str(path))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"CURVE: {path} cannot be read as a certificate: {error}") from None
