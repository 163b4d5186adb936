"""The modules that the full circle's project brings: who may ask, and what is done for them."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any, ClassVar

from furcula.codecs.xml import parse, to_bytes, to_dict
from furcula.compat.compysition import Actor, Event
from furcula.compat.compysition.module import BasicAuth as Verifier
from furcula.statuses import UnprocessableContent

__all__ = ["BasicAuth", "SomeRequestExecutor"]

#: A real one would ask a directory; passwords stand in no program.
PASSWORDS = {"ada": "lovelace"}

PRICES = {"apple": 40, "pear": 55, "quince": 120}


class BasicAuth(Verifier):
    """Lets those in whom `PASSWORDS` knows."""

    async def verify(self, user: str, password: str) -> bool:
        return user in PASSWORDS and hmac.compare_digest(PASSWORDS[user].encode(), password.encode())


class SomeRequestExecutor(Actor):
    """Prices a request: `<request><item sku="apple">3</item></request>` becomes `<result total="120"/>`."""

    options: ClassVar[dict[str, Any]] = {"concurrency": 64}

    async def consume(self, event: Event, *args: Any, origin: str | None = None, **kwargs: Any) -> None:
        request = to_dict(parse(event.data))["request"]
        items = request["item"] if isinstance(request["item"], list) else [request["item"]]
        await asyncio.sleep(0.01)  # as if it asked a database; others are handled meanwhile
        total = sum(self.price_of(item["@sku"]) * int(item["#text"]) for item in items)
        event.data = to_bytes({"@customer": request["@customer"], "@total": total}, "result")
        self.send_event(event)

    def price_of(self, sku: str) -> int:
        if sku not in PRICES:
            raise UnprocessableContent(f"there is no {sku!r} in the shop")
        return PRICES[sku]
