"""streamz: pipelines for continuous data."""

from __future__ import annotations

from streamz import Stream

from bench import work


def run(events: int) -> None:
    source = Stream()
    source.map(work.add_to).map(work.doubled).map(work.less).sink(lambda number: None)
    for number in range(events):
        source.emit(number)
