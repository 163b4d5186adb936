"""reactivex: Rx for Python."""

from __future__ import annotations

import reactivex
from reactivex import operators as op

from bench import work


def run(events: int) -> None:
    numbers = reactivex.from_iterable(range(events))
    numbers.pipe(op.map(work.add_to), op.map(work.doubled), op.map(work.less)).subscribe(lambda number: None)
