"""Listening sockets are opened once, by the supervisor or by systemd, and shared by the workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services import free_port
from tests.workers.running import FUNCTIONS, wait_until

from furcula import sockets
from furcula.sockets import Wanted
from furcula.workers.doors import Doors, door_of

NOTE = '  note: {use: "work:note"}\n  out: {use: "null"}\n'


def said(port: int, text: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(text.encode())


def seen(folder: Path) -> list[str]:
    file = folder / "seen"
    return file.read_text().splitlines() if file.exists() else []


def test_a_tcp_socket_outlives_the_workers_and_what_waits_in_it_is_taken_by_the_next(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    port = free_port()
    run = furcula("run", flow(f"  in: {{use: tcp.listen, with: {{address: {port}}}}}\n{NOTE}"), "--processes", "1",
                  "--hung-after", "60s")  # fmt: skip
    (first,) = run.workers(1)
    run.until("main/0 is ready")
    os.kill(first, signal.SIGSTOP)  # it accepts nobody
    wait_until(lambda: ") T " in Path(f"/proc/{first}/stat").read_text(), "it stands still")
    said(port, "1\n2\n")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(seen(tmp_path)) == 2, "the next worker has taken both")
    second = run.workers(2)[1]
    assert seen(tmp_path) == [f"{second} 1", f"{second} 2"]
    assert run.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("kind", ["udp.listen", "syslog.listen"])
def test_udp_and_port_0_are_the_same_port_in_all_workers(furcula: Any, flow: Any, tmp_path: Path, kind: str) -> None:
    argument = "address" if kind == "udp.listen" else "udp"
    file = flow(f"  in: {{use: {kind}, with: {{{argument}: 0}}}}\n{NOTE}")
    run = furcula("run", file, "--processes", "2")
    pids = {str(pid) for pid in run.workers(2)}
    run.until("is ready", 2)
    ports = {port for pid in pids for port in _udp_ports(pid)}
    assert len(ports) == 1
    target = ("127.0.0.1", ports.pop())
    total = 0

    def both_have_some() -> bool:
        nonlocal total
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:  # each from a port of its own: it decides
            sender.sendto(b"<13>Oct 11 22:14:15 web app: hello" if kind == "syslog.listen" else b"1", target)
        total += 1
        return {line.split()[0] for line in seen(tmp_path)} == pids

    wait_until(both_have_some, "the system deals the datagrams out to both")
    wait_until(lambda: len(seen(tmp_path)) == total, "all have come")
    assert run.end(signal.SIGTERM) == 0
    assert f"admitted {total} = delivered {total}" in run.text


def _udp_ports(pid: str) -> set[int]:
    inodes = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(file))
        except OSError:
            continue
        if found:
            inodes.add(found[1])
    rows = [line.split() for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes}


def test_a_unix_socket_stays_while_workers_are_replaced_and_goes_with_the_run(
    furcula: Any, flow: Any, tmp_path: Path
) -> None:
    path = tmp_path / "web"
    file = flow(
        f'  http: {{use: http.listen, with: {{unix: "{path}"}}}}\n  pid: {{use: "work:pid"}}\n'
        "routes: [http -> pid -> http]\n"
    )
    run = furcula("run", file, "--processes", "2")
    run.until("is ready", 2)
    inode = path.stat().st_ino
    run.send(signal.SIGHUP)
    run.until("all workers have been restarted")
    assert path.stat().st_ino == inode
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        line.connect(str(path))
        line.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert run.end(signal.SIGTERM) == 0
    assert not path.exists()


def test_a_port_that_is_in_use_is_told_as_without_workers(furcula: Any, flow: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        run = furcula("run", flow(f"  in: {{use: tcp.listen, with: {{address: {port}}}}}\n{NOTE}"), "--processes", "2")
        assert run.end() == 1
    (told,) = [line for line in run.lines if "cannot listen on" in line]
    where = f"in (flow.yaml:3:3) could not start: in cannot listen on 127.0.0.1:{port}"
    assert told.startswith(f"{where}: it is in use; stop what listens there")
    assert run.text.count("started as process") == 2  # none is tried again
    assert "admitted" not in run.text  # nor is there anything to report


def test_two_modules_that_want_the_same_port_are_told_so_as_without_workers(furcula: Any, flow: Any) -> None:
    port = free_port()
    listening = "".join(f"  {name}: {{use: tcp.listen, with: {{address: {port}}}}}\n" for name in ("one", "two"))
    run = furcula(
        "run", flow(f'{listening}  out: {{use: "null"}}\nroutes: [one -> out, two -> out]\n'), "--processes", "2"
    )
    assert run.end() == 1
    assert f"cannot listen on 127.0.0.1:{port}: it is in use; stop what listens there" in run.lines[-1]


# ------------------------------------------------------------------ systemd's socket activation

#: Does what systemd does: opens a socket, makes it number 3, says so, and becomes the program.
ACTIVATE = """
import os, socket, sys
kind, address, name, *command = sys.argv[1:]
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
made.bind(("127.0.0.1", int(address)))
if kind == "tcp":
    made.listen()
os.dup2(made.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES=name)
os.execv(sys.executable, [sys.executable, "-m", "furcula", *command])
"""


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("kind", "name"), [("tcp", "in"), ("tcp", "other"), ("udp", "in")])
def test_a_socket_that_systemd_has_opened_is_used(
    flow: Any, tmp_path: Path, processes: str, kind: str, name: str
) -> None:
    port = free_port()
    (tmp_path / "work.py").write_text(FUNCTIONS)
    # By its name whatever the flow says, else by its address.
    wanted = 1 if name == "in" else port
    file = flow(f"  in: {{use: {kind}.listen, with: {{address: {wanted}}}}}\n{NOTE}")
    process = subprocess.Popen(
        [sys.executable, "-c", ACTIVATE, kind, str(port), name, "run", file, "--processes", processes],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if kind == "tcp":
            wait_until(lambda: _said_if_listening(port), "it listens")
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                wait_until(lambda: bool(sender.sendto(b"1", ("127.0.0.1", port)) and seen(tmp_path)), "it listens")
        wait_until(lambda: len(seen(tmp_path)) > 0, "it is taken")
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=40)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, told
    if processes == "1":
        assert {line.split()[0] for line in seen(tmp_path)} == {str(process.pid)}


def _said_if_listening(port: int) -> bool:
    try:
        said(port, "1\n")
    except ConnectionRefusedError:
        return False
    return True


def test_only_the_process_that_systemd_meant_takes_its_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert sockets.activated(Wanted("in", "tcp", "127.0.0.1", 1)) == []


async def test_every_address_of_a_host_is_listened_on() -> None:
    made = await sockets.bound(Wanted("in", "tcp", "localhost", 0))
    try:
        assert {one.getsockname()[0] for one in made} <= {"127.0.0.1", "::1"}
        assert "127.0.0.1" in {one.getsockname()[0] for one in made}
        assert all(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) for one in made)
    finally:
        for one in made:
            one.close()


async def test_workers_that_ask_at_once_for_any_free_port_are_given_the_same_one() -> None:
    doors = Doors()
    for kind in ("udp", "tcp"):
        wanted = Wanted("in", kind, "127.0.0.1", 0)
        given = [
            made
            for some in await asyncio.gather(*(doors.sockets(door_of(None, wanted)) for _ in range(4)))
            for made in some
        ]
        try:
            assert len(given) == 4
            assert len({made.getsockname() for made in given}) == 1
        finally:
            for made in given:
                made.close()
    doors.close()
