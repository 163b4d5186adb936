"""`postgres.listen`: notifications."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

import msgspec

from furcula.modules.consuming import Arrivals, Consuming, Lost
from furcula.modules.endpoint import Tls
from furcula.modules.postgres.client import BROKEN, PostgresError, check_channel, connect, endpoint_of
from furcula.modules.producing import TIMEOUT
from furcula.modules.taking import AGAIN_AFTER, PREFETCH, Message, Told
from furcula.options import Duration, Secret

__all__ = ["Listen"]

#: So often a connection that says nothing is asked whether it is still there.
ASK_EVERY_S: Final = 20.0


class _Listening(msgspec.Struct):
    connection: Any
    arrivals: Arrivals
    beat: Any = None


class Listen(Consuming[_Listening]):
    """Make an event of each notification on a channel of PostgreSQL (LISTEN).

    PostgreSQL keeps nothing: what is notified while nobody listens, or while this connection is down, is lost, and
    nobody is told what became of a notification. To miss nothing, write rows to a table, let a notification say only
    that there are some, and look into the table now and then as well. Where the flow has no room,
    `prefetch` notifications wait here; what comes beyond that is dropped, logged and counted (`dropped`).

    Headers: `channel`, and `process`, the number of the server's process that notified. What cannot be read leaves by
    `invalid`.

    Args:
        url: postgres://host:5432/database
        channel: The channel, as it is written within quotes.
        codec: What a payload looks like: json or text.
        prefetch: So many notifications may wait here, and so many more be unsettled.
        user: Who we are, with `password`.
        password: See `user`.
        tls: {ca_file, cert_file, key_file, verify}. Default: TLS where the server offers it, unchecked.
        timeout: Seconds that connecting, or a request, may take.
    """

    acknowledges: ClassVar[str] = "none"
    broken = (*BROKEN, PostgresError)

    def __init__(
        self,
        *,
        url: str,
        channel: str,
        codec: str = "json",
        prefetch: int = PREFETCH,
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        super().__init__(
            endpoint_of(url, user, password),
            codec=codec,
            prefetch=prefetch,
            max_deliveries=1,
            again_after=AGAIN_AFTER,
            timeout=timeout,
            tls=tls,
        )
        check_channel(channel)
        self._channel = channel
        #: Notifications that came while `prefetch` were waiting.
        self.dropped = 0

    async def _connect(self, lost: Lost) -> _Listening:
        arrivals = Arrivals()

        def ended(error: BaseException | str | None) -> None:
            arrivals.end(ConnectionError("the connection was lost"))
            lost(error)

        connection = await connect(
            self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout, lost=ended
        )

        def arrived(_: Any, process: int, channel: str, payload: str) -> None:
            if len(arrivals) >= self._prefetch:
                if not self.dropped:
                    self._context.log.warning("there is no room for what comes on %s: it is dropped", channel)
                self.dropped += 1
            else:
                arrivals.put(Message(payload.encode(), {"channel": channel, "process": process}, None))

        try:
            await connection.add_listener(self._channel, arrived)
        except BaseException:
            connection.terminate()
            raise
        listening = _Listening(connection, arrivals)
        listening.beat = asyncio.ensure_future(self._ask(connection, ended))
        return listening

    async def _ask(self, connection: Any, ended: Lost) -> None:
        """A connection that only listens would never see that the other side has gone without a word."""
        try:
            while True:
                await asyncio.sleep(ASK_EVERY_S)
                await connection.execute("select 1")
        except TimeoutError as error:
            ended(error)
        except self.broken as error:
            ended(error)

    async def _disconnect(self, client: _Listening) -> None:
        client.beat.cancel()
        client.connection.terminate()

    async def _next(self, client: _Listening, room: int) -> list[Message]:
        return await client.arrivals.some(room)

    async def _say(self, client: _Listening, batch: list[Told]) -> None:
        """There is nobody to tell."""
