"""The demonstration: run `examples/syslog.yaml` for real, send it 1,000 syslog messages, and show what came out.

    python scripts/demo.py [--out FOLDER]

It starts `furcula run` as a child, as anybody would, and sends to it over UDP and TCP: by the system's own `logger`
where that can (the one of util-linux), and by Python's `SysLogHandler`. Some messages are broken on purpose. Then it
sends SIGTERM, as systemd would, and the flow drains and says what it counted.

UDP has no back-pressure, and what finds the socket's buffer full is gone without a word. So the messages are sent in
bursts that fit, and each burst waits until what the one before made is in the files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import logging.handlers
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

FLOW = Path(__file__).parent.parent / "examples" / "syslog.yaml"
APPS = ("checkout", "billing", "stock")
#: Messages that go out without waiting. Any system's socket buffer holds them.
BURST = 50
#: What is no syslog message: no priority, one too high, bytes that are no text, a priority without a number, JSON.
BROKEN = (b"no priority", b"<999>too high", b"<11>not \xff UTF-8", b"<>nothing", b'{"severity": "err"}')
#: Nothing here takes longer, on any machine.
LIMIT_S = 30.0


class Message(NamedTuple):
    """What an application says, and how."""

    app: str
    level: int
    text: str


Address = tuple[str, int]


def main() -> None:
    arguments = argparse.ArgumentParser(description="Run examples/syslog.yaml and feed it 1,000 messages.")
    arguments.add_argument("--out", type=Path, default=Path("out"), help="where the flow writes (default: out)")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # in step with what the flow says
    out: Path = arguments.parse_args().out.resolve()
    files = {"out": out / "errors.ndjson", "dead": out / "dead.ndjson"}
    for file in files.values():
        file.unlink(missing_ok=True)
    address = ("127.0.0.1", _spare_port())
    with _running(files, address) as flow:
        _wait_until_it_listens(flow, address)
        sent = 0
        for burst in _bursts(address):
            sent += burst
            _wait_for_lines(flow, files.values(), sent)
        _show_delivered(files["out"])
        _show_dead(files["dead"])
        print("\nStopping the flow by SIGTERM:")
        flow.send_signal(signal.SIGTERM)
        code = flow.wait(LIMIT_S)
    sys.exit(code)


# ------------------------------------------------------------------ the flow


@contextlib.contextmanager
def _running(files: dict[str, Path], address: Address) -> Iterator[subprocess.Popen[bytes]]:
    place = f"{address[0]}:{address[1]}"
    command = [sys.executable, "-m", "furcula", "run", str(FLOW), "--no-live"]
    command += ["--set", f"modules.listen.with.udp={place!r}", "--set", f"modules.listen.with.tcp={place!r}"]
    for name, file in files.items():
        command += ["--set", f"modules.{name}.with.path={str(file)!r}"]
    print(f"$ furcula run {_short(FLOW)}    (listening on {place}, UDP and TCP)")
    flow = subprocess.Popen(command)
    try:
        yield flow
    finally:
        if flow.poll() is None:
            flow.kill()
            flow.wait()


def _spare_port() -> int:
    """A port of loopback that is free for UDP and TCP alike, at this moment."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _wait_until_it_listens(flow: subprocess.Popen[bytes], address: Address) -> None:
    """TCP is opened last, so when it answers, UDP is open as well."""

    def answers() -> bool:
        try:
            socket.create_connection(address).close()
            return True
        except ConnectionRefusedError:
            return False

    _wait(flow, answers, "it does not listen")


def _wait_for_lines(flow: subprocess.Popen[bytes], files: Iterable[Path], count: int) -> None:
    def lines() -> int:
        return sum(file.read_bytes().count(b"\n") for file in files)

    _wait(flow, lambda: lines() >= count, f"not all of {count} messages came out")


