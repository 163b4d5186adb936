"""Certificates for servers of tests: an authority that nobody knows, and what it vouches for."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["Authority"]

_USAGES = x509.ExtendedKeyUsageOID


class Authority:
    """Who vouches for certificates, with a key of its own and files in `folder`. Valid for a day.

    Attributes:
        ca: The file of its own certificate: who is given it trusts what it vouches for.
        cert: The file of a certificate for 127.0.0.1 and no other name, as a server or as a client.
        key: The file of that one's key.
    """

    def __init__(self, folder: Path, name: str = "authority"):
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(f"furcula tests: {name}")
        self.ca, self.cert, self.key = (folder / f"{name}-{what}.pem" for what in ("ca", "cert", "key"))
        self.ca.write_bytes(self._signed(self._name, self._key.public_key(), ca=True))
        key = ec.generate_private_key(ec.SECP256R1())
        self.cert.write_bytes(self._signed(_named("server"), key.public_key(), ca=False))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def _signed(self, subject: x509.Name, key: Any, *, ca: bool) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        ours = self._key.public_key()
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )  # fmt: skip
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ours), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not ca,
                    key_cert_sign=ca,
                    crl_sign=ca,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
        )
        if not ca:
            place = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            made = made.add_extension(x509.SubjectAlternativeName([place]), critical=False).add_extension(
                x509.ExtendedKeyUsage([_USAGES.SERVER_AUTH, _USAGES.CLIENT_AUTH]), critical=False
            )
        return made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
