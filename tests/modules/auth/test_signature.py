"""auth.signature: who knows the secret passes, and only with the bytes that were signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from tests.modules.conftest import Bench

from furcula import Secret
from furcula.errors import ConfigurationError
from furcula.event import Event
from furcula.modules.auth.signature import Signature
from furcula.options import Duration
from furcula.statuses import Unauthorized
from furcula.testing import EPOCH, run_module

from .conftest import request, told

SECRET = "It's a Secret to Everybody"
BODY = b"Hello, World!"
#: From GitHub's documentation, for the secret and the body above.
DOCUMENTED = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"


def github(**arguments: Any) -> Signature:
    return Signature(form="github", **{"secrets": [Secret(SECRET)], **arguments})


def signed(field: str, body: Any = BODY, data: Any = None, header: str = "x-hub-signature-256") -> Event:
    return request(data=data, body=body, request={header: field})


def hexed(body: bytes, secret: str = SECRET, algorithm: str = "sha256") -> str:
    return hmac.new(secret.encode(), body, algorithm).hexdigest()


# ------------------------------------------------------------------ github


def test_the_example_of_githubs_documentation_passes() -> None:
    event = github().process(signed(f"sha256={DOCUMENTED}"))
    assert event.headers["auth"] == {"scheme": "signature", "user": None, "form": "github"}
    assert event.headers["request"]["x-hub-signature-256"] == f"sha256={DOCUMENTED}"


@pytest.mark.parametrize(
    "field",
    [
        "",
        "sha256=",
        DOCUMENTED,
        f"sha1={DOCUMENTED}",
        f"sha256={DOCUMENTED[:-2]}",
        f"sha256={DOCUMENTED[:-1]}",
        f"sha256={DOCUMENTED[:-1]}8",
        f"sha256={DOCUMENTED}, sha256={DOCUMENTED}",
        f"sha256={DOCUMENTED} ff",
        f"sha256= {DOCUMENTED}",
        "sha256=" + "é" * 64,
        "sha256=" + "٣" * 64,
        "sha256=\ud800",
        pytest.param("sha256=" + "00" * 1_000_000, id="huge"),
        f"sha256={hexed(BODY, 'another secret')}",
        f"sha256={hexed(b'another body')}",
        f"sha256={hashlib.sha256(BODY).hexdigest()}",
    ],
)
def test_another_signature_is_refused(field: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        github().process(signed(field))
    assert caught.value.headers == {"www-authenticate": 'Signature header="x-hub-signature-256"'}
    assert DOCUMENTED not in told(caught.value)


def test_a_request_without_a_signature_is_refused() -> None:
    for event in (request(data=BODY), Event(BODY), Event(BODY, {"request": {"x-hub-signature-256": ["x"]}})):
        with pytest.raises(Unauthorized, match="not signed: it has no x-hub-signature-256"):
            github().process(event)


def test_each_of_several_secrets_will_do_while_they_are_rotated() -> None:
    module = github(secrets=[Secret("new"), Secret(SECRET)])
    for secret in ("new", SECRET):
        assert module.process(signed(f"sha256={hexed(BODY, secret)}"))
    with pytest.raises(Unauthorized):
        module.process(signed(f"sha256={hexed(BODY, 'older')}"))


def test_it_is_the_raw_body_that_is_signed() -> None:
    assert github().process(signed(f"sha256={DOCUMENTED}", BODY, {"parsed": True}))
    assert github().process(signed(f"sha256={DOCUMENTED}", None, BODY))
    assert github().process(signed(f"sha256={hexed(b'')}", b"", None))
    with pytest.raises(Unauthorized):  # where both are there, it is the raw body that counts
        github().process(signed(f"sha256={DOCUMENTED}", b"other", BODY))


def test_a_request_without_a_body_is_signed_too() -> None:
    assert github().process(signed(f"sha256={hexed(b'')}", None, None))
    with pytest.raises(Unauthorized):
        github().process(signed(f"sha256={DOCUMENTED}", None, None))


@pytest.mark.parametrize("data", [None, {}, "Hello, World!"])
@pytest.mark.parametrize("fields", [{"content-length": "4"}, {"transfer-encoding": "chunked"}])
def test_without_the_bytes_the_flow_is_wrong_and_the_message_says_what_to_set(
    data: Any, fields: dict[str, str]
) -> None:
    event = signed(f"sha256={DOCUMENTED}", None, data)
    event.headers["request"] |= fields
    with pytest.raises(ConfigurationError, match=r"raw_body: true at the http\.listen"):
        github().process(event)


# ------------------------------------------------------------------ stripe

NOW = 1_700_000_000


def stripe(tmp_path: Path, now: float = NOW, **arguments: Any) -> Signature:
    module = Signature(form="stripe", **{"secrets": [Secret("whsec")], **arguments})
    module.start(Bench(tmp_path, lambda: now))
    return module


def stamped(*values: str, stamp: Any = NOW, body: bytes = BODY) -> Event:
    fields = [f"t={stamp}", *(f"v1={value}" for value in values or [hexed(b"%d." % NOW + BODY, "whsec")])]
    return signed(",".join(fields), body, header="stripe-signature")


async def test_the_time_is_signed_with_the_body(tmp_path: Path) -> None:
    event = stripe(tmp_path).process(stamped())
    assert event.headers["auth"] == {"scheme": "signature", "user": None, "form": "stripe", "timestamp": NOW}
    for wrong in (stamped(stamp=NOW + 1), stamped(body=b"other"), stamped(hexed(BODY, "whsec"))):
        with pytest.raises(Unauthorized):
            stripe(tmp_path).process(wrong)


async def test_one_of_several_signatures_is_enough(tmp_path: Path) -> None:
    good = hexed(b"%d." % NOW + BODY, "whsec")
    module = stripe(tmp_path)
    assert module.process(stamped("00" * 32, good))
    assert module.process(stamped("nonsense", good))
    assert module.process(signed(f"t={NOW}, v0=aa, v1={good}, scheme=x", header="stripe-signature"))
    with pytest.raises(Unauthorized):
        module.process(stamped(*["00" * 32] * 1000, good))  # but nobody tries a thousand


@pytest.mark.parametrize("now", [NOW - 299, NOW, NOW + 299])
async def test_within_the_tolerance_it_passes(tmp_path: Path, now: float) -> None:
    assert stripe(tmp_path, now).process(stamped())


@pytest.mark.parametrize("now", [NOW - 301, NOW + 301, NOW + 10**9])
async def test_beyond_the_tolerance_it_is_refused_for_it_may_be_a_replay(tmp_path: Path, now: float) -> None:
    with pytest.raises(Unauthorized, match="too old"):
        stripe(tmp_path, now).process(stamped())
    with pytest.raises(Unauthorized, match="too old"):
        stripe(tmp_path, NOW + 11, tolerance=Duration(10)).process(stamped())


@pytest.mark.parametrize(
    "field",
    [
        "",
        "t=",
        f"t={NOW}",
        "v1=00",
        f"t={NOW},t={NOW},v1=00",
        "t=now,v1=00",
        "t=-1,v1=00",
        "t=1e9,v1=00",
        "t=٣,v1=00",
        pytest.param(f"t={'9' * 5000},v1=00", id="huge number"),
        f"t=0{NOW},v1=00",
        f"t={NOW},v1=",
        f"t={NOW},v2=00",
        pytest.param("," * 100_000, id="commas"),
        "=",
    ],
)
async def test_a_field_that_cannot_be_read_is_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(Unauthorized, match="cannot be read"):
        stripe(tmp_path).process(signed(field, header="stripe-signature"))


# ------------------------------------------------------------------ plain


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("encoding", ["hex", "base64"])
def test_plain_signatures_of_all_kinds(algorithm: Any, encoding: Any) -> None:
    module = Signature(
        form="plain", secrets=[Secret("x")], header="X-Sig", algorithm=algorithm, encoding=encoding, prefix="v0="
    )
    raw = hmac.digest(b"x", BODY, algorithm)
    said = raw.hex() if encoding == "hex" else base64.b64encode(raw).decode()
    assert module.process(signed(f" v0={said} ", header="x-sig")).headers["auth"]["form"] == "plain"
    for wrong in (said, f"v0=A{said}", "v0=%%%", "v0=", "v0=é"):
        with pytest.raises(Unauthorized):
            module.process(signed(wrong, header="x-sig"))


# ------------------------------------------------------------------ arguments, the engine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "github", "secrets": []}, "at least one"),
        ({"form": "github", "secrets": [Secret("s3cret"), Secret("")]}, "none that is empty"),
        ({"form": "github", "header": "x"}, "for form: plain"),
        ({"form": "stripe", "encoding": "base64"}, "for form: plain"),
        ({"form": "plain"}, "needs a header"),
        ({"form": "plain", "header": "a b"}, "needs a header"),
    ],
)
def test_what_cannot_be_is_refused_when_the_flow_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Signature(**{"secrets": [Secret("s3cret")], **arguments})
    assert "s3cret" not in told(caught.value)


def test_in_the_engine_time_is_the_flows() -> None:
    stamp = int(EPOCH)
    field = f"t={stamp},v1={hexed(b'%d.' % stamp + BODY, 'x')}"
    events = [signed(field, header="stripe-signature"), signed(field, b"other", header="stripe-signature")]
    result = run_module("auth.signature", events, form="stripe", secrets=["x"])
    assert [event.headers["auth"]["timestamp"] for event in result["outbox"]] == [stamp]
    assert [failure.status for failure in result.failures] == [401]