def _wait(flow: subprocess.Popen[bytes], holds: Callable[[], bool], trouble: str) -> None:
    """Look until `holds()`. There is no other way to learn from outside how far a process has come."""
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        if flow.poll() is not None:
            sys.exit(f"the flow has ended with exit code {flow.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"{trouble} after {LIMIT_S:g} s")
        time.sleep(0.005)


# ------------------------------------------------------------------ the messages


def _bursts(address: Address) -> Iterator[int]:
    """Send all messages, a burst at each step. Gives how many of the burst will be in a file.

    Every burst ends with a message that will: when it is there, all before it have been admitted.
    """
    logger, orders = _logger(), iter(range(1, 10_000))

    def complaints(count: int, app: str = "checkout") -> list[Message]:
        return [Message(app, logging.ERROR, f"order {next(orders)}: card refused") for _ in range(count)]

    udp, tcp = socket.SOCK_DGRAM, socket.SOCK_STREAM
    said = "by the system's logger" if logger else "by SysLogHandler (there is no util-linux logger here)"
    print(f"  500 messages {said}: 300 over UDP, 200 over TCP")
    for kind, count in ((udp, 300), (tcp, 200)):
        for _ in range(0, count, BURST):
            messages = complaints(BURST)
            if logger is not None:
                _send_by_logger(logger, messages, address, kind)
            else:
                _send_by_python(messages, address, kind)
            yield BURST

    print("  450 messages by Python's SysLogHandler, by turns over UDP and TCP")
    for number in range(9):
        _send_by_python(complaints(BURST, APPS[number % len(APPS)]), address, udp if number % 2 else tcp)
        yield BURST

    print("  20 messages that are only informative, 15 about no order or of an application that nobody owns")
    informative = [Message("stock", logging.INFO, f"order {next(orders)}: packed") for _ in range(20)]
    no_order = [Message("billing", logging.CRITICAL, f"disk {number} is full") for number in range(5)]
    _send_by_python([*informative, *no_order, *complaints(10, "toaster")], address, udp)
    yield 15

    print("  10 that are no syslog at all, between 5 that are")
    for kind, count in ((udp, 2), (tcp, 3)):
        good = [f"<131>{message.app}[1]: {message.text}".encode() for message in complaints(count)]
        _send_raw([*BROKEN, *good], address, kind)
        yield count


def _logger() -> str | None:
    """The path of a `logger` that can send over a network: that of util-linux."""
    path = shutil.which("logger")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return path if "util-linux" in said.stdout else None


def _send_by_logger(logger: str, messages: list[Message], address: Address, kind: socket.SocketKind) -> None:
    transport = "--udp" if kind is socket.SOCK_DGRAM else "--tcp"
    command = [logger, "--server", address[0], "--port", str(address[1]), transport, "--rfc5424"]
    command += ["--tag", messages[0].app, "--priority", "local0.err"]
    subprocess.run(command, input="".join(f"{message.text}\n" for message in messages).encode(), check=True)


def _send_by_python(messages: list[Message], address: Address, kind: socket.SocketKind) -> None:
    handler = logging.handlers.SysLogHandler(address, "local0", kind)
    handler.setFormatter(logging.Formatter("%(name)s[%(process)d]: %(message)s"))
    try:
        for message in messages:
            handler.emit(logging.LogRecord(message.app, message.level, "", 0, message.text, None, None))
    finally:
        handler.close()


def _send_raw(messages: list[bytes], address: Address, kind: socket.SocketKind) -> None:
    with socket.socket(type=kind) as sender:
        sender.connect(address)
        for message in messages:
            sender.sendall(message if kind is socket.SOCK_DGRAM else message + b"\n")


# ------------------------------------------------------------------ what came out


def _show_delivered(file: Path) -> None:
    lines = file.read_text().splitlines()
    print(f"\n{_short(file)} has {len(lines)} lines. The first and the last:")
    print(f"  {lines[0]}\n  {lines[-1]}")


def _show_dead(file: Path) -> None:
    """A dead letter is the whole event, with its tracebacks: enough to replay it, too much to read here."""
    lines = file.read_text().splitlines()
    print(f"\n{_short(file)} has {len(lines)}. What the first and the last of them say, and where they failed:")
    for line in (lines[0], lines[-1]):
        event = json.loads(line)
        failure = event["failures"][-1]
        print(f"  {event['data']['message']!r} in {failure['module']}: {failure['type']}: {failure['message']}")


def _short(path: Path) -> str:
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    main()
