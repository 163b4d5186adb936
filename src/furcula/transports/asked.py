"""What is asked of a keeper, checked against what it promises, before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence

from furcula.errors import FurculaError, InputError
from furcula.transport import MAX_CHANNEL, Carries, Loss, Promises

__all__ = ["check_body", "check_carries", "check_channel", "check_subscription"]

_FORMS: dict[Carries, tuple[str, str]] = {
    "all": ("to every subscriber (publish, subscribe)", "memory://, ipc://, tcp://, inproc:// or nats://"),
    "one": ("to one worker (put, take)", "sqlite:///, memory://, ipc://, tcp://, inproc:// or nats://"),
}


def check_channel(channel: str) -> None:
    """Raises InputError if this is no name of a channel."""
    if not isinstance(channel, str):
        raise InputError(f"a channel is a str, not {type(channel).__name__}")
    if channel.isascii() and len(channel) <= MAX_CHANNEL:
        return
    try:
        size = len(channel.encode())
    except UnicodeEncodeError:
        raise InputError(f"the channel {channel!r} has half a surrogate pair, which UTF-8 cannot say") from None
    if size > MAX_CHANNEL:
        raise InputError(f"the channel {channel[:40]!r}... has {size} bytes; the limit is {MAX_CHANNEL}")


def check_body(body: bytes, promises: Promises) -> None:
    """Raises InputError if the body is larger than promised."""
    if len(body) > promises.max_body:
        raise InputError(f"a body of {len(body)} bytes is over the limit of {promises.max_body}")


def check_carries(form: Carries, promises: Promises, keeper: str) -> None:
    """Raises FurculaError if the keeper does not carry in this form, naming those that do."""
    if form not in promises.carries:
        what, others = _FORMS[form]
        raise FurculaError(f"{keeper} does not carry {what}; use {others}")


def check_subscription(
    channels: Sequence[str], replay: int, when_slow: Loss | None, promises: Promises, keeper: str
) -> Loss:
    """The policy that a subscription has.

    Raises:
        FurculaError: It asks for a policy or a replay that the keeper does not promise, or names no channel.
    """
    if not channels:
        raise InputError("name a channel to subscribe to; '' with prefix=True means all")
    for channel in channels:
        check_channel(channel)
    if replay < 0:
        raise InputError(f"replay is a number of bodies, not {replay}")
    if replay and not promises.replay:
        raise FurculaError(f"{keeper} does not keep what was published, so replay={replay} cannot be had here")
    if when_slow is None:
        return promises.loss[0]
    if when_slow not in promises.loss:
        raise FurculaError(f"{keeper} has when_slow={' or '.join(map(repr, promises.loss))}, not {when_slow!r}")
    return when_slow
