"""What outlives the process, in one SQLite file: work queues and dead letters."""

from furcula.store.file import Letter, StoreFile, Taken
from furcula.store.store import Store

__all__ = ["Letter", "Store", "StoreFile", "Taken"]
