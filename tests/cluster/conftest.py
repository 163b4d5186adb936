"""A NATS server with JetStream for all tests of a session; each test has a flow name of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.transports.nats_server import NatsServer
from tests.workers.conftest import flow, furcula

__all__ = ["flow", "furcula"]  # fixtures of theirs


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(Path(tmp_path_factory.mktemp("nats")))
    yield server
    server.terminate()


@pytest.fixture
def flow_name() -> str:
    return f"flow-{os.urandom(5).hex()}"
