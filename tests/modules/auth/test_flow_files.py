"""The modules of this folder in flow files: all that they take can be said there, and no secret is shown."""

from __future__ import annotations

import pytest

from furcula.config import dump, loads
from furcula.errors import ConfigurationError
from furcula.module import bind_arguments
from furcula.modules.auth.basic import Basic

KEY = "a shared s3cret of 32 bytes or more"

FLOWS = {
    "auth.basic": "users: {ada: '${KEY}'}, realm: shop, remember: 5m",
    "auth.bearer": "jwt_key: '${KEY}', algorithms: [HS256], audience: shop, leeway: 30s, scopes: [orders]",
    "auth.key": "keys: {ada: '${KEY}'}, cookie: key",
    "auth.signature": "secrets: ['${KEY}', '${KEY}2'], form: stripe, tolerance: 1m",
}


def text(kind: str, arguments: str) -> str:
    return f"{{flow: shop, modules: {{in: inlet, guard: {{use: {kind}, with: {{{arguments}}}}}}}}}"


@pytest.mark.parametrize("kind", FLOWS)
def test_a_secret_is_written_out_as_the_variable_it_was(kind: str) -> None:
    flow = loads(text(kind, FLOWS[kind]), environment={"KEY": KEY})
    flow.check()
    written = dump(flow)
    assert "${KEY}" in written
    assert "s3cret" not in written
    loads(written, environment={"KEY": KEY}).check()


@pytest.mark.parametrize("kind", FLOWS)
def test_a_mistake_beside_a_secret_does_not_show_it(kind: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loads(text(kind, FLOWS[kind] + ", nonsense: 1"), environment={"KEY": KEY}).check()
    assert "nonsense" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("tokens", ["[one, two]", "{ci: one, backup: two}"])
def test_tokens_may_be_a_list_or_have_names(tokens: str) -> None:
    loads(text("auth.bearer", f"tokens: {tokens}")).check()


def test_a_function_is_named_in_a_file_and_may_be_given_as_it_is_in_python() -> None:
    loads(text("auth.basic", "verify: 'shop.users:known'")).check()

    async def known(name: str, password: str) -> bool:
        return True

    assert bind_arguments(Basic, {"verify": known}) == ({"verify": known}, [])
