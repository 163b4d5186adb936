"""The Broker: each event to every sink that matches, from anywhere, and no sink in another's way."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furcula import Options, Retry
from furcula.broker import Broker, BrokerHandler, DeliveryFailed, IngressContext
from furcula.broker.broker import Unmatched
from furcula.codecs import decode_events
from furcula.errors import ConfigurationError, InputError, QueueFull, Stopped
from furcula.store import StoreFile
from furcula.testing import assert_settled

QUICK = Options(queue=1024, overflow="fail", retry=Retry(attempts=2, delay="1ms"), timeout="30s")  # type: ignore[arg-type]


class Keeper:
    """A plugin that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str, Any]] = []
        self.opened: list[str] = []
        self.closed: list[str] = []

    async def open(self, ctx: IngressContext) -> None:
        self.opened.append(ctx.profile)

    async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
        self.got.append((ctx.provider, ctx.profile, routing_key, body))

    def close(self, ctx: IngressContext) -> None:
        self.closed.append(ctx.profile)


class Plain:
    """A plugin whose functions are plain."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.threads: set[int] = set()

    def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
        self.threads.add(threading.get_ident())
        self.got.append(body)


class Failing:
    def __init__(self, times: int = 1_000_000):
        self.left = times
        self.tried = 0

    async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
        self.tried += 1
        if self.left:
            self.left -= 1
            raise OSError("the line is dead")


class Hanging:
    async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
        await asyncio.Event().wait()


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0)


# ------------------------------------------------------------------ to whom


async def test_every_sink_whose_profile_matches_receives_it_and_no_other() -> None:
    keeper = Keeper()
    profiles = {
        "a": {"default": {}, "team-*": {}},
        "b": {"default": {"x": 1}, "/team-[0-9]+/": {}, "other": {}},
    }
    async with Broker(profiles, ingress={"a": keeper, "b": keeper}) as broker:
        await broker.put("k", 1)
        await broker.put("k", 2, profile="team-7")
        await broker.put("k", 3, "team-x")
        await broker.put("k", 4, profile="other")
        await broker.join()
        assert sorted(keeper.got) == [
            ("a", "default", "k", "1"),
            ("a", "team-*", "k", "2"),
            ("a", "team-*", "k", "3"),
            ("b", "/team-[0-9]+/", "k", "2"),
            ("b", "default", "k", "1"),
            ("b", "other", "k", "4"),
        ]
        statistics = await broker.stop()
    assert_settled(statistics.flow)
    assert statistics.put == 4
    assert {name: sink.delivered for name, sink in statistics.sinks.items()} == {
        "a/default": 1, "a/team-*": 2, "b/default": 1, "b//team-[0-9]+/": 1, "b/other": 1,
    }  # fmt: skip


async def test_a_profile_may_say_where_its_events_go_and_a_plugin_serves_several_providers() -> None:
    keeper = Keeper()
    keeper.ACCT = ["one", "two"]  # type: ignore[attr-defined]
    broker = Broker(
        {"one": {"default": {"routing_key": "fixed"}}, "deux": {"default": {}}},
        ingress=[keeper],
        aliases={"deux": "two"},
    )
    async with broker:
        await broker.put("mine", "x")
        await broker.join()
    assert sorted(keeper.got) == [("deux", "default", "mine", '"x"'), ("one", "default", "fixed", '"x"')]


async def test_an_event_for_nobody_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with Broker({"a": {"default": {}}}, ingress={"a": Keeper()}) as broker:
        for _ in range(5):
            await broker.put("k", 1, profile="defualt")
        statistics = broker.statistics()
    assert (statistics.put, statistics.unmatched) == (0, 5)
    assert caplog.text.count("no profile matches 'defualt', did you mean 'default'?") == 1


async def test_a_strict_broker_refuses_an_event_for_nobody() -> None:
    broker = Broker({"a": {"default": {}}}, ingress={"a": Keeper()}, strict=True)
    with pytest.raises(Unmatched, match="no profile matches 'other'"):
        broker.put_nowait("k", 1, profile="other")
    async with broker:
        with pytest.raises(Unmatched):
            await broker.put("k", 1, profile="other")


# ------------------------------------------------------------------ from where


async def test_what_is_put_before_the_broker_runs_is_delivered_in_order() -> None:
    keeper = Keeper()
    broker = Broker({"a": {"default": {}}}, ingress={"a": keeper})
    for number in range(5):
        broker.put_nowait("k", number)
    await broker.put("k", 5)
    async with broker:
        await broker.put("k", 6)
        broker.put_nowait("k", 7)
        await broker.join()
    assert [body for *_, body in keeper.got] == [str(number) for number in range(8)]


def test_put_nowait_needs_no_loop_at_all() -> None:
    keeper = Keeper()
    broker = Broker({"a": {"default": {}}}, ingress={"a": keeper})
    broker.put_nowait("k", 1)

    async def run() -> None:
        async with broker:
            await broker.join()

    asyncio.run(run())
    assert len(keeper.got) == 1


async def test_threads_put_while_the_broker_runs_and_nothing_is_lost() -> None:
    keeper = Keeper()
    async with Broker({"a": {"default": {}}}, ingress={"a": keeper}) as broker:

        def work(number: int) -> None:
            for index in range(200):
                broker.put_nowait(f"t{number}", index)

        await asyncio.gather(*[asyncio.to_thread(work, number) for number in range(4)])
        await broker.join()
        assert_settled((await broker.stop()).flow)
    for number in range(4):
        assert [body for _, _, key, body in keeper.got if key == f"t{number}"] == [str(index) for index in range(200)]


async def test_a_thread_wakes_a_loop_that_sleeps() -> None:
    keeper = Keeper()
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Telling(Keeper):
        async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            arrived.set()

    async with Broker({"a": {"default": {}}}, ingress={"a": Telling()}) as broker:
        thread = threading.Thread(target=broker.put_nowait, args=("k", 1))
        loop.call_later(3600, keeper.got.clear)  # nothing else would wake it
        thread.start()
        async with asyncio.timeout(30):
            await arrived.wait()
        thread.join()


async def test_the_body_is_what_it_was_when_it_was_put() -> None:
    keeper = Keeper()
    body = {"n": 1}
    async with Broker({"a": {"default": {}}}, ingress={"a": keeper}) as broker:
        await broker.put("k", body)
        body["n"] = 2
        await broker.join()
    assert keeper.got[0][3] == '{"n":1}'


@pytest.mark.parametrize(
    ("name", "expected"),
    [("json", '{"a":1}'), ("msgpack", b"\x81\xa1a\x01"), ("str", "{'a': 1}"), (lambda b: b"own", b"own")],
)
async def test_the_serializer_that_is_named_is_the_one_that_is_used(name: Any, expected: Any) -> None:
    keeper = Keeper()
    async with Broker({"a": {"default": {}}}, ingress={"a": keeper}, serializer=name) as broker:
        await broker.put("k", {"a": 1})
        await broker.join()
    assert keeper.got[0][3] == expected


async def test_what_cannot_be_serialised_raises_where_it_is_put() -> None:
    broker = Broker({"a": {"default": {}}}, ingress={"a": Keeper()})
    with pytest.raises(InputError, match="cannot be said in json"):
        broker.put_nowait("k", object())
    with pytest.raises(ConfigurationError, match="did you mean 'json'"):
        Broker({}, serializer="jsn")


async def test_too_much_before_the_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("furcula.broker.broker.WAITING", 3)
    broker = Broker({"a": {"default": {}}}, ingress={"a": Keeper()})
    for number in range(3):
        broker.put_nowait("k", number)
    with pytest.raises(QueueFull):
        broker.put_nowait("k", 3)


# ------------------------------------------------------------------ sinks do not know of each other


@pytest.mark.parametrize("bad", [Failing, Hanging])
async def test_a_sink_that_fails_or_hangs_leaves_the_others_alone(bad: Any) -> None:
    keeper = Keeper()
    broker = Broker(
        {"good": {"default": {}}, "bad": {"default": {}}}, ingress={"good": keeper, "bad": bad()}, options=QUICK
    )
    async with broker:
        for number in range(3000):
            await broker.put("k", number)
        await until(lambda: len(keeper.got) == 3000)
        statistics = await broker.stop(timeout="0.1s")
    assert statistics.sinks["good/default"].delivered == 3000
    assert statistics.sinks["bad/default"].delivered == 0
    assert statistics.sinks["bad/default"].failed == 3000
    assert_settled(statistics.flow)


async def test_plain_functions_that_block_hold_up_nobody() -> None:
    gate = threading.Event()
    keeper = Keeper()

    class Blocking:
        def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            gate.wait(30)

    names = [f"b{number}" for number in range(40)]
    profiles = {name: {"default": {}} for name in [*names, "good", "plain"]}
    plain = Plain()
    broker = Broker(profiles, ingress={**{name: Blocking() for name in names}, "good": keeper, "plain": plain})
    async with broker:
        await broker.put("k", 1)
        await until(lambda: keeper.got and plain.got)
        gate.set()
        await broker.join()
    assert threading.get_ident() not in plain.threads


async def test_a_sink_tries_again_and_then_gives_up_and_tells_with_everything() -> None:
    failing, flaky = Failing(), Failing(times=1)
    told: list[tuple[Any, ...]] = []
    broker = Broker(
        {"bad": {"p": {}}, "flaky": {"p": {}}},
        ingress={"bad": failing, "flaky": flaky},
        options=QUICK,
        on_error=lambda *what: told.append(what),
    )
    async with broker:
        await broker.put("k", {"n": 1}, profile="p")
        await broker.join()
        statistics = await broker.stop()
    assert (failing.tried, flaky.tried) == (2, 2)
    ((error, plugin, profile, body),) = told
    assert isinstance(error, OSError)
    assert (str(error), plugin, profile, body) == ("the line is dead", "bad", "p", '{"n":1}')
    assert statistics.sinks["flaky/p"].delivered == 1
    assert_settled(statistics.flow)


async def test_an_error_callback_that_fails_is_contained(caplog: pytest.LogCaptureFixture) -> None:
    async def on_error(*what: Any) -> None:
        raise RuntimeError("and this too")

    broker = Broker({"bad": {"default": {}}}, ingress={"bad": Failing()}, options=QUICK, on_error=on_error)
    async with broker:
        for number in range(3):
            await broker.put("k", number)
        await broker.join()
        assert_settled((await broker.stop()).flow)
    assert caplog.text.count("the broker's on_error raised on a failure of bad/default") == 3


async def test_a_time_limit_is_a_failure_like_any_other() -> None:
    told: list[Any] = []
    options = Options(queue=10, timeout="10ms", overflow="fail")  # type: ignore[arg-type]
    broker = Broker(
        {"slow": {"default": {}}},
        ingress={"slow": Hanging()},
        options=options,
        on_error=lambda *what: told.append(what),
    )
    async with broker:
        await broker.put("k", 1)
        await until(lambda: told)
    assert isinstance(told[0][0], TimeoutError)


async def test_what_is_given_up_is_kept_as_a_dead_letter(tmp_path: Path) -> None:
    store = tmp_path / "dead.db"
    broker = Broker({"bad": {"default": {}}}, ingress={"bad": Failing()}, options=QUICK, dead_letter=str(store))
    async with broker:
        await broker.put("orders", {"n": 1})
        await broker.join()
    file = StoreFile(store, owns=False)
    (letter,) = file.letters()
    file.close()
    assert (letter.error, letter.message, letter.attempts) == ("OSError", "the line is dead", 2)


async def test_sinks_may_be_run_each_in_its_way() -> None:
    one, two = Failing(), Failing()
    broker = Broker(
        {"one": {"default": {}}, "two": {"default": {}, "other": {}}},
        ingress={"one": one, "two": two},
        options=QUICK,
        sink_options={"one/default": {"retry": {"attempts": 4, "delay": "1ms"}}, "two": Options()},
    )
    async with broker:
        await broker.put("k", 1)
        await broker.join()
    assert (one.tried, two.tried) == (4, 1)
    with pytest.raises(ConfigurationError, match="no sink 'on', did you mean 'one'"):
        Broker({"one": {"default": {}}}, ingress={"one": one}, sink_options={"on": {}})


# ------------------------------------------------------------------ plugins


async def test_hooks_are_called_once_for_each_profile() -> None:
    keeper = Keeper()
    async with Broker({"a": {"x": {}, "y": {}}}, ingress={"a": keeper}) as broker:
        for number in range(10):
            await broker.put("k", number, profile="x")
        await broker.join()
    assert sorted(keeper.opened) == sorted(keeper.closed) == ["x", "y"]


async def test_a_plugin_that_cannot_be_opened_is_opened_with_a_later_event(caplog: pytest.LogCaptureFixture) -> None:
    class Late(Keeper):
        tries = 0

        async def open(self, ctx: IngressContext) -> None:
            self.tries += 1
            if self.tries == 1:
                raise ConnectionRefusedError("nobody there")

    late = Late()
    async with Broker({"a": {"default": {}}}, ingress={"a": late}) as broker:
        await broker.put("k", 1)
        await broker.join()
    assert (late.tries, len(late.got)) == (2, 1)
    assert "a/default could not be opened, and will be with the next event: ConnectionRefusedError" in caplog.text


class NoPublish:
    pass


class TooFew:
    async def publish(self, ctx: Any) -> None: ...


class NotCallable:
    publish = 3


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (NoPublish(), "the ingress plugin bad has no function `publish`"),
        (TooFew(), "cannot be called as publish(ctx, routing_key, body)"),
        (NotCallable(), "has a `publish` that cannot be called"),
    ],
)
async def test_a_plugin_that_is_none_is_disabled_by_name_and_the_others_work(plugin: Any, says: str) -> None:
    keeper = Keeper()
    broker = Broker(
        {"bad": {"default": {}, "only": {}}, "good": {"default": {}}}, ingress={"bad": plugin, "good": keeper}
    )
    assert says in broker.disabled["bad/default"]
    async with broker:
        await broker.put("k", 1)
        await broker.put("k", 2, profile="only")
        await broker.join()
        assert broker.statistics().unmatched == 1
    assert len(keeper.got) == 1


def test_a_provider_that_nobody_offers_is_named() -> None:
    with pytest.raises(ConfigurationError, match="nobody offers the provider 'kafak', did you mean 'kafka'"):
        Broker({"kafak": {"default": {}}})


def test_a_plugin_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ImportError("no such library")

    monkeypatch.setattr("furcula.broker.offers.entry_points", lambda: [("mine", lambda: Keeper()), ("broken", broken)])
    broker = Broker({"mine": {"default": {}}, "broken": {"default": {}}})
    assert broker.disabled == {
        "broken/default": "the ingress plugin broken cannot be loaded: ImportError: no such library"
    }


async def test_a_sink_of_the_library_delivers(tmp_path: Path) -> None:
    path = tmp_path / "out.ndjson"
    async with Broker({"file": {"default": {"path": str(path)}, "wrong": {"pth": "x"}}}) as broker:
        assert "file/wrong" in broker.disabled
        await broker.put("k", {"n": 1})
        await broker.join()
    assert path.read_text() == '{"n":1}\n'


# ------------------------------------------------------------------ stopping


async def test_stopping_delivers_what_was_put_and_may_be_repeated() -> None:
    keeper = Keeper()
    broker = Broker({"a": {"default": {}}}, ingress={"a": keeper})
    await broker.start()
    for number in range(500):
        broker.put_nowait("k", number)
    first, second = await asyncio.gather(broker.stop(), broker.stop(drain=False))
    assert first == second == await broker.stop()
    assert len(keeper.got) == 500
    with pytest.raises(Stopped):
        broker.put_nowait("k", 1)
    with pytest.raises(Stopped):
        await broker.put("k", 1)


async def test_stopping_before_the_start_delivers_what_was_put() -> None:
    keeper = Keeper()
    broker = Broker({"a": {"default": {}}}, ingress={"a": keeper})
    broker.put_nowait("k", 1)
    await broker.stop()
    assert len(keeper.got) == 1


async def test_stopping_without_draining_counts_what_it_leaves() -> None:
    broker = Broker({"a": {"default": {}}}, ingress={"a": Hanging()}, options=QUICK)
    async with broker:
        for number in range(50):
            await broker.put("k", number)
        statistics = await broker.stop(drain=False)
    assert statistics.sinks["a/default"].failed == 50
    assert_settled(statistics.flow)


def letters_in(store: Path) -> list[Any]:
    file = StoreFile(store, owns=False)
    try:
        return file.letters()
    finally:
        file.close()


def bodies(letters: list[Any]) -> list[Any]:
    return [event.data for letter in letters for event in decode_events(letter.event)]


@pytest.mark.parametrize("drain", [True, False])
async def test_what_a_hanging_sink_holds_at_the_end_of_a_stop_is_kept_as_its_letters(
    tmp_path: Path, drain: bool
) -> None:
    store, keeper = tmp_path / "dead.db", Keeper()
    told: list[Any] = []
    broker = Broker(
        {"hang": {"default": {}}, "good": {"default": {}}},
        ingress={"hang": Hanging(), "good": keeper},
        dead_letter=str(store),
        on_error=lambda *what: told.append(what),
    )
    async with broker:
        for number in range(10):
            await broker.put("k", number)
        await until(lambda: len(keeper.got) == 10)
        statistics = await broker.stop(drain=drain, timeout="50ms")
    assert statistics.sinks["hang/default"].failed == 10
    assert_settled(statistics.flow)
    letters = letters_in(store)
    assert bodies(letters) == [str(number) for number in range(10)]
    assert {(letter.flow, letter.module, letter.error) for letter in letters} == {
        ("broker", "hang/default", "Abandoned")
    }
    assert told == []


async def test_what_a_stop_has_kept_is_put_to_its_sink_again_by_the_next_broker(tmp_path: Path) -> None:
    store, keeper = tmp_path / "dead.db", Keeper()

    def made(plugin: Any) -> Broker:
        return Broker({"bad": {"default": {}}}, ingress={"bad": plugin}, dead_letter=str(store))

    def replay() -> None:
        file = StoreFile(store, owns=False)
        file.transaction(lambda: file.replay([letter.id for letter in file.letters()]))
        file.close()

    async with made(Hanging()) as broker:
        for number in range(3):
            await broker.put("k", number)
        await broker.stop(drain=False)
    replay()
    hanging = made(Hanging())
    async with hanging:
        await until(lambda: hanging.statistics().sinks["bad/default"].waiting == 3)
        await hanging.stop(drain=False)
    assert len(letters_in(store)) == 3, "what is abandoned while it is put again is a letter still, and one"
    async with made(keeper):
        await until(lambda: not letters_in(store))
    assert [body for *_, body in keeper.got] == ["0", "1", "2"]


async def test_what_was_given_up_before_a_stop_and_waits_to_be_written_is_kept_once(tmp_path: Path) -> None:
    store = tmp_path / "dead.db"
    broker = Broker(
        {"bad": {"default": {}}},
        ingress={"bad": Failing()},
        options=Options(queue=1024, overflow="fail"),
        dead_letter=str(store),
    )
    async with broker:
        for number in range(500):
            await broker.put("k", number)
        statistics = await broker.stop(drain=False)
    assert sorted(map(int, bodies(letters_in(store)))) == list(range(500))
    assert_settled(statistics.flow)


async def test_what_a_broker_never_began_with_is_kept_for_each_of_its_sinks(tmp_path: Path) -> None:
    store = tmp_path / "dead.db"
    profiles = {"a": {"default": {}}, "b": {"default": {}, "one": {}}}
    broker = Broker(profiles, ingress={"a": Keeper(), "b": Keeper()}, dead_letter=str(store))
    broker.put_nowait("k", 1)
    broker.put_nowait("k", 2, profile="one")
    statistics = await broker.stop(drain=False)
    assert statistics.put == 2
    letters = letters_in(store)
    assert sorted(zip([letter.module for letter in letters], bodies(letters), strict=True)) == [
        ("a/default", "1"),
        ("b/default", "1"),
        ("b/one", "2"),
    ]
    assert {(letter.error, letter.attempts) for letter in letters} == {("Stopped", 0)}


async def test_a_store_that_cannot_be_written_is_told_and_keeps_nobody_from_stopping(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dead.db").write_text("this is no store")
    broker = Broker({"a": {"default": {}}}, ingress={"a": Keeper()}, dead_letter=str(tmp_path / "dead.db"))
    broker.put_nowait("k", 1)
    await broker.stop(drain=False)
    assert "1 event(s) are not kept as dead letters: " in caplog.text


# ------------------------------------------------------------------ internal queues


async def test_internal_queues_are_read_by_routing_key() -> None:
    async with Broker({"internal": {"default": {"size": 3}}}) as broker:
        reading = asyncio.ensure_future(broker.internal.get("b"))
        await broker.put("a", 1)
        await broker.put("b", 2)
        assert await broker.internal.get("a") == "1"
        assert await reading == "2"
        for number in range(5):
            await broker.put("a", number)
        await broker.join()
        assert [broker.internal.get_nowait("a") for _ in range(4)] == ["2", "3", "4", None]
        assert broker.internal.dropped == 2
        waiting = asyncio.ensure_future(broker.internal.get("c"))
        await asyncio.sleep(0)
    with pytest.raises(Stopped):
        await waiting


async def test_a_cancelled_reader_loses_nothing() -> None:
    async with Broker({"internal": {"default": {}}}) as broker:
        reading = asyncio.ensure_future(broker.internal.get("a"))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await broker.put("a", 1)
        assert await broker.internal.get("a") == "1"


# ------------------------------------------------------------------ logs


async def test_records_of_the_log_are_put_and_a_plugin_that_logs_starts_no_avalanche() -> None:
    logger = logging.getLogger("shop.orders")
    got: list[str] = []

    class Chatty:
        async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            logger.warning("delivering %s", body)
            got.append(body)

    class ChattyInThread:
        def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            logger.warning("delivering %s", body)
            got.append(body)

    broker = Broker(
        {"chatty": {"logs": {}}, "thread": {"logs": {}}}, ingress={"chatty": Chatty(), "thread": ChattyInThread()}
    )
    handler = BrokerHandler(broker, profile="logs")
    logger.addHandler(handler)
    try:
        logger.warning("before it runs")
        async with broker:
            logger.error("while it %s", "runs")
            await broker.join()
        logger.error("after it ran")
    finally:
        logger.removeHandler(handler)
    assert sorted(text.split('"message":')[1].split(",")[0] for text in got) == [
        '"before it runs"', '"before it runs"', '"while it runs"', '"while it runs"',
    ]  # fmt: skip
    assert handler.lost == 1


# ------------------------------------------------------------------ secrets


async def test_a_secret_stands_in_no_error_log_or_letter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Telling:
        async def open(self, ctx: IngressContext) -> None:
            raise OSError(f"cannot connect to {ctx.acct['url']} with {ctx.acct['password']}")

        async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None: ...

    told: list[Any] = []
    data = {"url": "amqp://me:hunter2hunter@host", "password": "swordfish"}
    broker = Broker(
        {"a": {"default": data}},
        ingress={"a": Telling()},
        options=QUICK,
        on_error=lambda *what: told.append(what),
        dead_letter=str(tmp_path / "dead.db"),
    )
    async with broker:
        await broker.put("k", 1)
        await broker.join()
    assert isinstance(told[0][0], DeliveryFailed)
    file = StoreFile(tmp_path / "dead.db", owns=False)
    (letter,) = file.letters()
    file.close()
    everything = caplog.text + str(told[0][0]) + letter.message + letter.traceback
    assert "cannot connect to amqp://me:********@host with ********" in everything
    assert "hunter2" not in everything
    assert "swordfish" not in everything


# ------------------------------------------------------------------ what plugins do badly


@pytest.mark.parametrize("where", ["before the start", "from a thread"])
async def test_a_flood_is_delivered_whole_to_a_sink_that_gets_on(where: str) -> None:
    class TurnEach(Keeper):
        async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            await asyncio.sleep(0)
            await super().publish(ctx, routing_key, body)

    keeper = TurnEach()
    broker = Broker({"a": {"default": {}}}, ingress={"a": keeper})

    def put() -> None:
        for number in range(5000):
            broker.put_nowait("k", number)

    if where == "before the start":
        put()
    async with broker:
        if where == "from a thread":
            await asyncio.to_thread(put)
        await broker.join()
        assert_settled((await broker.stop()).flow)
    assert [body for *_, body in keeper.got] == [str(number) for number in range(5000)]


async def test_put_may_be_awaited_on_another_threads_loop() -> None:
    keeper = Keeper()
    async with Broker({"a": {"default": {}}}, ingress={"a": keeper}) as broker:

        async def put() -> None:
            for number in range(100):
                await broker.put("k", number)

        await asyncio.to_thread(asyncio.run, put())
        await broker.join()
        assert_settled((await broker.stop()).flow)
    assert len(keeper.got) == 100


async def test_hooks_that_hang_keep_nobody_from_starting_or_stopping() -> None:
    gate = threading.Event()

    class HangsOpening(Hanging):
        async def open(self, ctx: IngressContext) -> None:
            await asyncio.Event().wait()

    class HangsClosing(Keeper):
        async def open(self, ctx: IngressContext) -> None: ...

        def close(self, ctx: IngressContext) -> None:
            gate.wait(60)

    keeper = Keeper()
    broker = Broker(
        {"o": {"default": {}}, "c": {"default": {}}, "good": {"default": {}}},
        ingress={"o": HangsOpening(), "c": HangsClosing(), "good": keeper},
        options=QUICK,
    )
    async with asyncio.timeout(30):
        await broker.start()
        await broker.put("k", 1)
        await until(lambda: keeper.got)
        assert_settled((await broker.stop(timeout="0.2s")).flow)
    gate.set()


async def test_an_error_callback_that_hangs_holds_up_nobody_and_the_letters_are_written(tmp_path: Path) -> None:
    keeper = Keeper()

    async def on_error(*what: Any) -> None:
        await asyncio.Event().wait()

    broker = Broker(
        {"bad": {"default": {}}, "good": {"default": {}}},
        ingress={"bad": Failing(), "good": keeper},
        options=Options(queue=1024, overflow="fail"),
        on_error=on_error,
        dead_letter=str(tmp_path / "dead.db"),
    )
    async with broker:
        for number in range(3000):
            await broker.put("k", number)
        await broker.join()
        assert len(keeper.got) == 3000
        await broker.stop(timeout="0.2s")
    file = StoreFile(tmp_path / "dead.db", owns=False)
    assert len(file.letters()) == 3000
    file.close()


async def test_what_tasks_of_a_plugin_and_the_error_callback_log_starts_no_avalanche() -> None:
    logger = logging.getLogger("shop.library")
    news: asyncio.Queue[str] = asyncio.Queue()

    class Library(Failing):
        async def open(self, ctx: IngressContext) -> None:
            self.task = asyncio.ensure_future(self.chat())

        async def chat(self) -> None:
            while True:
                logger.warning("from its own task: %s", await news.get())

        async def publish(self, ctx: IngressContext, routing_key: str, body: Any) -> None:
            news.put_nowait(str(body))
            await super().publish(ctx, routing_key, body)

        async def close(self, ctx: IngressContext) -> None:
            self.task.cancel()

    told: list[Any] = []

    def on_error(*what: Any) -> None:
        logger.error("given up")
        told.append(what)

    plugin = Library()
    broker = Broker({"lib": {"default": {}}}, ingress={"lib": plugin}, options=QUICK, on_error=on_error)
    handler = BrokerHandler(broker)
    logger.addHandler(handler)
    try:
        async with broker:
            logger.warning("one line")
            await until(lambda: told)
            await broker.join()
            assert broker.statistics().put == 1
    finally:
        logger.removeHandler(handler)


def test_a_bad_plugin_is_disabled_under_the_providers_that_it_names() -> None:
    class Mailer:
        ACCT = ["mail"]

        async def publish(self, ctx: Any) -> None: ...

    broker = Broker({"mail": {"default": {}}}, ingress=[Mailer])
    assert "cannot be called as publish" in broker.disabled["mail/default"]
    with pytest.raises(ConfigurationError, match="both a and b offer the provider 'mail'"):
        Broker({"mail": {"default": {}}}, ingress={"a": Mailer(), "b": Mailer()})


async def test_a_letter_is_put_again_to_the_sink_that_gave_up_on_it(tmp_path: Path) -> None:
    store = tmp_path / "dead.db"
    failing, keeper = Failing(times=2), Keeper()
    broker = Broker(
        {"bad": {"team-*": {}}, "good": {"team-*": {}}},
        ingress={"bad": failing, "good": keeper},
        options=QUICK,
        dead_letter=str(store),
    )
    async with broker:
        await broker.put("k", 1, profile="team-x")
        await broker.join()

        def letters() -> list[Any]:
            file = StoreFile(store, owns=False)
            try:
                return file.letters()
            finally:
                file.close()

        await until(letters)
        (letter,) = letters()
        assert (letter.flow, letter.module) == ("broker", "bad/team-")
        file = StoreFile(store, owns=False)
        file.transaction(lambda: file.replay([letter.id]))
        file.close()
        await until(lambda: not letters())
    assert (failing.tried, len(keeper.got)) == (3, 1)


async def test_a_cancelled_reader_hands_on_to_the_next_one() -> None:
    async with Broker({"internal": {"default": {}}}) as broker:
        first = asyncio.ensure_future(broker.internal.get("a"))
        second = asyncio.ensure_future(broker.internal.get("a"))
        await asyncio.sleep(0)
        await broker.internal.publish(IngressContext({}, "default", "internal"), "a", "body")
        first.cancel()
        async with asyncio.timeout(30):
            assert await second == "body"


async def test_join_does_not_wait_for_what_is_put_later() -> None:
    keeper = Keeper()
    async with Broker({"a": {"default": {}}}, ingress={"a": keeper}) as broker:
        going = True

        async def put() -> None:
            while going:
                await broker.put("k", 1)

        putting = asyncio.ensure_future(put())
        async with asyncio.timeout(30):
            for _ in range(5):
                await broker.join()
        going = False
        await putting
