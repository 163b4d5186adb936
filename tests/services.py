"""Servers for tests: each on spare loopback ports, with data of its own, ended by its own process id.

A server that is not installed skips the test on a laptop, and fails it where `CI` or `FURCULA_CI` is set.
`scripts/services` installs them.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.ports import free_port

if TYPE_CHECKING:
    from tests.certificates import Authority  # its library is one that the bench may not have

__all__ = ["Mosquitto", "Nats", "Postgres", "Rabbit", "Redis", "Server", "free_port", "program", "running"]

STARTED_WITHIN_S = 60
ENDED_WITHIN_S = 30


def missing(what: str) -> None:
    """What a test needs is not there."""
    import pytest  # the bench starts servers too, and has none

    message = f"{what} is not installed; run scripts/services"
    if os.environ.get("CI") or os.environ.get("FURCULA_CI"):
        pytest.fail(message)
    pytest.skip(message)


def program(*names: str, also: tuple[Path, ...] = ()) -> str:
    """The path of the first of these programs that is there."""
    folders = [*os.environ.get("PATH", "").split(os.pathsep), "/usr/sbin", "/usr/local/sbin", *map(str, also)]
    for name in names:
        found = shutil.which(name, path=os.pathsep.join(folders))
        if found:
            return found
    missing(names[0])
    raise AssertionError


class Server:
    """One server process, with its own port and folder. It may be ended and started again with the same.

    Attributes:
        authority: Vouches for the certificate with which it talks TLS at `private_port`. To be set before the start.
        private_port: `port` again, where a server talks both there, or nothing but TLS.
    """

    authority: Authority | None = None

    def __init__(self, folder: Path):
        self.folder = folder
        self.port = self.private_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {**os.environ}

    def answers(self) -> bool:
        """Is it ready? It accepts connections at least."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def launch(self) -> None:
        """Start it, and do not wait."""
        self._log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def start(self) -> None:
        self.launch()
        end = time.monotonic() + STARTED_WITHIN_S
        while not self.answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                raise AssertionError(f"{type(self).__name__} did not start:\n{said}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash would: no clean-up."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End it as an operator would."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """Returns when it stands still: the signal reaches one thread, and until that has its turn the others go on."""
        self._send(signal.SIGSTOP)
        if self._process is not None:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            # The session it was started in has nobody else: some servers are shells around the real one.
            os.killpg(self._process.pid, number)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(ENDED_WITHIN_S)
        if self._log is not None:
            self._log.close()

    async def aside(self, do: Callable[[], None]) -> None:
        """`start`, `kill` or `terminate` while the loop goes on."""
        await asyncio.get_running_loop().run_in_executor(None, do)


class Nats(Server):
    """nats-server with JetStream in files. The one user may do everything but publish below `forbidden`.

    With an authority it talks TLS only.
    """

    def command(self) -> list[str]:
        found = program("nats-server", also=(Path(sys.executable).parent,))
        ours = self.authority
        tls = "" if ours is None else f'tls {{ cert_file: "{ours.cert}", key_file: "{ours.key}" }}'
        (self.folder / "nats.conf").write_text(f"""
{tls}
host: 127.0.0.1
port: {self.port}
max_payload: 1MB
jetstream {{ store_dir: "{self.folder / "js"}", sync_interval: always }}
authorization {{ users = [
  {{ user: tester, password: "pass/word", permissions: {{ publish: {{ deny: "forbidden.>" }} }} }}
] }}
""")
        return [found, "-c", str(self.folder / "nats.conf")]

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"


class Redis(Server):
    """redis-server that has written to its disk what it has confirmed.

    Attributes:
        is_choosy: Over TLS it takes nobody without a certificate that its authority vouches for.
    """

    is_choosy = False

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.private_port = free_port()

    def command(self) -> list[str]:
        found = program("redis-server")
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "requirepass": "pass/word",
        }
        if self.authority is not None:
            options |= {
                "tls-port": self.private_port,
                "tls-ca-cert-file": self.authority.ca,
                "tls-cert-file": self.authority.cert,
                "tls-key-file": self.authority.key,
                "tls-auth-clients": "yes" if self.is_choosy else "no",
            }
        return [found, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                line.sendall(b"AUTH pass/word\r\n")
                return line.recv(100) == b"+OK\r\n"
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class Rabbit(Server):
    """rabbitmq-server with a node, a cookie and a port mapper of its own."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.private_port = free_port()
        self._mapper_port = free_port()
        self._node_port = free_port()

    def command(self) -> list[str]:
        # Debian's wrapper changes the user; what it wraps does not.
        inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        program("rabbitmq-server")
        found = str(inner) if inner.exists() else program("rabbitmq-server")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "log.console = true\nlog.file = false\ndefault_user = tester\ndefault_pass = pass/word\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n" + self._private()
        )
        (self.folder / "enabled_plugins").write_text("[].\n")
        return [found]

    def _private(self) -> str:
        if self.authority is None:
            return ""
        return (
            f"listeners.ssl.1 = 127.0.0.1:{self.private_port}\n"
            f"ssl_options.cacertfile = {self.authority.ca}\nssl_options.certfile = {self.authority.cert}\n"
            f"ssl_options.keyfile = {self.authority.key}\nssl_options.verify = verify_none\n"
        )

    def environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ")},
            "HOME": folder,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RABBITMQ_NODENAME": f"furcula{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/rabbitmq-env.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/config",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }

    def answers(self) -> bool:
        """Accepting is not enough: it must greet who speaks its protocol."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                line.settimeout(1)
                line.sendall(b"AMQP\x00\x00\x09\x01")
                return len(line.recv(8)) > 0
        except OSError:
            return False

    def end_mapper(self) -> None:
        """Its port mapper has made itself a daemon: find it by the port that is its alone, and end it."""
        wanted = f"ERL_EPMD_PORT={self._mapper_port}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"epmd" in (folder / "cmdline").read_bytes() and wanted in (folder / "environ").read_bytes():
                    os.kill(int(folder.name), signal.SIGTERM)
            except OSError:
                pass

    @property
    def url(self) -> str:
        return f"amqp://127.0.0.1:{self.port}/"


class Mosquitto(Server):
    """mosquitto, which writes what it keeps when it is ended by an operator, and every now and then."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.private_port = free_port()

    def command(self) -> list[str]:
        found = program("mosquitto")
        passwords = self.folder / "passwords"
        if not passwords.exists():
            passwd = program("mosquitto_passwd")
            passwords.touch()
            subprocess.run([passwd, "-b", str(passwords), "tester", "pass/word"], check=True, timeout=30)
        (self.folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"persistence true\npersistence_location {self.folder}/\nmax_queued_messages 0\n"
            f"max_inflight_messages 0\nuser {_current_user()}\nset_tcp_nodelay true\n" + self._private()
        )
        return [found, "-c", str(self.folder / "mosquitto.conf")]

    def _private(self) -> str:
        if self.authority is None:
            return ""
        files = f"certfile {self.authority.cert}\nkeyfile {self.authority.key}\n"
        return f"listener {self.private_port} 127.0.0.1\n{files}"

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"


class Postgres(Server):
    """PostgreSQL with a database, as a user that is not root."""

    def command(self) -> list[str]:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        initdb, found = program("initdb", also=tuple(binaries)), program("postgres", also=tuple(binaries))
        data = self.folder / "data"
        if not data.exists():
            data.mkdir()
            password = self.folder / "password"
            password.write_text("pass/word")
            if os.getuid() == 0:
                user = _user("postgres", "nobody")
                for path in (self.folder, data, password):
                    shutil.chown(path, user)
            made = ["-D", str(data), "-U", "tester", "-A", "scram-sha-256", "--pwfile", str(password), "--no-sync"]
            made += ["-E", "UTF8", "--locale", "C"]
            subprocess.run(
                [*self._as_somebody(), initdb, *made], check=True, timeout=60, stdout=subprocess.DEVNULL, cwd="/"
            )
        return [
            *self._as_somebody(),
            found,
            *("-D", str(data), "-p", str(self.port), "-h", "127.0.0.1", "-k", "", "-F"),
            *self._private(),
        ]

    def _private(self) -> list[str]:
        if self.authority is None:
            return []
        options = ["-c", "ssl=on"]
        for name, file in (("ssl_cert_file", self.authority.cert), ("ssl_key_file", self.authority.key)):
            # It must own its key, and nobody else may read it.
            copy = self.folder / file.name
            if not copy.exists():
                shutil.copyfile(file, copy)
                copy.chmod(0o600)
                if os.getuid() == 0:
                    shutil.chown(copy, _user("postgres", "nobody"))
            options += ["-c", f"{name}={copy}"]
        return options

    def _as_somebody(self) -> list[str]:
        if os.getuid():
            return []
        return [program("setpriv"), f"--reuid={_user('postgres', 'nobody')}", "--clear-groups", "--inh-caps=-all"]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
                line.settimeout(1)
                start = b"\0\3\0\0user\0tester\0database\0postgres\0\0"
                line.sendall((len(start) + 4).to_bytes(4, "big") + start)
                return line.recv(1) == b"R"  # it asks for the password; while it recovers it says E
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"postgres://127.0.0.1:{self.port}/postgres"


def _current_user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _user(*names: str) -> str:
    for name in names:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise AssertionError(f"none of these users exists: {', '.join(names)}")


@contextmanager
def running(kind: type[Any], *, started: bool = True, authority: Authority | None = None) -> Iterator[Any]:
    """A server for the time of the block, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="furcula-"))
    folder.chmod(0o755)
    server = kind(folder)
    server.authority = authority
    try:
        if started:
            server.start()
        yield server
    finally:
        server.thaw()
        server.kill()
        if isinstance(server, Rabbit):
            server.end_mapper()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """`python -m tests.services`: start and stop each server once."""
    for kind in (Nats, Redis, Mosquitto, Postgres, Rabbit):
        began = time.monotonic()
        with running(kind):
            print(f"{kind.__name__:10} starts in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
