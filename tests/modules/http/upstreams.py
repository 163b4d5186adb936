"""Servers to be asked: real ones, on ports of the system's choice."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Asked:
    """One request as the server saw it."""

    def __init__(self, request: web.Request, body: bytes):
        self.method = request.method
        self.path = request.raw_path
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.body = body
        self.connection = request.transport


class Upstream:
    """A server and what it was asked.

    Attributes:
        url: Where it is, without a slash at the end.
        asked: The requests, in the order in which they came.
    """

    def __init__(self, url: str):
        self.url = url
        self.asked: list[Asked] = []

    @property
    def connections(self) -> int:
        return len({id(asked.connection) for asked in self.asked})


async def fine(request: web.Request) -> web.Response:
    return web.json_response({"fine": True})


def always(status: int = 200, body: Any = b"", **headers: str) -> Handler:
    """A handler that answers everything so."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}

    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=fields)

    return handle


@asynccontextmanager
async def serving(handler: Handler = fine, tls: ssl.SSLContext | None = None) -> AsyncIterator[Upstream]:
    """A server that answers by `handler`."""
    found = Upstream("")

    async def handle(request: web.Request) -> web.StreamResponse:
        found.asked.append(Asked(request, await request.read()))
        return await handler(request)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    host, port = runner.addresses[0][:2]
    found.url = f"http{'s' if tls else ''}://{host}:{port}"
    try:
        yield found
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talking(*answers: bytes) -> AsyncIterator[str]:
    """A server that answers each connection with the next of these bytes, and closes it. Gives its URL."""
    left = list(answers)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(left.pop(0) if left else b"")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"


def certificate(folder: Path) -> tuple[ssl.SSLContext, str]:
    """A certificate for 127.0.0.1 that nobody vouches for: a server's context, and the file that has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, "cert.pem"
