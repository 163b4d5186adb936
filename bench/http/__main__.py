"""`python -m bench.http`: drive each server with wrk on loopback in turn, and print ratios to the bare application.

The servers run side by side, one process each, and are driven one after the other, round by round: what the machine
does besides falls on all of them. A ratio is taken within a round; the median over the rounds is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.http.servers import SERVERS, TOKEN

BODY = '{"sku":"A-1","count":3,"note":"a short text"}'
CONNECTIONS = 64

#: What is wanted of each, as a ratio to the bare application.
WANTED = {"furcula": 0.75, "modules": 0.6}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds over all servers (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="for each server in a round (default: %(default)s)")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    wrk = shutil.which("wrk")
    if wrk is None:
        sys.exit("there is no wrk on this system; `make machine` installs it")
    print(f"CPython {platform.python_version()}, {platform.machine()}, {CONNECTIONS} connections, wrk on loopback\n")
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(_server(name)) for name in SERVERS}
        script = stack.enter_context(_script(0))
        rates: dict[str, list[float]] = {name: [] for name in SERVERS}
        for port, _ in ports.values():  # warm
            _drive(wrk, port, 1, script)
        for number in range(chosen.rounds):
            order = list(SERVERS) if number % 2 == 0 else list(reversed(SERVERS))
            for name in order:
                rates[name].append(_drive(wrk, ports[name][0], chosen.seconds, script)[0])
        _print_rates(rates)
        _print_latency(wrk, ports, statistics.median(rates["furcula"]) / 2, chosen.seconds, chosen.rounds)
        _print_idle(*ports["furcula"], chosen.idle)


def _print_rates(rates: dict[str, list[float]]) -> None:
    print(f"{'server':12}{'requests/s':>12}{'to bare':>10}{'range':>16}{'wanted':>10}")
    for name, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates["bare"], strict=True)]
        wanted = f">= {WANTED[name]}" if name in WANTED else ""
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:12}{statistics.median(found):12,.0f}{statistics.median(ratios):10.2f}{spread:>16}{wanted:>10}")


def _print_latency(wrk: str, ports: dict[str, tuple[int, int]], rate: float, seconds: int, rounds: int) -> None:
    """p99 at a rate that is half of what furcula manages, the same for both."""
    pause_ms = max(1, round(CONNECTIONS / rate * 1000))
    with _script(pause_ms) as script:
        found: dict[str, list[float]] = {"bare": [], "furcula": []}
        driven = 0.0
        for _ in range(rounds):
            for name, latencies in found.items():
                driven, p99_ms = _drive(wrk, ports[name][0], seconds, script)
                latencies.append(p99_ms)
    ratio = statistics.median(ours / base for ours, base in zip(found["furcula"], found["bare"], strict=True))
    print(f"\np99 at half load ({driven:,.0f} requests/s): bare {statistics.median(found['bare']):.2f} ms, ", end="")
    print(f"furcula {statistics.median(found['furcula']):.2f} ms: {ratio:.2f} x (wanted <= 2)")


def _print_idle(port: int, process_id: int, count: int) -> None:
    """What a connection costs that has asked once and now rests."""
    before = _resident_kb(process_id)
    open_: list[socket.socket] = []
    try:
        for _ in range(count):
            opened = socket.create_connection(("127.0.0.1", port), timeout=10)
            opened.sendall(_request())
            open_.append(opened)
        for opened in open_:
            opened.recv(1024)
        time.sleep(1)
        grown = _resident_kb(process_id) - before
        print(f"\n{count:,} idle connections: {grown / count:.1f} KB each (wanted < 40)")
    finally:
        for opened in open_:
            opened.close()


def _request() -> bytes:
    head = (
        f"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    )
    return (head + BODY).encode("ascii")


def _resident_kb(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])


# ------------------------------------------------------------------ wrk and the servers


def _drive(wrk: str, port: int, seconds: int, script: str) -> tuple[float, float]:
    """Requests a second, and the 99th percentile of the latency in milliseconds."""
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", script]
    ran = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/echo"], capture_output=True, text=True, timeout=seconds + 30, check=True
    )
    if "Non-2xx" in ran.stdout or "Socket errors" in ran.stdout:
        raise SystemExit(f"the server on port {port} did not answer as it should:\n{ran.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", ran.stdout)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", ran.stdout)
    assert rate is not None, ran.stdout
    assert p99 is not None, ran.stdout
    return float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1, "s": 1000}[p99[2]]


@contextlib.contextmanager
def _script(pause_ms: int) -> Iterator[str]:
    """What wrk sends, and how long each connection rests between two requests."""
    pause = f"function delay() return {pause_ms} end\n" if pause_ms else ""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(
            f"wrk.method = 'POST'\nwrk.body = '{BODY}'\n"
            "wrk.headers['Content-Type'] = 'application/json'\n"
            f"wrk.headers['Authorization'] = 'Bearer {TOKEN}'\n{pause}"
        )
        file.flush()
        yield file.name


@contextlib.contextmanager
def _server(name: str) -> Iterator[tuple[int, int]]:
    """A server as a process: its port and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.http.servers", name, str(port)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    try:
        _until_it_answers(process, name, port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _until_it_answers(process: subprocess.Popen[bytes], name: str, port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            assert process.stderr is not None
            raise SystemExit(f"the server {name} ended:\n{process.stderr.read().decode()}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"the server {name} does not listen")


if __name__ == "__main__":
    main()
