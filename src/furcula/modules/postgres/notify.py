"""`postgres.notify`: notifications."""

from __future__ import annotations

from collections import Counter
from typing import Any

from furcula.modules.connecting import first_line
from furcula.modules.consuming import Lost
from furcula.modules.endpoint import Tls
from furcula.modules.postgres.client import BROKEN, MAX_PAYLOAD, PostgresError, check_channel, connect, endpoint_of
from furcula.modules.producing import TIMEOUT, Producing
from furcula.modules.sending import Destination, Outgoing, Refused, Unavailable
from furcula.options import Duration, Secret

__all__ = ["Notify"]

_NOTIFY = "select pg_notify(channel, payload) from unnest($1::text[], $2::text[]) as each (channel, payload)"
#: The server's queue of notifications is full, because somebody who listens is stuck.
_QUEUE_FULL = "54000"


class Notify(Producing[Any]):
    """Send each event's data as a notification on a channel of PostgreSQL (NOTIFY).

    A batch is one transaction. An event is delivered when it is committed; whether anybody was listening, PostgreSQL
    does not tell. Notifications that are the same are sent in transactions of their own, because within one PostgreSQL
    makes them one. A notification has no place for headers.

    An event fails with `Unavailable` while the server is away or its queue is full (a `retry` waits for it), with
    `Refused` if its payload has more than 7999 bytes or is no text.

    Args:
        url: postgres://host:5432/database
        channel: Where to.
        channel_from: A dotted path to the name of a channel in the event; where it has nothing, `channel` is used.
        codec: What a payload looks like: json or text.
        user: Who we are, with `password`.
        password: See `user`.
        tls: {ca_file, cert_file, key_file, verify}. Default: TLS where the server offers it, unchecked.
        timeout: Seconds that connecting, or sending a batch, may take.
    """

    broken = BROKEN

    def __init__(
        self,
        *,
        url: str,
        channel: str | None = None,
        channel_from: str | None = None,
        codec: str = "json",
        user: str | None = None,
        password: Secret | None = None,
        tls: Tls | None = None,
        timeout: Duration = TIMEOUT,
    ):
        if channel is not None:
            check_channel(channel)
        super().__init__(
            endpoint_of(url, user, password),
            Destination("channel", channel, channel_from, codec),
            timeout=timeout,
            tls=tls,
        )

    async def _connect(self, lost: Lost) -> Any:
        return await connect(
            self._endpoint, tls=self._tls, folder=self._context.folder, timeout_s=self._timeout, lost=lost
        )

    async def _disconnect(self, client: Any) -> None:
        client.terminate()

    async def _send(self, client: Any, batch: list[Outgoing]) -> dict[int, BaseException]:
        errors: dict[int, BaseException] = {}
        rounds: list[list[tuple[Outgoing, str]]] = []
        seen: Counter[tuple[str, str]] = Counter()
        for sent in batch:
            try:
                payload = _payload(sent)
            except ValueError as error:
                errors[sent.index] = Refused(f"{self._endpoint}: {error}")
                continue
            turn = seen[sent.to, payload]
            seen[sent.to, payload] += 1
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append((sent, payload))
        for members in rounds:
            try:
                await client.execute(_NOTIFY, [sent.to for sent, _ in members], [payload for _, payload in members])
            except BROKEN:
                raise
            except PostgresError as error:
                kind = Unavailable if getattr(error, "sqlstate", "") == _QUEUE_FULL else Refused
                said = f"{self._endpoint}: {first_line(error)}"
                errors.update((sent.index, kind(said)) for sent, _ in members)
        return errors


def _payload(sent: Outgoing) -> str:
    """Raises ValueError where PostgreSQL would not take it: it would refuse the whole batch."""
    check_channel(sent.to)
    if len(sent.body) > MAX_PAYLOAD:
        raise ValueError(f"a notification may have {MAX_PAYLOAD} bytes, and the event has {len(sent.body)}")
    try:
        payload = sent.body.decode()
    except UnicodeDecodeError:
        raise ValueError("a notification must be text, and the event's bytes are not UTF-8") from None
    if "\0" in payload:
        raise ValueError("a notification must not have a NUL character")
    return payload
