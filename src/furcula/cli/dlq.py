"""`furcula dlq`: look at dead letters, try them again, or throw them away."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from furcula.cli.command import FAILED, REFUSED, Command, ending, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from furcula.store import Letter, StoreFile

__all__ = ["dlq", "line_of", "show_letter"]

_STORE = click.argument("store", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_IDS = click.argument("ids", nargs=-1, type=int, metavar="[ID]...")
_ALL = click.option("--all", "everything", is_flag=True, help="All of them (that --flow and --module leave).")
_FLOW = click.option("--flow", default=None, help="Only those of this flow.")
_MODULE = click.option("--module", default=None, help="Only those that failed in this module.")


@click.group()
def dlq() -> None:
    """Look at dead letters, try them again, or throw them away.

    STORE is the file of a durable queue or of dead_letter.write. The flow may be running meanwhile.
    """


@dlq.command("list", cls=Command)
@_STORE
@_FLOW
@_MODULE
@click.option("--most", default=100, show_default=True, help="So many at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_letters(store: Path, flow: str | None, module: str | None, most: int, as_json: bool) -> None:
    """List them, oldest first."""
    import msgspec

    def find(file: StoreFile) -> list[Letter]:
        return file.letters(flow=flow, module=module, most=most + 1)

    letters = _within(store, find)
    for letter in letters[:most]:
        if as_json:
            click.echo(msgspec.json.encode(_told(letter, whole=False)).decode())
        else:
            click.echo(line_of(letter))
    if not letters:
        say(f"there are no dead letters{' of this kind' if flow or module else ''} in {store}")
    elif len(letters) > most:
        say(f"... and more; --most {most * 10} shows them")


@dlq.command(cls=Command)
@_STORE
@click.argument("number", type=int, metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show(store: Path, number: int, as_json: bool) -> None:
    """Show one: the event, its error, path and attempts."""
    letter = _within(store, lambda file: file.letter(number))
    if letter is None:
        raise ending(f"{store} has no letter {number}", FAILED)
    show_letter(letter, as_json=as_json)


def show_letter(letter: Letter, *, as_json: bool) -> None:
    """Print all of a dead letter."""
    import msgspec

    told = _told(letter, whole=True)
    if as_json:
        click.echo(msgspec.json.encode(told).decode())
        return
    trace = told.pop("traceback")
    for name, value in told.items():
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        click.echo(f"{name:<9} {text}")
    if trace:
        click.echo(trace.rstrip())


def line_of(letter: Letter) -> str:
    """A dead letter in a line."""
    waits = "  (waits for dead_letter.replay)" if letter.replay else ""
    where = _place(letter.flow, letter.module)
    return (
        f"{letter.id:>6}  {_time(letter.at)}  {where}  {letter.error}: {_line(letter.message)}"
        f"  [{letter.attempts} attempt{'' if letter.attempts == 1 else 's'}]{waits}"
    )


def _place(flow: str, module: str) -> str:
    return "/".join(part for part in (flow, module) if part) or "no module"


@dlq.command(cls=Command)
@_STORE
@_IDS
@_ALL
@_FLOW
@_MODULE
def replay(store: Path, ids: tuple[int, ...], everything: bool, flow: str | None, module: str | None) -> None:
    """Try them again: those of a durable queue go back to its end, others wait for dead_letter.replay in their flow.

    A flow in which no dead_letter.replay names this store never takes the others.
    """

    def ask(file: StoreFile) -> tuple[Counter[str], Counter[tuple[str, str]], list[int]]:
        queued: Counter[str] = Counter()
        waiting: Counter[tuple[str, str]] = Counter()
        gone = []
        for number, fate, where in file.replay(_chosen(file, ids, everything, flow, module)):
            if fate == "queue":
                queued[where] += 1
            elif fate == "gone":
                gone.append(number)
            elif (letter := file.letter(number)) is not None:
                waiting[letter.flow, letter.module] += 1
        return queued, waiting, gone

    queued, waiting, gone = _within(store, ask, writing=True)
    for queue, count in queued.items():
        say(f"{count} back to the durable queue {queue}")
    for (its_flow, its_module), count in waiting.items():
        say(f"{count} of {_place(its_flow, its_module)} wait{'s' if count == 1 else ''} for dead_letter.replay")
    if waiting:
        say(_how_they_are_taken(store, next(module for _, module in waiting)))
    _missing(gone, store)


def _how_they_are_taken(store: Path, module: str) -> str:
    """A store does not know who reads it: say what the flow needs, whether it has that or not."""
    only = f", module: {module}" if module else ""
    return (
        "their flow takes them when it runs, if it has this source (a Broker has its own); else add it:\n"
        f"  modules: again: {{use: dead_letter.replay, with: {{store: {store}{only}}}}}\n"
        f"  routes:  again -> {module or 'where they shall enter again'}"
    )


@dlq.command(cls=Command)
@_STORE
@_IDS
@_ALL
@_FLOW
@_MODULE
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(
    store: Path, ids: tuple[int, ...], everything: bool, flow: str | None, module: str | None, yes: bool
) -> None:
    """Throw them away, for good."""
    chosen = _within(store, lambda file: _chosen(file, ids, everything, flow, module))
    if everything and not yes:
        click.confirm(f"Throw away {len(chosen)} letter(s) of {store}?", abort=True, err=True)
    there = _within(store, lambda file: [number for number in chosen if file.letter(number) is not None])
    gone = _within(store, lambda file: file.discard(there), writing=True)
    say(f"{gone} thrown away" + (f"; {len(there) - gone} are being replayed now" if gone < len(there) else ""))
    _missing([number for number in chosen if number not in there], store)


def _missing(numbers: list[int], store: Path) -> None:
    if numbers:
        raise ending(f"{store} has no letter {', '.join(map(str, numbers))}", FAILED)


def _chosen(file: StoreFile, ids: tuple[int, ...], everything: bool, flow: str | None, module: str | None) -> list[int]:
    if everything == bool(ids):
        raise ending("give the ids of letters, or --all", REFUSED)
    return list(ids) or [letter.id for letter in file.letters(flow=flow, module=module)]


def _within(store: Path, work: Callable[[StoreFile], Any], *, writing: bool = False) -> Any:
    from furcula.store import StoreFile

    file = StoreFile(store, owns=False, exists=True)
    try:
        return file.transaction(lambda: work(file)) if writing else work(file)
    finally:
        file.close()


def _told(letter: Letter, *, whole: bool) -> dict[str, Any]:
    from furcula.codecs import decode_events
    from furcula.errors import InputError

    told: dict[str, Any] = {
        "id": letter.id,
        "at": _time(letter.at),
        "flow": letter.flow,
        "module": letter.module,
        "path": " -> ".join(letter.path),
        "error": letter.error,
        "message": letter.message,
        "attempts": letter.attempts,
        "queue": letter.queue,
        "replay": letter.replay,
    }
    if whole:
        try:
            (event,) = decode_events(letter.event)
        except (InputError, ValueError):
            told["bytes"] = letter.event.hex()
        else:
            told |= {"event": event.id, "headers": event.headers, "data": event.data}
        told["traceback"] = letter.traceback
    return told


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _line(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first if len(first) <= 80 else first[:77] + "..."
