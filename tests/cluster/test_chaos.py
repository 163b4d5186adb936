"""The promise while everything breaks: see `chaos.py`.

`make test` runs a short form; `make chaos-cluster` 200,000 events and sixty deeds, twenty minutes at most.
`FURCULA_CHAOS` says how many events, `FURCULA_CHAOS_SEED` and `FURCULA_CHAOS_DEEDS` what happens to them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.services import program

EVENTS = int(os.environ.get("FURCULA_CHAOS", "0"))
SEED = int(os.environ.get("FURCULA_CHAOS_SEED", "1"))
DEEDS = int(os.environ.get("FURCULA_CHAOS_DEEDS", "60"))


async def chaos(folder: Path, limit_s: float, **settings: Any) -> str:
    """In a process of its own: what the servers leave half-open is not for this one to collect."""
    program("nats-server", also=(Path(sys.executable).parent,))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cluster.chaos", str(folder), json.dumps({**settings, "limit_s": limit_s})),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    said, _ = await process.communicate()
    text = said.decode(errors="replace")
    print(text)
    assert process.returncode == 0, text
    return text


@pytest.mark.skipif(EVENTS > 0, reason="the long form runs instead")
@pytest.mark.timeout(240)
async def test_nothing_is_lost_and_keys_keep_their_order_while_workers_and_a_leader_die(tmp_path: Path) -> None:
    said = await chaos(
        tmp_path / "chaos",
        180,
        events=4000,
        seed=SEED,
        deeds=4,
        must=["kill a worker", "kill a leader", "freeze a worker", "cut off a worker"],
        window=600,
        batch=64,
        pace_s=0.1,
        lease=1.0,
    )
    assert "lost 0, out of order 0" in said
    assert ", 2: " in said, "the second version of the middle stage has handled nothing"


@pytest.mark.skipif(EVENTS == 0, reason="make chaos-cluster")
@pytest.mark.timeout(1800)
async def test_the_promise_holds_for_as_long_as_everything_breaks(tmp_path: Path) -> None:
    # Slow enough that events flow for as long as there is something to break: seven seconds a deed.
    pace_s = 7.0 * DEEDS / (EVENTS / 256)
    await chaos(tmp_path / "chaos", 1140, events=EVENTS, seed=SEED, deeds=DEEDS, pace_s=pace_s)
