"""Addresses on spare ports, and the context that shellbot's users have."""

from __future__ import annotations

import pytest
from tests.compat.shellbot.context import Settings
from tests.services import free_port


@pytest.fixture
def address() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def context(address: str) -> Settings:
    return Settings({"bus.address": address})
