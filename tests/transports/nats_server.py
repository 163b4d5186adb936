"""A NATS server for tests, with a configuration of their own."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.services import Server, program


class NatsServer(Server):
    """One server, started at once.

    Args:
        folder: Its own; made if it is not there.
        more: Lines of its configuration.
        jetstream: With JetStream, in files.
    """

    def __init__(self, folder: Path, more: str = "", jetstream: bool = True):
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._more = more
        self._jetstream = jetstream
        self.start()

    def command(self) -> list[str]:
        found = program("nats-server", also=(Path(sys.executable).parent,))
        # What streams set aside is no matter here: many flows share one server, and use next to nothing.
        js = f'jetstream {{ store_dir: "{self.folder}/js", max_file_store: 1TB }}' if self._jetstream else ""
        configuration = self.folder / "nats.conf"
        configuration.write_text(f"host: 127.0.0.1\nport: {self.port}\n{js}\n{self._more}\n")
        return [found, "-c", str(configuration)]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"
