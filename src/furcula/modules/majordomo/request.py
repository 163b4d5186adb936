"""`majordomo.request`: ask a service by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from furcula.codecs import codec as codec_named
from furcula.errors import InputError
from furcula.event import Event
from furcula.module import Module
from furcula.modules.majordomo.protocol import CLIENT, check_service
from furcula.modules.zmq.dialogue import TIMEOUT, Pool, checked_answer
from furcula.modules.zmq.wire import MAX_MESSAGE, Curve, Wire, check_address
from furcula.options import Duration, Size

__all__ = ["Request"]


class Request(Module):
    """Ask a Majordomo service (MDP/0.1); the answer becomes the event's data.

    Give it a `concurrency` to have several requests under way. A request without an answer in time fails, worth another
    try; a worker may have seen it all the same.

    Args:
        address: Of the router: tcp://127.0.0.1:5555.
        service: The service's name.
        codec: What requests and answers hold: json, msgpack, text, binary.
        timeout: Seconds that an answer may take.
        curve: Encryption: `{server_key: …, public_key: …, secret_key: …}`.
        max_message: Bytes that an answer may have.
    """

    def __init__(
        self,
        *,
        address: str,
        service: str,
        codec: str = "json",
        timeout: Duration = TIMEOUT,
        curve: Curve | None = None,
        max_message: Size = MAX_MESSAGE,
    ):
        check_address(address)
        self._address = address
        self._service = check_service(service)
        self._where = f"the service {service} at {address}"
        self._codec = codec_named(codec)
        self._timeout = timeout
        self._curve = curve
        self._max_message = max_message
        self._pool = Pool(self._wire, correlate=False)  # MDP/0.1 has no place for a frame more

    def _wire(self, received: Callable[[list[list[bytes]]], None]) -> Wire:
        return Wire(
            "DEALER", self._address, bind=False, curve=self._curve, received=received, max_message=self._max_message
        )

    async def process(self, event: Event[Any]) -> Event[Any]:
        body = self._codec.encode(event.data)
        frames = await self._pool.ask([b"", CLIENT, self._service, body], self._timeout, self._where)
        if len(frames) < 4 or frames[:3] != [b"", CLIENT, self._service]:
            raise InputError(f"{self._where} answered what is not MDP/0.1: {frames[:3]!r}")
        event.data = checked_answer(self._decoded(frames[3]), self._where)
        return event

    def _decoded(self, body: bytes) -> Any:
        try:
            return self._codec.decode(body)
        except InputError:
            if body.startswith(b'{"error":'):  # the router's own answers are JSON
                return codec_named("json").decode(body)
            raise

    def stop(self) -> None:
        self._pool.close()
