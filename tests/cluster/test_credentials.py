"""A `.creds` file opens a server that knows its users by JWTs, wherever one may be named."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cluster.accounts import server_of_an_operator
from tests.cluster.test_command import CHAIN, shop
from tests.transports.nats_server import NatsServer
from tests.workers.running import LIMIT_S, wait_until
from tests.workers.test_stage_processes import noted

from furcula.cluster.client import Access, Client
from furcula.errors import ConfigurationError, FurculaError
from furcula.transports import transport_for


class Guarded(msgspec.Struct):
    """A server, and files of credentials that it takes, and that it does not."""

    server: NatsServer
    good: Path
    bad: Path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("operator")
    server, ours, stranger = server_of_an_operator(folder / "server")
    yield Guarded(server, ours.user(folder / "good.creds"), stranger.user(folder / "bad.creds"))
    server.kill()


def secrets(file: Path) -> list[str]:
    """What of a file of credentials is for nobody else."""
    return [line for line in file.read_text().splitlines() if line and not line.startswith("-")]


async def test_a_transport_takes_a_file_of_credentials_from_its_url(guarded: Guarded) -> None:
    transport = transport_for(f"{guarded.server.url}?credentials={guarded.good}")
    await transport.open()
    await transport.put("work", b"x")
    message = await asyncio.wait_for(transport.take("work"), LIMIT_S)
    assert message.body == b"x"
    await message.ack()
    await transport.close()


@pytest.mark.parametrize("with_file", [True, False])
async def test_a_transport_that_the_server_does_not_know_is_refused_and_its_secrets_are_not_shown(
    guarded: Guarded, with_file: bool
) -> None:
    more = f"&credentials={guarded.bad}" if with_file else ""
    transport = transport_for(f"{guarded.server.url}?connect_timeout=2s{more}")
    with pytest.raises(FurculaError, match=r"(?i)authorization violation") as caught:
        await transport.open()
    assert not [secret for secret in secrets(guarded.bad) if secret in str(caught.value)]
    await transport.close()


async def test_a_cluster_takes_a_file_of_credentials_and_refuses_who_has_none(guarded: Guarded) -> None:
    client = Client(Access(guarded.server.url, credentials=str(guarded.good)), "test")
    await client.open()
    assert client.connected
    await client.js.account_info()
    await client.close()
    for credentials in (None, str(guarded.bad)):
        stranger = Client(Access(guarded.server.url, credentials=credentials), "test")
        with pytest.raises(FurculaError, match=r"(?i)authorization violation"):
            await stranger.open()
        await stranger.close()
    with pytest.raises(ConfigurationError, match=r"there is no file of credentials .*missing\.creds"):
        await Client(Access(guarded.server.url, credentials="missing.creds"), "test").open()


def test_workers_and_operators_are_given_credentials_by_an_option_or_the_environment(
    furcula: Any, tmp_path: Path, flow_name: str, guarded: Guarded
) -> None:
    file, url = shop(tmp_path, CHAIN, name=flow_name), guarded.server.url
    option = ("--credentials", str(guarded.good))
    named = {"FURCULA_CREDENTIALS": str(guarded.good)}
    runs = [
        furcula("run", file, "--cluster", url, "--stage", "work", *option),
        furcula("run", file, "--cluster", url, "--stage", "out", *option),
        furcula("run", file, "--cluster", url, "--stage", "main", environment=named),
    ]
    wait_until(lambda: len(noted(tmp_path)) > 100, "events come")
    status = furcula("cluster", "status", file, "--cluster", url, *option)
    assert status.end() == 0
    assert "work: 1 worker(s)" in status.text
    assert furcula("cluster", "drain", file, "--cluster", url, environment=named).end() == 0
    found = noted(tmp_path)
    assert sorted(one["n"] for one in found) == list(range(len(found)))
    for run in reversed(runs):
        assert run.end(signal.SIGTERM) == 0, run.text


def test_a_worker_without_credentials_ends_with_what_the_server_said(
    tmp_path: Path, flow_name: str, guarded: Guarded
) -> None:
    file = shop(tmp_path, CHAIN, name=flow_name)
    command = [sys.executable, "-m", "furcula", "cluster", "status", file, "--cluster", guarded.server.url]
    for more in ([], ["--credentials", str(guarded.bad)]):
        ran = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)
        assert ran.returncode == 1, ran.stderr
        assert "authorization violation" in ran.stderr.lower()
        assert not [secret for secret in secrets(guarded.bad) if secret in ran.stderr]
