"""A URL chooses the transport, its query the options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from furcula.errors import ConfigurationError, MissingExtra
from furcula.transports import transport_for
from furcula.transports.memory import MemoryTransport
from furcula.transports.nats import NatsTransport
from furcula.transports.sqlite import SqliteTransport
from furcula.transports.zmq import ZmqTransport


@pytest.mark.parametrize(
    ("url", "kind", "shown"),
    [
        ("tcp://127.0.0.1:5555", ZmqTransport, "tcp://127.0.0.1:5555"),
        ("zmq+tcp://127.0.0.1:5555?size=8", ZmqTransport, "tcp://127.0.0.1:5555"),
        ("tcp://*:5555", ZmqTransport, "tcp://*:5555"),
        ("tcp://0.0.0.0:5555", ZmqTransport, "tcp://*:5555"),
        ("tcp://[::1]:5555", ZmqTransport, "tcp://[::1]:5555"),
        ("ipc:///run/x.ipc", ZmqTransport, "ipc:///run/x.ipc"),
        ("zmq+ipc://x.ipc", ZmqTransport, "ipc://x.ipc"),
        ("inproc://x", ZmqTransport, "inproc://x"),
        ("memory://x?size=3&history=0", MemoryTransport, None),
        ("memory://", MemoryTransport, None),
        ("nats://127.0.0.1:4222?prefix=me", NatsTransport, None),
        ("tls://127.0.0.1?ack_wait=5s", NatsTransport, None),
    ],
)
def test_the_scheme_chooses_and_the_query_gives_options(url: str, kind: type, shown: str | None) -> None:
    transport: Any = transport_for(url)
    assert type(transport) is kind
    if shown:
        assert str(transport.address) == shown


def test_a_file_is_named_by_what_stands_behind_the_scheme(tmp_path: Path) -> None:
    for slashes in ("sqlite://", "sqlite:///"):
        assert isinstance(transport_for(f"{slashes}{tmp_path}/queue.db"), SqliteTransport)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nat://127.0.0.1", "did you mean 'nats'"),
        ("memmory://x", "did you mean 'memory'"),
        ("rabbit", "tcp://"),
        ("", "tcp://"),
        ("tcp://127.0.0.1", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1:port", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1:5555/path", "tcp://127.0.0.1:5555"),
        ("ipc://", "ipc:///run"),
        ("inproc://", "inproc://name"),
        ("sqlite://", "sqlite:///"),
        ("nats://127.0.0.1:port", "4222"),
        ("nats://127.0.0.1?prefix=a.b", "letters"),
        ("tcp://127.0.0.1:5555?sise=3", "did you mean 'size'"),
        ("memory://x?size=many", "size"),
        ("nats://127.0.0.1?ack_wait=soon", "ack_wait"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_with_what_would_be_right(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        transport_for(url)


def test_options_go_before_those_of_the_url_and_secrets_are_not_shown() -> None:
    transport: Any = transport_for("tcp://127.0.0.1:5555?size=3", size=4)
    assert transport._size == 4
    with pytest.raises(ConfigurationError) as caught:
        transport_for("nats://me:hush@127.0.0.1:4222?sise=1")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("url", "library"), [("tcp://127.0.0.1:5555", "zmq"), ("nats://127.0.0.1", "nats")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    url: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name == f"furcula.transports.{library}" or name.startswith(
            (f"furcula.transports.{library}.", f"{library}.")
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf"furcula\[{library}\]"):
        transport_for(url)


def test_two_bare_memory_transports_share_nothing_and_two_of_a_name_do() -> None:
    rooms = [transport_for(url)._room for url in ("memory://", "memory://", "memory://a", "memory://a")]  # type: ignore[attr-defined]
    assert rooms[0] is not rooms[1]
    assert rooms[2] is rooms[3]
