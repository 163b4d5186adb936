"""What limits the events a second of a stage: the smallest of a few rates, each by formula."""

from __future__ import annotations

import math

import msgspec

__all__ = ["AHEAD", "Costs", "Setting", "bounds", "filled", "rate"]

#: Events that a sender has under way before it waits (`furcula.cluster.sending.AHEAD`).
AHEAD = 4096


class Costs(msgspec.Struct, frozen=True):
    """The inputs. Seconds of processor time, where nothing else is said.

    Attributes:
        near_event, near_message: What the sender spends on an event, and on a message.
        server_event, server_message: What the server does.
        far_event, far_message: What a worker does, the engine's part of the handling included.
        hop_s: Seconds from one process to the next over the network, without anybody's work.
        timer_s: Seconds that a wait of a handler takes longer than it should.
    """

    near_event: float
    near_message: float
    server_event: float
    server_message: float
    far_event: float
    far_message: float
    hop_s: float
    timer_s: float = 0.0

    def stretched(self, by: float) -> Costs:
        """The same where other programs use the processors too, and each step takes `by` times as long."""
        names = ("near_event", "near_message", "server_event", "server_message", "far_event", "far_message")
        return msgspec.structs.replace(self, **{name: getattr(self, name) * by for name in names})


class Setting(msgspec.Struct, frozen=True):
    """What is asked.

    Attributes:
        workers: Of the far stage.
        wait_s: So long a handler waits.
        concurrency: Handlers that a worker has at once.
        partitions: Of the far module; 0: its order is not kept, and every worker takes what comes.
        batch: Events in a message, at most.
        lanes: Messages under way at once into each partition (1: its order is kept), or in all.
        cores: Processors that all of it shares; 0: each process has its own, as on machines of their own.
        hottest: The part of all events that has the most frequent key.
    """

    workers: int = 1
    wait_s: float = 0.005
    concurrency: int = 16
    partitions: int = 16
    batch: int = 512
    lanes: int = 1
    cores: int = 0
    hottest: float = 0.0


def bounds(costs: Costs, setting: Setting) -> dict[str, float]:
    """Events a second that each part of the way would let through, by its name, with full messages."""
    batch = setting.batch
    near = costs.near_event + costs.near_message / batch
    server = costs.server_event + costs.server_message / batch
    far = costs.far_event + costs.far_message / batch
    held = setting.wait_s + costs.timer_s
    busy = _busy(setting)
    # A message is stored before the next of its partition is sent.
    round_trip = (
        2 * costs.hop_s + costs.near_message + costs.server_message + batch * (costs.near_event + costs.server_event)
    )
    found = {
        "sender": _each(near),
        "server": _each(server),
        "publishing": max(1, setting.partitions) * setting.lanes * batch * _each(round_trip),
        "handlers": busy * setting.concurrency / (held + far) if held else math.inf,
        "workers' processors": busy * _each(far),
    }
    if setting.cores:
        found["the machine's processors"] = setting.cores * _each(near + server + far)
    if setting.hottest and setting.partitions:
        found["the hottest key"] = 1 / (setting.hottest * (held + far))
    return found


def filled(setting: Setting) -> Setting:
    """The same with messages as full as they become by themselves: what is under way is divided among the lanes."""
    lanes = max(1, setting.partitions) * setting.lanes
    return msgspec.structs.replace(setting, batch=max(1, min(setting.batch, AHEAD // lanes)))


def rate(costs: Costs, setting: Setting) -> tuple[float, str]:
    """Events a second, and what limits them."""
    found = bounds(costs, setting)
    name = min(found, key=lambda one: found[one])
    return found[name], name


def _each(seconds: float) -> float:
    """How many of what takes so long are done in a second."""
    return 1 / seconds if seconds else math.inf


def _busy(setting: Setting) -> float:
    """As many workers as would do the same with equal shares: all wait for the one with the most partitions."""
    if not setting.partitions:
        return setting.workers
    return setting.partitions / math.ceil(setting.partitions / setting.workers)
