"""The work: three small functions on each event, in the forms that the rows need, and the loops by hand that do it."""

from __future__ import annotations

from collections.abc import Iterator

from furcula import Event

# ------------------------------------------------------------------ over events


def add(event: Event[int]) -> Event[int]:
    event.data += 1
    return event


def double(event: Event[int]) -> Event[int]:
    event.data *= 2
    return event


def subtract(event: Event[int]) -> Event[int]:
    event.data -= 3
    return event


def loop_over_events(events: int) -> None:
    """What somebody would write who needs none of furcula's promises."""
    for number in range(events):
        event = Event(number)
        event = add(event)
        event = double(event)
        event = subtract(event)


# ------------------------------------------------------------------ over bare data


def add_to(number: int) -> int:
    return number + 1


def doubled(number: int) -> int:
    return number * 2


def less(number: int) -> int:
    return number - 3


def loop_over_data_in_events(events: int) -> None:
    for number in range(events):
        event = Event(number)
        event.data = less(doubled(add_to(event.data)))


def loop_over_data(events: int) -> None:
    """Without Events: what the peers are compared with, which have none."""
    for number in range(events):
        less(doubled(add_to(number)))


# ------------------------------------------------------------------ coroutines that do not wait


async def add_soon(event: Event[int]) -> Event[int]:
    event.data += 1
    return event


async def double_soon(event: Event[int]) -> Event[int]:
    event.data *= 2
    return event


async def subtract_soon(event: Event[int]) -> Event[int]:
    event.data -= 3
    return event


# ------------------------------------------------------------------ two consumers of a small dict

Order = dict[str, int]


def orders(events: int) -> Iterator[Order]:
    return ({"sku": number, "price": 2, "quantity": 3} for number in range(events))


def price(event: Event[Order]) -> Event[Order]:
    event.data["price"] += 1
    return event


def store(event: Event[Order]) -> Event[Order]:
    event.data["sku"] += 1
    return event


def bill(event: Event[Order]) -> Event[Order]:
    event.data["quantity"] += 1
    return event


def loop_over_orders(events: int) -> None:
    """Both consumers get the same dict: the loop by hand makes no copies."""
    for order in orders(events):
        event = Event(order)
        event = price(event)
        store(event)
        bill(event)
