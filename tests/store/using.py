"""Putting and taking, each in a transaction of its own."""

from __future__ import annotations

from furcula.store import StoreFile


def put(file: StoreFile, *bodies: bytes, channel: str = "work") -> None:
    file.transaction(lambda: file.put(channel, bodies))


def take(file: StoreFile, most: int = 10, channel: str = "work") -> list[tuple[int, bytes]]:
    return [(one.attempts, one.body) for one in file.transaction(lambda: file.take(channel, most))]
