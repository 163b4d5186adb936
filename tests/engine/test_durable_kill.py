"""kill -9 at random points: nothing that was acknowledged is lost, and only what was in hand comes twice.

`make test` kills a few times; `make chaos` a hundred (FURCULA_KILLS).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from furcula.store import StoreFile

KILLS = int(os.environ.get("FURCULA_KILLS", "8"))
#: Events of one life of a store, and how often it is killed meanwhile.
EVENTS = 600
KILLS_PER_STORE = 4

CHILD = '''
import os, sys
from pathlib import Path
from furcula import Flow, Options, Source

folder, events = Path(sys.argv[1]), int(sys.argv[2])
acknowledged = os.open(folder / "acknowledged", os.O_CREAT | os.O_APPEND | os.O_RDWR)
delivered = os.open(folder / "delivered", os.O_CREAT | os.O_APPEND | os.O_WRONLY)


class Numbers(Source):
    """Gives again whatever was not acknowledged, as a broker does."""

    async def start(self, context):
        done = {int(line) for line in (folder / "acknowledged").read_text().split()}
        self.left = len(rest := [number for number in range(events) if number not in done])
        self.context = context
        for number in rest:
            context.admit([number], settled=lambda slot, number=number: self.settled(number, slot))
        if not rest:
            context.finished()

    def settled(self, number, slot):
        assert slot.fate == "delivered"
        os.write(acknowledged, b"%d\\n" % number)
        os.write(1, b".")
        self.left -= 1
        if not self.left:
            self.context.finished()


def deliver(event):
    os.write(delivered, b"%d\\n" % event.data)
    os.write(1, b".")


flow = Flow("kill")
options = Options.of(queue={"durable": str(folder / "queue.db"), "max_deliveries": 1000})
flow.use(Numbers, "numbers") >> flow.module(deliver, "deliver", options=options)
flow.run()
'''


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("seed", range((KILLS + KILLS_PER_STORE - 1) // KILLS_PER_STORE))
def test_nothing_acknowledged_is_lost_however_often_the_process_is_killed(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(EVENTS)]
    for _ in range(KILLS_PER_STORE):
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None
        wanted = draw.randrange(1, EVENTS)  # it says a dot for each acknowledgement and each delivery
        while wanted > 0 and (said := child.stdout.read1(wanted)):
            wanted -= len(said)
        child.kill()
        child.wait(30)
        child.stdout.close()
        acknowledged = set(numbers(tmp_path / "acknowledged"))
        assert acknowledged <= set(numbers(tmp_path / "delivered")) | stored(tmp_path / "queue.db")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
    delivered = numbers(tmp_path / "delivered")
    assert set(delivered) == set(range(EVENTS))
    assert stored(tmp_path / "queue.db") == set()


def stored(path: Path) -> set[int]:
    """The numbers in the queue, also those that the dead process had in hand."""
    from furcula.codecs import decode_events

    if not path.exists():
        return set()
    file = StoreFile(path, owns=False)
    try:
        rows = [row for name in file.channels() for row in file.peek(name)]
    finally:
        file.close()
    return {decode_events(body)[0].data for body in rows}
