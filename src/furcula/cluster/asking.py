"""Events that somebody waits for cross by request, and their duty stays with whoever asked.

They pass by the streams: a stored request would be acknowledged to nobody when its asker's patience has ended. The
worker that takes one says so at once, and what became of it when it is settled; a worker that dies meanwhile has failed
it, in a way worth another try, and so the HTTP client is told (503). What comes home goes to the very worker that has
the asker.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from nats.aio.msg import Msg

from furcula.cluster.client import AGAIN_S, Client
from furcula.cluster.layout import Entry, Layout
from furcula.cluster.members import Members
from furcula.engine.crossed import Arrival, Homes, Parcel, Reported, reports, say_reports, sendable, settle_reported
from furcula.engine.parts import Arrivals, Cut, Refuse
from furcula.errors import InputError
from furcula.event import Event, Failure
from furcula.receipt import Carrier

__all__ = ["Asking"]

log = logging.getLogger("furcula.cluster")

#: So long a worker is looked for that takes a request.
NOBODY_S = 5.0
#: Requests that a worker has in hand before it takes no more: others do, or whoever asked is told to try again later.
MOST = 10_000
#: It takes them again when it has this part of them.
AGAIN_AT = 0.8
#: After so long without word of a request its worker is asked what became of it; then after twice as long, and so on.
DOUBT_S = 2.0
DOUBT_MOST_S = 10.0
#: What became of so many requests is remembered, for whoever has not heard it.
REMEMBERED = 10_000

_parcel = msgspec.msgpack.Decoder(Parcel).decode


class _Away:
    """Events that are with another worker, because somebody waits for what becomes of them."""

    __slots__ = ("asked", "body", "carriers", "cut", "doubt_at", "doubt_s", "since", "subject", "worker")

    def __init__(
        self, cut: str, subject: str, asked: tuple[str, int], body: bytes, carriers: list[Carrier], since: float
    ):
        self.cut = cut
        self.subject = subject
        self.body = body
        self.carriers = carriers
        self.asked = asked
        self.since = since
        self.worker = ""
        self.doubt_s = DOUBT_S
        self.doubt_at = since + DOUBT_S


class Asking:
    """Both ends of that.

    Args:
        layout: Of the flow.
        client: The connection.
        members: Who is there.
        stage: Of this worker.
    """

    def __init__(self, layout: Layout, client: Client, members: Members, stage: str):
        self.homes = Homes(f"{stage}/{members.id}")
        self._layout = layout
        self._client = client
        self._members = members
        self._arrivals: Mapping[str, Arrivals] = {}
        self._refuse: dict[str, Refuse] = {}
        self._numbers = itertools.count(1)
        self._away: dict[int, _Away] = {}
        self._inbox = ""
        #: Where to say what becomes of each request in hand.
        self._open: set[str] = set()
        #: By the same, what was said; the latest.
        self._told: dict[str, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stage = stage
        #: To be given requests that any worker of the stage may take.
        self._shared: list[Any] = []
        self._arranging = asyncio.Lock()
        self._begun = False
        self._paused = False
        self._full = False
        self._ceased = False

    async def open(self, arrivals: Mapping[str, Arrivals], stage: str) -> None:
        self._arrivals = arrivals
        self._inbox = self._client.nats.new_inbox()

        async def answered(msg: Msg) -> None:
            self._answered(msg)

        await self._client.nats.subscribe(f"{self._inbox}.*", cb=answered)

    async def begin(self) -> None:
        async def doubted(msg: Msg) -> None:
            self._doubted(msg)

        subscribe = self._client.nats.subscribe
        await subscribe(self._layout.subject("home", self._members.id), cb=self._take)
        await subscribe(self._layout.subject("doubt", self._members.id), cb=doubted)
        self._begun = True
        await self._arrange()

    async def _take(self, msg: Msg) -> None:
        self._came(msg)

    async def _arrange(self) -> None:
        """Be given requests, or not any more, as it is wanted now.

        Where no worker is to be given any, the server tells whoever asks, and an HTTP client is told to try again.
        """
        async with self._arranging:
            wanted = self._begun and not (self._paused or self._full or self._ceased)
            if wanted and not self._shared:
                subscribe = self._client.nats.subscribe
                for entry in self._layout.entries.values():
                    if entry.stage == self._stage:
                        subject = self._layout.ask(entry)
                        self._shared.append(await subscribe(subject, queue="workers", cb=self._take))
            elif not wanted and self._shared:
                shared, self._shared = self._shared, []
                for subscription in shared:
                    try:
                        async with asyncio.timeout(2):
                            await subscription.drain()  # what has come is taken
                    except Exception:  # no connection: it would be made anew with that
                        self._client.nats._remove_sub(subscription._id)

    def pause(self) -> None:
        """Take no requests until `resume`. What comes home is still taken, and what is in hand goes on."""
        self._paused = True
        if self._begun:
            self._spawn(self._arrange())

    def resume(self) -> None:
        self._paused = False
        if self._begun:
            self._spawn(self._arrange())

    def refusing(self, cut: str, refuse: Refuse) -> None:
        self._refuse[cut] = refuse

    # ------------------------------------------------------------------ the near end

    def is_asked(self, carrier: Carrier | None) -> bool:
        return bool(self.homes.home_of(carrier))

    def ask(self, cut: Cut, entry: Entry, events: list[tuple[Event[Any], Carrier]]) -> None:
        good, _, refused = sendable([event for event, _ in events])
        if refused:
            self._refuse[cut.name](refused)
        for event in good:  # each by itself: they may be for different workers
            carrier = event.carrier()
            asked = self.homes.sent(carrier)
            if carrier is None or asked is None:
                continue
            home, _, worker = asked[0].partition("#")[0].rpartition("/")
            subject = self._layout.ask(entry)
            if home == entry.stage:
                subject = self._layout.subject("home", worker)
            _, raw, _ = sendable([event])
            body = msgspec.msgpack.encode(Parcel(cut.name, raw, {0: asked}))
            if len(body) > self._client.max_body:
                self.homes.reported(asked)
                said = f"the event has {len(body)} bytes; the server takes {self._client.max_body} in a message"
                self._refuse[cut.name]([(event, InputError(said))])
                continue
            number = next(self._numbers)
            since = asyncio.get_running_loop().time()
            self._away[number] = _Away(cut.name, subject, asked, body, [carrier], since)
            self._spawn(self._send(number))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, number: int) -> None:
        away = self._away.get(number)
        if away is not None:
            await self._client.say(away.subject, away.body, f"{self._inbox}.{number}")

    def _answered(self, msg: Msg) -> None:
        number = int(msg.subject.rpartition(".")[2])
        away = self._away.get(number)
        if away is None:
            return
        if (msg.headers or {}).get("Status") == "503":
            if away.worker:  # nobody hears our doubts: it has gone, or dies (see `look`)
                return
            if asyncio.get_running_loop().time() - away.since > NOBODY_S:
                self._settle(number, {0: _lost(away.cut, "no worker takes it")})
            else:
                asyncio.get_running_loop().call_later(AGAIN_S, lambda: self._spawn(self._send(number)))
        elif msg.data[:1] == b"+":
            away.worker = msg.data[1:].decode(errors="replace")
            away.body = b""  # it is not sent again
        elif msg.data[:1] == b"?":
            self._settle(number, {0: _lost(away.cut, f"the worker {away.worker} knows nothing of it")})
        else:
            try:
                self._settle(number, reports(msg.data[1:]))
            except InputError as error:
                self._settle(number, {0: Reported("failed", str(error))})

    def look(self) -> None:
        """Workers that died have failed what they had. Others may have told us what we did not hear."""
        now = asyncio.get_running_loop().time()
        for number, away in list(self._away.items()):
            if away.worker and self._members.dead(away.worker.partition(" ")[0]):
                self._settle(number, {0: _lost(away.cut, f"the worker {away.worker} died")})
            elif not away.worker and now - away.since > 2 * NOBODY_S:
                self._settle(number, {0: _lost(away.cut, "no worker has taken it")})
            elif away.worker and now > away.doubt_at:
                away.doubt_s = min(2 * away.doubt_s, DOUBT_MOST_S)
                away.doubt_at = now + away.doubt_s
                subject = self._layout.subject("doubt", away.worker)
                self._spawn(self._client.say(subject, b"", f"{self._inbox}.{number}"))

    def _settle(self, number: int, fates: dict[int, Reported]) -> None:
        away = self._away.pop(number)
        self.homes.reported(away.asked)
        settle_reported(away.carriers, fates)

    # ------------------------------------------------------------------ the far end

    def _came(self, msg: Msg) -> None:
        if msg.reply in self._open or msg.reply in self._told:  # whoever asked has not heard that we have it
            self._doubted(msg)
            return
        self._open.add(msg.reply)  # before it is read: what is in it may be settled at once
        try:
            parcel = _parcel(msg.data)
            arrivals = self._arrivals.get(parcel.cut)
            if arrivals is None:
                raise InputError(f"there is no route {parcel.cut!r} in this version of the flow")
            arrival = Arrival(parcel, arrivals.origin, self.homes, lambda arrival: self._done(msg.reply, arrival))
        except (ValueError, TypeError, RecursionError) as error:
            log.error("a request that cannot be read: %s", error)
            self._report(msg.reply, {0: Reported("failed", "InputError", Failure("", "InputError", str(error)))})
            return
        if len(self._open) >= MOST and not self._full:
            self._full = True
            self._spawn(self._arrange())
        self._spawn(self._client.say(msg.reply, b"+" + self._members.id.encode()))
        wait = arrivals.entry.push(arrival.events)
        if wait is not None:
            self._spawn(_awaited(wait))

    def _done(self, reply: str, arrival: Arrival) -> None:
        self._report(reply, arrival.fates)

    def _report(self, reply: str, fates: Mapping[int, Reported]) -> None:
        """Say what became of a request, and remember it."""
        body = b"=" + say_reports(fates)
        if len(body) > self._client.max_body:
            said = "what became of it is more than the server takes in a message"
            body = b"=" + say_reports({0: Reported("failed", "InputError", Failure("", "InputError", said))})
        self._open.discard(reply)
        self._told[reply] = body
        if len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]
        if self._full and len(self._open) <= AGAIN_AT * MOST:
            self._full = False
            self._spawn(self._arrange())
        self._spawn(self._client.say(reply, body))

    def _doubted(self, msg: Msg) -> None:
        """Somebody has not heard what became of a request."""
        if msg.reply in self._open:
            body = b"+" + self._members.id.encode()
        else:
            body = self._told.get(msg.reply, b"?")
        self._spawn(self._client.say(msg.reply, body))

    # ------------------------------------------------------------------ its end

    async def cease(self) -> None:
        """Take no more requests. What comes home is still taken."""
        self._ceased = True
        await self._arrange()

    def settled(self) -> bool:
        return not self._away

    def dry(self) -> bool:
        return not self._open

    def abandon(self) -> dict[str, int]:
        left: dict[str, int] = {}
        for number, away in list(self._away.items()):
            left[away.cut] = left.get(away.cut, 0) + 1
            self._settle(number, {0: Reported("failed", "abandoned")})
        return left

    async def close(self) -> None:
        await asyncio.sleep(0)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in self._tasks:
            task.cancel()


def _lost(cut: str, why: str) -> Reported:
    return Reported("failed", "lost", Failure(cut, "WorkerLost", why, retryable=True))


async def _awaited(wait: Any) -> None:
    await wait
