"""auth.bearer: tokens of a list, and JSON web tokens with all that can be wrong with one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from tests.modules.conftest import Bench

from furcula import Secret
from furcula.errors import FurculaError
from furcula.modules.auth.bearer import Bearer
from furcula.options import Duration
from furcula.statuses import Forbidden, Unauthorized
from furcula.testing import run_module

from .conftest import request, told

KEY = "a shared secret of 32 bytes or more"


def pems(private: Any) -> tuple[str, str]:
    """The private and the public key as PEM."""
    return (
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        private.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode(),
    )


RSA_PRIVATE, RSA_PUBLIC = pems(rsa.generate_private_key(65537, 2048))
EC_PRIVATE, EC_PUBLIC = pems(ec.generate_private_key(ec.SECP256R1()))
ED_PRIVATE, ED_PUBLIC = pems(ed25519.Ed25519PrivateKey.generate())


def shared(**arguments: Any) -> Bearer:
    return Bearer(**{"jwt_key": Secret(KEY), "algorithms": ("HS256",), **arguments})


def token(key: str = KEY, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    said = {"sub": "ada", "exp": time.time() + 60, **claims}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm, headers=headers)


def forged(header: dict[str, Any], claims: Any, key: bytes | None = None) -> str:
    """A token of any header, signed by HMAC with any key, or not at all: as an attacker makes it."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = b"" if key is None else hmac.digest(key, signed, "sha256")
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def refused(module: Bearer, given: str) -> Unauthorized:
    with pytest.raises(Unauthorized) as caught:
        module.process(request(f"Bearer {given}"))
    return caught.value


# ------------------------------------------------------------------ tokens of a list


def test_a_known_token_says_whose_it_is_and_travels_no_further() -> None:
    module = Bearer(tokens={"ci": Secret("t0ken"), "backup": Secret("0ther")})
    event = module.process(request("bearer  0ther"))
    assert event.headers["auth"] == {"scheme": "bearer", "user": "backup"}
    assert event.headers["request"] == {"host": "example.org"}


def test_tokens_may_have_no_names() -> None:
    module = Bearer(tokens=[Secret("one"), Secret("two")])
    assert module.process(request("Bearer two")).headers["auth"] == {"scheme": "bearer", "user": None}


def test_without_a_token_the_challenge_speaks_of_no_error() -> None:
    module = Bearer(tokens=[Secret("one")], realm="shop")
    for field in (None, "", "Basic YWRhOng=", "one"):
        with pytest.raises(Unauthorized) as caught:
            module.process(request(field))
        assert caught.value.headers == {"www-authenticate": 'Bearer realm="shop"'}


@pytest.mark.parametrize(
    "given",
    [
        "ones",
        "on",
        "",
        " ",
        "one two",
        "one, one",
        "öne",
        "one\n",
        "=",
        '"',
        "\ud800",
        pytest.param("A" * 1_000_000, id="huge"),
    ],
)
def test_another_token_is_refused_as_invalid_and_travels_no_further(given: str) -> None:
    event = request(f"Bearer {given}")
    with pytest.raises(Unauthorized) as caught:
        Bearer(tokens=[Secret("one")]).process(event)
    (challenge,) = caught.value.headers.values()
    assert challenge.startswith('Bearer realm="furcula", error="invalid_token", error_description="')
    assert challenge.isascii()
    assert challenge.isprintable()
    assert "authorization" not in event.headers["request"]


def test_credentials_of_another_scheme_are_left_for_another_module() -> None:
    event = request("Basic YWRhOng=")
    with pytest.raises(Unauthorized):
        Bearer(tokens=[Secret("one")]).process(event)
    assert event.headers["request"]["authorization"] == "Basic YWRhOng="


# ------------------------------------------------------------------ web tokens


def test_a_web_token_says_who_it_is_and_what_it_claims() -> None:
    expires = int(time.time()) + 60
    event = shared().process(request(f"Bearer {token(exp=expires, scope='read write')}"))
    assert event.headers["auth"] == {
        "scheme": "bearer",
        "user": "ada",
        "claims": {"sub": "ada", "exp": expires, "scope": "read write"},
        "scopes": ["read", "write"],
    }
    assert "authorization" not in event.headers["request"]


