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
#: Requests that a worker has in hand before it takes no more.
MOST = 10_000

_parcel = msgspec.msgpack.Decoder(Parcel).decode


class _Away:
    """Events that are with another worker, because somebody waits for what becomes of them."""

    __slots__ = ("asked", "carriers", "cut", "parcel", "since", "subject", "worker")

    def __init__(self, cut: str, subject: str, parcel: Parcel, carriers: list[Carrier], since: float):
        self.cut = cut
        self.subject = subject
        self.parcel = parcel
        self.carriers = carriers
        self.asked = list(parcel.asked.values())
        self.since = since
        self.worker = ""


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
        self._open = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions: list[Any] = []
        self._ceased = False

    async def open(self, arrivals: Mapping[str, Arrivals], stage: str) -> None:
        self._arrivals = arrivals
        self._inbox = self._client.nats.new_inbox()

        async def answered(msg: Msg) -> None:
            self._answered(msg)

        await self._client.nats.subscribe(f"{self._inbox}.*", cb=answered)

    async def begin(self, stage: str) -> None:
        async def came(msg: Msg) -> None:
            self._came(msg)

        subscribe = self._client.nats.subscribe
        for entry in self._layout.entries.values():
            if entry.stage == stage:
                subject = self._layout.ask(entry)
                self._subscriptions.append(await subscribe(subject, queue="workers", cb=came))
        self._subscriptions.append(await subscribe(self._layout.subject("home", self._members.id), cb=came))

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
            _, body, _ = sendable([event])
            parcel = Parcel(cut.name, body, {0: asked})
            number = next(self._numbers)
            self._away[number] = _Away(cut.name, subject, parcel, [carrier], asyncio.get_running_loop().time())
            self._spawn(self._send(number))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, number: int) -> None:
        away = self._away.get(number)
        if away is not None:
            await self._client.say(away.subject, msgspec.msgpack.encode(away.parcel), f"{self._inbox}.{number}")

    def _answered(self, msg: Msg) -> None:
        number = int(msg.subject.rpartition(".")[2])
        away = self._away.get(number)
        if away is None:
            return
        if (msg.headers or {}).get("Status") == "503":
            if asyncio.get_running_loop().time() - away.since > NOBODY_S:
                self._settle(number, {0: _lost(away.cut, "no worker takes it")})
            else:
                asyncio.get_running_loop().call_later(AGAIN_S, lambda: self._spawn(self._send(number)))
        elif msg.data[:1] == b"+":
            away.worker = msg.data[1:].decode(errors="replace")
        else:
            try:
                self._settle(number, reports(msg.data[1:]))
            except InputError as error:
                self._settle(number, {0: Reported("failed", str(error))})

    def look(self) -> None:
        """Workers that died have failed what they had."""
        now = asyncio.get_running_loop().time()
        for number, away in list(self._away.items()):
            if away.worker and self._members.dead(away.worker.partition(" ")[0]):
                self._settle(number, {0: _lost(away.cut, f"the worker {away.worker} died")})
            elif not away.worker and now - away.since > 2 * NOBODY_S:
                self._settle(number, {0: _lost(away.cut, "no worker has taken it")})

    def _settle(self, number: int, fates: dict[int, Reported]) -> None:
        away = self._away.pop(number)
        for asked in away.asked:
            self.homes.reported(asked)
        settle_reported(away.carriers, fates)

    # ------------------------------------------------------------------ the far end

    def _came(self, msg: Msg) -> None:
        if self._ceased and ".home." not in msg.subject:
            return
        try:
            parcel = _parcel(msg.data)
            arrivals = self._arrivals.get(parcel.cut)
            if arrivals is None:
                raise InputError(f"there is no route {parcel.cut!r} in this version of the flow")
            arrival = Arrival(parcel, arrivals.origin, self.homes, lambda arrival: self._done(msg.reply, arrival))
        except (ValueError, TypeError, RecursionError) as error:
            log.error("a request that cannot be read: %s", error)
            self._spawn(self._client.say(msg.reply, b"=" + say_reports({0: Reported("failed", str(error))})))
            return
        self._open += 1
        self._spawn(self._client.say(msg.reply, b"+" + self._members.id.encode()))
        wait = arrivals.entry.push(arrival.events)
        if wait is not None:
            self._spawn(_awaited(wait))

    def _done(self, reply: str, arrival: Arrival) -> None:
        self._open -= 1
        self._spawn(self._client.say(reply, b"=" + say_reports(arrival.fates)))

    # ------------------------------------------------------------------ its end

    async def cease(self) -> None:
        """Take no more requests. What comes home is still taken."""
        self._ceased = True
        for subscription in self._subscriptions[:-1]:
            try:
                await subscription.unsubscribe()
            except Exception:
                log.debug("a subscription had ended")

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
