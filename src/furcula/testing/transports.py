"""The suite that every transport passes, told by a `Promises` what its keeper promises beyond the contract.

A transport's tests derive a class from it::

    class TestMemory(TransportSuite):
        promises = Promises(order=True, replay=True, reports=True)
        fills_at = 4

        def make(self):
            return MemoryTransport(size=4, name="tested")

Claims about a form of carrying that the keeper does not have are skipped, and that it says so is claimed instead.
No test waits for a time to pass to see something happen; the few that claim that something does *not* happen watch for
`quiet_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

import pytest

from furcula.errors import FurculaError
from furcula.transport import MAX_CHANNEL, Carries, Loss, Message, Promises, Subscription, Transport

__all__ = ["TransportSuite"]

T = TypeVar("T")


class TransportSuite:
    """Claims about one transport.

    Attributes:
        promises: What it promises; a claim about something else is skipped.
        together: Several that `make` made may be open at once, and carry to each other.
        fills_at: After so many bodies that nobody took (or read), a sender certainly waits. None: it is not said.
        limit_s: The time after which what should happen has not happened.
        quiet_s: So long nothing must happen where nothing should.

    A keeper with a wire of its own also overrides `injure` and `refusals`.
    """

    pytestmark = pytest.mark.asyncio

    promises: ClassVar[Promises]
    together: ClassVar[bool] = True
    fills_at: ClassVar[int | None] = None
    limit_s: ClassVar[float] = 20
    quiet_s: ClassVar[float] = 0.05

    def make(self) -> Transport:
        """A new transport. Those made in one test are of one address: they carry to each other while they are open, and
        the next finds what they have stored, if they store at all."""
        raise NotImplementedError

    async def injure(self, transport: Transport, raw: bytes) -> None:
        """Send bytes that are no frame to where `transport` listens or its keeper does, as a stranger would."""
        raise NotImplementedError

    def refusals(self, transport: Transport) -> int:
        """How many frames have been counted as refused."""
        raise NotImplementedError

    # ------------------------------------------------------------------ how the claims are made

    @asynccontextmanager
    async def opened(self, *forms: Carries) -> AsyncIterator[Transport]:
        """An open transport, for a claim about these forms of carrying."""
        for form in forms:
            if form not in self.promises.carries:
                pytest.skip(f"this transport does not carry to {form}")
        transport = self.make()
        await self.soon(transport.open())
        try:
            yield transport
        finally:
            await self.soon(transport.close())

    async def soon(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout(self.limit_s):
            return await work

    async def never(self, work: asyncio.Future[Any]) -> None:
        """Claim that this does not come to pass."""
        done, _ = await asyncio.wait([work], timeout=self.quiet_s)
        assert not done, "this should have waited"

    async def taken(self, transport: Transport, channel: str, count: int) -> list[bytes]:
        """The bodies of the next messages, each acknowledged."""
        bodies = []
        for _ in range(count):
            message = await self.soon(transport.take(channel))
            bodies.append(message.body)
            await self.soon(message.ack())
        return bodies

    async def read(self, subscription: Subscription, count: int) -> list[tuple[str, bytes]]:
        """What a subscription gets next."""
        found: list[tuple[str, bytes]] = []
        reader = subscription.__aiter__()
        while len(found) < count:
            found.append(await self.soon(anext(reader)))
        return found

    def in_order(self, bodies: list[Any]) -> list[Any]:
        """The bodies as they can be compared: sorted where order is not promised."""
        return bodies if self.promises.order else sorted(bodies)

    # ------------------------------------------------------------------ to one worker

    async def test_it_says_what_it_promises(self) -> None:
        async with self.opened() as transport:
            assert transport.promises == self.promises

    @pytest.mark.parametrize("form", ["all", "one"])
    async def test_a_form_of_carrying_that_it_does_not_have_is_refused_and_others_named(self, form: str) -> None:
        if form in self.promises.carries:
            pytest.skip("it has this form")
        async with self.opened() as transport:
            works: dict[str, list[Awaitable[Any]]] = {
                "all": [transport.publish("x", b""), transport.subscribe("x")],
                "one": [transport.put("x", b""), transport.take("x")],
            }
            for work in works[form]:
                with pytest.raises(FurculaError, match="://"):
                    await self.soon(work)
            for work in works["one" if form == "all" else "all"]:
                work.close()  # type: ignore[attr-defined]  # they are coroutines

    @pytest.mark.parametrize("channel", ["\ud800", "ä" * (MAX_CHANNEL // 2 + 1)])
    async def test_what_is_no_name_of_a_channel_is_refused(self, channel: str) -> None:
        async with self.opened() as transport:
            works: list[Awaitable[Any]] = []
            if "one" in self.promises.carries:
                works += [transport.put(channel, b""), transport.take(channel)]
            if "all" in self.promises.carries:
                works += [transport.publish(channel, b""), transport.subscribe(channel)]
            for work in works:
                with pytest.raises(FurculaError, match="channel"):
                    await self.soon(work)

    async def test_what_is_put_is_taken_once_and_in_order(self) -> None:
        bodies = [b"%d" % number for number in range(20)]
        async with self.opened("one") as transport:
            putting = asyncio.ensure_future(_all_in_turn(transport.put("work", body) for body in bodies))
            assert self.in_order(await self.taken(transport, "work", 20)) == self.in_order(bodies)
            await self.soon(putting)
            taking = asyncio.ensure_future(transport.take("work"))
            await self.never(taking)
            await _cancel(taking)

    async def test_several_takers_share_the_work(self) -> None:
        async with self.opened("one") as transport:
            takers = [asyncio.ensure_future(self.taken(transport, "work", 5)) for _ in range(4)]
            for number in range(20):
                await self.soon(transport.put("work", b"%02d" % number))
            found = [body for taker in takers for body in await self.soon(taker)]
            assert sorted(found) == [b"%02d" % number for number in range(20)]

    async def test_channels_are_apart_whatever_their_names(self) -> None:
        names = ["a", "a.b", "a b", "ä/ö", "a*", ">", "A", "", "$x", "\n\x00", "会議 🎉", "n" * MAX_CHANNEL]
        async with self.opened("one") as transport:
            for name in names:
                await self.soon(transport.put(name, name.encode()))
            for name in reversed(names):
                assert await self.taken(transport, name, 1) == [name.encode()]

    @pytest.mark.parametrize("body", [b"", b"\x00\xff\n\r", bytes(range(256)) * 300])
    async def test_any_bytes_may_be_a_body(self, body: bytes) -> None:
        async with self.opened("one") as transport:
            await self.soon(transport.put("work", body))
            assert await self.taken(transport, "work", 1) == [body]

    async def test_attempts_count_how_often_a_message_was_handed_out(self) -> None:
        async with self.opened("one") as transport:
            await self.soon(transport.put("work", b"x"))
            for attempt in (1, 2, 3):
                message = await self.soon(transport.take("work"))
                assert (message.body, message.attempts) == (b"x", attempt)
                await self.soon(message.again())
            last = await self.soon(transport.take("work"))
            await self.soon(last.ack())

    async def test_again_waits_for_its_delay(self) -> None:
        async with self.opened("one") as transport:
            await self.soon(transport.put("work", b"x"))
            loop = asyncio.get_running_loop()
            message = await self.soon(transport.take("work"))
            began = loop.time()
            await self.soon(message.again(0.2))
            again = await self.soon(transport.take("work"))
            assert loop.time() - began >= 0.19
            await self.soon(again.ack())

    async def test_release_charges_no_attempt(self) -> None:
        async with self.opened("one") as transport:
            await self.soon(transport.put("work", b"x"))
            for _ in range(3):
                message = await self.soon(transport.take("work"))
                assert message.attempts == 1
                await self.soon(message.release())
            last = await self.soon(transport.take("work"))
            await self.soon(last.ack())

    @pytest.mark.parametrize("word", ["release", "again"])
    async def test_what_is_handed_back_comes_before_what_came_later(self, word: str) -> None:
        self._needs("order")
        async with self.opened("one") as transport:
            for body in (b"1", b"2"):
                await self.soon(transport.put("work", body))
            first = await self.soon(transport.take("work"))
            await self.soon(getattr(first, word)())
            assert await self.taken(transport, "work", 2) == [b"1", b"2"]

    @pytest.mark.parametrize("word", ["ack", "reject"])
    async def test_what_is_acknowledged_or_rejected_never_comes_again_whatever_is_said_then(self, word: str) -> None:
        async with self.opened("one") as transport:
            await self.soon(transport.put("work", b"x"))
            message = await self.soon(transport.take("work"))
            await self.soon(getattr(message, word)())
            for second in (message.again, message.release, message.ack, message.reject):
                await self.soon(second())
            taking = asyncio.ensure_future(transport.take("work"))
            await self.never(taking)
            await _cancel(taking)

    async def test_a_taker_that_is_cancelled_loses_nothing(self) -> None:
        async with self.opened("one") as transport:
            for number in range(10):
                taking = asyncio.ensure_future(transport.take("work"))
                await asyncio.sleep(0)
                await self.soon(transport.put("work", b"%d" % number))
                await _cancel(taking)
                if taking.cancelled():
                    message = await self.soon(transport.take("work"))
                else:
                    message = taking.result()
                assert message.body == b"%d" % number
                await self.soon(message.ack())

    async def test_a_body_over_the_limit_is_refused_and_nothing_of_it_is_kept(self) -> None:
        async with self.opened("one") as transport:
            too_big = bytes(self.promises.max_body + 1)
            with pytest.raises(FurculaError, match=str(self.promises.max_body)):
                await self.soon(transport.put("work", too_big))
            await self.soon(transport.put("work", b"small"))
            assert await self.taken(transport, "work", 1) == [b"small"]

    async def test_a_full_queue_makes_its_sender_wait_and_loses_nothing(self) -> None:
        fills_at = self._fills_at()
        bodies = [b"%06d" % number for number in range(fills_at + 1)]
        async with self.opened("one") as transport:
            putting = asyncio.ensure_future(_all_in_turn(transport.put("work", body) for body in bodies))
            await self.never(putting)
            assert self.in_order(await self.taken(transport, "work", len(bodies))) == self.in_order(bodies)
            await self.soon(putting)

    async def test_a_put_that_is_cancelled_while_it_waits_harms_no_other(self) -> None:
        fills_at = self._fills_at()
        async with self.opened("one") as transport:
            stored = 0
            while True:
                putting = asyncio.ensure_future(transport.put("work", b"%06d" % stored))
                if not (await asyncio.wait([putting], timeout=self.quiet_s))[0]:
                    break
                stored += 1
                assert stored <= fills_at, "this should have waited"
            await _cancel(putting)
            later = [b"later %d" % number for number in range(3)]
            putting = asyncio.ensure_future(_all_in_turn(transport.put("work", body) for body in later))
            found: list[bytes] = []
            while later[-1] not in found:
                found += await self.taken(transport, "work", 1)
            await self.soon(putting)
            # It may have been stored all the same, but no more than once.
            assert found.count(b"%06d" % stored) <= 1
            others = [body for body in found if body != b"%06d" % stored]
            assert self.in_order(others) == self.in_order([*(b"%06d" % number for number in range(stored)), *later])

    async def test_transports_of_one_address_put_to_and_take_from_each_other(self) -> None:
        self._needs_several()
        async with self.opened("one") as one, self.opened() as other:
            for sender, taker in ((one, other), (other, one)):
                for body in (b"1", b"2"):
                    await self.soon(sender.put("work", body))
                assert self.in_order(await self.taken(taker, "work", 2)) == [b"1", b"2"]

    async def test_what_another_that_closes_has_in_hand_is_handed_out_again(self) -> None:
        self._needs_several()
        async with self.opened("one") as transport:
            async with self.opened() as other:
                for body in (b"1", b"2", b"3"):
                    await self.soon(transport.put("work", body))
                for _ in range(2):
                    await self.soon(other.take("work"))
            assert self.in_order(await self.taken(transport, "work", 3)) == [b"1", b"2", b"3"]

    # ------------------------------------------------------------------ reports

    async def test_the_sender_is_told_once_what_became_of_its_message(self) -> None:
        self._needs("reports")
        told: list[tuple[bytes, bool, bytes]] = []
        done = asyncio.Event()

        def tell(body: bytes) -> Any:
            def reported(good: bool, report: bytes) -> None:
                told.append((body, good, report))
                done.set()

            return reported

        async with self.opened("one") as transport:
            for body in (b"good", b"bad"):
                await self.soon(transport.put("work", body, tell(body)))
            messages: list[Message] = [await self.soon(transport.take("work")) for _ in range(2)]
            for message in messages:
                word = message.ack if message.body == b"good" else message.reject
                await self.soon(word(b"report on " + message.body))
                await self.soon(message.ack(b"a second word"))
            while len(told) < 2:
                done.clear()
                await self.soon(done.wait())
        assert sorted(told) == [(b"bad", False, b"report on bad"), (b"good", True, b"report on good")]

    async def test_handing_back_is_no_report(self) -> None:
        self._needs("reports")
        told: list[bool] = []
        done = asyncio.Event()

        def reported(good: bool, report: bytes) -> None:
            told.append(good)
            done.set()

        async with self.opened("one") as transport:
            await self.soon(transport.put("work", b"x", reported))
            await self.soon((await self.soon(transport.take("work"))).again())
            await self.soon((await self.soon(transport.take("work"))).release())
            message = await self.soon(transport.take("work"))
            assert told == []
            await self.soon(message.ack())
            await self.soon(done.wait())
        assert told == [True]

    # ------------------------------------------------------------------ to every subscriber

    async def test_what_is_published_reaches_every_subscriber_in_order(self) -> None:
        bodies = [b"%02d" % number for number in range(20)]
        async with self.opened("all") as transport:
            subscriptions = [await self.soon(transport.subscribe("news")) for _ in range(3)]
            readers = [asyncio.ensure_future(self.read(subscription, 20)) for subscription in subscriptions]
            for body in bodies:
                await self.soon(transport.publish("news", body))
            for reader in readers:
                assert self.in_order(await self.soon(reader)) == [("news", body) for body in bodies]

    async def test_what_several_publish_at_once_arrives_in_the_order_of_each(self) -> None:
        self._needs_several()
        async with self.opened("all") as one, self.opened() as other:
            subscription = await self.soon(one.subscribe("news"))
            reading = asyncio.ensure_future(self.read(subscription, 60))
            senders = {b"a": one, b"b": other}
            bodies = {name: [b"%s %02d" % (name, number) for number in range(30)] for name in senders}
            works = [[sender.publish("news", body) for body in bodies[name]] for name, sender in senders.items()]
            await self.soon(asyncio.gather(*map(_all_in_turn, works)))
            found = [body for _, body in await self.soon(reading)]
            for name in senders:
                mine = [body for body in found if body.startswith(name)]
                assert self.in_order(mine) == bodies[name]

    async def test_a_subscription_is_effective_when_subscribe_has_returned(self) -> None:
        async with self.opened("all") as transport:
            for number in range(10):
                subscription = await self.soon(transport.subscribe(f"news{number}"))
                await self.soon(transport.publish(f"news{number}", b"first"))
                assert await self.read(subscription, 1) == [(f"news{number}", b"first")]

    async def test_what_was_published_before_is_not_received(self) -> None:
        async with self.opened("all") as transport:
            await self.soon(transport.publish("news", b"before"))
            subscription = await self.soon(transport.subscribe("news"))
            await self.soon(transport.publish("news", b"after"))
            assert await self.read(subscription, 1) == [("news", b"after")]

    async def test_channels_match_exactly(self) -> None:
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("room1", "room 3"))
            for channel in ("room12", "room", "Room1", "room1.a", "room1", "room 3"):
                await self.soon(transport.publish(channel, channel.encode()))
            expected = [("room1", b"room1"), ("room 3", b"room 3")]
            assert self.in_order(await self.read(subscription, 2)) == self.in_order(expected)

    async def test_a_channel_is_any_text(self) -> None:
        names = ["a.b", "a b", "ä/ö", "*", ">", "a.>", "", "$JS.x", "\n\x00", "会議 🎉", "n" * MAX_CHANNEL]
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe(*names))
            reading = asyncio.ensure_future(self.read(subscription, len(names)))
            for name in names:
                await self.soon(transport.publish(name, name.encode()))
            expected = [(name, name.encode()) for name in names]
            assert self.in_order(await self.soon(reading)) == self.in_order(expected)

    async def test_a_prefix_matches_what_begins_so(self) -> None:
        names = ["room1", "room12", "roo", "Room1", "room", "room1.ä 🎉"]
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("room1", "Ro", prefix=True))
            reading = asyncio.ensure_future(self.read(subscription, 4))
            for name in names:
                await self.soon(transport.publish(name, name.encode()))
            expected = [(name, name.encode()) for name in ("room1", "room12", "Room1", "room1.ä 🎉")]
            assert self.in_order(await self.soon(reading)) == self.in_order(expected)

    async def test_the_empty_prefix_is_everything_and_the_empty_channel_only_itself(self) -> None:
        async with self.opened("all") as transport:
            every = await self.soon(transport.subscribe("", prefix=True))
            exact = await self.soon(transport.subscribe(""))
            for name in ("x", "", "ä"):
                await self.soon(transport.publish(name, name.encode()))
            expected = [(name, name.encode()) for name in ("x", "", "ä")]
            assert self.in_order(await self.read(every, 3)) == self.in_order(expected)
            assert await self.read(exact, 1) == [("", b"")]

    async def test_a_body_comes_once_however_many_names_of_a_subscription_match(self) -> None:
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("a", "ab", "a", prefix=True))
            await self.soon(transport.publish("abc", b"1"))
            await self.soon(transport.publish("abc", b"2"))
            assert self.in_order(await self.read(subscription, 2)) == [("abc", b"1"), ("abc", b"2")]

    async def test_a_body_over_the_limit_is_not_published(self) -> None:
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news"))
            with pytest.raises(FurculaError, match=str(self.promises.max_body)):
                await self.soon(transport.publish("news", bytes(self.promises.max_body + 1)))
            await self.soon(transport.publish("news", b"small"))
            assert await self.read(subscription, 1) == [("news", b"small")]

    async def test_who_asks_for_a_replay_gets_the_last_bodies_of_each_channel_first(self) -> None:
        self._needs("replay")
        async with self.opened("all") as transport:
            for number in range(5):
                for name in ("room1", "room2", "other"):
                    await self.soon(transport.publish(name, f"{name} {number}".encode()))
            late = await self.soon(transport.subscribe("room", prefix=True, replay=2))
            assert late.replayed == 4
            found = await self.read(late, 4)
            for name in ("room1", "room2"):
                bodies = [body for channel, body in found if channel == name]
                assert bodies == [f"{name} 3".encode(), f"{name} 4".encode()]
            await self.soon(transport.publish("room1", b"new"))
            assert await self.read(late, 1) == [("room1", b"new")]
            exact = await self.soon(transport.subscribe("room1", "never", replay=1))
            assert await self.read(exact, 1) == [("room1", b"new")]

    async def test_a_replay_has_what_there_is_if_more_is_asked_for(self) -> None:
        self._needs("replay")
        async with self.opened("all") as transport:
            await self.soon(transport.publish("news", b"1"))
            late = await self.soon(transport.subscribe("news", replay=1000))
            await self.soon(transport.publish("news", b"2"))
            assert await self.read(late, 2) == [("news", b"1"), ("news", b"2")]

    async def test_a_replay_that_is_not_promised_is_refused(self) -> None:
        if self.promises.replay:
            pytest.skip("it is promised")
        async with self.opened("all") as transport:
            with pytest.raises(FurculaError, match="replay"):
                await self.soon(transport.subscribe("news", replay=1))

    async def test_a_policy_that_is_not_promised_is_refused_and_those_that_are_named(self) -> None:
        async with self.opened("all") as transport:
            for policy in ("block", "drop", "nonsense"):
                if policy not in self.promises.loss:
                    with pytest.raises(FurculaError, match=self.promises.loss[0]):
                        await self.soon(transport.subscribe("news", when_slow=policy))  # type: ignore[arg-type]

    async def test_subscribing_to_nothing_is_refused(self) -> None:
        async with self.opened("all") as transport:
            with pytest.raises(FurculaError, match="channel"):
                await self.soon(transport.subscribe())

    async def test_publishing_to_nobody_is_no_error(self) -> None:
        async with self.opened("all") as transport:
            for _ in range(3 * (self.fills_at or 10)):
                await self.soon(transport.publish("nobody", b"x"))

    async def test_publishing_and_putting_are_apart(self) -> None:
        async with self.opened("all", "one") as transport:
            subscription = await self.soon(transport.subscribe("both"))
            await self.soon(transport.put("both", b"put"))
            await self.soon(transport.publish("both", b"published"))
            assert await self.read(subscription, 1) == [("both", b"published")]
            assert await self.taken(transport, "both", 1) == [b"put"]

    async def test_a_closed_subscription_ends_and_hears_nothing_more(self) -> None:
        async with self.opened("all") as transport:
            subscription, other = [await self.soon(transport.subscribe("news")) for _ in range(2)]
            await self.soon(subscription.close())
            await self.soon(subscription.close())
            await self.soon(transport.publish("news", b"x"))
            assert [item async for item in subscription] == []
            assert await self.read(other, 1) == [("news", b"x")]

    async def test_a_reader_that_waits_when_its_subscription_is_closed_ends(self) -> None:
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news"))
            reading = asyncio.ensure_future(_read_all(subscription))
            await asyncio.sleep(0)
            await self.soon(subscription.close())
            assert await self.soon(reading) == []

    async def test_a_slow_subscriber_makes_publishers_wait_and_loses_nothing(self) -> None:
        self._allows("block")
        fills_at = self._fills_at()
        bodies = [b"%06d" % number for number in range(fills_at + 1)]
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news", when_slow="block"))
            publishing = asyncio.ensure_future(_all_in_turn(transport.publish("news", body) for body in bodies))
            await self.never(publishing)
            found = [body for _, body in await self.read(subscription, len(bodies))]
            assert self.in_order(found) == bodies
            assert subscription.lost == 0
            await self.soon(publishing)

    async def test_a_slow_subscriber_that_chose_to_drop_has_its_losses_counted_and_holds_up_nobody(self) -> None:
        self._allows("drop")
        fills_at = self._fills_at()
        bodies = [b"%06d" % number for number in range(3 * fills_at + 1)]
        async with self.opened("all") as transport:
            slow = await self.soon(transport.subscribe("news", when_slow="drop"))
            other = await self.soon(transport.subscribe("news"))
            reading = asyncio.ensure_future(self.read(other, len(bodies)))
            for body in bodies:
                await self.soon(transport.publish("news", body))
                await asyncio.sleep(0)
            if self.promises.loss[0] == "block":
                assert [body for _, body in await self.soon(reading)] == bodies
            else:
                await _cancel(reading)
            # What comes after the burst is received, and says where the losses are.
            found: list[bytes] = []
            ends = await self.soon(_until_lost_is_known(transport, slow, found))
            assert slow.lost > 0
            assert len(found) + slow.lost == len(bodies) + ends
            assert found == sorted(found) or not self.promises.order

    async def test_a_publish_that_is_cancelled_while_it_waits_harms_no_other(self) -> None:
        self._allows("block")
        fills_at = self._fills_at()
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news", when_slow="block"))
            sent = 0
            while True:
                publishing = asyncio.ensure_future(transport.publish("news", b"%06d" % sent))
                if not (await asyncio.wait([publishing], timeout=self.quiet_s))[0]:
                    break
                sent += 1
                assert sent <= fills_at, "this should have waited"
            await _cancel(publishing)
            later = [b"later %d" % number for number in range(3)]
            publishing = asyncio.ensure_future(_all_in_turn(transport.publish("news", body) for body in later))
            found: list[bytes] = []
            reader = subscription.__aiter__()
            while later[-1] not in found:
                found.append((await self.soon(anext(reader)))[1])
            await self.soon(publishing)
            # It may have been published all the same, but no more than once.
            assert found.count(b"%06d" % sent) <= 1
            others = [body for body in found if body != b"%06d" % sent]
            assert self.in_order(others) == self.in_order([*(b"%06d" % number for number in range(sent)), *later])
            assert subscription.lost == 0

    async def test_a_publisher_goes_on_when_the_subscriber_it_waits_for_has_gone(self) -> None:
        self._allows("block")
        fills_at = self._fills_at()
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news", when_slow="block"))
            works = [transport.publish("news", b"x") for _ in range(fills_at + 1)]
            publishing = asyncio.ensure_future(_all_in_turn(works))
            await self.never(publishing)
            await self.soon(subscription.close())
            await self.soon(publishing)

    # ------------------------------------------------------------------ closing

    async def test_close_may_be_repeated(self) -> None:
        async with self.opened() as transport:
            if "one" in self.promises.carries:
                await self.soon(transport.put("work", b"x"))
            await self.soon(transport.close())

    async def test_closing_ends_subscriptions(self) -> None:
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news"))
            reading = asyncio.ensure_future(_read_all(subscription))
            await asyncio.sleep(0)
            await self.soon(transport.close())
            assert await self.soon(reading) == []

    async def test_closing_refuses_what_comes_after(self) -> None:
        async with self.opened() as transport:
            await self.soon(transport.close())
            works: list[Awaitable[Any]] = []
            if "one" in self.promises.carries:
                works += [transport.put("work", b"x"), transport.take("work")]
            if "all" in self.promises.carries:
                works += [transport.publish("news", b"x"), transport.subscribe("news")]
            for work in works:
                with pytest.raises(FurculaError):
                    await self.soon(work)

    async def test_closing_wakes_a_taker_and_a_sender_that_wait(self) -> None:
        fills_at = self._fills_at()
        async with self.opened("one") as transport:
            taking = asyncio.ensure_future(transport.take("empty"))
            for _ in range(fills_at):
                putting = asyncio.ensure_future(transport.put("full", b"x"))
                if not (await asyncio.wait([putting], timeout=self.quiet_s))[0]:
                    break
            else:
                putting = asyncio.ensure_future(transport.put("full", b"x"))
                await self.never(putting)
            await self.soon(transport.close())
            for waiting in (taking, putting):
                with pytest.raises(FurculaError):
                    await self.soon(waiting)

    async def test_what_was_put_is_still_there_for_the_next_one(self) -> None:
        self._needs("durable")
        async with self.opened("one") as transport:
            for body in (b"1", b"2", b"3"):
                await self.soon(transport.put("work", body))
            assert await self.taken(transport, "work", 1) == [b"1"]
            held = await self.soon(transport.take("work"))
            assert held.body == b"2"  # taken, and nothing said of it: closing releases it
        async with self.opened() as transport:
            assert sorted(await self.taken(transport, "work", 2)) == [b"2", b"3"]

    # ------------------------------------------------------------------ strangers

    @pytest.mark.parametrize(
        "raw", [b"", b"\x00", b"\xff" * 100, b"\x01" * 50, b"\x01\x93\xc0", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000)]
    )
    async def test_a_frame_that_is_none_is_counted_and_harms_nobody(self, raw: bytes) -> None:
        if type(self).injure is TransportSuite.injure:
            pytest.skip("this transport has no wire of its own")
        async with self.opened("all") as transport:
            subscription = await self.soon(transport.subscribe("news"))
            before = self.refusals(transport)
            await self.soon(self.injure(transport, raw))
            async with asyncio.timeout(self.limit_s):
                while self.refusals(transport) == before:  # noqa: ASYNC110 - it is counted in another thread or process
                    await asyncio.sleep(0.005)
            await self.soon(transport.publish("news", b"x"))
            assert await self.read(subscription, 1) == [("news", b"x")]

    # ------------------------------------------------------------------ what is skipped

    def _allows(self, policy: Loss) -> None:
        if policy not in self.promises.loss:
            pytest.skip(f"subscribers cannot choose to {policy} here")

    def _needs(self, promise: str) -> None:
        if not getattr(self.promises, promise):
            pytest.skip(f"this transport does not promise: {promise}")

    def _needs_several(self) -> None:
        if not self.together:
            pytest.skip("several of these transports cannot be open at once")

    def _fills_at(self) -> int:
        if self.fills_at is None:
            pytest.skip("it is not said when this transport is full")
        return self.fills_at


async def _until_lost_is_known(transport: Transport, subscription: Subscription, found: list[bytes]) -> int:
    """Read on, and publish an `end` now and then, until one is read: by then the losses before it are counted.

    Returns how many ends had been published up to that one.
    """
    reader, ends = subscription.__aiter__(), 0
    while True:
        await transport.publish("news", b"end %06d" % ends)
        ends += 1
        try:
            async with asyncio.timeout(0.2):
                while True:
                    found.append((await anext(reader))[1])
                    if found[-1].startswith(b"end"):
                        return int(found[-1].removeprefix(b"end ")) + 1
        except TimeoutError:
            reader = subscription.__aiter__()


async def _all_in_turn(works: Any) -> None:
    for work in works:
        await work


async def _read_all(subscription: Subscription) -> list[tuple[str, bytes]]:
    return [item async for item in subscription]


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
