"""Dead letters: kept with all that is known, shown, tried again in a running flow, thrown away."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from furcula import Director, Event, Flow
from furcula.cli.main import main
from furcula.errors import StartFailed
from furcula.store import Letter, StoreFile
from furcula.testing import assert_settled


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "dead.db"


def dlq(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(main, ["dlq", *map(str, arguments)], input=input)


def letters(store: Path) -> list[Letter]:
    file = StoreFile(store, owns=False)
    try:
        return file.letters()
    finally:
        file.close()


class Shop:
    """A flow whose module `price` fails as long as it is told to."""

    def __init__(self, store: Path, *, replays: bool = False):
        self.broken = True
        self.priced: list[Any] = []
        self.flow = Flow("shop", dead_letter="dead")
        inlet = self.flow.use("inlet", "inlet")
        check = self.flow.module(lambda event: event, "check")
        price = self.flow.module(self.price, "price")
        self.flow.use("dead_letter.write", "dead", store=str(store))
        inlet >> check >> price
        if replays:
            self.flow.use("dead_letter.replay", "again", store=str(store), module="price") >> price

    def price(self, event: Event[Any]) -> None:
        if self.broken:
            raise LookupError(f"no price for {event.data['sku']}")
        self.priced.append((event.id, event.data, [failure.module for failure in event.failures]))


async def test_a_letter_has_the_event_its_error_its_path_and_its_attempts(store: Path) -> None:
    shop = Shop(store)
    async with Director(shop.flow) as director:
        event = Event({"sku": "a7"}, {"tenant": "x"})
        slot = await director.put("inlet", event, settled=True)
        assert slot.fate == "delivered"
        assert_settled(await director.stop())
    (letter,) = letters(store)
    assert (letter.flow, letter.module, letter.error, letter.attempts) == ("shop", "price", "LookupError", 1)
    assert letter.path == ("inlet", "price")
    assert 'raise LookupError(f"no price' in letter.traceback
    shown = dlq("show", store, 1)
    assert shown.exit_code == 0
    for text in (event.id, '{"sku":"a7"}', '{"tenant":"x"}', "inlet -> price", "LookupError", "no price for a7"):
        assert text in shown.stdout
    told = json.loads(dlq("show", store, 1, "--json").stdout)
    assert (told["data"], told["attempts"], told["path"]) == ({"sku": "a7"}, 1, "inlet -> price")


async def test_letters_are_tried_again_by_the_running_flow_and_leave_once_they_are_settled(store: Path) -> None:
    shop = Shop(store, replays=True)
    async with Director(shop.flow) as director:
        for number in range(3):
            await director.put("inlet", {"sku": number}, settled=True)
        before = letters(store)
        said = await asyncio.to_thread(dlq, "replay", store, 1)  # it is still broken: a letter again
        assert "1 of shop/price waits for dead_letter.replay\n" in said.stderr
        async with asyncio.timeout(30):
            while [one.id for one in letters(store)] != [2, 3, 4]:
                await asyncio.sleep(0)
        assert letters(store)[-1].attempts == 2
        shop.broken = False
        assert (await asyncio.to_thread(dlq, "replay", store, "--all")).exit_code == 0
        async with asyncio.timeout(30):
            while letters(store):
                await asyncio.sleep(0)
        assert_settled(await director.stop())
    assert sorted(shop.priced, key=lambda one: one[1]["sku"]) == [
        (event_id(before[0]), {"sku": 0}, ["price", "price"]),
        (event_id(before[1]), {"sku": 1}, ["price"]),
        (event_id(before[2]), {"sku": 2}, ["price"]),
    ]


def event_id(letter: Letter) -> str:
    from furcula.codecs import decode_events

    return decode_events(letter.event)[0].id


async def test_a_letter_that_fails_where_nothing_catches_it_stays_and_is_charged(store: Path) -> None:
    shop = Shop(store)
    async with Director(shop.flow) as director:
        await director.put("inlet", {"sku": 1}, settled=True)
        await director.stop()
    flow = Flow("shop")
    flow.use("dead_letter.replay", "again", store=str(store)) >> flow.module(shop.price, "price")
    dlq("replay", store, "--all")
    async with Director(flow) as director:
        async with asyncio.timeout(30):
            while letters(store)[0].replay:
                await asyncio.sleep(0)
        await director.stop()
    (letter,) = letters(store)
    assert (letter.attempts, letter.replay) == (2, False)


async def test_a_replay_that_nobody_may_take_says_what_the_flow_needs_and_that_is_enough(store: Path) -> None:
    shop = Shop(store)
    async with Director(shop.flow) as director:
        await director.put("inlet", {"sku": 1}, settled=True)
        await director.stop()
    said = dlq("replay", store, "--all").stderr
    assert "will be taken" not in said
    line = re.search(r"modules: (\w+): (\{.*\})$", said, re.MULTILINE)
    route = re.search(r"routes: +(.* -> .*)$", said, re.MULTILINE)
    assert line is not None
    assert route is not None
    assert "(waits for dead_letter.replay)" in dlq("list", store).stdout
    given = yaml.safe_load(line[2])
    mended = Shop(store)
    mended.broken = False
    mended.flow.use(given["use"], line[1], **given["with"])
    mended.flow.connect(route[1])
    async with Director(mended.flow) as director:
        async with asyncio.timeout(30):
            while letters(store):
                await asyncio.sleep(0)
        assert_settled(await director.stop())
    assert [data for _, data, _ in mended.priced] == [{"sku": 1}]


def test_listing_discarding_and_what_is_not_there(store: Path) -> None:
    file = StoreFile(store)
    made = [
        Letter(float(n), "shop", "price" if n % 2 else "pay", ("s",), "E", f"why {n}", "", 1, b"x") for n in range(6)
    ]
    file.transaction(lambda: file.bury(made))
    file.close()
    listed = dlq("list", store, "--module", "price").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["2", "4", "6"]
    assert "shop/price  E: why 1  [1 attempt]" in listed
    assert "and more" in dlq("list", store, "--most", 2).stderr
    assert [json.loads(line)["id"] for line in dlq("list", store, "--json").stdout.splitlines()] == [1, 2, 3, 4, 5, 6]
    gone = dlq("discard", store, 1, 99)
    assert (gone.exit_code, "has no letter 99" in gone.stderr) == (1, True)
    assert dlq("discard", store, "--all", input="n\n").exit_code == 1
    assert len(letters(store)) == 5
    assert dlq("discard", store, "--all", "--module", "pay", "--yes").exit_code == 0
    assert dlq("discard", store, "--all", input="y\n").exit_code == 0
    nothing = dlq("list", store)
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr == f"there are no dead letters in {store}\n"
    assert dlq("list", store, "--json").stdout == ""
    assert dlq("show", store, 1).exit_code == 1
    assert dlq("discard", store).exit_code == 2
    assert dlq("list", store.with_name("other.db")).exit_code == 2


async def test_rejected_events_of_a_durable_queue_go_back_to_it(store: Path) -> None:
    tried: list[int] = []
    broken = True

    def price(event: Event[int]) -> None:
        tried.append(event.data)
        if broken:
            raise LookupError("no")

    def build() -> Flow:
        flow = Flow("shop")
        flow.source(lambda: [7], "numbers") >> flow.module(price, "price", queue={"durable": str(store)})
        return flow

    assert_settled(await build().run_async())
    (letter,) = letters(store)
    assert (letter.queue, letter.attempts) == ("shop/price", 1)
    broken = False
    said = dlq("replay", store, letter.id)
    assert "1 back to the durable queue shop/price" in said.stderr
    assert_settled(await build().run_async())
    assert tried == [7, 7, 7]
    assert letters(store) == []


async def test_a_store_that_is_none_keeps_the_flow_from_starting(store: Path) -> None:
    store.write_text("no store at all, I am afraid")
    with pytest.raises(StartFailed, match=r"dead .*could not start: .*dead.db is no store of furcula"):
        await Shop(store).flow.run_async()


def test_a_file_that_is_no_store_is_told_in_a_line(store: Path) -> None:
    store.write_text("no store at all, I am afraid")
    said = dlq("list", store)
    assert said.exit_code == 1
    assert "is no store of furcula" in said.stderr
    assert "Traceback" not in said.stderr
