"""Ports that tests are given are theirs alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests import ports
from tests.ports import ephemeral, free_port, outside


def test_a_port_lies_outside_what_the_kernel_gives_and_comes_once() -> None:
    first, last = ephemeral()
    given = [free_port() for _ in range(300)]  # more than a block has
    assert len(set(given)) == 300
    assert not [port for port in given if first <= port <= last]


def test_a_port_that_somebody_has_is_not_given() -> None:
    following = free_port() + 1
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            try:
                taken.bind(("127.0.0.1", following))
            except OSError:
                continue  # somebody has it anyway
            assert free_port() != following
        following = free_port() + 1


#: Prints what it is given, and, when it has forked in between, what both are.
GIVEN = """
import os, sys
from tests.ports import free_port

ports = [free_port() for _ in range(150)]
if "fork" in sys.argv:
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.write(writing, " ".join(str(free_port()) for _ in range(150)).encode())
        os._exit(0)
    ports += [free_port() for _ in range(150)]
    os.close(writing)
    with os.fdopen(reading) as said:
        ports += map(int, said.read().split())
    os.wait()
print(*ports)
"""


def given(*arguments: str) -> list[int]:
    command = [sys.executable, "-c", GIVEN, *arguments]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1], timeout=60, check=True)
    return [int(port) for port in done.stdout.split()]


def test_two_processes_are_given_from_blocks_of_their_own() -> None:
    first = free_port()  # from now on a block is ours
    theirs = given()
    assert len(theirs) == 150
    assert not {first, *(free_port() for _ in range(150))} & set(theirs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_that_is_forked_has_a_block_of_its_own() -> None:
    assert len(set(given("fork"))) == 450


def test_where_the_kernel_does_not_say_or_leaves_nothing_there_are_ports_nevertheless(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("many\n")
    assert ephemeral(tmp_path / "odd") == ephemeral(tmp_path / "missing") == ports.ELSEWHERE
    assert all(block[-1] < 32_768 for block in outside(*ports.ELSEWHERE))
    assert {len(block) for block in outside(1024, 65_535)} == {ports.BLOCK}
