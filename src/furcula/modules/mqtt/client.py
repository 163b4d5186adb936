"""A connection to an MQTT broker. The one file that makes it.

The library runs a thread of its own for each connection; whatever it says there is handed over to the loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from furcula.errors import MissingExtra
from furcula.modules.endpoint import Endpoint, Tls
from furcula.options import Secret

try:
    from paho.mqtt.client import MQTT_ERR_SUCCESS, Client, MQTTMessage, MQTTv5, error_string
    from paho.mqtt.enums import CallbackAPIVersion
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
except ImportError:
    raise MissingExtra("a module of MQTT", "mqtt") from None

__all__ = ["MQTTMessage", "PacketTypes", "Properties", "Session", "endpoint_of"]

KEEP_ALIVE_S: Final = 30
#: Messages that we send and that are not acknowledged, at once.
IN_FLIGHT: Final = 1000


def endpoint_of(url: str, user: str | None, password: Secret | None) -> Endpoint:
    return Endpoint.of(url, {"mqtt": 1883, "mqtts": 8883}, secure=frozenset(("mqtts",)), user=user, password=password)


class _Socket(ssl.SSLSocket):
    """Closed when the two cannot agree: the library forgets it, and whoever tries again and again has ever more."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class Session:
    """One connection. It does not connect again: whoever keeps the line makes a new one.

    Args:
        client_id: By what the broker knows us; empty: it gives us a name.
        keep_s: Seconds that the broker keeps our session after the connection has ended. 0: it begins a new one.
        receive: Messages that the broker may send us that we have not acknowledged.
        lost: Called when the connection ends.
        arrived: Called with each message.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tls: Tls | None,
        folder: Path,
        lost: Callable[[BaseException | str | None], None],
        client_id: str = "",
        keep_s: int = 0,
        receive: int = 0,
        arrived: Callable[[MQTTMessage], None] | None = None,
    ):
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._lost = lost
        self._arrived = arrived
        self._keep_s = keep_s
        self._receive = receive
        self._ended = False
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[int, asyncio.Future[ReasonCode | None]] = {}
        #: Bytes that the broker takes in one packet, or 0 for any number.
        self.max_packet = 0
        client = self._client = Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=MQTTv5, reconnect_on_failure=False, manual_ack=True
        )
        client.max_inflight_messages_set(IN_FLIGHT)
        if endpoint.user is not None:
            client.username_pw_set(endpoint.user, endpoint.password.reveal() if endpoint.password is not None else None)
        if tls is not None or endpoint.secure:
            context = (tls or Tls()).context(folder)
            context.sslsocket_class = _Socket
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_done
        client.on_subscribe = self._on_subscribed

    async def open(self) -> None:
        """Connect, and wait until the broker has said that we may."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        if self._keep_s:
            properties.SessionExpiryInterval = self._keep_s
        if self._receive:
            properties.ReceiveMaximum = self._receive
        self._client.connect_async(
            self._endpoint.host,
            self._endpoint.port,
            KEEP_ALIVE_S,
            clean_start=not self._keep_s,
            properties=properties,
        )
        try:
            await self._loop.run_in_executor(None, self._client.reconnect)
            self._client.loop_start()
            await self._connected
        except BaseException:
            self._ended = True
            await self._stopped()
            raise

    async def close(self) -> None:
        self._ended = True
        self._fail_waiting()
        self._client.disconnect()
        await self._stopped()

    async def _stopped(self) -> None:
        await asyncio.shield(self._loop.run_in_executor(None, self._client.loop_stop))

    # ------------------------------------------------------------------ what we say

    async def subscribe(self, topic: str, qos: int) -> None:
        """Raises ConnectionRefusedError where the broker will not have it."""
        code, number = self._client.subscribe(topic, qos)
        if code != MQTT_ERR_SUCCESS or number is None:
            raise ConnectionError(error_string(code))
        reason = await self._until_done(number)
        if reason is not None and reason.is_failure:
            raise PermissionError(f"the broker refuses the subscription to {topic!r}: {reason}")

    def publish(
        self, topic: str, body: bytes, qos: int, retain: bool, properties: Properties
    ) -> asyncio.Future[ReasonCode | None]:
        """Send, and give what is done when the broker has acknowledged it; its word is the reason code.

        Raises:
            ValueError: This is no topic to publish on.
            ConnectionError: The connection is lost.
        """
        info = self._client.publish(topic, body, qos, retain, properties)
        if info.rc != MQTT_ERR_SUCCESS:
            raise ConnectionError(error_string(info.rc))
        return self._until_done(info.mid)

    def acknowledge(self, message: MQTTMessage) -> None:
        self._client.ack(message.mid, message.qos)

    def _until_done(self, number: int) -> asyncio.Future[ReasonCode | None]:
        # The answer comes by way of the loop, so it cannot be here before the question is noted.
        done: asyncio.Future[ReasonCode | None] = self._loop.create_future()
        self._waiting[number] = done
        return done

    # ------------------------------------------------------------------ what we hear, in the library's thread

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._hand_over(self._answered, reason, getattr(properties, "MaximumPacketSize", 0))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self._hand_over(self._disconnected, str(reason))

    def _on_message(self, _client: Any, _data: Any, message: MQTTMessage) -> None:
        if self._arrived is not None:
            self._hand_over(self._came, message)

    def _on_done(self, _client: Any, _data: Any, number: int, reason: ReasonCode, _properties: Any) -> None:
        self._hand_over(self._done, number, reason)

    def _on_subscribed(self, _client: Any, _data: Any, number: int, reasons: list[ReasonCode], _: Any) -> None:
        self._hand_over(self._done, number, reasons[0] if reasons else None)

    def _hand_over(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:  # the loop is closed, and nobody listens any more
            pass

    # ------------------------------------------------------------------ what we make of it, on the loop

    def _answered(self, reason: ReasonCode, max_packet: int) -> None:
        self.max_packet = max_packet
        if self._connected.done():
            return
        if reason.is_failure:
            self._connected.set_exception(PermissionError(f"the broker refuses us: {reason}"))
        else:
            self._connected.set_result(None)

    def _came(self, message: MQTTMessage) -> None:
        if not self._ended and self._arrived is not None:
            self._arrived(message)

    def _done(self, number: int, reason: ReasonCode | None) -> None:
        done = self._waiting.pop(number, None)
        if done is not None and not done.done():
            done.set_result(reason)

    def _disconnected(self, reason: str) -> None:
        if not self._connected.done():
            self._connected.set_exception(ConnectionError(reason))
        self._fail_waiting()
        if not self._ended:
            self._ended = True
            self._lost(reason)

    def _fail_waiting(self) -> None:
        for done in self._waiting.values():
            if not done.done():
                done.set_exception(ConnectionError("the connection was lost"))
                done.exception()  # it may be that nobody waits for it any more
        self._waiting.clear()