@pytest.mark.parametrize(
    ("algorithm", "private", "public"),
    [
        ("RS256", RSA_PRIVATE, RSA_PUBLIC),
        ("PS512", RSA_PRIVATE, RSA_PUBLIC),
        ("ES256", EC_PRIVATE, EC_PUBLIC),
        ("EdDSA", ED_PRIVATE, ED_PUBLIC),
    ],
    ids=["RSA", "RSA-PSS", "EC", "Ed25519"],
)
def test_public_keys_of_all_kinds(algorithm: str, private: str, public: str) -> None:
    module = Bearer(jwt_key=Secret(public), algorithms=(algorithm,))
    assert module.process(request(f"Bearer {token(private, algorithm)}")).headers["auth"]["user"] == "ada"
    other = token(KEY, "HS256")
    assert "a way that is not accepted" in refused(module, other).detail


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"exp": time.time() - 1}, "the token has expired"),
        ({"exp": None}, "the token has no exp"),
        ({"exp": "soon"}, "cannot be read"),
        ({"nbf": time.time() + 1000}, "not valid yet"),
        ({"iat": time.time() + 1000}, "not valid yet"),
        ({"aud": "another"}, "for somebody else"),
        ({"key": "another secret of at least 32 bytes"}, "was not signed with our key"),
        ({"algorithm": "HS512", "key": KEY * 2}, "a way that is not accepted"),
        ({"sub": 7}, "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_token_is_said_and_is_a_401(made: dict[str, Any], why: str) -> None:
    error = refused(shared(), token(**made))
    assert why in error.detail
    assert 'error="invalid_token"' in error.headers["www-authenticate"]


def test_audience_issuer_and_further_claims_are_asked_for() -> None:
    module = shared(audience="shop", issuer=["https://id", "https://old"], required=("exp", "jti"))
    good = {"aud": ["x", "shop"], "iss": "https://old", "jti": "1"}
    assert module.process(request(f"Bearer {token(**good)}")).headers["auth"]["user"] == "ada"
    for changes, why in (
        ({"aud": "x"}, "somebody else"),
        ({"aud": None}, "has no aud"),
        ({"iss": "https://evil"}, "made by somebody else"),
        ({"jti": None}, "has no jti"),
    ):
        assert why in refused(module, token(**{**good, **changes})).detail


def test_clocks_may_differ_by_the_leeway() -> None:
    old = token(exp=time.time() - 5)
    assert shared(leeway=Duration("30s")).process(request(f"Bearer {old}"))
    assert refused(shared(leeway=Duration("1s")), old)


def test_a_token_that_says_it_needs_no_signature_is_refused() -> None:
    for name in ("none", "None", "NONE", "nOnE"):
        unsigned = forged({"alg": name, "typ": "JWT"}, {"sub": "admin", "exp": time.time() + 60})
        refused(shared(), unsigned)
        refused(Bearer(jwt_key=Secret(RSA_PUBLIC), algorithms=("RS256",)), unsigned)


@pytest.mark.parametrize(
    "public", [RSA_PUBLIC, RSA_PUBLIC.strip(), RSA_PUBLIC.replace("\n", "\r\n")], ids=["as is", "stripped", "CRLF"]
)
def test_a_public_key_is_never_taken_for_a_shared_secret(public: str) -> None:
    claims = {"sub": "admin", "exp": time.time() + 60}
    confused = forged({"alg": "HS256", "typ": "JWT"}, claims, public.encode())
    assert "not accepted" in refused(Bearer(jwt_key=Secret(RSA_PUBLIC), algorithms=("RS256",)), confused).detail
    with pytest.raises(ValueError, match="HS256 takes a shared secret, and this is PEM"):
        Bearer(jwt_key=Secret(public), algorithms=("HS256",))


def test_keys_that_a_token_brings_along_are_not_looked_at() -> None:
    own = b"the attacker's own key, long enough too"
    jwk = {"kty": "oct", "k": base64.urlsafe_b64encode(own).decode()}
    claims = {"sub": "admin", "exp": time.time() + 60}
    for extra in ({"jwk": jwk}, {"jku": "http://127.0.0.1/keys"}, {"kid": "../../dev/null"}, {"x5u": "file:///x"}):
        refused(shared(), forged({"alg": "HS256", **extra}, claims, own))
        refused(shared(), forged({"alg": "HS256", **extra}, claims, b""))


@pytest.mark.parametrize(
    "given",
    [
        "a",
        "a.b",
        "a.b.c",
        "a.b.c.d.e",
        "...",
        pytest.param("." * 5000, id="dots"),
        "e30.e30.",
        forged({"alg": "HS256"}, [1], KEY.encode()),
        forged({"alg": "HS256"}, b"\xff", KEY.encode()),
        pytest.param(forged({"alg": "HS256"}, b"[" * 4000, KEY.encode()), id="deep"),
        forged({"alg": "HS256"}, {"exp": 1e400}, KEY.encode()),
        forged({"alg": "HS256"}, {"exp": [1]}, KEY.encode()),
        forged({"alg": "HS256"}, {"exp": None}, KEY.encode()),
        forged({"alg": ["HS256"]}, {"exp": 1e9}, KEY.encode()),
        forged({"alg": None}, {"exp": 1e9}, KEY.encode()),
        forged({}, {"exp": 1e9}, KEY.encode()),
        forged({"alg": "HS256", "crit": ["exp"]}, {"exp": 1e10}, KEY.encode()),
        forged({"alg": "HS256", "b64": False, "crit": ["b64"]}, {"exp": 1e10}, KEY.encode()),
    ],
)
def test_what_is_no_token_is_a_401_and_breaks_nothing(given: str) -> None:
    refused(shared(), given)


# ------------------------------------------------------------------ scopes


@pytest.mark.parametrize("claims", [{"scope": "a b c"}, {"scp": "b a"}, {"scp": ["a", "b"]}, {"scopes": ["b", 7, "a"]}])
def test_all_scopes_are_there(claims: dict[str, Any]) -> None:
    assert shared(scopes=("a", "b")).process(request(f"Bearer {token(**claims)}"))


@pytest.mark.parametrize("claims", [{}, {"scope": ""}, {"scope": "a bb"}, {"scp": ["a"]}, {"scope": 7}, {"scope": {}}])
def test_a_token_without_a_scope_is_forbidden_and_told_what_it_needs(claims: dict[str, Any]) -> None:
    with pytest.raises(Forbidden) as caught:
        shared(scopes=("a", "b")).process(request(f"Bearer {token(**claims)}"))
    assert caught.value.headers == {
        "www-authenticate": 'Bearer realm="furcula", error="insufficient_scope", scope="a b"'
    }


# ------------------------------------------------------------------ keys and arguments


async def test_a_key_file_that_changes_is_read_again(bench: Bench) -> None:
    path = bench.folder / "key.pem"
    path.write_text(RSA_PUBLIC)
    module = Bearer(jwt_key_file="key.pem", algorithms=("RS256",))
    module.start(bench)
    assert module.process(request(f"Bearer {token(RSA_PRIVATE, 'RS256')}"))
    new_private, new_public = pems(rsa.generate_private_key(65537, 2048))
    path.with_suffix(".new").write_text(new_public)
    os.replace(path.with_suffix(".new"), path)
    refused(module, token(RSA_PRIVATE, "RS256"))
    assert module.process(request(f"Bearer {token(new_private, 'RS256')}"))


async def test_a_shared_secret_may_stand_in_a_file(bench: Bench) -> None:
    (bench.folder / "key").write_text(KEY + "\n")
    module = Bearer(jwt_key_file="key", algorithms=("HS256",))
    module.start(bench)
    assert module.process(request(f"Bearer {token()}"))


@pytest.mark.parametrize(
    ("text", "algorithm", "says"),
    [
        (RSA_PUBLIC, "HS256", "this is PEM"),
        (RSA_PRIVATE, "RS256", "private key"),
        (EC_PUBLIC, "RS256", "does not fit RS256"),
        ("s3cret", "RS256", "does not fit RS256"),
        ("s3cret", "HS256", "6 bytes; HS256 needs 32"),
        ("", "HS256", "HS256"),
    ],
    ids=["public as secret", "private", "EC for RSA", "no PEM", "short", "empty"],
)
async def test_a_key_file_that_does_not_fit_is_refused_at_the_start_and_not_shown(
    bench: Bench, text: str, algorithm: str, says: str
) -> None:
    (bench.folder / "key").write_text(text)
    with pytest.raises(FurculaError, match=says) as caught:
        Bearer(jwt_key_file="key", algorithms=(algorithm,)).start(bench)
    assert str(bench.folder / "key") in str(caught.value)
    assert "s3cret" not in told(caught.value)
    assert "MII" not in told(caught.value)


async def test_a_key_file_that_is_not_there_is_refused_at_the_start(bench: Bench) -> None:
    with pytest.raises(FurculaError, match=r"bench: .*key cannot be read: No such file"):
        Bearer(jwt_key_file="key", algorithms=("HS256",)).start(bench)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs one of: tokens, jwt_key, jwt_key_file$"),
        ({"tokens": [Secret("a")], "jwt_key": Secret(KEY)}, "not tokens and jwt_key"),
        ({"tokens": []}, "there is none"),
        ({"tokens": {}}, "there is none"),
        ({"tokens": [Secret("s3cret\n")]}, "number 1 cannot be a token"),
        ({"tokens": {"ci": Secret("")}}, "'ci' cannot be a token"),
        ({"tokens": {"a": Secret("s3cret"), "b": Secret("s3cret")}}, "two of them are the same"),
        ({"tokens": [Secret("a")], "scopes": ("x",)}, "for JSON web tokens"),
        ({"tokens": [Secret("a")], "algorithms": ("HS256",)}, "for JSON web tokens"),
        ({"jwt_key": Secret(KEY)}, "algorithms: name those"),
        ({"jwt_key": Secret(KEY), "algorithms": ("none",)}, "anybody"),
        ({"jwt_key": Secret(KEY), "algorithms": ("HS256", "None")}, "anybody"),
        ({"jwt_key": Secret(KEY), "algorithms": ("HS255",)}, "did you mean 'HS256'"),
        ({"jwt_key": Secret(RSA_PUBLIC), "algorithms": ("RS256", "HS256")}, "cannot be mixed"),
        ({"jwt_key": Secret(RSA_PUBLIC), "algorithms": ("RS256", "ES256")}, "does not fit ES256"),
        ({"jwt_key": Secret("s3cret"), "algorithms": ("HS256",)}, "jwt_key: the key has 6 bytes"),
        ({"jwt_key": Secret(KEY), "algorithms": ("HS256", "HS512")}, "HS512 needs 64"),
        ({"jwt_key": Secret(RSA_PRIVATE), "algorithms": ("RS256",)}, "a private key"),
        ({"jwt_key": Secret(KEY), "algorithms": ("HS256",), "scopes": ("a b",)}, "cannot be a scope"),
        ({"jwt_key": Secret(KEY), "algorithms": ("HS256",), "scopes": ('a"',)}, "cannot be a scope"),
        ({"tokens": [Secret("a")], "realm": "a\r\nb"}, "printable"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Bearer(**arguments)
    assert "s3cret" not in told(caught.value)


def test_a_weak_rsa_key_is_refused() -> None:
    _, public = pems(rsa.generate_private_key(65537, 1024))
    with pytest.raises(ValueError, match="has 1024 bits; 2048"):
        Bearer(jwt_key=Secret(public), algorithms=("RS256",))


def test_the_engine_runs_it_and_a_token_is_told_from_its_digest_only() -> None:
    result = run_module(
        "auth.bearer",
        [request("Bearer one"), request("Bearer two")],
        tokens={"ada": "one", "eve": hashlib.sha256(b"two").hexdigest()},
    )
    assert [event.headers["auth"]["user"] for event in result["outbox"]] == ["ada"]
    assert [failure.status for failure in result.failures] == [401]
