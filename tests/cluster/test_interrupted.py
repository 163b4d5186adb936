"""Ctrl-C in a `furcula cluster drain` that waits: what it says, and what stays as it is."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from tests.cluster.test_command import CHAIN, Operator, operator, shop
from tests.transports.nats_server import NatsServer
from tests.workers.running import wait_until
from tests.workers.test_stage_processes import noted

__all__ = ["operator"]  # a fixture of theirs


def test_ctrl_c_ends_a_drain_that_waits_and_sources_stay_held_as_it_says(
    furcula: Any, tmp_path: Path, nats: NatsServer, flow_name: str, operator: Operator
) -> None:
    file = shop(tmp_path, CHAIN, name=flow_name)
    main = furcula("run", file, "--cluster", nats.url, "--stage", "main")
    wait_until(lambda: operator.status()["stages"][1]["lag"]["handled"] > 5, "events wait that nobody takes")

    drain = furcula("cluster", "drain", file, "--cluster", nats.url)
    wait_until(lambda: operator.status()["draining"], "it has told the sources")
    assert drain.process.poll() is None
    assert drain.end(signal.SIGINT) == 130
    assert drain.lines[-1] == f"Sources admit nothing until `furcula cluster resume {file}`."
    assert "Traceback" not in drain.text

    assert operator.status()["draining"]
    assert operator.status()["stages"][1]["lag"]["handled"] > 0
    others = [furcula("run", file, "--cluster", nats.url, "--stage", stage) for stage in ("work", "out")]
    # What it waited for was not dropped, and a second drain waits for the same to its end.
    operator("drain", file, "--within", "40s")
    found = noted(tmp_path)
    assert sorted(one["n"] for one in found) == list(range(len(found)))
    assert len(found) > 0
    operator("resume", file)
    wait_until(lambda: len(noted(tmp_path)) > len(found), "the source goes on")
    for run in (main, *others):
        assert run.end(signal.SIGTERM) == 0, run.text
