"""Addresses on spare ports, and the context that shellbot's users have."""

from __future__ import annotations

import socket

import pytest
from tests.compat.shellbot.context import Settings


@pytest.fixture
def address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture
def context(address: str) -> Settings:
    return Settings({"bus.address": address})
