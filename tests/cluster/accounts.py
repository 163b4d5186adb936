"""A NATS server that knows its users by JWTs: an operator vouches for accounts, and these for their users.

https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys
from tests.transports.nats_server import NatsServer

__all__ = ["Account", "server_of_an_operator"]

_UNLIMITED = {"subs": -1, "data": -1, "payload": -1}


class Identity:
    """A key, and by what others know it."""

    def __init__(self, kind: int):
        self.seed = nkeys.encode_seed(os.urandom(32), kind)
        self._pair = nkeys.from_seed(self.seed)
        self.name: str = self._pair.public_key.decode()

    def vouch(self, whom: str, name: str, claims: dict[str, Any]) -> str:
        """A JWT: what whoever has this name may."""
        body: dict[str, Any] = {"iat": int(time.time()), "iss": self.name, "sub": whom, "name": name}
        body["nats"] = {"version": 2, **claims}
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (_HEADER, body))
        return f"{signed}.{_encoded(self._pair.sign(signed.encode()))}"


_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class Account(Identity):
    """One of an operator's, with as much of everything as it likes.

    Args:
        stores: It has JetStream. The account of the server's own news must not.

    Attributes:
        jwt: The operator's word for it.
    """

    def __init__(self, operator: Identity, name: str, *, stores: bool = True):
        super().__init__(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = {**_UNLIMITED, **dict.fromkeys(("conn", "leaf", "imports", "exports"), -1), "wildcards": True}
        if stores:
            limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
        claims = {"type": "account", "limits": limits, "default_permissions": {}}
        self.jwt = operator.vouch(self.name, name, claims)

    def user(self, file: Path, **permissions: Any) -> Path:
        """Make a user; `file` becomes its credentials, as `nsc` writes them."""
        user = Identity(nkeys.PREFIX_BYTE_USER)
        word = self.vouch(user.name, file.stem, {"type": "user", **_UNLIMITED, **permissions})
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{word}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        file.chmod(0o600)
        return file


def server_of_an_operator(folder: Path) -> tuple[NatsServer, Account, Account]:
    """A server with JetStream, an account that it knows, and one that it does not."""
    operator = Identity(nkeys.PREFIX_BYTE_OPERATOR)
    system = Account(operator, "system", stores=False)
    ours, stranger = Account(operator, "ours"), Account(operator, "stranger")
    word = operator.vouch(operator.name, "tests", {"type": "operator"})
    server = NatsServer(
        folder,
        f"operator: {word}\nsystem_account: {system.name}\nresolver: MEMORY\n"
        f'resolver_preload: {{ {system.name}: "{system.jwt}", {ours.name}: "{ours.jwt}" }}',
    )
    return server, ours, stranger
