"""A pipeline of `pipelines`, its graph unchanged: words go two ways, turned round and in capitals, and meet again.

python examples/compat/pipelines_words.py
"""

import asyncio
from typing import Any

from furcula.compat.pipelines import Plumber


async def words(self: Any, output_q: Any, text: str) -> None:
    for word in text.split():
        await output_q.put(word)


async def reverse(self: Any, elt: tuple[str]) -> str:
    await asyncio.sleep(0.01)
    return elt[0][::-1]


async def shout(self: Any, elt: tuple[str]) -> str:
    if elt[0] == "unspeakable":
        raise ValueError("not in this house")
    return elt[0].upper()


async def show(self: Any, elt: tuple[str, str], arrow: str = "->") -> str:
    return f"{elt[0]} {arrow} {elt[1]}{self.env_vars['mark']}"


PIPELINE = {
    "nodes": {
        "inp": {"coro": "words", "args": {"text": "one two unspeakable three"}},
        "n1": {"coro": "reverse", "properties": {"aggregate_inputs": False}},
        "n2": {"coro": "shout", "properties": {"aggregate_inputs": False}},
        "n3": {"coro": "show", "args": {"arrow": "=>"}, "properties": {"aggregate_inputs": True}},
    },
    "graph": {"inp": ("n1", "n2"), "n1": ("n3",), "n2": ("n3",), "n3": None},
}


async def main() -> None:
    plumber = Plumber(PIPELINE, coro_map=lambda name: globals()[name], env_vars={"mark": "!"})
    plumber.create_pipeline()
    for line in (await plumber.wait())["n3"]:
        print(line)


if __name__ == "__main__":
    asyncio.run(main())
